"""Arrays and SimpleITK images: where voxels lie, and how values pass between the two.

Points are LPS millimetres (x, y, z); arrays are (z, y, x).
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..core.grid import Grid


def grid_of(image: sitk.Image) -> Grid:
    """Where the voxels of a 3-D ``image`` lie."""
    direction = np.array(image.GetDirection()).reshape(3, 3)[:, ::-1]
    return Grid.from_axes(image.GetSize()[::-1], image.GetSpacing()[::-1], image.GetOrigin(), direction)


def itk_geometry(grid: Grid) -> tuple[list, list, list, list]:
    """Size, origin, spacing and direction of ``grid`` in ITK's order."""
    return (
        list(grid.shape[::-1]),
        grid.origin.tolist(),
        grid.spacing[::-1].tolist(),
        grid.direction[:, ::-1].ravel().tolist(),
    )


def image_from_array(array: np.ndarray, grid: Grid) -> sitk.Image:
    """Image of ``array`` (D, H, W), or vector image of (D, H, W, C), on ``grid``. Boolean becomes uint8."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=array.ndim == 4)
    _, origin, spacing, direction = itk_geometry(grid)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def default_background(image: sitk.Image) -> float:
    """The grey value for places outside ``image``: its minimum, but not below air (scanners pad CT with -2000)."""
    return float(max(sitk.GetArrayViewFromImage(image).min(), -1024))
