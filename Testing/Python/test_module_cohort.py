"""The section *Many pairs* of the panel: real small registrations, cancel, failures, results in the scene."""

import csv
import sys

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
from panel_steps import add_pair, click  # noqa: E402
from test_slicer_nodes import add_volume, smooth  # noqa: E402

QUICK = ("--workers", "0", "--set", "iterations=1", "--set", "levels=2", "--set", "start=none")
# Stands for a run that goes on until it is told to stop.
ENDLESS = """
import json, signal, sys, time
def stop(*_):
    print("foundationreg: Stopped: 1 results are in place.", file=sys.stderr)
    sys.exit(130)


signal.signal(signal.SIGINT, stop)
print(json.dumps({"event": "progress", "total": 4, "found": 1, "done": 0, "failed": 1, "fraction": 0.5,
                  "seconds_left": 30, "running": {"pair 3": {"stage": "refine", "fraction": 0.5}}}), flush=True)
time.sleep(60)
"""


@pytest.fixture
def section(panel, bench):
    panel.cohort._ui.cohortCollapsibleButton.collapsed = False
    panel.cohort._pairs = []
    panel.cohort._ui.cohortTableEdit.text = panel.cohort._ui.cohortFolderEdit.text = ""
    bench.process_events()
    yield panel.cohort
    panel.cohort.close()
    panel.cohort._ui.cohortFolderEdit.text = ""
    panel.cohort.showResults()


def command_of(section, monkeypatch, *more, command=None):
    """Let the section's runs take these arguments too, or another program's place."""
    from FoundationRegLib.slicer.client.cohort import CohortProcess

    monkeypatch.setattr(section, "makeProcess", lambda arguments: CohortProcess([*arguments, *more], command))


def test_pairs_of_loaded_volumes_are_registered_and_loaded(panel, section, bench, tmp_path, monkeypatch):
    ui = section._ui
    fixed, moving = add_pair()
    other = add_volume(smooth((20, 20, 20), 2), "anisotropic oblique", "fixed")
    panel.ui.encoderComboBox.currentIndex = panel.ui.encoderComboBox.findData("mind")
    for chosen in (moving, other):
        panel.ui.fixedSelector.setCurrentNode(fixed)
        panel.ui.movingSelector.setCurrentNode(chosen)
        bench.process_events()
        click(bench, ui.cohortAddButton)
    click(bench, ui.cohortAddButton)
    assert "already" in ui.cohortStatusLabel.text and ui.cohortPairsLabel.text.count("→") == 2
    ui.cohortFolderEdit.text = str(tmp_path / "out")
    command_of(section, monkeypatch, *QUICK)
    click(bench, ui.cohortStartButton)
    assert ui.cohortStartButton.text == "Cancel" and not ui.cohortAddButton.enabled
    bench.wait_until(lambda: section.process is None, 120)
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done"] * 2, rows
    assert len(list((tmp_path / "out" / "volumes").iterdir())) == 3, "the fixed volume was written once"
    assert ui.cohortStatusLabel.text.startswith(("Use ", "No variant")) and ui.cohortReportButton.enabled
    assert ui.cohortResultsComboBox.count == 2

    before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    click(bench, ui.cohortLoadButton)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == before + 2
    assert slicer.util.getNode("1 moving to fixed moving").GetParentTransformNode() is not None
    loaded = slicer.util.getNode("1 moving to fixed fixed")
    np.testing.assert_allclose(values_in_space(loaded, fixed), sample(fixed), atol=1e-3)


PLACES = np.random.default_rng(0).integers(0, 18, (40, 3))


def sample(node):
    """Values at some voxels."""
    return slicer.util.arrayFromVolume(node)[tuple(PLACES.T)]


def values_in_space(node, other):
    """Values of ``node`` at the places in space of `PLACES` in ``other``."""
    import vtk

    inverse, there = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    node.GetRASToIJKMatrix(inverse)
    other.GetIJKToRASMatrix(there)
    points = np.c_[PLACES[:, ::-1], np.ones(len(PLACES))]
    matrices = (np.array([[m.GetElement(i, j) for j in range(4)] for i in range(4)]) for m in (there, inverse))
    first, second = matrices
    indices = np.rint(points @ first.T @ second.T).astype(int)[:, 2::-1]
    return slicer.util.arrayFromVolume(node)[tuple(indices.T)]


def test_volumes_are_written_where_they_lie(section, tmp_path):
    from FoundationRegLib.slicer.scene import cohorts

    for node in add_pair():  # oblique, and left-handed
        path = cohorts.write_volume(node, tmp_path, 0)
        loaded = slicer.util.loadVolume(str(path), properties={"show": False})
        np.testing.assert_allclose(values_in_space(loaded, node), sample(node), atol=1e-3)
        assert node.GetStorageNode() is None, "the user's node has no new file"


def test_a_run_is_watched_and_cancelled(section, bench, tmp_path, monkeypatch):
    ui = section._ui
    program, table = tmp_path / "endless.py", tmp_path / "pairs.csv"
    program.write_text(ENDLESS)
    table.write_text("fixed,moving\n")
    ui.cohortTableEdit.text, ui.cohortFolderEdit.text = str(table), str(tmp_path / "out")
    command_of(section, monkeypatch, command=[sys.executable, str(program)])
    click(bench, ui.cohortStartButton)
    bench.wait_until(lambda: "of 4 results" in ui.cohortStatusLabel.text, 30)
    for part in ("1 of 4 results", "1 failed", "about 30 s left", "pair 3 (Refining)"):
        assert part in ui.cohortStatusLabel.text
    assert ui.cohortProgressBar.value == 500
    click(bench, ui.cohortStartButton)
    bench.wait_until(lambda: section.process is None, 30)
    assert ui.cohortStatusLabel.text == "Stopped: 1 results are in place." and ui.cohortStartButton.text == "Start"


def test_what_is_wrong_is_said_before_and_after_the_start(panel, section, bench, tmp_path, monkeypatch):
    ui = section._ui
    with bench.dialogs.answering("OK") as seen:
        click(bench, ui.cohortStartButton)
        assert "output folder" in seen[-1]
        ui.cohortFolderEdit.text = str(tmp_path / "out")
        click(bench, ui.cohortStartButton)
        assert "table of pairs, or add pairs" in seen[-1]
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    ui.cohortTableEdit.text = str(tmp_path / "bad.csv")
    panel.ui.encoderComboBox.currentIndex = panel.ui.encoderComboBox.findData("mind")
    click(bench, ui.cohortStartButton)
    bench.wait_until(lambda: section.process is None, 60)
    assert "row 1: there is no column fixed" in ui.cohortStatusLabel.text


def test_a_volume_under_a_transform_is_not_written_as_if_it_were_not(section, tmp_path):
    from FoundationRegLib.errors import InputError
    from FoundationRegLib.slicer.scene import cohorts

    fixed, moving = add_pair()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    moving.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(InputError, match="harden"):
        cohorts.write_pairs([(fixed, moving)], tmp_path)
    with pytest.raises(InputError, match="is not there"):
        cohorts.load_result({"id": "a", "variant": "b", "fixed": tmp_path, "moving": tmp_path, "folder": tmp_path})
