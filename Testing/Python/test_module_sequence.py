"""The section *Sequence* of the panel: frames of a real sequence node registered, scrubbed, saved; what goes wrong."""

import pathlib
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import vtk

slicer = pytest.importorskip("slicer")
from fakes import blob_image  # noqa: E402
from panel_steps import click  # noqa: E402

QUICK = ("--workers", "0", "--set", "iterations=3", "--set", "levels=2", "--set", "start=none")
SHIFTS = ((3.0, -2.0, 1.0), (0.0, 0.0, 0.0), (-2.0, 1.0, 1.5), (1.0, 2.0, -1.0))
TIMES = ("0", "12.5", "30", "41")
TURNED = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
LPS = np.array([-1.0, -1.0, 1.0])
ENDLESS = """
import json, time
print(json.dumps({"event": "progress", "total": 3, "found": 0, "done": 1, "failed": 0, "fraction": 0.3,
                  "seconds_left": 20, "running": {"frame0002": {"stage": "refine", "fraction": 0.5}}}), flush=True)
time.sleep(60)
"""


def volume_of(image):
    """A volume node, not in the scene, with the voxels and the place of a SimpleITK image."""
    node = slicer.vtkMRMLScalarVolumeNode()
    node.SetName("frame")
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayFromImage(image))
    matrix = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    matrix[:3, :3] = LPS[:, None] * direction * image.GetSpacing()
    matrix[:3, 3] = LPS * image.GetOrigin()
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    return node


@pytest.fixture
def frames():
    return [blob_image(center=shift, dtype=np.int16, direction=TURNED) for shift in SHIFTS]


def add_sequence(frames):
    """The frames as a sequence at `TIMES` with a browser, as loading a file makes it."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "DCE")
    for frame, time in zip(frames, TIMES, strict=True):
        node = volume_of(frame)
        sequence.SetDataNodeAtValue(node, time)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "DCE browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return sequence, browser


@pytest.fixture
def section(panel, bench, monkeypatch):
    def use(*more, command=None):
        from FoundationRegLib.slicer.client.cohort import CohortProcess

        def make(arguments):
            return CohortProcess([*arguments, *more], command)

        monkeypatch.setattr(panel.sequence, "makeProcess", make)

    panel.sequence.use = use
    use(*QUICK)
    panel.ui.encoderComboBox.currentIndex = panel.ui.encoderComboBox.findData("mind")
    yield panel.sequence
    panel.sequence.close()
    panel.sequence._ui.sequenceCollapsibleButton.collapsed = True


def choose(section, bench, sequence, fixed):
    ui = section._ui
    ui.sequenceCollapsibleButton.collapsed = False
    ui.sequenceSelector.setCurrentNode(sequence)
    ui.sequenceFrameSpinBox.value = fixed + 1
    bench.process_events()


def the_sequences(*names):
    """Sequence nodes by name; their proxy nodes are called the same."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSequenceNode")
    return [next(node for node in nodes if node.GetName() == name) for name in names]


def every_node():
    nodes = slicer.mrmlScene.GetNodes()
    return {nodes.GetItemAsObject(n).GetID() for n in range(nodes.GetNumberOfItems())}


def moved(transform_node, points):
    """Where LPS points (n, 3) are looked up through a transform node."""
    through = transform_node.GetTransformFromParent() or vtk.vtkIdentityTransform()
    return np.array([np.array(through.TransformPoint(LPS * point)) * LPS for point in np.asarray(points)])


INSIDE = np.array([[0.0, 0.0, 0.0], [2.0, -1.0, 1.0], [-2.0, 2.0, -2.0]])


def check_shifts(transforms, fixed, missing=()):
    """The transforms take points of the fixed frame's egg to those of each frame."""
    for n, shift in enumerate(SHIFTS):
        if n not in missing:
            found = moved(transforms.GetDataNodeAtValue(TIMES[n]), INSIDE) - INSIDE
            np.testing.assert_allclose(found, np.subtract(shift, SHIFTS[fixed])[None].repeat(3, 0), atol=1.0)


