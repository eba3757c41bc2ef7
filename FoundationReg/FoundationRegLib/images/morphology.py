"""Masks that grow and shrink by millimetres."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# Rows of voxels that a ball is at most put together from.
_ROWS = 250


def grown(mask: np.ndarray, distance: float, spacing) -> np.ndarray:
    """Voxels (D, H, W) at most ``distance`` mm from those of boolean ``mask``, with voxels of ``spacing`` mm (z, y, x).

    The same as a distance transform that is compared with ``distance``, and many times quicker where that is a few
    voxels: the ball is put together from rows.
    """
    if not mask.any():
        return mask
    spacing = np.asarray(spacing, float)
    reach = np.minimum(np.floor(distance / spacing + 1e-9).astype(int), np.array(mask.shape) - 1)
    if np.prod(2 * reach[:2] + 1) > _ROWS:
        return ndimage.distance_transform_edt(~mask, spacing) <= distance
    z, y, x = (np.square(np.arange(n + 1) * s) for n, s in zip(reach, spacing, strict=True))
    inside = np.sqrt(z[:, None, None] + y[:, None] + x) <= distance
    found, row = np.zeros_like(mask), mask
    for half in range(int(reach[2]) + 1):
        row = row if half == 0 else row | _moved(mask, 2, half) | _moved(mask, 2, -half)
        # Moves in z and y at which the ball is just so wide.
        narrower = inside[:, :, half + 1] if half < reach[2] else np.zeros_like(inside[:, :, 0])
        for step_z, step_y in np.argwhere(inside[:, :, half] & ~narrower).tolist():
            for a in {step_z, -step_z}:
                plane = _moved(row, 0, a)
                for b in {step_y, -step_y}:
                    found |= _moved(plane, 1, b)
    return found


def shrunk(mask: np.ndarray, distance: float, spacing) -> np.ndarray:
    """Voxels of boolean ``mask`` more than ``distance`` mm from its outside; beyond the array is inside."""
    return ~grown(~mask, distance, spacing)


def _moved(mask: np.ndarray, axis: int, step: int) -> np.ndarray:
    """``mask`` moved by ``step`` voxels along ``axis``, False where nothing comes from."""
    if step == 0:
        return mask
    out = np.zeros_like(mask)
    here, there = (
        slice(max(step, 0), mask.shape[axis] + min(step, 0)),
        slice(max(-step, 0), mask.shape[axis] - max(step, 0)),
    )
    before = (slice(None),) * axis
    out[(*before, here)] = mask[(*before, there)]
    return out
