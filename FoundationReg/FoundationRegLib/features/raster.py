"""Feature vectors with a place in the body, and their values on any lattice.

A token is one feature vector of an encoder; it stands at the centre of its patch. Positions are kept exactly, so
that lattices never need to share a corner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.grid import Grid
from ..errors import InputError


@dataclass(frozen=True)
class FeatureRaster:
    """Feature vectors at the crossings of three sets of planes.

    ``values``: (z, y, x, C) along the axes of ``grid``'s array. ``positions``: for each of these axes the ascending
    continuous array indices on ``grid`` of the vectors; they need not be evenly spaced.
    """

    values: Tensor
    positions: tuple[np.ndarray, np.ndarray, np.ndarray]
    grid: Grid

    @property
    def channels(self) -> int:
        return self.values.shape[-1]


def lattice_positions(grid: Grid, base: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Continuous array indices on ``base`` of the voxel centres of ``grid``, along each axis.

    Raises `InputError` when the axes of the two are not parallel.
    """
    corner = base.indices(grid.points(np.zeros(3)))
    steps = base.indices(grid.points(np.eye(3))) - corner
    if np.abs(steps - np.diag(np.diag(steps))).max() * max(grid.shape) > 0.05:
        raise InputError("Features can only be placed on a grid whose axes are parallel to those of the images' grid.")
    return tuple(corner[a] + steps[a, a] * np.arange(grid.shape[a]) for a in range(3))


def resample_features(raster: FeatureRaster, grid: Grid, device: str | torch.device | None = None) -> Tensor:
    """Features (C, D, H, W), float32, at the voxel centres of ``grid`` by linear interpolation between the tokens.

    ``grid`` may have any spacing, size and origin, but its axes must be parallel to those of the raster's grid.
    """
    values = raster.values.to(device=device, dtype=torch.float32) if device else raster.values.float()
    targets = lattice_positions(grid, raster.grid)
    matrices = [_between(raster.positions[a], targets[a]).to(values.device) for a in range(3)]
    # The axis that shrinks most goes first, so that what lies between the steps stays small.
    result = values.permute(3, 0, 1, 2)
    for axis in sorted(range(3), key=lambda a: len(targets[a]) / len(raster.positions[a])):
        result = torch.tensordot(matrices[axis], result, dims=([1], [1 + axis])).movedim(0, 1 + axis)
    return result.contiguous()


def token_weights(mask: np.ndarray | Tensor, positions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Tensor:
    """The share (z, y, x), 0 to 1, of ``mask`` (D, H, W) around tokens at ``positions`` along its axes."""
    result = torch.as_tensor(mask).to(torch.float32)
    for axis, along in enumerate(positions):
        step = np.diff(along).mean() if len(along) > 1 else 1.0
        matrix = triangles(mask.shape[axis], along, max(1.0, float(step)))
        result = torch.tensordot(matrix, result, dims=([1], [axis])).movedim(0, axis)
    return result


def triangles(count: int, positions: np.ndarray, width: float = 1.0) -> Tensor:
    """Matrix (positions, count) that reads values at 0, 1, ... count - 1 at ``positions`` with a triangle of half
    width ``width``: linear interpolation for 1, anti-aliased shrinking above. Beyond the outer faces it reads zero."""
    weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(count)) / width)
    total = weights.sum(1, keepdims=True)
    outside = (positions < -0.5) | (positions > count - 0.5)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    weights[outside] = 0
    return torch.from_numpy(weights.astype(np.float32))


def _between(source: np.ndarray, target: np.ndarray) -> Tensor:
    """Matrix (target, source) of linear interpolation from ascending positions; beyond the ends the nearest value."""
    matrix = np.zeros((len(target), len(source)), np.float32)
    if len(source) == 1:
        matrix[:, 0] = 1
        return torch.from_numpy(matrix)
    left = np.clip(np.searchsorted(source, target, side="right") - 1, 0, len(source) - 2)
    share = np.clip((target - source[left]) / (source[left + 1] - source[left]), 0, 1)
    rows = np.arange(len(target))
    matrix[rows, left] = 1 - share
    matrix[rows, left + 1] = share
    return torch.from_numpy(matrix)
