"""Registrations by clicks, with a register that takes no time: run, cancel, fail, refine again."""

import json
import os
import signal

import fake_register
import numpy as np
import pytest
from module_fixtures import process_is_running

slicer = pytest.importorskip("slicer")
from panel_steps import click, layers, prepare, run  # noqa: E402
from test_slicer_nodes import add_linear, add_segmentation, add_volume, affine  # noqa: E402


def test_a_registration_by_clicks(panel, bench):
    fixed, moving = prepare(panel, bench)
    run(panel, bench)
    transform = panel.ui.outputTransformSelector.currentNode()
    assert transform is not None and moving.GetParentTransformNode() is transform
    assert panel.ui.statusLabel.text.startswith("Done") and panel.ui.applyButton.text == "Apply"
    assert not panel.ui.progressBar.visible and "No voxel is folded" in panel.ui.qualityLabel.text
    assert not panel.ui.reviewCollapsibleButton.collapsed
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert composite.GetBackgroundVolumeID() == fixed.GetID()
        assert composite.GetForegroundVolumeID() == moving.GetID()
    count = slicer.mrmlScene.GetNumberOfNodes()
    run(panel, bench)
    assert slicer.mrmlScene.GetNumberOfNodes() == count and moving.GetParentTransformNode() is transform


def test_volume_only_and_both_by_clicks(panel, bench):
    _, moving = prepare(panel, bench)
    click(bench, panel.ui.makeTransformCheckBox)
    click(bench, panel.ui.makeVolumeCheckBox)
    run(panel, bench)
    volume = panel.ui.outputVolumeSelector.currentNode()
    assert moving.GetParentTransformNode() is None and slicer.util.arrayFromVolume(volume).dtype == np.int16
    assert panel.ui.outputTransformSelector.currentNode() is None
    click(bench, panel.ui.makeTransformCheckBox)
    run(panel, bench)
    assert panel.ui.outputVolumeSelector.currentNode() is volume
    assert moving.GetParentTransformNode() is panel.ui.outputTransformSelector.currentNode()


def test_apply_turns_into_cancel(panel, bench, fake_channel):
    _, moving = prepare(panel, bench, fake_register.SLOW)
    parent = add_linear(affine())
    moving.SetAndObserveTransformNodeID(parent.GetID())
    nodes_before = slicer.mrmlScene.GetNumberOfNodes()
    click(bench, panel.ui.applyButton)
    assert panel.ui.applyButton.text == "Cancel" and panel.ui.stopHereButton.visible
    bench.wait_until(lambda: layers() == {("fixed", "moving preview")}, 30)
    assert moving.GetParentTransformNode() is parent
    bench.wait_until(lambda: panel.ui.progressBar.value > 0, 30)
    assert panel.ui.progressBar.visible and panel.ui.statusLabel.text
    pid, folder = fake_channel.process.pid, fake_channel.process.folder
    click(bench, panel.ui.applyButton)
    assert panel.ui.applyButton.text == "Apply" and not panel.ui.stopHereButton.visible
    assert moving.GetParentTransformNode() is parent and slicer.mrmlScene.GetNumberOfNodes() == nodes_before
    assert layers() == {("fixed", "moving")}
    assert not process_is_running(pid) and not folder.exists()
    assert "Cancelled" in panel.ui.statusLabel.text


def test_stop_here_and_preview_switch(panel, bench):
    prepare(panel, bench, fake_register.UNTIL_FINISH)
    click(bench, panel.ui.applyButton)
    bench.wait_until(lambda: layers() == {("fixed", "moving preview")}, 30)
    click(bench, panel.ui.previewCheckBox)
    assert layers() == {("fixed", "moving")}
    click(bench, panel.ui.stopHereButton)
    bench.wait_until(lambda: not panel.panel._busy, 10)
    assert panel.ui.outputTransformSelector.currentNode() is not None


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_killed_worker_is_explained_and_can_run_again(panel, bench, fake_channel):
    prepare(panel, bench, fake_register.NO_CHECKS)
    with bench.dialogs.answering("OK") as seen:
        click(bench, panel.ui.applyButton)
        bench.wait_until(lambda: panel.ui.progressBar.value > 0, 30)
        os.kill(fake_channel.process.pid, signal.SIGKILL)
        bench.wait_until(lambda: seen, 10)
    assert "SIGKILL" in seen[0] and panel.ui.applyButton.text == "Apply"
    panel.ui.seedSpinBox.value = fake_register.QUICK
    run(panel, bench)
    assert panel.ui.outputTransformSelector.currentNode() is not None


def test_bad_input_is_shown_as_its_sentence(panel, bench):
    prepare(panel, bench, fake_register.BAD_INPUT)
    with bench.dialogs.answering("OK") as seen:
        run(panel, bench)
    assert "The fixed image is empty." in seen[0]
    assert "The fixed image is empty." in panel.ui.logTextEdit.plainText


def test_deleting_an_input_during_the_run(panel, bench):
    _, moving = prepare(panel, bench, fake_register.SLOW)
    with bench.dialogs.answering("OK") as seen:
        click(bench, panel.ui.applyButton)
        bench.wait_until(lambda: layers() == {("fixed", "moving preview")}, 30)
        slicer.mrmlScene.RemoveNode(moving)
        bench.wait_until(lambda: seen, 10)
    assert "'moving' was removed" in seen[0] and not panel.panel._busy
    assert not panel.ui.applyButton.enabled


