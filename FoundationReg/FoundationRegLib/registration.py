"""The one path from two images to a transform: `register`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .grid import Grid
from .progress import Progress
from .settings import Settings

ImageLike = str | Path | sitk.Image
PointsLike = str | Path | np.ndarray


@dataclass
class Registration:
    """What a registration found. Images are SimpleITK images in the fixed geometry; points are LPS mm.

    ``transform`` maps fixed points to moving points: one displacement field over the whole fixed image, with every
    stage and the initial transform composed. ``linear`` is the part before the deformation.
    ``metrics``: ``{"before": {...}, "after": {...}}`` with the keys of `metrics.evaluate`.
    ``record``: settings, versions, weights' hashes, seed, device, seconds per stage, warnings.
    ``loss``: loss per iteration by refinement level. ``features``: encoder id -> {"fixed", "moving"} -> uint8 RGB
    (z, y, x, 3) on ``feature_grid``: the first three principal components. ``uncertainty``: error estimate in mm.
    ``quality``: one plain sentence for the user.
    """

    fixed: sitk.Image
    moving: sitk.Image
    transform: sitk.DisplacementFieldTransform
    linear: sitk.Transform
    warped: sitk.Image
    metrics: dict[str, dict[str, float]]
    record: dict[str, Any]
    quality: str
    loss: dict[str, list[float]] = field(default_factory=dict)
    features: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    feature_grid: Grid | None = None
    uncertainty: sitk.Image | None = None
    warped_labels: sitk.Image | None = None
    warnings: list[str] = field(default_factory=list)

    def inverse(self) -> sitk.DisplacementFieldTransform:
        """The numerical inverse: maps moving points to fixed points, over the whole moving image."""
        raise NotImplementedError

    def jacobian(self) -> sitk.Image:
        """Determinant of the Jacobian of ``transform`` at each fixed voxel, float32; at most 0 where the field folds."""
        raise NotImplementedError


class Cache:
    """Keeps what the stages made, by the hash of what went into them, so that a second run repeats only what changed.

    Holds the newest ``limit`` entries. Pass the same cache to several `register` calls in one process.
    """

    def __init__(self, limit: int = 12):
        self.limit = limit
        self._entries: dict[str, Any] = {}

    def get(self, key: str, make):
        """The entry of ``key``, made by calling ``make()`` when it is not there."""
        if key in self._entries:
            self._entries[key] = self._entries.pop(key)
        else:
            self._entries[key] = make()
            while len(self._entries) > self.limit:
                self._entries.pop(next(iter(self._entries)))
        return self._entries[key]

    def clear(self) -> None:
        self._entries.clear()


def register(
    fixed: ImageLike,
    moving: ImageLike,
    settings: Settings | None = None,
    *,
    initial_transform: str | Path | sitk.Transform | None = None,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    exclude_fixed: ImageLike | None = None,
    exclude_moving: ImageLike | None = None,
    fixed_labels: ImageLike | None = None,
    moving_labels: ImageLike | None = None,
    fixed_points: PointsLike | None = None,
    moving_points: PointsLike | None = None,
    guide_with_labels: bool = False,
    guide_with_points: bool = False,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Registration:
    """Find the transform that takes fixed points to moving points.

    Images are paths or SimpleITK images. Labels and points measure the result; they guide it only when asked.
    ``exclude_*`` masks keep a lesion out of the similarity. Raises `InputError` for input that cannot be used before
    any long work starts, `Cancelled` when ``progress`` says so.
    """
    raise NotImplementedError
