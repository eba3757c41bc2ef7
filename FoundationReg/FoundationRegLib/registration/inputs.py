"""What a user hands over, read and checked before any long work starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from ..evaluation.metrics import common_labels
from ..images.conversion import grid_of
from ..images.landmarks import read_points
from ..images.reading import read_image, read_transform, repair
from ..images.resampling import resample_to_grid
from ..images.transform_headers import require_invertible

ImageLike = str | Path | sitk.Image
PointsLike = str | Path | np.ndarray


@dataclass
class Inputs:
    """Both images and what comes with them; ``warnings`` says what was repaired.

    ``*_box``: the user's box as of `boxes.checked_box`. ``*_box_mask``: what it holds, as a person drew it or as
    `boxes.segment_boxes` segmented it.
    """

    fixed: sitk.Image
    moving: sitk.Image
    initial: sitk.Transform | None = None
    fixed_mask: sitk.Image | None = None
    moving_mask: sitk.Image | None = None
    exclude_fixed: sitk.Image | None = None
    exclude_moving: sitk.Image | None = None
    fixed_labels: sitk.Image | None = None
    moving_labels: sitk.Image | None = None
    fixed_points: np.ndarray | None = None
    moving_points: np.ndarray | None = None
    fixed_box: np.ndarray | None = None
    moving_box: np.ndarray | None = None
    fixed_box_mask: sitk.Image | None = None
    moving_box_mask: sitk.Image | None = None
    warnings: list[str] = field(default_factory=list)

    def guidance(self) -> list:
        """All but the images and the initial transform: masks, labels and points."""
        return [value for name, value in vars(self).items() if name not in ("fixed", "moving", "initial", "warnings")]


def read_inputs(
    fixed: ImageLike,
    moving: ImageLike,
    *,
    initial_transform: str | Path | sitk.Transform | None = None,
    fixed_points: PointsLike | None = None,
    moving_points: PointsLike | None = None,
    **images: ImageLike | None,
) -> Inputs:
    """Read and check everything. ``images``: masks and labels by the names of `Inputs`. Raises `InputError`."""
    warnings: list[str] = []
    made = Inputs(_image(fixed, "fixed image", warnings), _image(moving, "moving image", warnings), warnings=warnings)
    if initial_transform is not None:
        given = (
            initial_transform if isinstance(initial_transform, sitk.Transform) else read_transform(initial_transform)
        )
        if given.GetDimension() != 3:
            raise InputError(f"The initial transform is for {given.GetDimension()}-D images; a 3-D one is needed.")
        require_invertible(given, "The initial transform")
        made.initial = given
    for name, source in images.items():
        if source is None:
            continue
        role = name.replace("_", " ")
        image = read_image(source, role, warnings)
        side = made.fixed if "fixed" in name else made.moving
        if name.endswith("labels"):
            setattr(made, name, image)
            continue
        setattr(made, name, _mask(image, side, role, warnings))
    if (made.fixed_labels is None) != (made.moving_labels is None):
        raise InputError("Labels are needed for both images, or for none.")
    if made.fixed_labels is not None:
        common_labels(made.fixed_labels, made.moving_labels)
    made.fixed_points, made.moving_points = _points(fixed_points, "fixed"), _points(moving_points, "moving")
    if (made.fixed_points is None) != (made.moving_points is None):
        raise InputError("Points are needed for both images, or for none.")
    if made.fixed_points is not None and len(made.fixed_points) != len(made.moving_points):
        raise InputError(
            f"There are {len(made.fixed_points)} fixed and {len(made.moving_points)} moving points; "
            "row n of both must be the same anatomy."
        )
    return made


def _image(source: ImageLike, role: str, warnings: list[str]) -> sitk.Image:
    image, repaired = repair(read_image(source, role, warnings), role)
    warnings += repaired
    return image


def _mask(mask: sitk.Image, image: sitk.Image, role: str, warnings: list[str]) -> sitk.Image:
    """``mask`` on the grid of ``image``, where it must hold something."""
    if grid_of(mask) != grid_of(image):
        warnings.append(f"The {role} lies on another grid than its image and was resampled.")
    array = resample_to_grid(mask, grid_of(image), interpolator="nearest", background=0) > 0
    if not array.any():
        raise InputError(f"The {role} is empty where its image is.")
    result = sitk.GetImageFromArray(array.astype(np.uint8))
    result.CopyInformation(image)
    return result


def _points(source: PointsLike | None, side: str) -> np.ndarray | None:
    if source is None:
        return None
    array = np.asarray(source, float) if not isinstance(source, str | Path) else read_points(source).array
    if array.ndim != 2 or array.shape[1] != 3 or not len(array) or not np.isfinite(array).all():
        raise InputError(f"The {side} points must be a table of x, y and z in mm with at least one row.")
    return array
