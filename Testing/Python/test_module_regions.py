"""Predicted regions by clicks: chosen, shown with their names, measured, replaced, removed, or not believed."""

import fake_register
import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer")
from panel_steps import click, combo_texts, prepare, run  # noqa: E402
from test_slicer_nodes import as_image  # noqa: E402

NETWORK, DOUBTFUL = "obelisk-tcia", "brainchop-18"


def choose(panel, network):
    """Pick a network whose weights are there, as far as the panel looks at them."""
    from FoundationRegLib.weights import store
    from FoundationRegLib.weights.catalogue import entry

    if network:
        path = store.models_folder() / network / entry(network).weights.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    combo = panel.ui.anatomyComboBox
    combo.currentIndex = combo.findData(network)


def regions():
    return [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if "predicted by" in node.GetName()]


def labels_of(node, volume):
    from FoundationRegLib.slicer.scene import nodes

    return nodes.segment_array(node, list(nodes.segment_names(node)), volume)


def test_regions_come_as_named_segmentations_of_both_sides_and_of_the_result(panel, bench):
    from FoundationRegLib.slicer.scene import nodes

    _, moving = prepare(panel, bench)
    panel.ui.guidanceCollapsibleButton.collapsed = False
    texts = combo_texts(panel.ui.anatomyComboBox)
    assert texts[0] == "None" and panel.ui.anatomyComboBox.currentIndex == 0 and len(texts) >= 7
    choose(panel, NETWORK)
    run(panel, bench)
    made = {node.GetName().partition(":")[0]: node for node in regions()}
    assert set(made) == {"fixed", "moving", "moving, registered"}
    assert all(node.GetName().endswith("regions predicted by obelisk-tcia") for node in made.values())
    assert all(list(nodes.segment_names(node).values()) == ["spleen", "left kidney"] for node in made.values())
    transform = panel.ui.outputTransformSelector.currentNode()
    parents = [made[name].GetParentTransformNode() for name in ("fixed", "moving", "moving, registered")]
    assert parents == [None, None, transform]
    half = np.zeros(slicer.util.arrayFromVolume(moving).shape, np.uint8)
    half[: half.shape[0] // 2], half[-6:, -7:, -8:] = 1, 2
    # The volume and the segmentation that follows it lie under one transform.
    np.testing.assert_array_equal(labels_of(made["moving, registered"], moving), half)
    colors = [made[name].GetSegmentation().GetNthSegment(0).GetColor() for name in made]
    assert colors[0] == colors[1] == colors[2]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folders = {hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n))) for n in made.values()}
    assert folders == {f"{transform.GetName()}: details"}
    table = transform.GetNodeReference("FoundationReg.metrics")
    rows = {table.GetCellText(n, 0): n for n in range(table.GetNumberOfRows())}
    row = rows["Dice overlap of predicted regions: spleen"]
    assert [float(table.GetCellText(row, column)) for column in (1, 2)] == pytest.approx([0.4, 0.8])


def test_regions_are_filled_again_removed_with_the_choice_and_with_their_result(panel, bench):
    prepare(panel, bench)
    choose(panel, NETWORK)
    run(panel, bench)
    first, count = regions(), slicer.mrmlScene.GetNumberOfNodes()
    run(panel, bench)
    assert regions() == first and slicer.mrmlScene.GetNumberOfNodes() == count
    choose(panel, "")
    run(panel, bench)
    assert regions() == []
    choose(panel, NETWORK)
    run(panel, bench)
    assert len(regions()) == 3
    slicer.mrmlScene.RemoveNode(panel.ui.outputTransformSelector.currentNode())
    bench.process_events()
    assert regions() == []


def test_regions_that_are_not_believed_are_told_and_not_shown(panel, bench):
    prepare(panel, bench)
    choose(panel, DOUBTFUL)
    run(panel, bench)
    sentence = "The regions that brainchop-18 sees in the moving image are not believed: it finds none"
    assert sentence in panel.ui.statusLabel.text
    assert [node.GetName().partition(":")[0] for node in regions()] == ["fixed"]


