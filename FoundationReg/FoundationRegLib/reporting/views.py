"""Slices of a registration as pictures: three anatomical planes, in millimetres, in the radiological convention.

A picture is float or uint8 RGB (rows, columns, 3). Rows and columns follow the image's own axes, turned and mirrored to
what a radiologist expects: the patient's right on the left side, anterior or superior on top, anterior left in
sagittal views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from ..core.anatomy import PLANES, nearest_array_axes
from ..core.grid import Grid
from ..images.conversion import default_background, grid_of
from ..images.resampling import resample_to_grid
from ..images.transforms import affine_matrix

LONGEST_SIDE_PIXELS = 420
# Complementary colours: where both images are equally bright, their sum is grey.
FIXED_COLOUR = np.array([0.10, 0.52, 0.95])
MOVING_COLOUR = 1.0 - FIXED_COLOUR


@dataclass(frozen=True)
class Plane:
    """One slice. ``grid`` has shape (1, rows, columns); ``letters``: orientation at top, bottom, left and right."""

    name: str
    grid: Grid
    letters: str

    @property
    def size(self) -> tuple[int, int]:
        return self.grid.shape[1:]

    def sample(self, image: sitk.Image, transform: sitk.Transform | None = None, nearest: bool = False) -> np.ndarray:
        """Values (rows, columns) of ``image`` at this slice's points taken through ``transform``."""
        kind = "nearest" if nearest else "linear"
        return resample_to_grid(image, self.grid, transform, kind, default_background(image), antialias=False)[0]

    def points(self) -> np.ndarray:
        """LPS mm (rows, columns, 3) of the pixels."""
        rows, columns = self.size
        return self.grid.points(np.stack(np.meshgrid([0], range(rows), range(columns), indexing="ij"), -1))[0]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Columns and rows (..., 2), continuous, of LPS ``points`` (..., 3) projected on the slice."""
        return self.grid.indices(points)[..., [2, 1]]


def anatomical_axes(grid: Grid) -> np.ndarray:
    """(3, 3): column n is the axis of ``grid``, with its sense, that is nearest to LPS axis n."""
    axes = grid.direction[:, list(nearest_array_axes(grid))]
    return axes * np.sign(np.diag(axes))


def center_of_interest(image: sitk.Image) -> np.ndarray:
    """LPS mm of the middle of what is bright in ``image``: the median place of voxels above Otsu's threshold."""
    step = [max(1, n // 64) for n in image.GetSize()]
    small = sitk.Cast(image[:: step[0], :: step[1], :: step[2]], sitk.sitkFloat32)
    bright = np.argwhere(sitk.GetArrayFromImage(sitk.OtsuThreshold(small, 0, 1)) > 0)
    return grid_of(small).points(np.median(bright, axis=0)) if len(bright) else grid_of(image).center


def planes_of(image: sitk.Image, center: np.ndarray | None = None) -> list[Plane]:
    """Axial, coronal and sagittal slice of ``image`` through ``center`` (LPS mm), all with the same square pixels."""
    grid = grid_of(image)
    center = center_of_interest(image) if center is None else np.asarray(center, float)
    axes, corners = anatomical_axes(grid), grid.corners()
    pixel = max(grid.extent) / LONGEST_SIDE_PIXELS
    places = corners @ axes
    low, high, middle = places.min(0), places.max(0), center @ axes
    planes = []
    for name, picture in PLANES.items():
        (row, row_sense), (column, column_sense) = picture.rows, picture.columns
        start = middle.copy()
        for axis, sense in ((row, row_sense), (column, column_sense)):
            start[axis] = low[axis] + pixel / 2 if sense > 0 else high[axis] - pixel / 2
        through = 3 - row - column
        direction = np.stack([axes[:, through], axes[:, row] * row_sense, axes[:, column] * column_sense], axis=1)
        shape = (1, *(max(1, round((high[axis] - low[axis]) / pixel)) for axis in (row, column)))
        planes.append(Plane(name, Grid.from_axes(shape, [pixel] * 3, axes @ start, direction), picture.letters))
    return planes


def grey_window(image: sitk.Image) -> tuple[float, float]:
    """Grey values to show as black and as white: robust percentiles of ``image`` without its background."""
    values = sitk.GetArrayViewFromImage(image)[::2, ::2, ::2]
    values = values[np.isfinite(values)]
    inside = values[values > values.min()]
    low, high = np.percentile(inside if inside.size else values, [0.5, 99.7])
    return float(min(low, values.min() if low > 0 else low)), float(high if high > low else low + 1)


def grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """``values`` scaled to 0..1."""
    return np.clip((np.nan_to_num(values, nan=window[0]) - window[0]) / (window[1] - window[0]), 0, 1)


def rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


def composite(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Blue ``fixed`` plus orange ``moving`` (both 0..1): grey where they agree."""
    return fixed[..., None] * FIXED_COLOUR + moving[..., None] * MOVING_COLOUR


def checkerboard(fixed: np.ndarray, moving: np.ndarray, pixels: int) -> np.ndarray:
    """Squares of ``pixels`` from both images in turn, with a faint tint so that one knows which is which."""
    row, column = np.indices(fixed.shape)
    first = ((row // pixels + column // pixels) % 2 == 0)[..., None]
    tint = 0.16
    one, other = (rgb(p) * (1 + tint * (c - 0.5)) for p, c in ((fixed, FIXED_COLOUR), (moving, MOVING_COLOUR)))
    return np.where(first, one, other)


def residual_points(plane: Plane, transform: sitk.DisplacementFieldTransform, linear: sitk.Transform) -> np.ndarray:
    """Where the deformation alone takes the slice's pixels: LPS mm (rows, columns, 3), the linear part undone."""
    field = transform.GetDisplacementField()
    vectors = [sitk.VectorIndexSelectionCast(field, n) for n in range(3)]
    moved = plane.points() + np.stack([plane.sample(vector) for vector in vectors], axis=-1)
    return undo_linear(moved, linear)


def undo_linear(points: np.ndarray, linear: sitk.Transform) -> np.ndarray:
    """LPS ``points`` (..., 3) taken back through ``linear``; as they are when it is not linear."""
    if not linear.IsLinear():
        return points
    back = np.linalg.inv(affine_matrix(linear))
    return points @ back[:3, :3].T + back[:3, 3]
