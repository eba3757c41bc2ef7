"""Values of a volume between its voxels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import kernels
from .parallel import each

# Places that the CPU reads at a time.
_GROUP = 1 << 15
# Rows of an image of stacked planes: float32 places a voxel among so many to within 0.0005 voxels.
_MOST_ROWS = 1 << 12


def sample_at(volume: Tensor, grid: Tensor, mode: str = "bilinear", padding: str = "border") -> Tensor:
    """``volume`` (C, D, H, W) at ``grid`` (d, h, w, 3): places (x, y, z) from -1 to 1 between its outer voxel centres.

    ``mode``: bilinear (trilinear here) or nearest. ``padding``: border repeats the edge outside, zeros does not.

    `grid_sample` has vector code for the CPU in two dimensions only, where it is eight times as quick. So a volume's
    planes are stacked to one tall image, read at the two planes around each place, unless somebody asks for a gradient.
    """
    wanted = torch.is_grad_enabled() and (volume.requires_grad or grid.requires_grad)
    if volume.device.type != "cpu" or wanted or padding != "border" or volume.dtype != torch.float32:
        return F.grid_sample(volume[None], grid[None], mode, padding, align_corners=True)[0]
    if mode in ("bilinear", "nearest") and kernels.usable(volume, grid):
        return kernels.sample(volume, grid, mode == "nearest")
    volume, step = volume.contiguous(), max(1, _GROUP // (grid.shape[1] * grid.shape[2]))
    values = volume.new_empty((volume.shape[0], *grid.shape[:3]))

    def fill(first: int) -> None:
        here = slice(first, first + step)
        values[:, here] = _sample_planes(volume, grid[here], mode)

    each(fill, range(0, len(grid), step))
    return values


def _sample_planes(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    """`sample_at` for float32 on the CPU, with a border."""
    depth, height, width = volume.shape[1:]
    x, y, z = grid.unbind(-1)
    z = (z + 1).mul_((depth - 1) / 2).clamp_(0, depth - 1)
    low = z.round() if mode == "nearest" else z.floor().clamp_(max=max(depth - 2, 0))
    first, last = int(low.min()), int(low.max()) + (mode != "nearest" and depth > 1)
    rows = (last - first + 1) * height
    if rows > _MOST_ROWS:
        return F.grid_sample(volume[None], grid[None], mode, "border", align_corners=True)[0]
    # The planes that are needed are neighbours in memory: this is a view.
    image = volume[:, first : last + 1].reshape(1, -1, rows, width)
    above = z.sub_(low)
    row = (y + 1).mul_((height - 1) / 2).clamp_(0, height - 1).add_(low.sub_(first), alpha=height)
    scale = 2 / max(rows - 1, 1)
    places = torch.stack([x, row.mul_(scale).sub_(1)], -1).flatten(0, 1)[None]
    values = F.grid_sample(image, places, mode, "border", align_corners=True)
    if mode != "nearest" and depth > 1:
        places[..., 1].add_(height * scale)
        values.lerp_(F.grid_sample(image, places, mode, "border", align_corners=True), above.flatten(0, 1))
    return values.reshape(-1, *grid.shape[:3])
