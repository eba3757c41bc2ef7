"""Regions of interest as the worker takes them."""

from __future__ import annotations

import itertools

import numpy as np
import vtk
from slicer.i18n import tr as _

from ...errors import InputError
from . import nodes

TO_LPS = np.array([-1.0, -1.0, 1.0])
# Points along an edge of a region that is bent on its way to the volume.
_SAMPLES = 7
# A box that is turned against the volume by more holds clearly more than was drawn.
_TURNED_DEGREES = 5.0
_LEAST_VOXELS = 2  # as features.box_masks.LEAST_VOXELS


def box_of(region, volume) -> dict:
    """The corners (8, 3) of a markups ROI node, LPS mm in the local coordinates of ``volume``."""
    return {"corners": _points(region, volume, 2).tolist()}


def organ_box(region, volume) -> np.ndarray:
    """The corners (8, 3) of what a markups ROI node holds of ``volume``, LPS mm in the volume's local coordinates.

    The region may be turned and lie under transforms. Where these bend, its box along the volume's axes. Raises
    `InputError`, naming both nodes, for a region that is not placed, empty, outside of the volume, or too thin.
    """
    names = {"region": region.GetName(), "volume": volume.GetName()}
    size = region.GetSize()
    if not any(size):
        text = _("The box {region!r} is not drawn yet: place its two corners in the views.")
        raise InputError(text.format(**names))
    if min(size) <= 0:
        raise InputError(_("The box {region!r} is empty: drag its faces apart.").format(**names))
    corners, grid = _points(region, volume, 2), nodes.volume_grid(volume)
    if _bent(region, volume):
        places = grid.indices(_points(region, volume, _SAMPLES))
        corners = grid.points(np.array(list(itertools.product(*zip(places.min(0), places.max(0), strict=True)))))
    places = grid.indices(corners)
    low, high = np.maximum(places.min(0), -0.5), np.minimum(places.max(0), np.array(grid.shape) - 0.5)
    if (high <= low).any():
        text = _("The box {region!r} lies outside of the volume {volume!r}; draw it around an organ in that volume.")
        raise InputError(text.format(**names))
    if (high - low < _LEAST_VOXELS).any():
        text = _("The box {region!r} is thinner than two voxels within the volume {volume!r}; draw it larger.")
        raise InputError(text.format(**names))
    return corners


def turned(region, volume) -> str:
    """A sentence where the region's edges are turned against the volume's axes, so that more than it holds is taken;
    else empty."""
    if _bent(region, volume):
        return ""
    corners, direction = _points(region, volume, 2), nodes.volume_grid(volume).direction
    edges = corners[[4, 2, 1]] - corners[0]
    along = np.abs(edges / np.linalg.norm(edges, axis=1)[:, None] @ direction).max(1)
    if np.degrees(np.arccos(along.clip(0, 1))).max() < _TURNED_DEGREES:
        return ""
    text = _("The box {region!r} is turned against {volume!r}, so the box around it along the volume's axes was taken.")
    return text.format(region=region.GetName(), volume=volume.GetName())


def _together(region, volume) -> bool:
    return region.GetParentTransformNode() is volume.GetParentTransformNode()


def _bent(region, volume) -> bool:
    """Whether the region is no box any more in the coordinates of ``volume``."""
    return not _together(region, volume) and nodes.linear_matrix(_way(volume)) is None


def _way(volume) -> vtk.vtkGeneralTransform:
    """From the scene to the coordinates of ``volume``."""
    return nodes.chain_between(None, volume.GetParentTransformNode())


def _points(region, volume, count: int) -> np.ndarray:
    """``count`` points along each edge of the region (count^3, 3), the first edge counting slowest, LPS mm.

    Where both lie under one transform, in its coordinates. Else as it is drawn, which is a box in the scene whatever it
    lies under (vtkMRMLMarkupsROINode.cxx, GenerateOrthogonalMatrix).
    """
    half = np.array(region.GetSize()) / 2
    near = _together(region, volume)
    matrix: vtk.vtkMatrix4x4 = region.GetObjectToNodeMatrix() if near else region.GetObjectToWorldMatrix()
    steps = np.linspace(-1.0, 1.0, count)
    places = np.array([matrix.MultiplyPoint((*(half * at), 1.0))[:3] for at in itertools.product(steps, repeat=3)])
    return (places if near else nodes.transform_points(_way(volume), places)) * TO_LPS
