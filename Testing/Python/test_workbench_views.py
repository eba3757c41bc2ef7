"""The workbench's views show what Slicer's displayable managers draw, and answer the mouse."""

import pytest


@pytest.fixture
def volume(workbench):
    """A bright ball of 10 mm radius, centred at the RAS origin, in the background of all slice views."""
    import numpy as np
    import slicer

    z, y, x = np.mgrid[-20:21, -20:21, -20:21]
    ball = np.where(x**2 + y**2 + z**2 <= 100, 1000, 100).astype(np.int16)
    matrix = np.eye(4)
    matrix[:3, 3] = -20
    node = slicer.util.addVolumeFromArray(ball, ijkToRAS=matrix, name="ball")
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevelMinMax(0, 1000)
    slicer.util.setSliceViewerLayers(background=node, foreground=None, label=None, fit=True)
    slicer.util.resetSliceViews()
    for name in ("Red", "Green", "Yellow"):
        slicer.app.layoutManager().sliceWidget(name).sliceLogic().SetSliceOffset(0)
    return node


def _canvas(name):
    import slicer

    return slicer.app.layoutManager().sliceWidget(name).sliceView()


def _drag(widget, button, start, end, modifiers=None):
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtTest import QTest

    modifiers = modifiers or Qt.NoModifier
    QTest.mousePress(widget, button, modifiers, QPoint(*start))
    for step in range(1, 6):
        point = [round(a + (b - a) * step / 5) for a, b in zip(start, end, strict=True)]
        QTest.mouseMove(widget, QPoint(*point))
    QTest.mouseRelease(widget, button, modifiers, QPoint(*end))


def _wheel(widget, steps):
    from PySide6.QtCore import QPoint, QPointF, Qt
    from PySide6.QtGui import QWheelEvent
    from PySide6.QtWidgets import QApplication

    center = QPointF(widget.width / 2, widget.height / 2)
    for _ in range(abs(steps)):
        delta = QPoint(0, 120 if steps > 0 else -120)
        place = QPointF(widget.mapToGlobal(center.toPoint()))
        event = QWheelEvent(center, place, QPoint(), delta, Qt.NoButton, Qt.NoModifier, Qt.NoScrollPhase, False)
        QApplication.sendEvent(widget, event)


