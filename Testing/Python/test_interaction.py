"""Asking and correcting by clicking, with real registrations of small volumes."""

import sys

import numpy as np
import pytest
from conftest import make_grid

slicer = pytest.importorskip("slicer")
from panel_steps import click  # noqa: E402
from test_module_real import TURNED, bend, unbend  # noqa: E402


@pytest.fixture(scope="module")
def registered(bench, loaded, phantom):
    """The panel after the registration of a phantom with a known warp; the worker stays warm over the tests."""
    from FoundationRegLib.slicer.client import pump
    from FoundationRegLib.slicer.client.channel import Channel
    from FoundationRegLib.slicer.client.process import WorkerProcess
    from FoundationRegLib.slicer.scene import nodes

    command = [sys.executable, "-P", "-m", "FoundationRegLib.worker"]
    pump.use_channel(Channel(WorkerProcess(command, {"OMP_NUM_THREADS": "2"})))
    slicer.mrmlScene.Clear(0)
    loaded.enter()
    fixed_grid, moving_grid = make_grid(), make_grid(**TURNED)
    for selector, name, array, grid in (
        (loaded.ui.fixedSelector, "fixed", phantom.on(fixed_grid), fixed_grid),
        (loaded.ui.movingSelector, "moving", 700 - phantom.on(moving_grid, unbend), moving_grid),
    ):
        selector.setCurrentNode(slicer.util.addVolumeFromArray(array.astype(np.int16), nodes.ijk_to_ras(grid), name))
    loaded.ui.encoderComboBox.currentIndex = loaded.ui.encoderComboBox.findData("mind")
    loaded._parameterNode.device, loaded._parameterNode.searchRange = "cpu", 12.0
    register(bench, loaded)
    loaded.interactionUi.interactionCollapsibleButton.collapsed = False
    bench.process_events()
    yield loaded
    loaded.panel.cancel()
    pump.use_channel(None)
    slicer.mrmlScene.Clear(0)


@pytest.fixture(autouse=True)
def nothing_pressed(registered, bench):
    """A test that failed leaves no mode on for the next one."""
    yield
    registered.panel.interaction.leave()
    bench.process_events()


def register(bench, widget):
    click(bench, widget.ui.applyButton)
    bench.wait_until(lambda: not widget.panel._busy, 600)
    assert widget.panel.interaction.ready, widget.ui.statusLabel.text


def settle(bench, widget):
    section = widget.panel.interaction
    bench.process_events()
    bench.wait_until(lambda: not section.session.busy, 240)
    bench.process_events()


def moved(transform, points):
    """Where LPS ``points`` of the fixed side lie in the moving image, by the node."""
    from FoundationRegLib.slicer.scene import nodes

    signs = np.array([-1.0, -1.0, 1.0])
    return nodes.transform_points(transform.GetTransformFromParent(), points * signs) * signs


def test_the_section_offers_what_the_worker_keeps(registered):
    ui = registered.interactionUi
    assert ui.probeButton.enabled and ui.addPairButton.enabled and not ui.undoButton.enabled
    assert not ui.encodeAgainButton.visible and "in memory" in ui.memoryLabel.text


def click_view(bench, name, ras):
    """Click in a slice view where it shows the place ``ras``, after scrolling there."""
    from PySide6.QtCore import QPoint, Qt
    from PySide6.QtTest import QTest

    widget = slicer.app.layoutManager().sliceWidget(name)
    widget.mrmlSliceNode().JumpSliceByOffsetting(*map(float, ras))
    bench.process_events()
    view = widget.sliceView()
    x, y, _z = view.convertRASToXYZ([float(value) for value in ras])
    where = QPoint(round(x), round(view.height - 1 - y))
    assert 0 <= where.x() < view.width and 0 <= where.y() < view.height
    QTest.mouseClick(view, Qt.LeftButton, Qt.NoModifier, where)
    bench.process_events()


def shown_at(widget, moving_point):
    """RAS where the view shows an LPS point of the moving volume: through its transform."""
    from FoundationRegLib.slicer.scene import nodes

    chain = nodes.chain_between(widget._parameterNode.movingVolume.GetParentTransformNode(), None)
    return nodes.transform_points(chain, np.reshape(moving_point, (1, 3)) * (-1.0, -1.0, 1.0))[0]


PLACES = np.array([[6.0, -9.0, 4.0], [-12.0, 8.0, -6.0], [14.0, 10.0, 10.0]])


