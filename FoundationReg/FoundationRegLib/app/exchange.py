"""Arrays in files, as the worker and its parent hand them to each other."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ..core.files import replacing
from ..core.grid import Grid


def load_image(value):
    """A SimpleITK image from ``{"array": FILE.npy, "affine": 4x4}``; anything else (a path) is passed on."""
    if not isinstance(value, dict):
        return value
    from ..images.conversion import image_from_array

    array = np.load(value["array"], allow_pickle=False)
    return image_from_array(array, Grid(array.shape[:3], value["affine"]))


def load_transform(value):
    """A SimpleITK transform from ``{"matrix": 4x4}`` or a displacement field; anything else is passed on."""
    if not isinstance(value, dict):
        return value
    import SimpleITK as sitk

    from ..images.transforms import affine_transform

    if "matrix" in value:
        return affine_transform(value["matrix"])
    return sitk.DisplacementFieldTransform(sitk.Cast(load_image(value), sitk.sitkVectorFloat64))


def save_array(path: Path, array: np.ndarray, grid: Grid) -> dict:
    """Write ``array`` and describe it as `load_image` reads it. The file appears whole or not at all."""
    with replacing(path) as partial, open(partial, "wb") as stream:
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return {"array": str(path), "affine": grid.affine.tolist()}


def save_image(path: Path, image) -> dict:
    """Write a SimpleITK image as `save_array` does."""
    import SimpleITK as sitk

    from ..images.conversion import grid_of

    array = sitk.GetArrayViewFromImage(image)
    return save_array(path, array.astype(np.float32) if array.dtype == np.float64 else array, grid_of(image))


def save_pair(folder: Path, name: str, images) -> dict:
    """Write a fixed and a moving SimpleITK image, by side."""
    return {
        side: save_image(folder / f"{name}-{side}.npy", image)
        for side, image in zip(("fixed", "moving"), images, strict=True)
    }


def save_regions(regions, folder: Path) -> dict:
    """Write the believed sides of a `registration.regions.RegionPair`: labels, with the names of 1, 2, ..."""
    answer = {"network": regions.network, "names": list(regions.fixed.names)}
    for side in ("fixed", "moving"):
        found = getattr(regions, side)
        if not found.rejection:
            answer[side] = save_image(folder / f"regions-{side}.npy", found.labels)
    return answer


def save_found(result, folder: Path, volume: dict | None = None) -> dict:
    """Write what a `registration.Registration` holds before it is measured, and say where it is.

    ``volume``: how the moving image is warped; None where it is not wanted.
    """
    from ..images.transforms import affine_matrix
    from ..numerics.fields import folded_percent

    answer = {
        "transform": save_image(folder / "transform.npy", result.transform.GetDisplacementField()),
        "record": result.record,
        "loss": result.loss,
        "warnings": list(result.warnings),
        "features": {},
        "kept": result.workspace is not None,
    }
    if not result.record["settings"].get("deformable", True) and result.linear.IsLinear():
        answer["matrix"] = affine_matrix(result.linear).tolist()
    if result.workspace is not None:
        found = result.workspace.found
        answer["folded_percent"] = folded_percent(found.displacement, found.grid.spacing)
    moved = warped(result, volume) if volume is not None else None
    for name, image in (("warped", moved), ("warped_labels", result.warped_labels)):
        if image is not None:
            answer[name] = save_image(folder / f"{name}.npy", image)
    if result.box_masks is not None:
        answer["box_masks"] = save_pair(folder, "box-mask", result.box_masks)
    if result.regions is not None:
        answer["regions"] = save_regions(result.regions, folder)
    if result.uncertainty is not None:
        answer["uncertainty"] = save_image(folder / "uncertainty.npy", result.uncertainty)
    for count, (encoder, pair) in enumerate(result.features.items()):
        answer["features"][encoder] = {
            side: save_array(folder / f"features-{count}-{side}.npy", array, result.feature_grid)
            for side, array in pair.items()
        }
    return answer


def save_measured(result) -> dict:
    """What measuring a `registration.Registration` adds to it."""
    return {"metrics": result.metrics, "quality": result.quality, "record": result.record}


def warped(result, options: dict):
    """The moving image through the transform of ``result`` on the fixed grid, as ``options`` say (`worker`)."""
    import SimpleITK as sitk

    from ..images.resampling import warp

    moving = result.moving
    if np.dtype(options.get("type") or "int16").kind == "f":
        moving = sitk.Cast(moving, sitk.sitkFloat32)
    kind, background = options.get("interpolation") or "linear", options.get("background")
    return warp(moving, result.transform, result.fixed, kind, background)


def save_correction(correction, folder: Path) -> dict:
    """Write the transform of a `interaction.correction.Correction`; each gets a file of its own."""
    path = folder / f"correction-{time.monotonic_ns()}.npy"
    return {
        "transform": save_image(path, correction.transform.GetDisplacementField()),
        "residuals": list(correction.residuals),
        "conflicts": list(correction.conflicts),
        "remarks": list(correction.remarks),
        "regions": len(correction.regions),
    }
