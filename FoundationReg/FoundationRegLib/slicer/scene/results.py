"""From arrays in LPS millimetres to MRML nodes: what a registration leaves in the scene."""

from __future__ import annotations

import json

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ...core.grid import Grid
from ...errors import InputError
from ...evaluation.titles import metric_title
from . import extras, nodes
from .extras import ROLE

INITIAL_ROLE = ROLE + "initialTransform"
NAMES_ATTRIBUTE = ROLE + "labelNames"
ENCODERS_ATTRIBUTE = ROLE + "encoders"
JACOBIAN_RANGE = (-0.5, 2.5)  # values with a color of their own


def covering(displacement: np.ndarray, grid: Grid, target: Grid) -> tuple[np.ndarray, Grid]:
    """``displacement`` (z, y, x, 3) continued by its edge values until ``grid`` covers the outer faces of ``target``.

    Beyond its last node a field read by ITK is the identity and one in VTK goes on for ever; only inside do all agree.
    """
    index = grid.indices(target.corners())
    before = np.maximum(0, np.ceil(-0.5 - index.min(axis=0) - 1e-4)).astype(int)
    after = np.maximum(0, np.ceil(index.max(axis=0) - (np.array(grid.shape) - 0.5) - 1e-4)).astype(int)
    if not before.any() and not after.any():
        return displacement, grid
    widths = [*zip(before.tolist(), after.tolist(), strict=True), (0, 0)]
    return np.pad(displacement, widths, mode="edge"), grid.padded(before, after)


def grid_transform(displacement: np.ndarray, grid: Grid) -> slicer.vtkOrientedGridTransform:
    """VTK transform, RAS, of an LPS ``displacement`` (z, y, x, 3) in mm on ``grid``, interpolated linearly."""
    ras = np.ascontiguousarray(displacement, dtype=np.float32) * np.array([-1, -1, 1], np.float32)
    scalars = numpy_to_vtk(ras.reshape(-1, 3), deep=True)
    scalars.SetName("displacement")
    matrix = nodes.ijk_to_ras(grid)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = vtk.vtkImageData()
    image.SetDimensions(grid.shape[::-1])
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    # vtkGridTransform reads the point *scalars*; vectors would silently give the identity.
    image.GetPointData().SetScalars(scalars)
    direction = np.eye(4)
    direction[:3, :3] = matrix[:3, :3] / spacing
    transform = slicer.vtkOrientedGridTransform()
    transform.SetGridDirectionMatrix(slicer.util.vtkMatrixFromArray(direction))
    transform.SetDisplacementGridData(image)
    transform.SetInterpolationModeToLinear()
    transform.SetInverseTolerance(1e-3)
    return transform


def interpolate_linearly(node) -> None:
    """Let a field that was read from a file be what it was: Slicer gives each the cubic interpolation, which is some
    hundredths of a millimetre off between the nodes (vtkITKTransformConverter.h, SetInterpolationModeToCubic)."""
    transform = node.GetTransformFromParent()
    # 1: VTK_LINEAR_INTERPOLATION, as `grid_transform` sets it (vtkGridTransform.h)
    if transform is not None and transform.IsA("vtkGridTransform") and transform.GetInterpolationMode() != 1:
        transform.SetInterpolationModeToLinear()
        node.TransformModified()


def read_grid(node) -> tuple[np.ndarray, Grid] | None:
    """LPS displacement (z, y, x, 3) and grid of a transform node that holds a displacement field from parent."""
    transform = node.GetTransformFromParent() if node is not None else None
    if transform is None or not transform.IsA("vtkOrientedGridTransform") or transform.GetInverseFlag():
        return None
    image = transform.GetDisplacementGrid()
    if image is None or image.GetPointData().GetScalars() is None:
        return None
    direction = slicer.util.arrayFromVTKMatrix(transform.GetGridDirectionMatrix())
    matrix = np.eye(4)
    matrix[:3, :3] = direction[:3, :3] * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    lps = nodes.LPS @ matrix
    affine = lps.copy()
    affine[:, :3] = lps[:, 2::-1]
    shape = image.GetDimensions()[::-1]
    ras = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(*shape, 3)
    return ras * np.array([-1, -1, 1], np.float32), Grid(shape, affine)