def test_closing_the_scene_during_the_run(panel, bench, fake_channel):
    prepare(panel, bench, fake_register.SLOW)
    click(bench, panel.ui.applyButton)
    bench.wait_until(lambda: panel.ui.progressBar.value > 0, 30)
    slicer.mrmlScene.Clear(0)
    bench.process_events()
    assert not panel.panel._busy and not fake_channel.process.alive
    assert "fixed volume" in panel.ui.applyButton.text


def test_moving_the_smoothness_refines_again_with_the_warm_worker(panel, bench, fake_channel):
    from FoundationRegLib.slicer.scene import results

    prepare(panel, bench)
    run(panel, bench)
    transform, pid = panel.ui.outputTransformSelector.currentNode(), fake_channel.process.pid
    panel.ui.smoothnessSlider.value = 4.0
    bench.wait_until(lambda: results.read_grid(transform)[0][0, 0, 0, 0] > 3.9, 30)
    assert fake_channel.process.pid == pid
    assert '"reused": true' in transform.GetAttribute("FoundationReg.record")
    # While one runs, a newer value replaces it without losing the worker.
    panel.ui.seedSpinBox.value = fake_register.SLOW
    panel.ui.smoothnessSlider.value = 5.0
    bench.wait_until(lambda: panel.panel._busy, 10)
    panel.ui.seedSpinBox.value = fake_register.QUICK
    panel.ui.smoothnessSlider.value = 6.0
    bench.wait_until(lambda: results.read_grid(transform)[0][0, 0, 0, 0] > 5.9, 30)
    assert fake_channel.process.pid == pid
    panel._parameterNode.reoptimize = False
    panel.ui.smoothnessSlider.value = 7.0
    bench.process_events(0.8)
    assert not panel.panel._busy


def test_masks_exclusions_and_guidance_reach_the_worker(panel, bench):
    fixed, moving = prepare(panel, bench)
    ui = panel.ui
    ui.guidanceCollapsibleButton.collapsed = False
    chosen = {}
    for name, volume in (("fixedMask", fixed), ("movingMask", moving), ("excludeFixed", fixed)):
        mask = np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
        mask[2:9, 3:11, 4:12] = 1
        chosen[name] = add_segmentation(volume, {"part": mask})
    lesion = np.zeros(slicer.util.arrayFromVolume(moving).shape, np.float32)
    lesion[5:8, 6:9, 7:9] = 3.0
    chosen["excludeMoving"] = add_volume(lesion, "left-handed", "lesion")
    for name in ("fixedLabels", "movingLabels"):
        chosen[name] = chosen["fixedMask" if "fixed" in name else "movingMask"]
    for name, node in chosen.items():
        getattr(ui, f"{name}Selector").setCurrentNode(node)
    for number, name in enumerate(("fixed", "moving")):
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
        points.AddControlPoint(1.0 + number, 2.0, 3.0)
        getattr(ui, f"{name}LandmarksSelector").setCurrentNode(points)
    click(bench, ui.guideWithLabelsCheckBox)
    click(bench, ui.guideWithLandmarksCheckBox)
    run(panel, bench)
    transform = ui.outputTransformSelector.currentNode()
    given = json.loads(transform.GetAttribute("FoundationReg.record"))["given"]
    assert given["fixed_mask"] == given["moving_mask"] == given["exclude_fixed"] == 7 * 8 * 8
    assert given["exclude_moving"] == 3 * 3 * 2
    assert given["guide_with_labels"] is True and given["guide_with_points"] is True
    assert given["fixed_points"] == [[-1.0, -2.0, 3.0]] and given["moving_points"] == [[-2.0, -2.0, 3.0]]
    # The lesion belongs to the moving side and follows it; what marks the fixed side stays.
    assert chosen["excludeMoving"].GetParentTransformNode() is transform
    assert chosen["excludeFixed"].GetParentTransformNode() is None


def test_masks_and_guides_that_cannot_be_are_told_at_the_button(panel, bench):
    fixed, _ = prepare(panel, bench)
    ui = panel.ui
    ui.guidanceCollapsibleButton.collapsed = False
    bench.process_events()
    for box, word in ((ui.guideWithLabelsCheckBox, "segmentations"), (ui.guideWithLandmarksCheckBox, "landmarks")):
        click(bench, box)
        assert not ui.applyButton.enabled and f"To guide with {word}" in ui.applyButton.toolTip
        click(bench, box)
        assert ui.applyButton.enabled
    ui.excludeFixedSelector.setCurrentNode(fixed)
    assert "is one of the volumes to register" in ui.applyButton.toolTip
    empty = add_segmentation(fixed, {})
    empty.SetName("empty")
    ui.excludeFixedSelector.setCurrentNode(empty)
    assert not ui.applyButton.enabled and "has no segments" in ui.applyButton.toolTip
    part = add_segmentation(fixed, {"part": np.ones(slicer.util.arrayFromVolume(fixed).shape, np.uint8)})
    ui.excludeFixedSelector.setCurrentNode(part)
    assert ui.applyButton.enabled
    ui.fixedMaskSelector.setCurrentNode(part)
    assert not ui.applyButton.enabled and "both the mask of the fixed volume and excluded" in ui.applyButton.toolTip
