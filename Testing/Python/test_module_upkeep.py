"""What the module leaves behind and takes along: nodes, processes, files, observers, log lines."""

import gc
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import fake_register
import numpy as np
import pytest
from module_fixtures import FAKE_WORKER, process_is_running
from test_worker import request

slicer = pytest.importorskip("slicer")
from panel_steps import click, prepare, run  # noqa: E402


def all_nodes():
    nodes = slicer.mrmlScene.GetNodes()
    return {nodes.GetItemAsObject(n).GetID() for n in range(nodes.GetNumberOfItems())}


def items_of(folder, hierarchy):
    import vtk

    ids = vtk.vtkIdList()
    hierarchy.GetItemChildren(folder, ids)
    return {hierarchy.GetItemName(ids.GetId(n)) for n in range(ids.GetNumberOfIds())}


def test_what_comes_with_a_result_lies_in_a_folder_or_is_not_saved(panel, bench):
    prepare(panel, bench)
    before = all_nodes()
    run(panel, bench)
    transform = panel.ui.outputTransformSelector.currentNode()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folder = hierarchy.GetItemByName(f"{transform.GetName()}: details")
    assert {"moving to fixed metrics", "moving to fixed loss", "moving to fixed uncertainty"} <= items_of(
        folder, hierarchy
    )
    for node in map(slicer.mrmlScene.GetNodeByID, all_nodes() - before - {transform.GetID()}):
        if node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLTableNode") or node.IsA("vtkMRMLPlotChartNode"):
            in_folder = node.GetName() in items_of(folder, hierarchy)
            assert in_folder == bool(node.GetSaveWithScene()) == (not node.GetHideFromEditors()), node.GetName()


def test_what_comes_with_a_result_goes_with_it(panel, bench):
    prepare(panel, bench)
    panel._parameterNode.makeJacobian = True
    before = all_nodes()
    run(panel, bench)
    panel.ui.reviewModeComboBox.currentIndex = 5
    assert panel.ui.compareComboBox.count == 2
    slicer.mrmlScene.RemoveNode(panel.ui.outputTransformSelector.currentNode())
    bench.process_events()
    panel.panel.update()
    left = {slicer.mrmlScene.GetNodeByID(node).GetName() for node in all_nodes() - before}
    assert left == set(), left
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    assert not hierarchy.GetItemByName("moving to fixed: details")


def test_a_saved_scene_holds_no_reference_to_what_it_leaves_out(panel, bench, tmp_path):
    """Else a node that gets such an ID later would be taken for ours, and overwritten."""
    prepare(panel, bench)
    run(panel, bench)
    panel.ui.reviewModeComboBox.currentIndex = 2
    transform = panel.ui.outputTransformSelector.currentNode()
    for number in range(transform.GetNumberOfNodeReferenceRoles()):
        node = transform.GetNodeReference(transform.GetNthNodeReferenceRole(number))
        assert node is None or node.GetSaveWithScene(), node.GetName()


def test_entering_again_makes_no_further_parameter_node_wrapper(panel, bench):
    from FoundationReg import FoundationRegParameterNode

    def wrappers():
        gc.collect()
        return sum(isinstance(item, FoundationRegParameterNode) for item in gc.get_objects())

    before = wrappers()
    for _ in range(4):
        panel.exit()
        panel.enter()
    slicer.mrmlScene.Clear(0)
    bench.process_events()
    assert wrappers() == before
    panel.ui.searchRangeSpinBox.value = 11
    assert panel._parameterNode.searchRange == 11 and panel.logic.getParameterNode() is panel._parameterNode


def test_an_error_is_logged_once(panel, bench, caplog):
    prepare(panel, bench, fake_register.BAD_INPUT)
    with caplog.at_level(logging.DEBUG), bench.dialogs.answering("OK"):
        run(panel, bench)
    assert sum("The fixed image is empty." in record.getMessage() for record in caplog.records) == 1