def test_the_probe_finds_the_place_of_a_warped_phantom_in_both_directions(bench, registered):
    ui, section = registered.interactionUi, registered.panel.interaction
    layout = slicer.app.layoutManager().layout
    click(bench, ui.probeButton)
    answers = []
    show = section.probe.view.show
    section.probe.view.show = lambda answer, point: (answers.append((answer, point)), show(answer, point))
    slicer.app.layoutManager().resetSliceViews()
    for view, place in [("Red", place) for place in PLACES] + [("Yellow", PLACES[0])]:
        count = len(answers)
        click_view(bench, view, place * (-1, -1, 1))
        bench.wait_until(lambda count=count: len(answers) > count, 240)
        answer, point = answers[-1]
        assert answer["side"] == ("fixed" if view == "Red" else "moving")
        truth = bend(np.asarray(point)) if view == "Red" else unbend(np.asarray(point)[None])[0]
        # A click hits a pixel, the map has nodes of 4 mm.
        assert np.linalg.norm(answer["match"] - truth) < 3.5, (view, place)
        assert np.linalg.norm(answer["transform"] - truth) < 1.5
        assert "best match" in ui.probeLabel.text and "expected error" in ui.probeLabel.text
    composite = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceCompositeNode()
    assert composite.GetForegroundVolumeID() == section.probe.view._map.GetID()
    click(bench, ui.probeButton)
    assert slicer.app.layoutManager().layout == layout
    assert slicer.mrmlScene.GetFirstNodeByName("FoundationReg similarity") is None


def test_two_clicks_move_a_wrong_place_and_nothing_far_away(bench, registered):
    ui, node = registered.interactionUi, registered._parameterNode
    transform, place = node.outputTransform, PLACES[0]
    around = np.random.default_rng(0).normal(size=(4000, 3)) * 22
    around = around[np.linalg.norm(around / (40, 34, 46), axis=1) < 0.9]
    before = moved(transform, around)
    wrong = moved(transform, place[None])[0] + (0.0, 0.0, 5.0)
    click(bench, ui.addPairButton)
    slicer.app.layoutManager().resetSliceViews()
    click_view(bench, "Red", shown_at(registered, wrong))
    assert ui.addPairButton.checked
    click_view(bench, "Green", place * (-1, -1, 1))
    settle(bench, registered)
    assert not ui.addPairButton.checked and ui.pairsTable.rowCount == 1
    pair = registered.panel.interaction.pairs.for_worker()[0]
    assert np.linalg.norm(np.array(pair["fixed"]) - place) < 1.5
    assert np.linalg.norm(np.array(pair["moving"]) - wrong) < 2.0
    assert np.linalg.norm(moved(transform, np.array([pair["fixed"]]))[0] - pair["moving"]) < 0.5
    assert float(ui.pairsTable.item(0, 1).text()) < 0.5
    after = moved(transform, around)
    far = np.linalg.norm(around - pair["fixed"], axis=1) >= 40
    assert far.sum() > 100 and np.linalg.norm(after - before, axis=1)[far].max() < 0.2
    click(bench, ui.undoButton)
    settle(bench, registered)
    np.testing.assert_allclose(moved(transform, around), before, atol=1e-4)
    assert ui.pairsTable.rowCount == 0
    click(bench, ui.redoButton)
    settle(bench, registered)
    np.testing.assert_allclose(moved(transform, around), after, atol=1e-4)


def add_pairs(bench, widget, count, seed, spread=1.5):
    """Pairs at random places of the body whose moving points are wrong by ``spread`` mm, one correction each."""
    random = np.random.default_rng(seed)
    section, transform = widget.panel.interaction, widget._parameterNode.outputTransform
    for _ in range(count):
        place = random.normal(size=3) * (12, 10, 14)
        goal = moved(transform, place[None])[0] + random.normal(size=3) * spread
        section.addPair(place * (-1, -1, 1), shown_at(widget, goal))
        settle(bench, widget)


def field(widget):
    from FoundationRegLib.slicer.scene import results

    return results.read_grid(widget._parameterNode.outputTransform)[0].copy()


def clear_pairs(bench, widget):
    section = widget.panel.interaction
    if section.pairs is not None:
        section.ensurePairs().restore(())
        section._takeChange()
        settle(bench, widget)


