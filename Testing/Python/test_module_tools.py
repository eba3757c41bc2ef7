"""The buttons around a registration: swap, place by hand, resampling, presets of one's own, inverse, memory."""

import json

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
from panel_steps import add_pair, click, prepare, run  # noqa: E402


@pytest.fixture
def presets(tmp_path, monkeypatch):
    monkeypatch.setenv("FOUNDATIONREG_PRESETS", str(tmp_path / "presets"))
    return tmp_path / "presets"


def test_swap_exchanges_both_sides_with_what_belongs_to_them(bench, panel):
    fixed, moving = add_pair()
    node, ui = panel._parameterNode, panel.ui
    ui.fixedSelector.setCurrentNode(fixed)
    ui.movingSelector.setCurrentNode(moving)
    mask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "mask")
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    node.fixedMask, node.movingLandmarks, node.excludeMoving = mask, points, mask
    click(bench, ui.swapButton)
    assert (node.fixedVolume, node.movingVolume) == (moving, fixed)
    assert node.movingMask is mask and node.fixedMask is None and node.excludeFixed is mask
    assert node.fixedLandmarks is points and node.outputTransform is None


def test_placing_by_hand_gives_handles_and_starts_there(bench, panel):
    _fixed, moving = prepare(panel, bench)
    before = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "before")
    moving.SetAndObserveTransformNodeID(before.GetID())
    panel.ui.guidanceCollapsibleButton.collapsed = False
    bench.process_events()
    click(bench, panel.ui.placeByHandButton)
    node = panel._parameterNode.initialTransform
    assert moving.GetParentTransformNode() is node and node.GetParentTransformNode() is before
    display = node.GetDisplayNode()
    assert display.GetEditorVisibility() and display.GetEditorSliceIntersectionVisibility()
    # The handles turn about the middle of the volume.
    from FoundationRegLib.slicer.scene import nodes

    middle = nodes.volume_grid(moving).center * (-1, -1, 1)
    np.testing.assert_allclose(node.GetCenterOfTransformation(), middle, atol=1e-6)
    matrix = np.eye(4)
    matrix[:3, 3] = (4.0, -3.0, 2.0)
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    click(bench, panel.ui.placeByHandButton)
    assert panel._parameterNode.initialTransform is node
    run(panel, bench)
    record = json.loads(panel._parameterNode.outputTransform.GetAttribute("FoundationReg.record"))
    assert record["initial"] and not display.GetEditorVisibility()


def test_the_output_volume_is_made_as_chosen(panel):
    from FoundationRegLib.errors import InputError
    from FoundationRegLib.slicer.panel import parameters

    node = panel._parameterNode
    assert parameters.volume_options(node) == {"interpolation": "linear"}
    node.interpolation, node.voxelType, node.background = "nearest", "float32", "-1000"
    assert parameters.volume_options(node) == {"interpolation": "nearest", "type": "float32", "background": -1000.0}
    node.background = "dark"
    with pytest.raises(InputError, match="'dark' of the output volume is no number"):
        parameters.volume_options(node)


def test_a_preset_of_ones_own_is_kept_shared_and_deleted(bench, panel, presets, tmp_path):
    from FoundationRegLib.settings import Settings
    from FoundationRegLib.slicer.panel import own_presets, parameters

    node, combo = panel._parameterNode, panel.ui.presetComboBox
    node.smoothness, node.searchRange = 3.5, 18.0
    kept = own_presets.save("My  livers!", parameters.settings_of(node))
    assert kept == str(presets / "my-livers.json") and own_presets.names() == [kept]
    panel.panel.presets._refill()
    index = combo.findData(kept)
    assert combo.itemText(index) == "My livers!"
    combo.currentIndex = combo.findData("fast")
    bench.process_events()
    assert node.smoothness != 3.5
    combo.currentIndex = index
    bench.process_events()
    assert (node.smoothness, node.searchRange, node.preset) == (3.5, 18.0, kept) and panel.ui.deletePresetButton.enabled
    shared = tmp_path / "shared.json"
    own_presets.share(kept, str(shared))
    own_presets.delete(kept)
    assert own_presets.names() == []
    again = own_presets.take_in(str(shared))
    assert Settings.from_preset(again).smoothness == 3.5
    shared.write_text('{"settings": {"smoothness": -1}}')
    with pytest.raises(Exception, match="smoothness"):
        own_presets.take_in(str(shared))
    assert own_presets.names() == [again]
    own_presets.delete("default")
    assert Settings.from_preset("default").preset == "default"


def test_the_inverse_undoes_the_result_and_memory_is_released(bench, panel):
    from FoundationRegLib.slicer.scene import nodes

    prepare(panel, bench)
    run(panel, bench)
    transform = panel._parameterNode.outputTransform
    click(bench, panel.ui.exportInverseButton)
    inverse = slicer.mrmlScene.GetFirstNodeByName(f"{transform.GetName()}, inverse")
    points = nodes.volume_grid(panel._parameterNode.movingVolume).points([[6, 7, 8], [12, 10, 9]]) * (-1, -1, 1)
    there = nodes.transform_points(inverse.GetTransformFromParent(), points)
    np.testing.assert_allclose(nodes.transform_points(transform.GetTransformFromParent(), there), points, atol=0.05)
    assert np.abs(there - points).max() > 1
    process = panel.logic.channel.process
    assert process.alive
    click(bench, panel.ui.releaseButton)
    assert not process.alive and not panel.ui.releaseButton.enabled
    run(panel, bench)
    assert process.alive


def test_help_links_to_documentation_and_citation(loaded):
    text = slicer.app.moduleManager().module("FoundationReg").helpText
    assert "docs/slicer.md" in text and "arxiv.org/abs/2507.11569" in text


