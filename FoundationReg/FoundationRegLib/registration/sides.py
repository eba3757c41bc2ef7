"""One image in 0..1, with its body: coarse for the linear stage, and in full detail. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.constants import METHOD
from ..images.conversion import grid_of, image_from_array
from ..images.morphology import grown
from ..images.preprocessing import Kind, foreground_mask, intensity_kind, scale_intensity
from ..images.resampling import resample_to_grid


@dataclass(frozen=True)
class Side:
    """One image as the linear stages see it, made by `prepare`. Images share one coarse isotropic grid.

    ``grey``: values in 0..1. ``body``: its foreground. ``region``: where similarity is measured. ``center`` of the
    image and ``center_of_mass`` of the body, LPS mm. ``chosen``: the region came from the user.
    """

    grey: sitk.Image
    body: sitk.Image
    region: sitk.Image
    center: np.ndarray
    center_of_mass: np.ndarray
    chosen: bool
    _blurred: dict[float, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def blurred(self, sigma: float) -> np.ndarray:
        """``grey`` (D, H, W) under a Gaussian of ``sigma`` voxels."""
        if sigma not in self._blurred:
            self._blurred[sigma] = ndimage.gaussian_filter(sitk.GetArrayViewFromImage(self.grey), sigma)
        return self._blurred[sigma]


def prepare(
    image: sitk.Image,
    mask: sitk.Image | None = None,
    kind: Kind | None = None,
    window: tuple[float, float] | None = None,
) -> Side:
    """The coarse version of ``image`` for `start_transform` and `align_linearly`.

    ``mask`` limits the similarity to its voxels above 0; without it the body with a margin is taken. ``kind`` and
    ``window`` are those of `preprocess.scale_intensity`.
    """
    grid = grid_of(image)
    spacing = max(float(grid.spacing.min()), float(np.cbrt(np.prod(grid.extent) / METHOD.linear_voxels)))
    coarse = grid.with_spacing(spacing)
    array = resample_to_grid(image, coarse)
    kind = kind or intensity_kind(image)
    body = foreground_mask(array, kind, coarse.spacing)
    region = grown(body, METHOD.linear_margin_mm, coarse.spacing)
    chosen = False
    if mask is not None:
        inside = resample_to_grid(mask, coarse, interpolator="nearest", background=0) > 0
        # A mask that is all but lost at this resolution cannot guide.
        chosen = inside.sum() >= 64
        region = inside if chosen else region
    middle = coarse.points(np.argwhere(region if chosen else body).mean(axis=0))
    grey, body, region = (
        image_from_array(a, coarse) for a in (scale_intensity(array, kind, window, body), body, region)
    )
    return Side(grey, body, region, grid.center, middle, bool(chosen))


@dataclass(frozen=True)
class Detail:
    """One image on its own voxels: ``scaled`` to 0..1, float32, and its ``body``, boolean (D, H, W)."""

    scaled: sitk.Image
    body: np.ndarray


def detail(image: sitk.Image, kind: Kind | None = None, window: tuple[float, float] | None = None) -> Detail:
    """``image`` as `preparation.prepare_pair` takes it to the working grid; ``kind`` and ``window`` as of `prepare`."""
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    kind = kind or intensity_kind(array)
    body = foreground_mask(array, kind, grid_of(image).spacing)
    return Detail(image_from_array(scale_intensity(array, kind, window, body), grid_of(image)), body)
