"""The deformation on the surface of the fixed volume's body, in colours and arrows."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from . import extras, nodes, results

KINDS = ("displacement", "jacobian")
TITLES = {"displacement": "Displacement (mm)", "jacobian": "Jacobian"}
SPACING_MM = 3.0
ARROWS = 400


def show_surface(owner, kind: str | None, arrows: bool = False):
    """The model of the body of the fixed volume of ``owner`` (a transform node), coloured by ``kind``; None removes it.

    ``kind``: ``displacement`` in mm, or ``jacobian``, in the colours of the review. ``arrows`` show where points of the
    surface go. Returns the model node. Neither is saved with the scene.
    """
    for role in ("surface", "arrows"):
        if (old := extras.find(owner, role)) is not None:
            extras.remove(old)
    if kind is None:
        return None
    fixed = owner.GetNodeReference(results.ROLE + "fixed")
    poly = body_surface(fixed)
    points = vtk_to_numpy(poly.GetPoints().GetData()).astype(float)
    moved = nodes.transform_points(owner.GetTransformFromParent(), points) - points
    values = np.linalg.norm(moved, axis=1) if kind == "displacement" else jacobian_at(owner, points)
    scalars = numpy_to_vtk(values.astype(np.float32), deep=True)
    scalars.SetName(TITLES[kind])
    poly.GetPointData().SetScalars(scalars)
    model = _model(owner, "surface", f"{owner.GetName()} {TITLES[kind]}", poly, fixed)
    if kind == "jacobian":
        limits, rgba = results.JACOBIAN_RANGE, results.jacobian_colors(np.linspace(*results.JACOBIAN_RANGE, 256))
        rgba[:, :3] = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
        rgba[:, 3] = 1
    else:
        limits, rgba = (0.0, max(float(np.percentile(values, 99)), 0.1)), displacement_colors()
    _color(model, TITLES[kind], limits, rgba)
    if arrows:
        chosen = np.linspace(0, len(points) - 1, min(ARROWS, len(points))).astype(int)
        _model(owner, "arrows", f"{owner.GetName()} arrows", arrows_at(points[chosen], moved[chosen]), fixed)
    return model


def body_surface(volume) -> vtk.vtkPolyData:
    """The smoothed surface of what is brighter than the background in ``volume``, RAS in its local coordinates."""
    grid = nodes.volume_grid(volume)
    steps = np.maximum(1, np.round(SPACING_MM / grid.spacing)).astype(int)
    array = nodes.volume_array(volume)[tuple(slice(None, None, s) for s in steps)].astype(np.float32)
    low, high = np.percentile(array, (2, 98))
    level = float(low + 0.15 * (high - low))
    # With a dark border the surface closes where the body leaves the image.
    array = np.pad(array, 1, constant_values=float(array.min()))
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(array.ravel(), deep=True))
    contour = vtk.vtkFlyingEdges3D()
    contour.SetInputData(image)
    contour.SetValue(0, level)
    largest = vtk.vtkPolyDataConnectivityFilter()
    largest.SetInputConnection(contour.GetOutputPort())
    largest.SetExtractionModeToLargestRegion()
    smoother = vtk.vtkWindowedSincPolyDataFilter()
    smoother.SetInputConnection(largest.GetOutputPort())
    smoother.SetNumberOfIterations(15)
    matrix = nodes.ijk_to_ras(grid) @ np.diag([*map(float, steps[::-1]), 1.0])
    matrix[:3, 3] -= matrix[:3, :3].sum(axis=1)
    transform = vtk.vtkTransform()
    transform.SetMatrix(slicer.util.vtkMatrixFromArray(matrix))
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetTransform(transform)
    placed.SetInputConnection(smoother.GetOutputPort())
    normals = vtk.vtkPolyDataNormals()
    normals.SetInputConnection(placed.GetOutputPort())
    normals.Update()
    return normals.GetOutput()


def jacobian_at(owner, points: np.ndarray, step: float = 0.5) -> np.ndarray:
    """Determinant of the Jacobian of the transform from parent of ``owner`` at RAS ``points`` (n, 3)."""
    columns = []
    for axis in np.eye(3):
        there, back = (
            nodes.transform_points(owner.GetTransformFromParent(), points + sign * step * axis) for sign in (1, -1)
        )
        columns.append((there - back) / (2 * step))
    return np.linalg.det(np.stack(columns, axis=-1))


def arrows_at(points: np.ndarray, vectors: np.ndarray) -> vtk.vtkPolyData:
    """Arrows from ``points`` (n, 3) along ``vectors`` (n, 3), as long as they are."""
    poly, places = vtk.vtkPolyData(), vtk.vtkPoints()
    places.SetData(numpy_to_vtk(np.ascontiguousarray(points), deep=True))
    poly.SetPoints(places)
    along = numpy_to_vtk(np.ascontiguousarray(vectors), deep=True)
    along.SetName("displacement")
    poly.GetPointData().SetVectors(along)
    arrow = vtk.vtkArrowSource()
    arrow.Update()
    glyph = vtk.vtkGlyph3D()
    glyph.SetInputData(poly)
    glyph.SetSourceData(arrow.GetOutput())
    glyph.SetVectorModeToUseVector()
    glyph.SetScaleModeToScaleByVector()
    glyph.Update()
    return glyph.GetOutput()


def displacement_colors() -> np.ndarray:
    """RGBA (256, 4) from grey over yellow to red."""
    values = np.linspace(0, 1, 256)
    stops = np.array([[0.75, 0.75, 0.75], [0.95, 0.9, 0.4], [0.95, 0.5, 0.1], [0.75, 0.05, 0.05]])
    rgb = np.stack([np.interp(values, np.linspace(0, 1, len(stops)), stops[:, c]) for c in range(3)], -1)
    return np.hstack([rgb, np.ones((256, 1))])


def _model(owner, role: str, name: str, poly: vtk.vtkPolyData, fixed):
    model = extras.make(owner, role, "vtkMRMLModelNode", name, saved=False)
    model.SetAndObservePolyData(poly)
    parent = fixed.GetParentTransformNode()
    model.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    if model.GetDisplayNode() is None:
        model.CreateDefaultDisplayNodes()
    model.GetDisplayNode().SetVisibility2D(False)
    return model


def _color(model, name: str, limits: tuple[float, float], rgba: np.ndarray) -> None:
    results.set_colors(model, f"{model.GetName()} colors", rgba)
    display = model.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetActiveScalarName(name)
        display.SetScalarRangeFlag(display.UseManualScalarRange)
        display.SetScalarRange(*limits)
        display.SetScalarVisibility(True)
