"""The review section: what the slice views really show, pixel by pixel, on nodes with a known result."""

import fake_register
import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
from panel_steps import click, layers, prepare, run  # noqa: E402
from test_slicer_nodes import add_linear, add_segmentation, add_volume, affine, bump_on, smooth  # noqa: E402


@pytest.fixture
def reviewed(panel, bench):
    """The panel with a result, the review section open, and the views fitted."""
    prepare(panel, bench)
    run(panel, bench)
    bench.process_events()
    return panel


def picture(bench, view="Red"):
    """What a slice view shows, without its annotations at the border."""
    image = np.asarray(bench.view_image(view)).astype(int)[..., :3]
    rows, columns = image.shape[:2]
    return image[rows // 5 : -rows // 5, columns // 5 : -columns // 5]


def differing(first, second):
    """Share of pixels that differ visibly."""
    return float((np.abs(first - second).max(axis=-1) > 12).mean())


def choose(combo, value, bench):
    texts = [combo.itemText(n) for n in range(combo.count)]
    combo.currentIndex = next(n for n, text in enumerate(texts) if text.lower().startswith(value))
    bench.process_events()


def test_fading_goes_from_the_fixed_to_the_moving_side(reviewed, bench):
    reviewed.ui.fadeSlider.value = 0.0
    fixed = picture(bench)
    reviewed.ui.fadeSlider.value = 1.0
    moving = picture(bench)
    reviewed.ui.fadeSlider.value = 0.5
    middle = picture(bench)
    assert differing(fixed, moving) > 0.3
    np.testing.assert_allclose(middle, (fixed + moving) / 2, atol=6)
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert composite.GetLinkedControl()


def test_flicker_exchanges_the_sides_by_itself(reviewed, bench):
    reviewed.ui.flickerSlider.value = 10
    choose(reviewed.ui.reviewModeComboBox, "flicker", bench)
    composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    seen = set()
    bench.wait_until(lambda: seen.add(composite.GetForegroundOpacity()) or len(seen) == 2, 10)
    assert seen == {0.0, 1.0}
    reviewed.exit()
    assert not reviewed.panel.review._timer.active
    reviewed.enter()


def test_checkerboard_shows_both_sides_in_turn(reviewed, bench):
    ui = reviewed.ui
    ui.fadeSlider.value = 0.0
    fixed = picture(bench)
    ui.fadeSlider.value = 1.0
    moving = picture(bench)
    ui.checkSizeSlider.value = 8
    choose(ui.reviewModeComboBox, "checkerboard", bench)
    board = picture(bench)
    apart = np.abs(fixed - moving).max(axis=-1) > 40
    like_fixed = np.abs(board - fixed).max(axis=-1) < 20
    like_moving = np.abs(board - moving).max(axis=-1) < 20
    assert (like_fixed & apart).sum() > 0.25 * apart.sum() and (like_moving & apart).sum() > 0.25 * apart.sum()
    assert (like_fixed | like_moving)[apart].mean() > 0.8
    ui.checkSizeSlider.value = 20
    assert differing(board, picture(bench)) > 0.1


def test_difference_is_dark_where_both_sides_agree(panel, bench):
    pair = prepare(panel, bench)
    # The moving volume is the fixed one, shifted by what the register answers (3 mm along LPS x).
    array = slicer.util.arrayFromVolume(pair[0]).copy()
    same = add_volume(array, "anisotropic oblique", "same")
    shift = np.eye(4)
    shift[0, 3] = -3.0  # RAS: x of LPS, turned around
    from FoundationRegLib.slicer.scene import nodes

    matrix = shift @ nodes.ijk_to_ras(nodes.volume_grid(same))
    same.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    panel.ui.movingSelector.setCurrentNode(same)
    run(panel, bench)
    for volume in (pair[0], same):
        volume.GetDisplayNode().SetAutoWindowLevel(False)
        volume.GetDisplayNode().SetWindowLevel(float(np.ptp(array)), float(array.mean()))
    choose(panel.ui.reviewModeComboBox, "difference", bench)
    after = picture(bench)
    click(bench, panel.ui.beforeButton)
    before = picture(bench)
    assert after.max(axis=-1).mean() < 12 < before.max(axis=-1).mean()
    click(bench, panel.ui.beforeButton)
    assert differing(after, picture(bench)) < 0.01


def add_ball(center):
    import vtk

    source = vtk.vtkSphereSource()
    source.SetCenter(*center)
    source.SetRadius(6)
    source.Update()
    return slicer.modules.models.logic().AddModel(source.GetOutput())


def test_before_shows_everything_under_the_transform_where_it_lay_and_moves_no_node(reviewed, bench):
    transform = reviewed.ui.outputTransformSelector.currentNode()
    moving = reviewed.ui.movingSelector.currentNode()
    model = add_ball((0, 0, 0))
    mask = np.zeros(slicer.util.arrayFromVolume(moving).shape, np.uint8)
    mask[5:15, 5:15, 5:15] = 1
    segmentation = add_segmentation(moving, {"organ": mask})
    segmentation.CreateDefaultDisplayNodes()
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    points.AddControlPoint(1, 2, 3)
    for node in (model, segmentation, points):
        node.SetAndObserveTransformNodeID(transform.GetID())
    count = slicer.mrmlScene.GetNumberOfNodes()
    click(bench, reviewed.ui.beforeButton)
    for node in (segmentation, points):
        copy = slicer.mrmlScene.GetFirstNodeByName(f"{node.GetName()} before")
        assert copy.GetDisplayNode().GetVisibility() and not node.GetDisplayNode().GetVisibility()
        assert node.GetParentTransformNode() is transform and copy.GetParentTransformNode() is None
    assert "before" in reviewed.ui.beforeButton.text and layers() == {("fixed", "moving before")}
    assert moving.GetParentTransformNode() is transform and model.GetParentTransformNode() is transform
    copies = [slicer.mrmlScene.GetFirstNodeByName(f"{node.GetName()} before") for node in (moving, model)]
    assert all(copy.GetParentTransformNode() is None and not copy.GetSaveWithScene() for copy in copies)
    assert copies[0].GetImageData() is moving.GetImageData() and copies[1].GetDisplayNode().GetVisibility()
    assert not model.GetDisplayNode().GetVisibility()
    click(bench, reviewed.ui.beforeButton)
    assert layers() == {("fixed", "moving")}
    assert all(node.GetDisplayNode().GetVisibility() for node in (model, segmentation, points))
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_before_goes_back_to_the_initial_transform(panel, bench):
    _, moving = prepare(panel, bench)
    parent = add_linear(affine())
    moving.SetAndObserveTransformNodeID(parent.GetID())
    run(panel, bench)
    click(bench, panel.ui.beforeButton)
    assert slicer.mrmlScene.GetFirstNodeByName("moving before").GetParentTransformNode() is parent
    assert moving.GetParentTransformNode() is panel.ui.outputTransformSelector.currentNode()


def save_and_load(path, bench):
    """Slicer tells nobody before it writes a scene: vtkMRMLScene::StartSaveEvent is declared and never invoked."""
    assert slicer.util.saveScene(str(path))
    slicer.mrmlScene.Clear(0)
    bench.process_events()
    slicer.util.loadScene(str(path))
    bench.process_events()


def test_a_scene_saved_while_before_is_shown_holds_the_result(reviewed, bench, tmp_path):
    model = add_ball((0, 0, 0))
    model.SetName("surface")
    model.SetAndObserveTransformNodeID(reviewed.ui.outputTransformSelector.currentNode().GetID())
    click(bench, reviewed.ui.beforeButton)
    save_and_load(tmp_path / "scene.mrb", bench)
    transform = reviewed.ui.outputTransformSelector.currentNode()
    for name in ("moving", "surface"):
        node = slicer.util.getNode(name)
        assert node.GetParentTransformNode() is transform and node.GetDisplayNode().GetVisibility()
    assert layers() == {("fixed", "moving")}
    assert not slicer.util.getNodes("* before*")


def test_a_scene_saved_during_the_live_preview_holds_the_moving_volume_where_it_was(panel, bench, tmp_path):
    _, moving = prepare(panel, bench, fake_register.SLOW)
    parent = add_linear(affine())
    moving.SetAndObserveTransformNodeID(parent.GetID())
    click(bench, panel.ui.applyButton)
    bench.wait_until(lambda: layers() == {("fixed", "moving preview")}, 30)
    save_and_load(tmp_path / "scene.mrb", bench)
    assert slicer.util.getNode("moving").GetParentTransformNode() is slicer.util.getNode("linear")
    assert layers() == {("fixed", "moving")} and not slicer.util.getNodes("*preview*")


@pytest.mark.parametrize("mode", ["checkerboard", "difference", "jacobian", "uncertainty"])
@pytest.mark.parametrize("entered", [True, False])
def test_a_scene_saved_in_a_mode_of_the_review_opens_with_full_views(reviewed, bench, tmp_path, mode, entered):
    choose(reviewed.ui.reviewModeComboBox, mode, bench)
    shown = picture(bench)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    if not entered:
        bench.window.closeModule()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    bench.process_events()
    if entered:
        assert differing(picture(bench), shown) < 0.01, "drawn anew"
    else:
        assert layers() == {("fixed", "moving")} and picture(bench).max() > 50
        bench.window.showModule(slicer.modules.foundationreg)


def test_what_the_review_changes_is_put_back_on_leaving(panel, bench):
    fixed, moving = prepare(panel, bench)
    manager = slicer.app.layoutManager()
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    other = add_volume(smooth(), name="other")
    slicer.util.setSliceViewerLayers(background=other, foreground=moving, foregroundOpacity=0.25)
    composites[0].SetLinkedControl(False)
    linked, layout = [composite.GetLinkedControl() for composite in composites], manager.layout
    run(panel, bench)
    choose(panel.ui.reviewModeComboBox, "checkerboard", bench)
    click(bench, panel.ui.showTableButton)
    click(bench, panel.ui.showPlotButton)
    assert manager.layout != layout and "checkerboard" in next(iter(layers()))[0]
    panel.exit()
    assert layers() == {("other", "moving")} and manager.layout == layout
    assert [composite.GetLinkedControl() for composite in composites] == linked
    assert {composite.GetForegroundOpacity() for composite in composites} == {0.25}
    assert slicer.mrmlScene.GetFirstNodeByName("*checkerboard*") is None
    panel.enter()
    assert "checkerboard" in next(iter(layers()))[0], "entered again, the review goes on"
    slicer.util.setSliceViewerLayers(background=fixed, foreground=other)
    panel.exit()
    assert layers() == {("fixed", "other")}, "the user's own choice stays"
    panel.enter()


@pytest.mark.parametrize("how", ["grid", "arrows", "contours"])
def test_the_deformation_is_drawn_and_goes_away(reviewed, bench, how):
    from FoundationRegLib.slicer.scene import nodes, results

    fixed, moving = (getattr(reviewed.ui, name).currentNode() for name in ("fixedSelector", "movingSelector"))
    grid = nodes.volume_grid(fixed).with_spacing(3.0)
    transform = reviewed.ui.outputTransformSelector.currentNode()
    results.set_transform(transform, bump_on(grid, 5.0), grid, fixed, moving)
    ui = reviewed.ui
    ui.fadeSlider.value = 0.0
    ui.deformationSpacingSlider.value = 2 if how == "contours" else 6
    without = picture(bench)
    choose(ui.deformationComboBox, how, bench)
    drawn = picture(bench)
    assert differing(without, drawn) > 0.01
    if how == "grid":
        ui.deformationSpacingSlider.value = 12
        assert differing(drawn, picture(bench)) > 0.01
    click(bench, ui.deformationSlicesCheckBox)
    assert differing(without, picture(bench)) < 0.002
    click(bench, ui.deformationSlicesCheckBox)
    assert differing(without, picture(bench)) > 0.01
    choose(ui.deformationComboBox, "hidden", bench)
    assert differing(without, picture(bench)) < 0.002


def test_the_deformation_appears_in_3d(reviewed, bench):
    ui = reviewed.ui
    without = np.asarray(bench.view_image("1")).astype(int)[..., :3]
    choose(ui.deformationComboBox, "grid", bench)
    click(bench, ui.deformation3DCheckBox)
    slicer.util.resetThreeDViews()
    drawn = np.asarray(bench.view_image("1")).astype(int)[..., :3]
    assert differing(without, drawn) > 0.005


def test_the_jacobian_is_laid_over(reviewed, bench):
    from FoundationRegLib.slicer.scene import nodes, results

    fixed, moving = (getattr(reviewed.ui, name).currentNode() for name in ("fixedSelector", "movingSelector"))
    grid = nodes.volume_grid(fixed).with_spacing(3.0)
    transform = reviewed.ui.outputTransformSelector.currentNode()
    results.set_transform(transform, bump_on(grid, 9.0), grid, fixed, moving)
    choose(reviewed.ui.reviewModeComboBox, "jacobian", bench)
    reviewed.ui.fadeSlider.value = 1.0
    shown = picture(bench)
    # Growth is orange and shrinkage blue: there is color now, and none on a grey image.
    assert (np.ptp(shown, axis=-1) > 40).mean() > 0.05
    volume = slicer.mrmlScene.GetFirstNodeByName("moving to fixed Jacobian")
    assert volume is not None and not volume.GetSaveWithScene() and transform.GetScene() is not None


def test_the_uncertainty_is_laid_over(reviewed, bench):
    choose(reviewed.ui.reviewModeComboBox, "uncertainty", bench)
    reviewed.ui.fadeSlider.value = 1.0
    assert (np.ptp(picture(bench), axis=-1) > 40).mean() > 0.3  # it grows along one axis


def test_features_are_shown_in_color(reviewed, bench):
    ui = reviewed.ui
    assert ui.compareComboBox.count == 2 and "mind" in ui.compareComboBox.itemText(1)
    ui.fadeSlider.value = 0.0
    grey = picture(bench)
    assert (np.ptp(grey, axis=-1) > 40).mean() < 0.01
    ui.compareComboBox.currentIndex = 1
    bench.process_events()
    assert (np.ptp(picture(bench), axis=-1) > 40).mean() > 0.3
    choose(ui.reviewModeComboBox, "checkerboard", bench)
    assert (np.ptp(picture(bench), axis=-1) > 40).mean() > 0.3


def test_metrics_and_loss_open_in_views(reviewed, bench):
    before = slicer.app.layoutManager().layout
    click(bench, reviewed.ui.showTableButton)
    selection = slicer.app.applicationLogic().GetSelectionNode()
    table = slicer.mrmlScene.GetNodeByID(selection.GetActiveTableID())
    assert table.GetTable().GetColumnName(0) == "Metric" and table.GetNumberOfRows() == 2
    click(bench, reviewed.ui.showPlotButton)
    assert slicer.mrmlScene.GetNodeByID(selection.GetActivePlotChartID()).GetNumberOfPlotSeriesNodes() == 2
    slicer.app.layoutManager().setLayout(before)


def test_a_folded_deformation_is_warned_of_before_landmarks_follow(panel, bench):
    from fake_register import FOLDED

    fixed, moving = prepare(panel, bench, FOLDED)
    points = {}
    for volume in (fixed, moving):
        points[volume] = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", volume.GetName())
        points[volume].AddControlPoint(1, 2, 3)
    panel.ui.fixedLandmarksSelector.setCurrentNode(points[fixed])
    panel.ui.movingLandmarksSelector.setCurrentNode(points[moving])
    with bench.dialogs.answering("No") as seen:
        run(panel, bench)
    assert "folds in 0.4 %" in seen[0]
    transform = panel.ui.outputTransformSelector.currentNode()
    assert moving.GetParentTransformNode() is transform and points[moving].GetParentTransformNode() is None
    assert "did not follow" in panel.ui.statusLabel.text
    assert "folds in 0.4 %" in panel.ui.qualityLabel.text and "landmarks" in panel.ui.qualityLabel.text


def test_a_removed_result_leaves_the_review(reviewed, bench):
    slicer.mrmlScene.RemoveNode(reviewed.ui.outputTransformSelector.currentNode())
    bench.process_events()
    reviewed.panel.update()
    assert reviewed.panel.review.review is None and not reviewed.ui.reviewModeComboBox.enabled


def test_volumes_of_other_types_are_compared_too(panel, bench):
    prepare(panel, bench)
    panel.ui.movingSelector.setCurrentNode(add_volume(smooth((20, 22, 24), 3, np.uint8), name="bytes"))
    run(panel, bench)
    for mode in ("checkerboard", "difference", "fade"):
        choose(panel.ui.reviewModeComboBox, mode, bench)
        assert picture(bench).max() > 50


def test_a_result_that_is_not_placed_is_reviewed_through_the_transform(panel, bench):
    fixed, moving = prepare(panel, bench)
    panel.ui.outputsCollapsibleButton.collapsed = False
    bench.process_events()
    click(bench, panel.ui.applyTransformCheckBox)
    run(panel, bench)
    transform = panel.ui.outputTransformSelector.currentNode()
    assert moving.GetParentTransformNode() is None
    assert "left where it is" in panel.ui.qualityLabel.text
    panel.ui.fadeSlider.value = 1.0
    registered = picture(bench)
    shown = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode").GetForegroundVolumeID()
    shown = slicer.mrmlScene.GetNodeByID(shown)
    assert shown is not moving and not shown.GetSaveWithScene()
    # Slicer's own resampling of the moving volume under the transform gives the same voxels.
    moving.SetAndObserveTransformNodeID(transform.GetID())
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    expected = logic.ResampleVolumeToReferenceVolume(moving, fixed)
    moving.SetAndObserveTransformNodeID(None)
    array, expected = (slicer.util.arrayFromVolume(node).astype(float) for node in (shown, expected))
    inside = (array != array.min()) & (expected != 0)
    assert inside.mean() > 0.3 and np.abs(array - expected)[inside].max() <= 1
    panel.ui.beforeButton.checked = True
    assert differing(picture(bench), registered) > 0.1
    panel.panel.review.close()
    assert shown.GetScene() is None
