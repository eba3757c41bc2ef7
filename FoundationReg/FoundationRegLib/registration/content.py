"""What results are kept by: a hash of what images and transforms hold, and the settings that decide a stage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..images.conversion import grid_of
from ..settings import Settings

_GREY = ("fixed_intensity", "moving_intensity", "fixed_window", "moving_window")


def content_hash(*values: Any) -> str:
    """Hash of images, transforms and points."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, sitk.Image):
            for part in _image_parts(value):
                digest.update(part)
        elif isinstance(value, sitk.Transform):
            digest.update(_transform_content(value))
        elif isinstance(value, np.ndarray):
            digest.update(value.tobytes())
        elif value is not None:
            raise TypeError(f"{type(value).__name__} has no content")
        digest.update(b"|")
    return digest.hexdigest()


def _image_parts(image: sitk.Image) -> tuple[bytes, np.ndarray]:
    """Geometry and voxels; the second is a view on them, since they may take gigabytes."""
    geometry = repr((image.GetSize(), image.GetPixelIDValue())).encode() + grid_of(image).affine.tobytes()
    return geometry, np.ascontiguousarray(sitk.GetArrayViewFromImage(image)).reshape(-1).view(np.uint8)


def _transform_content(transform: sitk.Transform) -> bytes:
    """All that decides where ``transform`` takes points: of a field also where its nodes lie."""
    kind = transform.GetName()
    if kind == "CompositeTransform":
        composite = sitk.CompositeTransform(transform)
        parts = [composite.GetNthTransform(n) for n in range(composite.GetNumberOfTransforms())]
        return b"(" + b"|".join(_transform_content(part) for part in parts) + b")"
    if kind == "DisplacementFieldTransform":
        return b"".join(_image_parts(sitk.DisplacementFieldTransform(transform).GetDisplacementField()))
    return repr((kind, transform.GetParameters(), transform.GetFixedParameters())).encode()


def shown_by(settings: Settings) -> str:
    """The settings that decide how networks are shown the images."""
    return _values(settings, _GREY)


def aligned_by(settings: Settings) -> str:
    """The settings that decide the linear stage."""
    return _values(settings, (*_GREY, "start", "rigid", "affine", "seed", "anatomy"))


def prepared_by(settings: Settings) -> str:
    """The settings that decide how the pair looks."""
    return _values(settings, (*_GREY, "body_mask", "finest_spacing_mm", "search_spacing_mm", "levels"))


def _values(settings: Settings, names: Iterable[str]) -> str:
    return str([getattr(settings, name) for name in names])
