"""Boxes by clicks: draw, segment, look, correct, register; with a decoder that finds each box full."""

import json

import fake_register
import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
from panel_steps import click, prepare, run  # noqa: E402
from test_slicer_boxes import add_roi, middle_of, turned_like, voxels_in_roi  # noqa: E402


def draw_boxes(panel, bench, volumes):
    """Boxes along the axes of both volumes, chosen in the panel."""
    panel.ui.guidanceCollapsibleButton.collapsed = False
    boxes = []
    for side, volume in zip(("fixed", "moving"), volumes, strict=True):
        boxes.append(add_roi(middle_of(volume), (14, 12, 16), turned_like(volume), name=f"{side} organ"))
        getattr(panel.ui, f"{side}BoxSelector").setCurrentNode(boxes[-1])
    bench.process_events(0.3)
    return boxes


def weights_are_there():
    """The file of MedSAM-Lite's weights, as far as the panel looks at it."""
    from FoundationRegLib.weights import store
    from FoundationRegLib.weights.catalogue import entry

    path = store.models_folder() / "medsam-lite" / entry("medsam-lite").weights.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def mask_of(segmentation, volume):
    from FoundationRegLib.slicer.scene import nodes

    return nodes.segment_array(segmentation, list(nodes.segment_names(segmentation)), volume) > 0


def given(panel):
    owner = panel.ui.outputTransformSelector.currentNode()
    return json.loads(owner.GetAttribute("FoundationReg.record"))["given"]


def paint(segmentation, volume, corner):
    """Add a block of voxels as Segment Editor does: the changed labelmap takes the place of the old one."""
    from FoundationRegLib.slicer.scene import nodes, segmentations

    mask = mask_of(segmentation, volume).astype(np.uint8)
    mask[tuple(slice(n, n + 3) for n in corner)] = 1
    segment = segmentation.GetSegmentation().GetNthSegment(0)
    image = segmentations._oriented(mask, nodes.volume_grid(volume))
    segment.GetRepresentation("Binary labelmap").DeepCopy(image)
    return int(mask.sum())


def test_boxes_are_segmented_looked_at_and_corrected_before_they_guide(panel, bench):
    volumes = prepare(panel, bench)
    weights_are_there()
    boxes, ui = draw_boxes(panel, bench, volumes), panel.ui
    click(bench, ui.segmentBoxesButton)
    bench.wait_until(lambda: ui.movingBoxMaskSelector.currentNode() is not None and not panel.panel._busy, 60)
    masks = [getattr(ui, f"{side}BoxMaskSelector").currentNode() for side in ("fixed", "moving")]
    for mask, box, volume in zip(masks, boxes, volumes, strict=True):
        inside = voxels_in_roi(box, volume)
        assert (mask_of(mask, volume) != inside).sum() <= 0.01 * inside.sum()
        assert "predicted by MedSAM-Lite in the box" in mask.GetName()
        assert mask.GetDisplayNode().GetVisibility() and mask.GetParentTransformNode() is None
    assert ui.outputTransformSelector.currentNode() is None and "press Apply" in ui.statusLabel.text
    # A yes: what was predicted is predicted again by the worker, which still knows it.
    run(panel, bench)
    assert len(given(panel)["fixed_box"]) == 8 and given(panel).get("fixed_box_mask") is None
    transform = ui.outputTransformSelector.currentNode()
    assert ui.movingBoxMaskSelector.currentNode() is masks[1]
    assert masks[1].GetParentTransformNode() is transform and masks[0].GetParentTransformNode() is None
    # A correction: what a person drew guides as it is, on its side.
    count = paint(masks[0], volumes[0], (1, 1, 1))
    run(panel, bench)
    assert given(panel)["fixed_box_mask"] == count and given(panel).get("fixed_box") is None
    assert len(given(panel)["moving_box"]) == 8 and given(panel).get("moving_box_mask") is None
    assert mask_of(masks[0], volumes[0]).sum() == count, "the user's correction stays"
    # New boxes' masks never replace it unasked.
    with bench.dialogs.answering("No") as seen:
        click(bench, ui.segmentBoxesButton)
    assert "which you drew or corrected" in seen[0] and mask_of(masks[0], volumes[0]).sum() == count
    with bench.dialogs.answering("Yes"):
        click(bench, ui.segmentBoxesButton)
        bench.wait_until(lambda: not panel.panel._busy, 60)
    assert ui.fixedBoxMaskSelector.currentNode() is not masks[0] and masks[0].GetScene() is not None
    assert ui.movingBoxMaskSelector.currentNode() is masks[1], "what nobody touched is filled again"


