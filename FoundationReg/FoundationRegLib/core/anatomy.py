"""The anatomical planes, as radiologists see them. Patient axes are LPS: 0 left, 1 posterior, 2 superior."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

from .grid import Grid

PlaneName = Literal["axial", "coronal", "sagittal"]
PLANE_NAMES: tuple[str, ...] = get_args(PlaneName)


@dataclass(frozen=True)
class PlaneAxes:
    """Patient axes of a picture, each with +1 or -1 for along or against it.

    ``normal`` runs through the slices, ``rows`` downwards, ``columns`` to the right. ``letters``: what lies at the top,
    bottom, left and right.
    """

    normal: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    letters: str


PLANES: dict[str, PlaneAxes] = {
    "axial": PlaneAxes((2, 1), (1, 1), (0, 1), "APRL"),
    "coronal": PlaneAxes((1, 1), (2, -1), (0, 1), "SIRL"),
    "sagittal": PlaneAxes((0, 1), (2, -1), (1, 1), "SIAP"),
}


def nearest_array_axes(grid: Grid) -> tuple[int, int, int]:
    """For each patient axis the array axis of ``grid`` that lies nearest to it, each array axis once."""
    direction = grid.direction
    return max(itertools.permutations(range(3)), key=lambda order: sum(abs(direction[n, order[n]]) for n in range(3)))