def test_weights_are_not_looked_at_while_a_slider_moves(panel, bench, monkeypatch):
    from FoundationRegLib.slicer.panel import availability

    prepare(panel, bench)
    looked = []
    for name in ("installed_bytes", "encoder", "folder"):
        function = getattr(availability, name)
        monkeypatch.setattr(availability, name, lambda *a, f=function, n=name: looked.append(n) or f(*a))
    for value in (0.5, 1.5, 2.5):
        panel.ui.smoothnessSlider.value = value
        panel.ui.fadeSlider.value = value / 3
    assert looked == []
    panel.ui.encoderComboBox.currentIndex = panel.ui.encoderComboBox.findData("medsam-lite")
    assert "encoder" in looked and "39 MB" in panel.ui.encoderStateLabel.text


def test_the_phantom_pair_can_be_had_from_the_console(panel, bench):
    import SampleData
    from FoundationRegLib.slicer.scene import nodes, samples

    fixed = SampleData.downloadSample("FoundationRegPhantomPair")
    assert fixed.GetName() == "PhantomFixed"
    fixed, moving = SampleData.downloadSamples("FoundationRegPhantomPair")
    for node, (array, grid) in zip((fixed, moving), samples.make_pair().values(), strict=True):
        assert np.array_equal(slicer.util.arrayFromVolume(node), array)
        np.testing.assert_allclose(nodes.volume_grid(node).affine, grid.affine, atol=1e-6)
    with pytest.raises(ValueError, match="Failed to download"):
        SampleData.SampleDataLogic().downloadFileIntoCache("https://127.0.0.1:9/none", "none.nrrd")


def test_files_lie_in_slicers_folder_and_can_be_kept(panel, bench, fake_channel):
    from FoundationRegLib.slicer.client import pump

    pump.use_channel(None)
    process = pump.shared_channel().process
    process._command = [sys.executable, "-P", str(FAKE_WORKER)]
    place = Path(slicer.app.temporaryPath)
    try:
        prepare(panel, bench)
        run(panel, bench)
        assert process.folder.parent == place and not list(process.folder.iterdir())
        panel.ui.logCollapsibleButton.collapsed = False
        bench.process_events()
        click(bench, panel.ui.keepFilesCheckBox)
        for action in (fake_register.QUICK, fake_register.DIE):
            panel.ui.seedSpinBox.value = action
            with bench.dialogs.answering("OK"):
                run(panel, bench)
        pump.shared_channel().close()
        kept = sorted(place.glob("foundationreg-*/run-*"), key=os.path.getmtime)
        assert len(kept) == 2 and not process.alive, "also of the one whose worker died"
        assert all(str(folder) in panel.ui.logTextEdit.plainText for folder in kept)
        for folder in kept:
            assert np.load(folder / "fixed.npy").shape == (18, 20, 22) and (folder / "request.json").exists()
        assert len(list(place.glob("foundationreg-*"))) == 2, "nothing else stays"
    finally:
        pump.use_channel(fake_channel)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_child_of_the_launcher_is_explained():
    """PythonSlicer is a launcher: when its child is killed it ends with code 1 and says "exit abnormally"."""
    from FoundationRegLib.slicer.client.process import WorkerProcess

    worker = WorkerProcess([shutil.which("PythonSlicer"), "-P", str(FAKE_WORKER)], {"OMP_NUM_THREADS": "1"})
    try:
        worker.send("warm", settings={"device": "cpu"})
        end = time.monotonic() + 60
        while worker.busy and time.monotonic() < end:
            worker.poll()
            time.sleep(0.02)
        # A run that goes on until somebody ends it.
        request(worker, fake_register.NO_CHECKS)
        child = int(Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()[0])
        os.kill(child, signal.SIGKILL)
        while worker.alive and time.monotonic() < end:
            time.sleep(0.02)
        assert worker._process.returncode == 1
        message = next(event["message"] for event in worker.poll() if event.get("kind") == "died")
        assert "was killed (often because the computer ran out of memory)" in message
        assert "abnormally" not in message
    finally:
        worker.kill()


def test_reload_ends_the_old_worker(panel, bench, fake_channel):
    prepare(panel, bench)
    run(panel, bench)
    pid, folder = fake_channel.process.pid, fake_channel.process.folder
    assert process_is_running(pid)
    slicer.util.reloadScriptedModule("FoundationReg")
    bench.process_events()
    assert not process_is_running(pid) and not folder.exists()