def test_slice_views_show_the_volume_where_it_is(workbench, volume):
    for name in ("Red", "Green", "Yellow"):
        image = workbench.view_image(name)
        rows, columns, _ = image.shape
        center, corner = _canvas(name).convertRASToXYZ([0, 0, 0]), _canvas(name).convertRASToXYZ([15, 15, 15])
        assert abs(center[0] - columns / 2) < 3 and abs(center[1] - rows / 2) < 3
        assert image[rows // 2, columns // 2].tolist() == [255, 255, 255]
        assert 20 <= image[rows - 1 - round(corner[1]), round(corner[0]), 0] <= 30, "value 100 in a window of 1000"


def test_slices_move_with_the_offset_slider_and_the_wheel(workbench, volume):
    import slicer

    widget = slicer.app.layoutManager().sliceWidget("Red")
    widget.sliceController().sliceOffsetSlider().value = 15.0
    assert widget.sliceLogic().GetSliceOffset() == 15.0
    image = workbench.view_image("Red")
    assert image[image.shape[0] // 2, image.shape[1] // 2, 0] < 40, "15 mm above the centre is outside the ball"
    widget.sliceLogic().SetSliceOffset(0.0)
    _wheel(widget.sliceView(), 3)
    moved = widget.sliceLogic().GetSliceOffset()
    assert abs(moved) == 3.0 and widget.sliceController().sliceOffsetSlider().value == moved
    _wheel(widget.sliceView(), -3)
    assert widget.sliceLogic().GetSliceOffset() == 0.0


def test_mouse_pans_and_zooms(workbench, volume):
    from PySide6.QtCore import Qt

    canvas = _canvas("Green")
    node = canvas.mrmlSliceNode()
    before = list(node.GetXYZOrigin())
    _drag(canvas, Qt.MiddleButton, (100, 100), (140, 120))
    assert list(node.GetXYZOrigin()) != before
    field = node.GetFieldOfView()[0]
    _drag(canvas, Qt.RightButton, (100, 100), (100, 160))
    assert node.GetFieldOfView()[0] != pytest.approx(field)


def test_mouse_changes_window_and_level_in_its_mode(workbench, volume):
    import slicer
    from PySide6.QtCore import Qt

    interaction = slicer.app.applicationLogic().GetInteractionNode()
    interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.AdjustWindowLevel)
    canvas = _canvas("Red")
    before = workbench.view_image("Red").mean()
    _drag(canvas, Qt.LeftButton, (canvas.width // 2, canvas.height // 2), (canvas.width // 2, canvas.height // 2 + 80))
    interaction.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.ViewTransform)
    assert volume.GetDisplayNode().GetLevel() != 500
    assert workbench.view_image("Red").mean() != pytest.approx(before, abs=0.5)


def test_foreground_fades_over_the_background(workbench, volume):
    import numpy as np
    import slicer

    dark = slicer.util.addVolumeFromArray(
        np.zeros((41, 41, 41), np.int16), ijkToRAS=slicer.util.arrayFromVTKMatrix(_ijk_to_ras(volume)), name="dark"
    )
    dark.GetDisplayNode().SetAutoWindowLevel(False)
    dark.GetDisplayNode().SetWindowLevelMinMax(0, 1000)
    values = []
    for opacity in (0.0, 0.5, 1.0):
        slicer.util.setSliceViewerLayers(background=volume, foreground=dark, foregroundOpacity=opacity)
        image = workbench.view_image("Red")
        values.append(int(image[image.shape[0] // 2, image.shape[1] // 2, 0]))
    assert values[0] == 255 and 120 <= values[1] <= 135 and values[2] == 0


def _ijk_to_ras(node):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def _grid_transform(amplitude):
    """A transform node with a grid that moves points along R by a wave along A."""
    import numpy as np
    import slicer
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    size = 21
    field = np.zeros((size, size, size, 3))
    field[..., 0] = amplitude * np.sin(np.linspace(0, 2 * np.pi, size))[None, :, None]
    image = vtk.vtkImageData()
    image.SetDimensions(size, size, size)
    image.SetSpacing(2, 2, 2)
    image.SetOrigin(-20, -20, -20)
    image.GetPointData().SetScalars(numpy_to_vtk(field.reshape(-1, 3), deep=True))
    grid = slicer.vtkOrientedGridTransform()
    grid.SetDisplacementGridData(image)
    grid.SetInterpolationModeToLinear()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "wave")
    node.SetAndObserveTransformFromParent(grid)
    return node


def test_a_transform_is_drawn_in_slice_views_when_shown_and_gone_when_hidden(workbench, volume):
    import numpy as np

    plain = workbench.view_image("Red").astype(int)
    node = _grid_transform(amplitude=4.0)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetGridSpacingMm(5.0)
    display.SetGlyphSpacingMm(5.0)
    assert np.array_equal(workbench.view_image("Red"), plain), "hidden by default"
    for mode in (display.VIS_MODE_GRID, display.VIS_MODE_GLYPH):
        display.SetVisualizationMode(mode)
        display.SetVisibility(True)
        display.SetVisibility2D(True)
        shown = workbench.view_image("Red").astype(int)
        changed = np.abs(shown - plain).max(axis=2) > 40
        rows, columns = (size // 2 for size in changed.shape)
        quadrants = (
            changed[:rows, :columns],
            changed[:rows, columns:],
            changed[rows:, :columns],
            changed[rows:, columns:],
        )
        assert min(part.mean() for part in quadrants) > 0.002, "lines or arrows all over the view"
        colored = (shown.max(axis=2) - shown.min(axis=2) > 60) & changed
        assert colored.any(), "coloured by the size of the displacement"
        display.SetVisibility(False)
        assert np.array_equal(workbench.view_image("Red"), plain)


def test_a_drawn_grid_bends_as_the_transform_says(workbench, volume):
    import numpy as np
    import slicer

    slicer.util.setSliceViewerLayers(background=None)
    plain = workbench.view_image("Red").astype(int)
    node = _grid_transform(amplitude=4.0)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetVisualizationMode(display.VIS_MODE_GRID)
    display.SetGridSpacingMm(10.0)
    display.SetGridResolutionMm(1.0)
    display.SetVisibility(True)
    display.SetVisibility2D(True)
    lines = np.abs(workbench.view_image("Red").astype(int) - plain).max(axis=2) > 40
    canvas, found = _canvas("Red"), []
    for a in (-13, -9, -6, 6, 9, 13):  # between the horizontal lines; one vertical line in reach
        start, end = canvas.convertRASToXYZ([5.0, a, 0]), canvas.convertRASToXYZ([-5.0, a, 0])
        row = lines[lines.shape[0] - 1 - round(start[1]), round(start[0]) : round(end[0])]
        found.append(canvas.convertXYZToRAS([round(start[0]) + np.flatnonzero(row).mean(), start[1], 0])[0])
    # Arrows and grids show how the moving anatomy goes to the fixed: against the field, which is from parent.
    expected = [-4.0 * np.sin(2 * np.pi * (a + 20) / 40) for a in (-13, -9, -6, 6, 9, 13)]
    straight = np.subtract(found, expected) % 10.0  # where the lines, 10 mm apart, were without the transform
    assert np.ptp(straight) < 0.5


def test_a_volume_under_a_transform_moves_in_the_view(workbench, volume):
    import slicer
    import vtk

    shift = vtk.vtkMatrix4x4()
    shift.SetElement(0, 3, 12.0)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
    node.SetMatrixTransformToParent(shift)
    volume.SetAndObserveTransformNodeID(node.GetID())
    image = workbench.view_image("Red")
    where = _canvas("Red").convertRASToXYZ([12.0, 0, 0])
    assert image[image.shape[0] - 1 - round(where[1]), round(where[0]), 0] == 255
    here = _canvas("Red").convertRASToXYZ([-9.0, 0, 0])
    assert image[image.shape[0] - 1 - round(here[1]), round(here[0]), 0] < 40


def test_threed_view_shows_a_model_and_turns(workbench):
    import numpy as np
    import slicer
    import vtk
    from PySide6.QtCore import Qt

    empty = workbench.view_image("1").astype(int)
    cube = vtk.vtkCubeSource()
    cube.SetXLength(40)
    cube.Update()
    model = slicer.modules.models.logic().AddModel(cube.GetOutput())
    model.GetDisplayNode().SetColor(1, 0, 0)
    slicer.util.resetThreeDViews()
    shown = workbench.view_image("1").astype(int)
    red = (shown[..., 0] > 120) & (shown[..., 1] < 60)
    assert red.mean() > 0.005 and np.abs(shown - empty).max() > 100
    view = slicer.app.layoutManager().threeDWidget(0).threeDView()
    before = view.cameraNode().GetPosition()
    _drag(view, Qt.LeftButton, (100, 100), (160, 100))
    assert view.cameraNode().GetPosition() != before
    view.rotateToViewAxis(5)
    assert view.cameraNode().GetPosition()[2] > 10


def test_layouts_show_and_hide_views(workbench, volume):
    import slicer

    manager = slicer.app.layoutManager()
    try:
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
        workbench.process_events(0.05)
        assert manager.sliceViewNames() == ["Red"] and manager.threeDViewCount == 0
        assert manager.sliceWidget("Red").visible and not manager.sliceWidget("Green").visible
        node = manager.layoutLogic().GetLayoutNode()
        description = """<layout type="horizontal">
          <item><view class="vtkMRMLSliceNode" singletontag="Red"/></item>
          <item><view class="vtkMRMLSliceNode" singletontag="Moving">
            <property name="orientation" action="default">Coronal</property>
            <property name="viewlabel" action="default">M</property></view></item></layout>"""
        node.AddLayoutDescription(5000, description)
        manager.setLayout(5000)
        workbench.process_events(0.05)
        assert manager.sliceViewNames() == ["Red", "Moving"]
        moving = manager.sliceWidget("Moving")
        assert moving.mrmlSliceNode().GetOrientation() == "Coronal" and moving.mrmlSliceNode().GetLayoutLabel() == "M"
        moving.mrmlSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        moving.fitSliceToBackground()
        assert workbench.view_image("Moving").max() == 255
    finally:
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    workbench.process_events(0.05)
    assert manager.sliceViewNames() == ["Red", "Green", "Yellow"] and manager.threeDViewCount == 1


def test_layouts_with_a_table_or_a_plot_have_a_place_for_it(workbench):
    import numpy as np
    import slicer

    manager = slicer.app.layoutManager()
    chart = slicer.util.plot(np.eye(2), 0, ["round", "loss"], title="Loss", show=False)
    table = chart.GetNthPlotSeriesNode(0).GetTableNode()
    try:
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView)
        slicer.app.applicationLogic().GetSelectionNode().SetActiveTableID(table.GetID())
        slicer.app.applicationLogic().PropagateTableSelection()
        assert slicer.util.getNodesByClass("vtkMRMLTableViewNode")[0].GetTableNode() is table
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView)
        assert manager.plotViewCount == 1 and len(manager.sliceViewNames()) == 3
    finally:
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)


def test_screenshot_of_the_window_shows_the_views(workbench, volume, tmp_path):
    import numpy as np
    from PIL import Image

    path = tmp_path / "window.png"
    workbench.screenshot(path)
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    canvas = _canvas("Red")
    place = canvas.mapTo(workbench.window, canvas.rect.center())
    assert picture[place.y(), place.x()].tolist() == [255, 255, 255], "the ball"
    corner = canvas.mapTo(workbench.window, canvas.rect.topLeft())
    assert picture[corner.y() + 2, corner.x() + 2].sum() < 120, "around it, dark"
    assert picture.mean() > 60 and picture.std() > 40


def test_rendering_pauses_and_resumes(workbench, volume):
    import slicer

    shown = _canvas("Red").grab().toImage()
    with slicer.util.RenderBlocker():
        slicer.util.setSliceViewerLayers(background=None)
        workbench.process_events(0.05)
        assert _canvas("Red").grab().toImage() == shown
    workbench.process_events(0.05)
    assert _canvas("Red").grab().toImage() != shown
