"""Segmentation nodes of what a network saw."""

from __future__ import annotations

import colorsys
import hashlib

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ...core.grid import Grid
from . import nodes
from .extras import ROLE

PREDICTED_BY = ROLE + "predictedBy"  # attribute: the network
_CONTENT = ROLE + "predictedContent"  # attribute: hash of what was predicted
_ANATOMY_COLORS = "vtkMRMLColorTableNodeFileGenericAnatomyColors.txt"
_LABELMAP = "Binary labelmap"
_GOLDEN_RATIO = 0.618034


def set_segments(node, labels: np.ndarray, grid: Grid, names: dict[int, str], volume, network: str) -> None:
    """Fill a segmentation ``node`` with the ``labels`` (z, y, x) on ``grid``; a segment for each number of ``names``
    that occurs, in its order.

    ``volume`` gives the reference geometry. Segments share one labelmap, as those that Slicer imports do
    (vtkSlicerSegmentationsModuleLogic.cxx, ImportLabelmapToSegmentationNode).
    """
    image = _oriented(labels, grid)
    there = set(np.unique(labels).tolist())
    with slicer.util.NodeModify(node):
        segmentation = node.GetSegmentation()
        segmentation.RemoveAllSegments()
        segmentation.SetSourceRepresentationName(_LABELMAP)
        if node.GetDisplayNode() is None:
            node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for order, (number, name) in enumerate(names.items()):
            if number in there:
                segment = slicer.vtkSegment()
                segment.SetName(name)
                segment.SetColor(*color_of(name, order))
                segment.SetLabelValue(number)
                segment.AddRepresentation(_LABELMAP, image)
                segmentation.AddSegment(segment)
        node.SetAttribute(PREDICTED_BY, network)


def _oriented(labels: np.ndarray, grid: Grid):
    """The smallest part of ``labels`` that holds all that is not 0, as an image that lies where it belongs."""
    filled = [np.flatnonzero(labels.any(axis=tuple(m for m in range(3) if m != n))) for n in range(3)]
    low = [int(f[0]) if len(f) else 0 for f in filled]
    high = [int(f[-1]) + 1 if len(f) else 1 for f in filled]
    part = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    kind = np.uint8 if labels.max() < 256 else np.int16
    scalars = numpy_to_vtk(np.ascontiguousarray(part, dtype=kind).ravel(), deep=True)
    plain = vtk.vtkImageData()
    plain.SetExtent(*(end for n in (2, 1, 0) for end in (low[n], high[n] - 1)))
    plain.GetPointData().SetScalars(scalars)
    image = slicer.vtkOrientedImageData()
    image.ShallowCopy(plain)
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_ras(grid)))
    return image


def color_of(name: str, order: int) -> tuple[float, float, float]:
    """The colour of a structure in Slicer's table of anatomy where it knows the name; else one unlike its neighbours in
    the list."""
    table = slicer.mrmlScene.GetNodeByID(_ANATOMY_COLORS)
    if table is not None:
        plain = name.lower().replace("-", "_").replace(" ", "_").replace("oesophagus", "esophagus")
        for known in (plain, f"left_{plain}"):
            index = table.GetColorIndexByName(known)
            if index > 0:
                rgba = [0.0] * 4
                table.GetColor(index, rgba)
                return tuple(rgba[:3])
    return colorsys.hsv_to_rgb((0.05 + order * _GOLDEN_RATIO) % 1.0, 0.55 + 0.25 * (order % 2), 0.95)


def remember_content(node) -> None:
    """Note what was predicted, so that a correction is noticed."""
    node.SetAttribute(_CONTENT, _content(node))


def is_prediction(node) -> bool:
    """Whether the segmentation ``node`` still is what a network predicted, untouched by anybody."""
    noted = node.GetAttribute(_CONTENT) if node is not None else None
    return bool(noted) and noted == _content(node)


def _content(node) -> str:
    """Hash of which voxels each segment holds, however much empty space its labelmap has around them."""
    digest = hashlib.sha256()
    segmentation = node.GetSegmentation()
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        image = segment.GetRepresentation(_LABELMAP)
        scalars = image.GetPointData().GetScalars() if image is not None else None
        if scalars is None:
            continue
        held = vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1]) == segment.GetLabelValue()
        places = np.argwhere(held)
        if len(places):
            low, high = places.min(0), places.max(0) + 1
            digest.update(str((low + image.GetExtent()[4::-2], high - low)).encode())
            digest.update(np.packbits(held[tuple(map(slice, low, high))]).tobytes())
    return digest.hexdigest()
