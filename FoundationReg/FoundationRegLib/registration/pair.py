"""The two images that the deformable stage compares, on one grid."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..core.grid import Grid


@dataclass(frozen=True, eq=False)
class Pair:
    """Both images, float32 (D, H, W) in 0..1, on one isotropic ``grid``, its shape a multiple of the coarsest factor.

    ``*_body``: what the encoders are shown. ``*_mask``: where similarity counts; both boolean (D, H, W). ``guides``:
    further channels (C, D, H, W) in 0..1 of fixed and moving that shall match, from segmentations. ``landmarks``:
    (n, 3) continuous array indices of fixed points and the displacement (n, 3) in mm along the axes that they need.
    ``seen``: boolean (D, H, W), what both images show, where one cuts the other short; None otherwise.
    """

    grid: Grid
    fixed: np.ndarray
    moving: np.ndarray
    fixed_body: np.ndarray
    moving_body: np.ndarray
    fixed_mask: np.ndarray
    moving_mask: np.ndarray
    guides: tuple[np.ndarray, np.ndarray] | None = None
    landmarks: tuple[np.ndarray, np.ndarray] | None = None
    seen: np.ndarray | None = None

    def key(self) -> str:
        """Hash of everything that the features and the search depend on."""
        seen = () if self.seen is None else (self.seen,)
        return self.encoder_key + _digest(self.fixed_mask, self.moving_mask, *(self.guides or ()), *seen)

    @cached_property
    def encoder_key(self) -> str:
        """Hash of everything that the encoders are shown."""
        return _digest(self.grid.affine, self.fixed, self.moving, self.fixed_body, self.moving_body)


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()