def test_every_frame_is_registered_and_scrubs_with_the_others(panel, section, bench, frames, tmp_path):
    ui, fixed = section._ui, 1
    sequence, browser = add_sequence(frames)
    proxy = browser.GetProxyNode(sequence)
    panel.ui.movingSelector.setCurrentNode(proxy)
    bench.process_events()
    ui.sequenceCollapsibleButton.collapsed = False  # takes the sequence of the volume chosen above
    bench.process_events()
    assert ui.sequenceSelector.currentNode() is sequence and ui.sequenceFrameLabel.text == "time 0 s"
    choose(section, bench, sequence, fixed)
    assert ui.sequenceFrameLabel.text == "time 12.5 s"
    click(bench, ui.sequenceStartButton)
    assert ui.sequenceStartButton.text == "Cancel" and not ui.sequenceSelector.enabled
    bench.wait_until(lambda: not section.running, 300)
    assert "3 of 3 frames are registered" in ui.sequenceStatusLabel.text, ui.sequenceStatusLabel.text
    transforms, warped = the_sequences("DCE transforms", "DCE registered")
    for made in (transforms, warped):
        assert [made.GetNthIndexValue(n) for n in range(made.GetNumberOfDataNodes())] == list(TIMES)
        assert (made.GetIndexName(), made.GetIndexUnit(), made.GetIndexType()) == ("time", "s", 0)
        assert slicer.modules.sequences.logic().GetFirstBrowserNodeForSequenceNode(made) is browser
    check_shifts(transforms, fixed)

    still = sitk.GetArrayFromImage(frames[fixed])
    inside = np.s_[4:-4, 4:-4, 4:-4]
    shown = browser.GetProxyNode(warped)
    for n in range(4):
        browser.SetSelectedItemNumber(n)
        bench.process_events()
        assert slicer.util.arrayFromVolume(proxy).tolist() == sitk.GetArrayFromImage(frames[n]).tolist()
        values = slicer.util.arrayFromVolume(shown)
        before = np.abs(sitk.GetArrayFromImage(frames[n]).astype(float) - still)[inside].mean()
        assert values.dtype == np.int16
        assert np.abs(values.astype(float) - still)[inside].mean() <= 0.4 * before
        found = moved(browser.GetProxyNode(transforms), INSIDE[:1])[0]
        np.testing.assert_allclose(found, np.subtract(SHIFTS[n], SHIFTS[fixed]), atol=1.0)
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert {node.GetBackgroundVolumeID() for node in composites} == {shown.GetID()}
    assert not list(pathlib.Path(slicer.app.temporaryPath).glob("foundationreg-sequence-*"))
    for node, extension in ((transforms, "seq.nrrd"), (warped, "seq.nrrd")):
        storage = node.CreateDefaultStorageNode()
        assert storage.GetDefaultWriteFileExtension() == extension, "one file holds all frames"
    saved_and_loaded(bench, tmp_path, fixed)


def saved_and_loaded(bench, tmp_path, fixed):
    """The scene as one file and back."""
    (before,) = the_sequences("DCE transforms")
    kept = [moved(before.GetNthDataNode(n), INSIDE) for n in range(4)]
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    bench.process_events()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    bench.process_events()
    transforms, warped, source = the_sequences("DCE transforms", "DCE registered", "DCE")
    check_shifts(transforms, fixed)
    for n in range(4):
        np.testing.assert_allclose(moved(transforms.GetNthDataNode(n), INSIDE), kept[n], atol=1e-3)
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForSequenceNode(source)
    assert browser.IsSynchronizedSequenceNode(transforms) and browser.IsSynchronizedSequenceNode(warped)