def check_output_transform(node, fixed, linear: bool = False) -> None:
    """Raise `InputError` when ``node`` cannot take the result, which is a matrix where it is ``linear``."""
    if (node.IsA("vtkMRMLLinearTransformNode") and not linear) or node.IsA("vtkMRMLBSplineTransformNode"):
        text = _("The output transform {name!r} cannot hold a displacement field; create a new transform.")
        raise InputError(text.format(name=node.GetName()))
    parent = fixed.GetParentTransformNode()
    while parent is not None:
        if parent is node:
            text = _(
                "The fixed volume {fixed!r} lies under the output transform {name!r}; choose another output transform "
                "or move the volume out of it."
            )
            raise InputError(text.format(fixed=fixed.GetName(), name=node.GetName()))
        parent = parent.GetParentTransformNode()


def set_transform(node, displacement: np.ndarray, grid: Grid, fixed, moving) -> None:
    """Make transform ``node`` take moving to fixed: its displacement from parent is the field found.

    The node is placed under the parent of the fixed volume, because the field starts from its local coordinates.
    """
    displacement, grid = covering(displacement, grid, nodes.volume_grid(fixed))
    with slicer.util.NodeModify(node):
        parent = fixed.GetParentTransformNode()
        node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
        node.SetAndObserveTransformFromParent(grid_transform(displacement, grid))
        node.SetNodeReferenceID(slicer.vtkMRMLTransformNode.GetFixedNodeReferenceRole(), fixed.GetID())
        node.SetNodeReferenceID(slicer.vtkMRMLTransformNode.GetMovingNodeReferenceRole(), moving.GetID())


def set_linear_transform(node, matrix: np.ndarray, fixed, moving) -> None:
    """Make transform ``node`` take moving to fixed by the LPS ``matrix`` (4, 4) from fixed to moving points."""
    with slicer.util.NodeModify(node):
        parent = fixed.GetParentTransformNode()
        node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
        node.SetMatrixTransformFromParent(slicer.util.vtkMatrixFromArray(nodes.LPS @ matrix @ nodes.LPS))
        node.SetNodeReferenceID(slicer.vtkMRMLTransformNode.GetFixedNodeReferenceRole(), fixed.GetID())
        node.SetNodeReferenceID(slicer.vtkMRMLTransformNode.GetMovingNodeReferenceRole(), moving.GetID())


def set_inverse(node, transform, moving) -> None:
    """Make transform ``node`` the inverse of the result ``transform``: it takes the fixed volume to the moving one.

    The inverse of a field is sampled over the moving volume and a margin, at the field's own spacing.
    """
    parent = moving.GetParentTransformNode()
    with slicer.util.NodeModify(node):
        if transform.IsLinear():
            matrix = vtk.vtkMatrix4x4()
            transform.GetMatrixTransformToParent(matrix)
            node.SetMatrixTransformFromParent(matrix)
        else:
            field = read_grid(transform)
            spacing = field[1].spacing.min() if field is not None else nodes.SAMPLING_MM
            own = nodes.volume_grid(moving)
            grid = own.with_spacing(np.maximum(own.spacing, spacing)).padded(2, 2)
            signs = np.array([-1.0, -1.0, 1.0])
            points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
            origins = nodes.transform_points(transform.GetTransformToParent(), points * signs) * signs
            vectors = (origins - points).reshape(*grid.shape, 3)
            node.SetAndObserveTransformFromParent(grid_transform(vectors, grid))
        if parent is transform:
            parent = transform.GetNodeReference(INITIAL_ROLE)
        node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)


def jacobian_determinant(displacement: np.ndarray, grid: Grid, slab: int = 16) -> np.ndarray:
    """Determinant of the Jacobian (z, y, x), float32, of x -> x + u(x) for ``displacement`` (z, y, x, 3) in LPS mm.

    Central differences, one-sided at the borders; ``slab`` slices at a time bound the memory.
    """
    inverse = np.linalg.inv(grid.affine[:3, :3]).astype(np.float32)
    determinant = np.empty(grid.shape, np.float32)
    for first in range(0, grid.shape[0], slab):
        low, high = max(0, first - 1), min(grid.shape[0], first + slab + 1)
        part = displacement[low:high]
        by_index = [np.gradient(part, axis=n) if part.shape[n] > 1 else np.zeros_like(part) for n in range(3)]
        rows = np.einsum("n...c,nm->...cm", np.stack(by_index), inverse) + np.eye(3, dtype=np.float32)
        a, b, c = rows[..., 0, :], rows[..., 1, :], rows[..., 2, :]
        inside = slice(first - low, first - low + min(slab, grid.shape[0] - first))
        determinant[first : first + slab] = np.einsum("...i,...i->...", a, np.cross(b, c))[inside]
    return determinant


