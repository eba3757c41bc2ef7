"""Regions that an anatomy network named, as segmentation nodes that belong to a result."""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

from ...core.grid import Grid
from . import extras, nodes, results, segmentations

KINDS = ("regions.fixed", "regions.moving", "regions.after")


def set_regions(owner, regions: dict | None, fixed, moving, field: tuple[np.ndarray, Grid]) -> dict:
    """Segmentations of what ``regions`` names in the fixed and the moving volume, and in the moving one as registered:
    by ``fixed``, ``moving`` and ``after``. Those of an earlier run are filled again, or removed where there are none.

    ``regions``: ``network``, ``names`` (of the labels 1, 2, ...) and for each believed side its labels (z, y, x) with
    their `Grid`. ``field``: the result as displacement in LPS mm, for a result without a transform node.
    """
    regions = regions or {}
    made, names = {}, dict(enumerate(regions.get("names", ()), 1))
    transform = owner if owner.IsA("vtkMRMLTransformNode") else None
    placed = transform is not None and moving.GetParentTransformNode() is transform
    before = owner.GetNodeReference(results.INITIAL_ROLE) if placed else moving.GetParentTransformNode()
    wanted = {}
    if "fixed" in regions:
        wanted["fixed"] = (*regions["fixed"], fixed, fixed.GetParentTransformNode(), fixed.GetName())
    if "moving" in regions:
        labels, grid = regions["moving"]
        wanted["moving"] = (labels, grid, moving, before, moving.GetName())
        title = _("{volume}, registered").format(volume=moving.GetName())
        if transform is not None:
            wanted["after"] = (labels, grid, moving, transform, title)
        else:
            warped = _warped(labels, grid, fixed, field)
            wanted["after"] = (warped, nodes.volume_grid(fixed), fixed, fixed.GetParentTransformNode(), title)
    for kind in KINDS:
        name = kind.partition(".")[2]
        node = extras.find(owner, kind)
        if name not in wanted:
            if node is not None:
                extras.remove(node)
            continue
        made[name] = _filled(owner, kind, names, regions["network"], *wanted[name])
    return made


def _filled(owner, kind: str, names: dict, network: str, labels, grid: Grid, volume, parent, title: str):
    text = _("{volume}: regions predicted by {network}").format(volume=title, network=network)
    new = extras.find(owner, kind) is None
    node = extras.make(owner, kind, "vtkMRMLSegmentationNode", text)
    node.SetName(text)
    node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    segmentations.set_segments(node, labels, grid, names, volume, network)
    if new:
        # The fixed side as outlines, what was brought onto it filled, and where it came from on demand.
        display = node.GetDisplayNode()
        display.SetVisibility2DFill(kind == "regions.after")
        display.SetVisibility2DOutline(kind != "regions.after")
        display.SetOpacity2DFill(0.35)
        display.SetVisibility(kind != "regions.moving")
    extras.file_away(owner, node)
    return node


def _warped(labels: np.ndarray, grid: Grid, fixed, field: tuple[np.ndarray, Grid]) -> np.ndarray:
    """``labels`` on the fixed volume's voxels, through the displacement ``field`` from fixed to moving points."""
    source = slicer.vtkMRMLLabelMapVolumeNode()
    source.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_ras(grid)))
    slicer.util.updateVolumeFromArray(source, np.ascontiguousarray(labels))
    displacement = results.covering(*field, nodes.volume_grid(fixed))
    return nodes.resample(source, fixed, results.grid_transform(*displacement), linear=False)