def test_a_frame_that_cannot_be_registered_is_told_and_the_rest_is_made(section, bench, frames):
    sequence, browser = add_sequence([frames[0], frames[1], frames[2][:, :, :1], frames[3]])
    choose(section, bench, sequence, 0)
    click(bench, section._ui.sequenceStartButton)
    bench.wait_until(lambda: not section.running, 300)
    text = section._ui.sequenceStatusLabel.text
    assert "2 of 3 frames" in text and "Frame 3 (time 30 s) has no result" in text and "single slice" in text
    transforms, warped = the_sequences("DCE transforms", "DCE registered")
    assert [made.GetNumberOfDataNodes() for made in (transforms, warped)] == [3, 4]
    check_shifts(transforms, 0, missing=(2,))
    browser.SetSelectedItemNumber(2)
    bench.process_events()
    assert np.ptp(slicer.util.arrayFromVolume(browser.GetProxyNode(warped))) == 0, "blank, not the frame before"
    np.testing.assert_allclose(moved(browser.GetProxyNode(transforms), INSIDE), INSIDE, atol=1e-6)


def test_cancel_and_failure_leave_the_scene_as_it_was(section, bench, frames, tmp_path):
    ui = section._ui
    sequence, _browser = add_sequence(frames)
    choose(section, bench, sequence, 0)
    before = every_node()
    program = tmp_path / "endless.py"
    program.write_text(ENDLESS)
    section.use(command=[sys.executable, str(program)])
    click(bench, ui.sequenceStartButton)
    bench.wait_until(lambda: "1 of 3 frames" in ui.sequenceStatusLabel.text, 60)
    assert "about 20 s left" in ui.sequenceStatusLabel.text and "Refining" in ui.sequenceStatusLabel.text
    assert 450 < ui.sequenceProgressBar.value < 550
    click(bench, ui.sequenceStartButton)
    assert ui.sequenceStatusLabel.text == "Cancelled; nothing was changed."
    assert ui.sequenceStartButton.text == "Register all frames" and every_node() == before

    program.write_text("import sys\nprint('foundationreg: The disk is full.', file=sys.stderr)\nsys.exit(2)\n")
    with bench.dialogs.answering("OK") as seen:
        click(bench, ui.sequenceStartButton)
        bench.wait_until(lambda: not section.running, 60)
    assert len(seen) == 1 and seen[0].endswith("The disk is full.") and every_node() == before
    assert not list(pathlib.Path(slicer.app.temporaryPath).glob("foundationreg-sequence-*"))


def test_what_is_no_sequence_of_volumes_is_refused(section, bench, frames):
    ui = section._ui
    lonely = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "lonely")
    lonely.SetDataNodeAtValue(volume_of(frames[0]), "0")
    models = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "models")
    for time in TIMES:
        models.SetDataNodeAtValue(slicer.vtkMRMLModelNode(), time)
    with bench.dialogs.answering("OK") as seen:
        for sequence, sentence in ((None, "Choose a sequence"), (lonely, "fewer than two"), (models, "no volumes")):
            choose(section, bench, sequence, 0)
            click(bench, ui.sequenceStartButton)
            assert sentence in seen[-1] and not section.running


def test_fields_of_one_lattice_are_continued_to_a_common_grid():
    from FoundationRegLib.core.grid import Grid
    from FoundationRegLib.slicer.scene.sequences import on_one_grid

    grid = Grid.from_axes((3, 4, 5), (2.0, 2.0, 2.0), np.zeros(3), np.eye(3))
    other = grid.padded((1, 0, 0), (0, 0, 2))
    values = np.random.default_rng(0).normal(size=(*other.shape, 3)).astype(np.float32)
    made = on_one_grid({0: (np.ones((*grid.shape, 3), np.float32), grid), 2: (values, other)})
    assert made[0][1] == made[2][1] == other and (made[0][0] == 1).all()
    np.testing.assert_array_equal(made[2][0], values)
    aside = Grid.from_axes((3, 4, 5), (2.0, 2.0, 2.0), np.array([0.7, 0.0, 0.0]), np.eye(3))
    fields = {0: (np.ones((3, 4, 5, 3)), grid), 1: (np.ones((3, 4, 5, 3)), aside)}
    assert on_one_grid(fields) is fields, "nodes that do not coincide are not interpolated"
