"""How a displacement field stretches an image, without a volume of determinants."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..core.grid import Grid
from ..native import kernels


def stretch(field: np.ndarray, nodes: Grid, voxels: Grid) -> tuple[float, float] | None:
    """Share (0 to 1) of the ``voxels`` at which the determinant of the Jacobian is not positive, and the standard
    deviation of its logarithm; without those at the faces of the grid.

    ``field``: (D, H, W, 3), LPS mm (x, y, z), on ``nodes``, and linear in between; differences are central ones between
    the neighbours of each voxel. None where the compiled kernels cannot do it: there are none, the axes of the grids
    are not parallel, or ``nodes`` do not reach all voxels.
    """
    index = np.linalg.inv(nodes.affine) @ voxels.affine
    first, step = index[:3, 3], np.diag(index)[:3]
    last = np.array(voxels.shape) - 1
    skewed = np.abs(index[:3, :3] - np.diag(step)).max() * last.max() > 1e-3
    beyond = first.min() < -1e-3 or (first + step * last > np.array(nodes.shape) - 1 + 1e-3).any() or step.min() <= 0
    values = torch.from_numpy(np.ascontiguousarray(np.moveaxis(field, -1, 0), dtype=np.float32))
    if skewed or beyond or min(voxels.shape) < 3 or not kernels.usable(values):
        return None
    axes, spacing = voxels.direction[:, ::-1], voxels.spacing[::-1]
    sums = kernels.jacobian_sums(values, first, step, voxels.shape, axes, spacing)
    count = math.prod(n - 2 for n in voxels.shape)
    folded, mean, square = (sums.sum(0) / count).tolist()
    return folded, math.sqrt(max(square - mean**2, 0.0))