def test_cancelling_and_failing_leave_no_regions(panel, bench):
    prepare(panel, bench, fake_register.SLOW)
    choose(panel, NETWORK)
    count = slicer.mrmlScene.GetNumberOfNodes()
    click(bench, panel.ui.applyButton)
    bench.wait_until(lambda: panel.ui.progressBar.value > 0, 60)
    click(bench, panel.ui.applyButton)
    panel.ui.seedSpinBox.value = fake_register.BAD_INPUT
    with bench.dialogs.answering("OK"):
        run(panel, bench)
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_without_a_transform_the_registered_regions_are_resampled(panel, bench):
    fixed, moving = prepare(panel, bench)
    choose(panel, NETWORK)
    click(bench, panel.ui.makeTransformCheckBox)
    click(bench, panel.ui.makeVolumeCheckBox)
    run(panel, bench)
    after = next(node for node in regions() if node.GetName().startswith("moving, registered"))
    half = np.zeros(slicer.util.arrayFromVolume(moving).shape, np.uint8)
    half[: half.shape[0] // 2], half[-6:, -7:, -8:] = 1, 2
    source = sitk.GetImageFromArray(half)
    source.CopyInformation(as_image(moving))
    shift = sitk.TranslationTransform(3, (3.0, 0.0, 0.0))
    expected = sitk.GetArrayFromImage(sitk.Resample(source, as_image(fixed), shift, sitk.sitkNearestNeighbor, 0))
    found = labels_of(after, fixed)
    assert (expected > 0).sum() > 500 and (found != expected).mean() < 0.01


def test_weights_of_a_network_are_asked_for_with_the_run(panel, bench):
    prepare(panel, bench)
    combo = panel.ui.anatomyComboBox
    combo.currentIndex = combo.findData(NETWORK)
    assert "OBELISK" in panel.ui.encoderStateLabel.text
    with bench.dialogs.answering("Cancel") as seen:
        click(bench, panel.ui.applyButton)
    assert "OBELISK" in seen[0] and "MIT" in seen[0] and panel.ui.outputTransformSelector.currentNode() is None


def test_a_network_of_ones_own_runs_only_after_a_yes(panel, bench, tmp_path, monkeypatch):
    import qt
    from FoundationRegLib.weights import trust

    prepare(panel, bench)
    (tmp_path / "mine.pt").write_bytes(b"a network of regions")
    (tmp_path / "mine.json").write_text('{"file": "mine.pt", "classes": ["background", "liver"], "frame": {}}')
    combo = panel.ui.anatomyComboBox
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: "")
    combo.currentIndex = combo.count - 1
    assert combo.currentIndex == 0, "a dialog that was closed changes nothing"
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: str(tmp_path / "mine.json"))
    combo.currentIndex = combo.count - 1
    assert combo.currentText == "mine" and panel._parameterNode.anatomy == str(tmp_path / "mine.json")
    with bench.dialogs.answering("No") as seen:
        click(bench, panel.ui.applyButton)
    assert "mine.pt" in seen[0] and regions() == []
    with bench.dialogs.answering("Yes"):
        run(panel, bench)
    assert trust.is_trusted(tmp_path / "mine.pt") and len(regions()) == 3


def test_the_console_takes_boxes_and_a_network(panel, bench):
    from test_slicer_boxes import add_roi, middle_of

    from FoundationReg import FoundationRegLogic

    volumes = prepare(panel, bench)
    boxes = [add_roi(middle_of(volume), (12, 12, 12)) for volume in volumes]
    options = {"fixed_box": boxes[0], "moving_box": boxes[1], "settings": {"anatomy": NETWORK, "encoders": "mind"}}
    result = FoundationRegLogic().process(*volumes, **options)
    assert set(result.regionNodes) == {"fixed", "moving", "after"} and set(result.boxMaskNodes) == {"fixed", "moving"}
    again = FoundationRegLogic().process(
        *volumes, result.transformNode, **options,
        fixed_box_mask=result.boxMaskNodes["fixed"], moving_box_mask=result.boxMaskNodes["moving"],
    )  # fmt: skip
    assert again.regionNodes == result.regionNodes and again.boxMaskNodes == result.boxMaskNodes
    assert result.boxMaskNodes["moving"].GetParentTransformNode() is result.transformNode
