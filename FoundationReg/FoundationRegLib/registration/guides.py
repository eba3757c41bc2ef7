"""What the user says that matches, as terms of the refinement."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ..core.grid import Grid
from .pyramid import _Levels

# Pull of a landmark on its nodes; a voxel's features pull with about 1.
_SPRING = 200.0


def _pull_of(levels: _Levels, grid: Grid):
    """Springs from matched landmarks to the field, as the ``guide`` of `gauss_newton`; None without landmarks."""
    if levels.pair.landmarks is None:
        return None
    places, wanted = levels.pair.landmarks
    highest = np.array(grid.shape) - 1.0
    exact = np.clip(grid.indices(levels.pair.grid.points(places)), 0, highest)
    low = np.minimum(exact, highest - 1).astype(int)
    corners = []
    for corner in itertools.product((0, 1), repeat=3):
        share = np.prod(np.where(corner, exact - low, 1 - (exact - low)), axis=1)
        index = tuple(torch.as_tensor((low + corner)[:, n], device=levels.device) for n in range(3))
        corners.append((index, torch.as_tensor(share, dtype=torch.float32, device=levels.device)))
    target = torch.as_tensor(wanted.T / grid.spacing[0], dtype=torch.float32, device=levels.device)

    def guide(displacement: Tensor) -> tuple[Tensor, Tensor]:
        curvature = displacement.new_zeros((6, *grid.shape))
        pull = displacement.new_zeros((3, *grid.shape))
        missing = target - sum(displacement[(slice(None), *index)] * share for index, share in corners)
        for index, share in corners:
            for n in (0, 3, 5):
                curvature[n].index_put_(index, _SPRING * share, accumulate=True)
            for n in range(3):
                pull[n].index_put_(index, _SPRING * share * missing[n], accumulate=True)
        return curvature, pull

    return guide