def test_apply_with_boxes_alone_brings_their_segmentations(panel, bench):
    volumes = prepare(panel, bench)
    weights_are_there()
    boxes, ui = draw_boxes(panel, bench, volumes), panel.ui
    run(panel, bench)
    masks = [getattr(ui, f"{side}BoxMaskSelector").currentNode() for side in ("fixed", "moving")]
    assert all(masks) and mask_of(masks[0], volumes[0]).sum() > 50
    count, held = slicer.mrmlScene.GetNumberOfNodes(), given(panel)["moving_box"]
    before = mask_of(masks[0], volumes[0])
    boxes[0].SetSize(10, 10, 10)
    run(panel, bench)
    assert slicer.mrmlScene.GetNumberOfNodes() == count, "the same segmentations hold the new prediction"
    after = mask_of(masks[0], volumes[0])
    assert 0 < after.sum() < before.sum() and not (after & ~before).any()
    # The moving box went with the moving volume, so it still holds the same of it.
    np.testing.assert_allclose(given(panel)["moving_box"], held, atol=1e-6)


def test_cancelling_and_failing_leave_no_segmentation(panel, bench):
    volumes = prepare(panel, bench, fake_register.SLOW)
    weights_are_there()
    draw_boxes(panel, bench, volumes)
    nodes_before = slicer.mrmlScene.GetNumberOfNodes()
    click(bench, panel.ui.applyButton)
    bench.wait_until(lambda: panel.ui.progressBar.value > 0, 60)
    click(bench, panel.ui.applyButton)
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes_before
    panel.ui.seedSpinBox.value = fake_register.BAD_INPUT
    with bench.dialogs.answering("OK"):
        run(panel, bench)
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes_before
    assert panel.ui.fixedBoxMaskSelector.currentNode() is None
    click(bench, panel.ui.segmentBoxesButton)
    assert panel.ui.applyButton.text == "Cancel"
    click(bench, panel.ui.applyButton)
    bench.process_events(0.5)
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes_before and panel.ui.applyButton.text == "Apply"


def test_boxes_that_cannot_be_are_told_at_the_button(panel, bench):
    volumes = prepare(panel, bench)
    boxes, ui = draw_boxes(panel, bench, volumes), panel.ui
    assert ui.applyButton.enabled and ui.segmentBoxesButton.enabled
    boxes[1].SetCenter(400, 0, 0)
    bench.wait_until(lambda: not ui.applyButton.enabled, 5)
    assert "'moving organ' lies outside of the volume 'moving'" in ui.applyButton.toolTip
    ui.movingBoxSelector.setCurrentNode(None)
    bench.process_events()
    assert "around the same organ" in ui.applyButton.toolTip and not ui.segmentBoxesButton.enabled
    ui.fixedBoxSelector.setCurrentNode(None)
    bench.process_events()
    assert ui.applyButton.enabled and not ui.boxesLabel.visible


def test_weights_that_segment_boxes_are_asked_for(panel, bench, fake_channel, tmp_path):
    fake_channel.close()
    volumes = prepare(panel, bench)
    draw_boxes(panel, bench, volumes)
    assert "39 MB" in panel.ui.encoderStateLabel.text
    with bench.dialogs.answering("Cancel") as seen:
        click(bench, panel.ui.segmentBoxesButton)
    assert "39 MB" in seen[0] and panel.ui.fixedBoxMaskSelector.currentNode() is None
    with bench.dialogs.answering("OK"):
        click(bench, panel.ui.segmentBoxesButton)
        bench.wait_until(lambda: panel.ui.fixedBoxMaskSelector.currentNode() is not None, 60)


def test_a_box_is_drawn_by_two_clicks_in_a_view(panel, bench):
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtTest import QTest

    prepare(panel, bench)
    slicer.util.resetSliceViews()
    ui = panel.ui
    ui.guidanceCollapsibleButton.collapsed = False
    bench.process_events()
    click(bench, ui.fixedBoxDrawButton)
    box = ui.fixedBoxSelector.currentNode()
    assert box.GetName() == "Fixed box" and "opposite corners" in ui.statusLabel.text
    assert "is not drawn yet" in ui.applyButton.toolTip or "around the same organ" in ui.applyButton.toolTip
    view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
    for share in (0.4, 0.6):
        place = QPoint(int(view.size.width() * share), int(view.size.height() * share))
        QTest.mouseMove(view, place)
        bench.process_events(0.1)
        QTest.mouseClick(view, Qt.LeftButton, Qt.NoModifier, place)
        bench.process_events(0.1)
    assert min(box.GetSize()) > 1
    interaction = slicer.app.applicationLogic().GetInteractionNode()
    assert interaction.GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.ViewTransform
    bench.wait_until(lambda: not ui.fixedBoxDrawButton.enabled, 5)  # a box that is drawn is dragged