def fill_volume(node, array: np.ndarray, grid: Grid, parent=None) -> None:
    """Put voxels (z, y, x) or colours (z, y, x, 3) on ``grid`` into a volume node under transform node ``parent``."""
    with slicer.util.NodeModify(node):
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(nodes.ijk_to_ras(grid)))
        node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
        # A fresh image: views and other nodes may share the old one.
        node.SetAndObserveImageData(None)
        slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(array))
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetSaveWithScene(node.GetSaveWithScene())


def as_type(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``array`` rounded and clipped into ``dtype``."""
    if array.dtype == dtype:
        return array
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(array), limits.min, limits.max).astype(dtype)
    return array.astype(dtype)


def set_warped_volume(node, array: np.ndarray, grid: Grid, fixed, moving, dtype: str | None = None) -> None:
    """Put the moving image, resampled on the fixed grid, into a volume ``node`` that looks like the moving one.

    ``dtype``: a numpy name for its voxels; by default that of the moving image."""
    array = as_type(array, np.dtype(dtype) if dtype else nodes.volume_array(moving).dtype)
    fill_volume(node, array, grid, fixed.GetParentTransformNode())
    source, target = moving.GetDisplayNode(), node.GetDisplayNode()
    if source is not None and target is not None:
        with slicer.util.NodeModify(target):
            target.SetAutoWindowLevel(False)
            target.SetWindowLevel(source.GetWindow(), source.GetLevel())
            target.SetInterpolate(source.GetInterpolate())
            if source.GetColorNodeID():
                target.SetAndObserveColorNodeID(source.GetColorNodeID())


def set_features(node, array: np.ndarray, grid: Grid, parent=None) -> None:
    """Put colours (z, y, x, 3), uint8, into a vector volume node and show them as they are."""
    fill_volume(node, array, grid, parent)
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(255, 127.5)


def set_colors(node, name: str, rgba: np.ndarray) -> None:
    """Colour a volume ``node`` by the table ``rgba`` (n, 4) in 0..1, which goes with it and is saved if it is."""
    display = node.GetDisplayNode()
    colors = display.GetColorNode()
    if colors is None or not colors.GetAttribute(extras.KIND):
        colors = slicer.mrmlScene.CreateNodeByClass("vtkMRMLColorTableNode")
        colors.UnRegister(None)
        colors.SetName(slicer.mrmlScene.GenerateUniqueName(name))
        colors.SetAttribute(extras.KIND, "colors")
        colors.SetHideFromEditors(True)
        colors.SetSaveWithScene(node.GetSaveWithScene())
        slicer.mrmlScene.AddNode(colors)
    with slicer.util.NodeModify(colors):
        colors.SetTypeToUser()
        colors.SetNumberOfColors(len(rgba))
        for n, (red, green, blue, alpha) in enumerate(rgba.tolist()):
            colors.SetColor(n, red, green, blue, alpha)
    display.SetAndObserveColorNodeID(colors.GetID())


def jacobian_colors(values: np.ndarray) -> np.ndarray:
    """RGBA (n, 4) of Jacobian ``values``: shrinking is blue, growing orange, unchanged clear, folded magenta."""
    amount = np.clip(np.abs(np.log(np.maximum(values, 1e-3))) / np.log(2), 0, 1)[:, None]
    rgb = np.where(values[:, None] < 1, [0.15, 0.40, 1.0], [1.0, 0.50, 0.05])
    rgba = np.hstack([rgb, 0.95 * amount**0.7])
    rgba[values <= 0] = (1, 0, 1, 1)
    return rgba


def uncertainty_colors(amount: np.ndarray) -> np.ndarray:
    """RGBA (n, 4) of uncertainty scaled to 0..1: clear, then yellow, then red."""
    amount = amount[:, None]
    return np.hstack([np.ones_like(amount), 1 - amount**1.5, 0.25 * (1 - amount), 0.9 * amount**0.7])


def show_over_white(node, rgba: np.ndarray, low: float, high: float) -> None:
    """Colour a volume ``node`` by ``rgba`` from ``low`` to ``high``, over white: slice views know no clear colours."""
    opaque = np.ones_like(rgba)
    opaque[:, :3] = rgba[:, :3] * rgba[:, 3:] + (1 - rgba[:, 3:])
    set_colors(node, f"{node.GetName()} colors", opaque)
    display = node.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(low, high)


def set_jacobian(node, determinant: np.ndarray, grid: Grid, parent=None) -> None:
    """Put the Jacobian ``determinant`` (z, y, x) into a volume node, coloured by `jacobian_colors`."""
    fill_volume(node, determinant, grid, parent)
    show_over_white(node, jacobian_colors(np.linspace(*JACOBIAN_RANGE, 256)), *JACOBIAN_RANGE)


def set_uncertainty(node, millimetres: np.ndarray, grid: Grid, parent=None) -> None:
    """Put the likely error (z, y, x), in mm that are relative, into a volume node, coloured from least to most."""
    fill_volume(node, millimetres.astype(np.float32), grid, parent)
    low, high = np.percentile(millimetres, (2, 98))
    show_over_white(node, uncertainty_colors(np.linspace(0, 1, 256)), float(low), float(max(high, low + 0.1)))


def set_table(node, columns: dict[str, list]) -> None:
    """Fill a table node; a column of numbers becomes a column of doubles, None a missing value."""
    with slicer.util.NodeModify(node):
        node.RemoveAllColumns()
        for title, values in columns.items():
            text = any(isinstance(value, str) for value in values)
            column = vtk.vtkStringArray() if text else vtk.vtkDoubleArray()
            column.SetName(title)
            for value in values:
                column.InsertNextValue(str(value) if text else float("nan") if value is None else float(value))
            node.AddColumn(column)
        node.SetUseColumnTitleAsColumnHeader(True)
    node.Modified()


def set_metrics(owner, metrics: dict[str, dict], names: dict[int, str], name: str):
    """The table of ``metrics`` before and after that ``owner`` refers to."""
    names = {int(value): text for value, text in names.items()}
    owner.SetAttribute(NAMES_ATTRIBUTE, json.dumps(names))
    table = extras.make(owner, "metrics", "vtkMRMLTableNode", f"{name} metrics")
    rows = metric_rows(metrics, names)
    titles, before, after = zip(*rows, strict=True) if rows else ((), (), ())
    set_table(table, {"Metric": list(titles), "Before": list(before), "After": list(after)})
    extras.file_away(owner, table)
    return table


def update_measures(owner, metrics: dict[str, dict], quality: str) -> None:
    """Say of ``owner`` what was measured after its transform was corrected. Rows by label keep their names."""
    owner.SetAttribute(ROLE + "quality", quality)
    owner.SetAttribute(ROLE + "folded", str((metrics.get("after") or {}).get("folded_percent") or 0.0))
    set_metrics(owner, metrics, json.loads(owner.GetAttribute(NAMES_ATTRIBUTE) or "{}"), owner.GetName())


def set_loss_chart(owner, loss: dict[str, list[float]], name: str):
    """Table, one series for each refinement level, and a chart of the loss. Returns the chart node."""
    loss = {level: values for level, values in loss.items() if len(values)}
    # Each level has its own iterations; shorter ones repeat their last point, since not all plots skip missing values.
    length = max(len(values) for values in loss.values())
    columns: dict[str, list] = {}
    first = 1
    for level, values in loss.items():
        iterations = list(range(first, first + len(values)))
        for title, column in ((f"Iteration, {level}", iterations), (level, list(values))):
            columns[title] = column + column[-1:] * (length - len(column))
        first += len(values)
    table = extras.make(owner, "lossTable", "vtkMRMLTableNode", f"{name} loss values")
    set_table(table, columns)
    chart = extras.make(owner, "lossChart", "vtkMRMLPlotChartNode", f"{name} loss")
    old = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
    chart.RemoveAllPlotSeriesNodeIDs()
    for series in filter(None, old):
        slicer.mrmlScene.RemoveNode(series)
    for level in loss:
        series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", level)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName(f"Iteration, {level}")
        series.SetYColumnName(level)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        series.SetUniqueColor()
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle("Loss of the refinement")
    chart.SetXAxisTitle("Iteration")
    chart.SetYAxisTitle("Loss")
    for node in (table, chart, *(chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes()))):
        extras.file_away(owner, node)
    return chart


def metric_rows(metrics: dict[str, dict], names: dict[int, str]) -> list[tuple[str, float | None, float | None]]:
    """(title, before, after) for the metrics table, with nested values by label spelled out."""
    before, after = (_flat(metrics.get(side) or {}, names) for side in ("before", "after"))
    return [(key, before.get(key), after.get(key)) for key in {**before, **after}]


def _flat(values: dict, names: dict[int, str], prefix: str = "") -> dict[str, float]:
    flat = {}
    for key, value in values.items():
        text = str(key)
        title = names.get(int(text), text) if text.lstrip("-").isdigit() else metric_title(text)
        if isinstance(value, dict):
            flat.update(_flat(value, names, f"{prefix}{title} "))
        elif isinstance(value, int | float) and value is not None:
            flat[prefix + title] = float(value)
    return flat