def bent_result(panel, bench):
    """The result of a run, with a transform whose displacement is known: (0, 0, 3 + 0.1 x) in RAS, over the volume."""
    from FoundationRegLib.slicer.scene import nodes, results

    fixed, _moving = prepare(panel, bench)
    run(panel, bench)
    transform = panel._parameterNode.outputTransform
    grid = nodes.volume_grid(fixed).padded(8, 8)
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    vectors = np.zeros((*grid.shape, 3))
    vectors[..., 2] = 3 - 0.1 * points[..., 0]
    transform.SetAndObserveTransformFromParent(results.grid_transform(vectors, grid))
    return transform


def test_the_body_surface_shows_displacement_and_jacobian(bench, panel):
    from vtk.util.numpy_support import vtk_to_numpy

    transform = bent_result(panel, bench)
    ui = panel.interactionUi
    ui.interactionCollapsibleButton.collapsed = False
    ui.surfaceComboBox.currentIndex = 1
    bench.process_events()
    model = next(node for node in slicer.util.getNodesByClass("vtkMRMLModelNode") if "Displacement" in node.GetName())
    poly = model.GetPolyData()
    points = vtk_to_numpy(poly.GetPoints().GetData())
    values = vtk_to_numpy(poly.GetPointData().GetScalars())
    assert len(points) > 50
    np.testing.assert_allclose(values, np.abs(3 + 0.1 * points[:, 0]), atol=0.02)
    bounds = np.zeros(6)
    panel._parameterNode.fixedVolume.GetRASBounds(bounds)
    assert (points > bounds[::2] - 4).all() and (points < bounds[1::2] + 4).all()
    ui.arrowsCheckBox.checked = True
    ui.surfaceComboBox.currentIndex = 2
    bench.process_events()
    model = next(node for node in slicer.util.getNodesByClass("vtkMRMLModelNode") if "Jacobian" in node.GetName())
    np.testing.assert_allclose(vtk_to_numpy(model.GetPolyData().GetPointData().GetScalars()), 1.0, atol=0.01)
    assert any("arrows" in node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLModelNode"))
    ui.surfaceComboBox.currentIndex = 0
    ui.arrowsCheckBox.checked = False
    bench.process_events()
    assert not [n for n in slicer.util.getNodesByClass("vtkMRMLModelNode") if transform.GetName() in n.GetName()]


def test_the_morph_goes_from_before_to_after_and_leaves_everything_as_it_was(bench, panel, tmp_path):
    from FoundationRegLib.slicer.scene import nodes
    from FoundationRegLib.slicer.scene.morph import Morph, save_film
    from PIL import Image

    transform = bent_result(panel, bench)
    moving = panel._parameterNode.movingVolume
    parent, count = moving.GetParentTransformNode(), slicer.mrmlScene.GetNumberOfNodes()
    morph = Morph(transform)
    point = np.array([[2.0, 1.0, -3.0]])
    for share, expected in ((0.0, 0.0), (0.5, 1.6), (1.0, 3.2)):
        morph.show(share)
        moved = nodes.transform_points(morph._node.GetTransformFromParent(), point) - point
        np.testing.assert_allclose(moved[0], (0, 0, expected), atol=0.02)
    save_film(morph, tmp_path / "film.gif", frames=6)
    morph.close()
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames > 1
    assert moving.GetParentTransformNode() is parent and slicer.mrmlScene.GetNumberOfNodes() == count


class ScreenCaptureLogic:
    """What a film needs of Slicer's, with its arguments (Modules/Scripted/ScreenCapture/ScreenCapture.py)."""

    ffmpeg, calls = True, []

    def isFfmpegPathValid(self):
        return self.ffmpeg

    def captureImageFromView(self, view, filename=None, transparentBackground=False, volumeNode=None):
        from PIL import Image

        assert view is None and isinstance(filename, str) and not transparentBackground and volumeNode is None
        Image.new("RGB", (8, 6)).save(filename)

    def createVideo(self, frameRate, extraOptions, outputDir, imageFileNamePattern, videoFileName):
        import os

        frames = 0
        while os.path.isfile(os.path.join(outputDir, imageFileNamePattern % frames)):
            frames += 1
        self.calls.append((frameRate, frames))
        if frames == 3:
            raise ValueError("ffmpeg returned with error")
        with open(os.path.join(outputDir, videoFileName), "wb") as file:
            file.write(b"video")


def test_screen_capture_makes_the_film_where_it_is_there(bench, panel, tmp_path, monkeypatch):
    import sys
    import types

    from FoundationRegLib.slicer.scene.morph import Morph, can_make_video, save_film
    from PIL import Image

    assert not can_make_video()
    monkeypatch.setitem(sys.modules, "ScreenCapture", types.SimpleNamespace(ScreenCaptureLogic=ScreenCaptureLogic))
    assert can_make_video()
    morph = Morph(bent_result(panel, bench))
    save_film(morph, tmp_path / "film.mp4", frames=4, milliseconds=100)
    assert (tmp_path / "film.mp4").read_bytes() == b"video" and ScreenCaptureLogic.calls == [(10.0, 4)]
    save_film(morph, tmp_path / "film.gif", frames=4)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == (8, 6), "its pictures, not ours"
    with pytest.raises(OSError, match="ffmpeg returned"):
        save_film(morph, tmp_path / "bad.mp4", frames=3)
    monkeypatch.setattr(ScreenCaptureLogic, "ffmpeg", False)
    with pytest.raises(OSError, match="needs ffmpeg"):
        save_film(morph, tmp_path / "bad.mp4", frames=4)
    assert not (tmp_path / "bad.mp4").exists()
    morph.close()
