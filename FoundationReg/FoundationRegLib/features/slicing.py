"""Which slices of an image a 2-D encoder sees, how they are turned and scaled, and where its tokens then lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.anatomy import PLANES, nearest_array_axes
from ..core.grid import Grid
from ..encoders.base import SliceEncoder
from ..errors import InputError
from .raster import triangles


def foreground_box(masks: Sequence[np.ndarray], grid: Grid, margin_mm: float = 5.0) -> tuple[slice, slice, slice]:
    """The smallest box (z, y, x) of voxels that holds every mask and a margin.

    Show it of both images: all of the encoder's pixels then go to the anatomy, at one common scale.
    """
    union = np.logical_or.reduce([np.asarray(mask, bool) for mask in masks])
    if not union.any():
        return tuple(slice(0, n) for n in grid.shape)
    box = []
    for axis in range(3):
        inside = np.flatnonzero(union.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(margin_mm / grid.spacing[axis])
        box.append(slice(max(0, int(inside[0]) - margin), min(grid.shape[axis], int(inside[-1]) + 1 + margin)))
    return tuple(box)


def plane_axes(grid: Grid, plane: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The array axes that run through the slices of ``plane``, down their rows and along their columns, and +1 or -1
    for each: whether the picture shows it in the array's order. Oblique grids take the nearest assignment.

    Pictures are shown as radiologists see them, because the networks know anatomy that way up.
    """
    if plane not in PLANES:
        raise InputError(f"The plane must be one of {', '.join(PLANES)}, not {plane!r}.")
    direction, order, picture = grid.direction, nearest_array_axes(grid), PLANES[plane]
    patient_axes = (picture.normal, picture.rows, picture.columns)
    axes = tuple(order[patient] for patient, _ in patient_axes)
    signs = tuple(int(np.sign(direction[patient, order[patient]])) * sign for patient, sign in patient_axes)
    return axes, signs


def slice_numbers(image: Tensor, mask: np.ndarray | None, grid: Grid, axis: int, gap_mm: float) -> list[int]:
    """Slices to encode: from the first to the last one with foreground, evenly spread, at most ``gap_mm`` apart."""
    foreground = torch.as_tensor(mask).bool() if mask is not None else image > 0
    if tuple(foreground.shape) != grid.shape:
        raise InputError(f"A mask of {tuple(foreground.shape)} voxels cannot lie on a grid of {grid.shape}.")
    filled = torch.nonzero(foreground.movedim(axis, 0).flatten(1).any(1)).flatten()
    first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, grid.shape[axis] - 1)
    steps = math.ceil((last - first) * grid.spacing[axis] / gap_mm - 1e-6)
    return sorted({round(n) for n in np.linspace(first, last, steps + 1)})


class SliceView:
    """How slices of ``grid`` are shown to a slice encoder, and where its tokens then lie.

    Pixels are square. The longer side of ``box`` (z, y, x; None is everything) becomes ``pixels``, or what suits the
    encoder for 0. ``shape``: rows and columns of a picture in pixels. ``axes``: as of `plane_axes`.
    """

    def __init__(self, grid: Grid, plane: str, encoder: SliceEncoder, pixels: int, box):
        self.grid = grid
        self.axes, self._signs = plane_axes(grid, plane)
        box = box or tuple(slice(0, n) for n in grid.shape)
        spacing = grid.spacing[list(self.axes[1:])]
        bounds = np.array([(box[a].start, box[a].stop) for a in self.axes[1:]], float)
        extent = (bounds[:, 1] - bounds[:, 0]) * spacing
        multiple = encoder.multiple
        longer = max(multiple, multiple * round((pixels or encoder.pixels) / multiple))
        self._stride = encoder.stride
        pixel_mm = extent.max() / longer
        self.shape = [max(1, math.ceil(e / pixel_mm / multiple - 1e-6)) * multiple for e in extent]
        # Size of a pixel in voxels of the grid, and the picture's first edge: padding is shared by both sides.
        self._pixel = pixel_mm / spacing
        self._edge = (bounds.sum(1) - np.array(self.shape) * self._pixel) / 2 - 0.5

    @property
    def tokens(self) -> tuple[int, int]:
        """Rows and columns of tokens that the encoder makes of a picture."""
        return self.shape[0] // self._stride, self.shape[1] // self._stride

    def resampling(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Matrices (pixels, voxels) that resample a slice along its rows and along its columns."""
        made = []
        for side in range(2):
            voxels = self.grid.shape[self.axes[1 + side]]
            centres = self._oriented(side, np.arange(self.shape[side]) + 0.5)
            made.append(triangles(voxels, centres, max(1.0, self._pixel[side])).to(device))
        return tuple(made)

    def positions(self, numbers: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where tokens of the slices ``numbers`` lie along the array's axes, ascending."""
        made: list = [None, None, None]
        made[self.axes[0]] = np.array(numbers, float)
        for side in range(2):
            along = self._oriented(side, (np.arange(self.tokens[side]) + 0.5) * self._stride)
            made[self.axes[1 + side]] = np.sort(along)
        return tuple(made)

    def to_array(self, values: Tensor) -> Tensor:
        """(slices, rows, columns, ...) as the pictures show them, in the order of the array's axes."""
        return values.flip(self._against()).movedim((0, 1, 2), self.axes)

    def to_pictures(self, values: Tensor) -> Tensor:
        """The inverse of `to_array`."""
        return values.movedim(self.axes, (0, 1, 2)).flip(self._against())

    def fractions(self, side: int, indices: np.ndarray) -> np.ndarray:
        """Where array ``indices`` lie in the picture, from 0 at its top (side 0) or left edge (side 1) to 1."""
        steps = (np.asarray(indices, float) - self._edge[side]) / self._pixel[side] / self.shape[side]
        return 1 - steps if self._signs[1 + side] < 0 else steps

    def _against(self) -> list[int]:
        """Sides of a picture that run against the array's axes."""
        return [1 + side for side in range(2) if self._signs[1 + side] < 0]

    def _oriented(self, side: int, steps: np.ndarray) -> np.ndarray:
        """Array indices of points ``steps`` pixels below the top (side 0) or right of the left edge (side 1)."""
        if self._signs[1 + side] < 0:
            steps = self.shape[side] - steps
        return self._edge[side] + steps * self._pixel[side]
