"""The panel with the real registration and stand-ins for MedSAM-Lite: box to mask to guide, and features on demand."""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_grid

slicer = pytest.importorskip("slicer")
from panel_steps import click  # noqa: E402
from test_box_masks import egg_on  # noqa: E402
from test_module_boxes import mask_of, weights_are_there  # noqa: E402
from test_slicer_boxes import add_roi  # noqa: E402

SHIFT = np.array([18.0, 0, 0])


@pytest.fixture
def organ(bench, loaded, tmp_path):
    """The opened panel with two bodies that lie still, in which an egg lies `SHIFT` apart."""
    from FoundationRegLib.slicer.client import pump
    from FoundationRegLib.slicer.client.channel import Channel
    from FoundationRegLib.slicer.client.process import WorkerProcess
    from FoundationRegLib.slicer.scene import nodes
    from FoundationRegLib.weights import store

    store.set_models_folder(tmp_path / "models")
    weights_are_there()
    program = str(Path(__file__).with_name("box_worker.py"))
    pump.use_channel(Channel(WorkerProcess([sys.executable, "-P", program], {"OMP_NUM_THREADS": "1"})))
    slicer.mrmlScene.Clear(0)
    loaded.enter()
    grid = make_grid((30, 40, 44), (2.5, 2.5, 2.5), center=(0, 0, 0))
    for side, shift in (("fixed", np.zeros(3)), ("moving", SHIFT)):
        body, egg = egg_on(grid, np.zeros(3), axes=(48.0, 44.0, 34.0)), egg_on(grid, shift)
        array = (250.0 * body + 650.0 * egg).astype(np.int16)
        volume = slicer.util.addVolumeFromArray(array, nodes.ijk_to_ras(grid), side)
        getattr(loaded.ui, f"{side}Selector").setCurrentNode(volume)
    node = loaded._parameterNode
    node.device, node.searchRange, node.iterations = "cpu", 0.0, 4
    yield loaded
    loaded.panel.cancel()
    pump.use_channel(None)
    slicer.mrmlScene.Clear(0)
    store.set_models_folder(None)


def wait(bench, widget):
    bench.process_events()
    bench.wait_until(lambda: not widget.panel._busy, 400)


def moved(transform, point):
    """Where a LPS point of the fixed side lies in the moving volume."""
    signs = np.array([-1.0, -1.0, 1.0])
    return np.array(transform.GetTransformFromParent().TransformPoint(*(np.array(point) * signs))) * signs


def test_boxes_become_masks_and_the_masks_guide(organ, bench):
    ui, node = organ.ui, organ._parameterNode
    ui.guidanceCollapsibleButton.collapsed = False
    for side, shift in (("fixed", np.zeros(3)), ("moving", SHIFT)):
        roi = add_roi(shift * (-1, -1, 1), (34, 26, 42), name=f"{side} egg")
        getattr(ui, f"{side}BoxSelector").setCurrentNode(roi)
    bench.process_events(0.3)
    click(bench, ui.segmentBoxesButton)
    wait(bench, organ)
    grid = make_grid((30, 40, 44), (2.5, 2.5, 2.5), center=(0, 0, 0))
    for mask, volume, shift in ((node.fixedBoxMask, node.fixedVolume, np.zeros(3)),
                                (node.movingBoxMask, node.movingVolume, SHIFT)):  # fmt: skip
        found, egg = mask_of(mask, volume), egg_on(grid, shift)
        assert 2 * (found & egg).sum() / (found.sum() + egg.sum()) > 0.9
    click(bench, ui.applyButton)
    wait(bench, organ)
    assert node.outputTransform is not None, ui.statusLabel.text
    np.testing.assert_allclose(moved(node.outputTransform, (0, 0, 0)), SHIFT, atol=4.0)
    # In the scene, the organ of the moving side now lies on that of the fixed side.
    over = mask_of(node.movingBoxMask, node.fixedVolume)
    fixed = mask_of(node.fixedBoxMask, node.fixedVolume)
    assert 2 * (over & fixed).sum() / (over.sum() + fixed.sum()) > 0.8


def test_features_are_encoded_after_the_result_shown_probed_and_given_a_say(organ, bench):
    from FoundationRegLib.slicer.scene import results
    from FoundationRegLib.slicer.scene.review import encoders_of

    ui, node, section = organ.ui, organ._parameterNode, organ.panel.interaction
    assert not ui.encodeFeaturesButton.enabled and not ui.useFeaturesButton.enabled
    click(bench, ui.applyButton)
    wait(bench, organ)
    transform, pid = node.outputTransform, organ.logic.channel.process.pid
    before = results.read_grid(transform)[0].copy()
    assert encoders_of(transform) == [] and ui.compareComboBox.count == 1
    assert [ui.featureEncoderComboBox.itemData(n) for n in range(ui.featureEncoderComboBox.count)] == ["medsam-lite"]
    click(bench, ui.encodeFeaturesButton)
    assert ui.applyButton.text == "Cancel"
    wait(bench, organ)
    assert encoders_of(transform) == ["medsam-lite"] and ui.compareComboBox.currentData == "medsam-lite"
    assert not ui.encodeFeaturesButton.enabled and "can be probed" in ui.statusLabel.text
    assert organ.logic.channel.process.pid == pid and (results.read_grid(transform)[0] == before).all()
    probes = [section._ui.probeEncoderComboBox.itemData(n) for n in range(2)]
    assert probes == ["mind", "medsam-lite"]
    answers = []
    section.session.probe((0.0, 0.0, 0.0), "fixed", "medsam-lite", answers.append)
    bench.wait_until(lambda: answers, 60)
    assert answers[0]["encoder"] == "medsam-lite" and answers[0]["similarity_at_match"] > 0.5
    click(bench, ui.useFeaturesButton)
    wait(bench, organ)
    assert node.preset == "foundation" and '"medsam-lite"' in transform.GetAttribute("FoundationReg.record")
    assert not ui.useFeaturesButton.enabled, "it has a say already"


def test_encoding_is_cancelled_without_losing_the_result(organ, bench):
    from FoundationRegLib.slicer.scene.review import encoders_of

    ui, section = organ.ui, organ.panel.interaction
    click(bench, ui.applyButton)
    wait(bench, organ)
    transform = organ._parameterNode.outputTransform
    count, pid = slicer.mrmlScene.GetNumberOfNodes(), organ.logic.channel.process.pid
    click(bench, ui.encodeFeaturesButton)
    assert ui.applyButton.text == "Cancel"
    click(bench, ui.applyButton)
    wait(bench, organ)
    assert encoders_of(transform) == [] and slicer.mrmlScene.GetNumberOfNodes() == count
    assert section.ready and organ.logic.channel.process.pid == pid, "the worker keeps what it has"
    assert "cancelled" in ui.statusLabel.text.lower() and ui.encodeFeaturesButton.enabled