def test_ten_corrections_five_undone_are_the_same_after_saving_and_loading(bench, registered, tmp_path):
    from FoundationRegLib.numerics.local_flows import least_determinant

    torch = pytest.importorskip("torch")
    ui = registered.interactionUi
    clear_pairs(bench, registered)
    fields = []
    for n in range(10):
        add_pairs(bench, registered, 1, n)
        fields.append(field(registered))
    for n in range(5):
        click(bench, ui.undoButton)
        settle(bench, registered)
        np.testing.assert_allclose(field(registered), fields[8 - n], atol=1e-5)
    assert ui.pairsTable.rowCount == 5 and ui.redoButton.enabled
    pairs = registered.panel.interaction.pairs.for_worker()
    points = np.random.default_rng(8).uniform(-22, 22, (200, 3))  # between the nodes, too
    through = moved(registered._parameterNode.outputTransform, points)
    path = str(tmp_path / "corrected.mrb")
    assert slicer.util.saveScene(path)
    bench.process_events()
    slicer.mrmlScene.Clear(0)
    slicer.util.loadScene(path)
    bench.process_events()
    np.testing.assert_allclose(field(registered), fields[4], atol=1e-4)
    np.testing.assert_allclose(moved(registered._parameterNode.outputTransform, points), through, atol=0.01)
    section = registered.panel.interaction
    loaded_pairs = section.pairs.for_worker()
    for a, b in zip(loaded_pairs, pairs, strict=True):
        np.testing.assert_allclose([a["fixed"], a["moving"]], [b["fixed"], b["moving"]], atol=1e-3)
    assert not section.ready and "no longer in memory" in ui.memoryLabel.text
    lps = fields[4] @ np.diag([1.0, 1.0, 1.0])
    along_axes = np.moveaxis(lps[..., ::-1], -1, 0).copy()
    assert float(least_determinant(torch.from_numpy(along_axes).float(), 4.0).min()) > 0
    # Encoding again obeys the pairs that came with the scene.
    ui.interactionCollapsibleButton.collapsed = False
    bench.process_events()
    click(bench, ui.encodeAgainButton)
    bench.wait_until(lambda: not registered.panel._busy, 600)
    settle(bench, registered)
    transform = registered._parameterNode.outputTransform
    for row, pair in enumerate(section.pairs.for_worker()):
        miss = np.linalg.norm(moved(transform, np.array([pair["fixed"]]))[0] - pair["moving"])
        assert miss < 0.5 or ui.pairsTable.item(row, 2).text()


def test_a_change_during_a_change_replaces_it(bench, registered):
    section, transform = registered.panel.interaction, registered._parameterNode.outputTransform
    clear_pairs(bench, registered)
    place = PLACES[1]
    goal = moved(transform, place[None])[0] + (0.0, 3.0, 0.0)
    section.addPair(place * (-1, -1, 1), shown_at(registered, goal))
    assert section.session.busy
    final = place + np.array((0.0, 2.0, 0.0))
    section.pairs.fixed_list.SetNthControlPointPositionWorld(0, *(final * (-1, -1, 1)).tolist())
    section._takeChange()
    settle(bench, registered)
    assert np.linalg.norm(moved(transform, final[None])[0] - section.pairs.for_worker()[0]["moving"]) < 0.5
    assert registered.interactionUi.pairsTable.rowCount == 1


def test_a_pair_is_switched_off_and_removed_in_the_list(bench, registered):
    from PySide6.QtCore import Qt

    section, ui, transform = (
        registered.panel.interaction,
        registered.interactionUi,
        registered._parameterNode.outputTransform,
    )
    clear_pairs(bench, registered)
    clean = field(registered)
    add_pairs(bench, registered, 2, 5, 3.0)
    ui.pairsTable.item(0, 0).setCheckState(Qt.Unchecked)
    settle(bench, registered)
    first, second = section.pairs.for_worker()
    assert not first["active"] and second["active"]
    assert np.linalg.norm(moved(transform, np.array([second["fixed"]]))[0] - second["moving"]) < 0.5
    ui.pairsTable.selectRow(0)
    click(bench, ui.removePairButton)
    settle(bench, registered)
    assert ui.pairsTable.rowCount == 1
    ui.pairsTable.selectRow(0)
    click(bench, ui.removePairButton)
    settle(bench, registered)
    np.testing.assert_allclose(field(registered), clean, atol=1e-5)


def test_a_worker_killed_during_a_correction_leaves_the_last_good_result(bench, registered):
    import os
    import signal

    section, ui = registered.panel.interaction, registered.interactionUi
    add_pairs(bench, registered, 1, 9)
    good = field(registered)
    process = registered.logic.channel.process
    os.kill(process.pid, signal.SIGSTOP)
    section.addPair((5.0, 5.0, 5.0), (8.0, 5.0, 5.0))
    assert section.session.busy
    os.kill(process.pid, signal.SIGKILL)
    bench.wait_until(lambda: not section.session.busy, 60)
    np.testing.assert_array_equal(field(registered), good)
    assert not section.ready and ui.encodeAgainButton.visible
    assert ui.pairsTable.rowCount == 2


def test_linear_only_gives_a_linear_transform(bench, registered):
    ui, node = registered.ui, registered._parameterNode
    # Under the bent result, which would be the start, no linear transform can come out.
    node.movingVolume.SetAndObserveTransformNodeID(None)
    node.outputTransform, node.linearOnly = None, True
    click(bench, ui.applyButton)
    bench.wait_until(lambda: not registered.panel._busy, 600)
    transform = node.outputTransform
    assert transform.IsA("vtkMRMLLinearTransformNode") and not registered.panel.interaction.ready
    assert node.movingVolume.GetParentTransformNode() is transform
    before, after = (
        np.linalg.norm(found - bend(PLACES), axis=1).mean() for found in (PLACES, moved(transform, PLACES))
    )
    assert after < before
    node.linearOnly = False
