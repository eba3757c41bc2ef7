"""A whole registration of nodes through a real worker process with a register that takes no time."""

import os
import signal
import sys
import time

import fake_register
import numpy as np
import pytest
import SimpleITK as sitk

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402
from FoundationRegLib.errors import Cancelled, FoundationRegError, InputError  # noqa: E402
from FoundationRegLib.slicer.client.channel import Channel  # noqa: E402
from FoundationRegLib.slicer.client.job import RegistrationJob  # noqa: E402
from FoundationRegLib.slicer.client.process import WorkerProcess  # noqa: E402
from FoundationRegLib.slicer.client.request import RegistrationRequest  # noqa: E402
from FoundationRegLib.slicer.scene import nodes, results  # noqa: E402
from test_slicer_nodes import (  # noqa: E402
    add_linear,
    add_segmentation,
    add_volume,
    affine,
    as_image,
    bump_on,
    scene,  # noqa: F401
    smooth,
)

SHIFT = 3.0  # what the register in the worker answers, LPS x


@pytest.fixture(scope="module")
def warm_channel():
    channel = Channel(WorkerProcess([sys.executable, "-P", fake_register.__file__], {"OMP_NUM_THREADS": "1"}))
    yield channel
    channel.close()


@pytest.fixture
def channel(warm_channel):
    yield warm_channel
    if warm_channel.job is not None and warm_channel.job.running:
        warm_channel.job.cancel()


@pytest.fixture
def pair():
    fixed = add_volume(smooth((18, 20, 22)), "anisotropic oblique", "fixed")
    return fixed, add_volume(smooth((24, 28, 30), 1, np.int16), "left-handed", "moving")


def start(channel, pair, action=fake_register.QUICK, on_event=None, **changes):
    settings = {"seed": action, "smoothness": SHIFT}
    return RegistrationJob(channel, RegistrationRequest(*pair, settings=settings, **changes), on_event)


def run(channel, pair, action=fake_register.QUICK, **changes):
    return start(channel, pair, action, **changes).wait()


def pump_until(channel, condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        channel.pump()
        time.sleep(0.01)
    assert condition()


def state_of_scene():
    """What must not change: the nodes, and the transform of each."""
    scene_nodes = slicer.mrmlScene.GetNodes()
    every = [scene_nodes.GetItemAsObject(n) for n in range(scene_nodes.GetNumberOfItems())]
    return {node.GetID(): node.GetTransformNodeID() if node.IsA("vtkMRMLTransformableNode") else None for node in every}


def expected_warp(fixed, moving, initial=None, background=0.0):
    """The moving image shifted, through the initial LPS matrix, by SimpleITK alone."""
    transform = sitk.CompositeTransform(3)
    if initial is not None:
        linear = sitk.AffineTransform(3)
        linear.SetMatrix(initial[:3, :3].ravel().tolist())
        linear.SetTranslation(initial[:3, 3].tolist())
        transform.AddTransform(linear)
    transform.AddTransform(sitk.TranslationTransform(3, (SHIFT, 0.0, 0.0)))
    moved = sitk.Resample(as_image(moving), as_image(fixed), transform, sitk.sitkLinear, background)
    return sitk.GetArrayFromImage(moved)


def test_without_an_output_a_transform_is_made_and_applied(channel, pair):
    result = run(channel, pair)
    fixed, moving = pair
    assert result.volumeNode is None and moving.GetParentTransformNode() is result.transformNode
    assert result.transformNode.GetName() == "moving to fixed"
    displacement, _ = results.read_grid(result.transformNode)
    np.testing.assert_allclose(displacement.reshape(-1, 3), [[SHIFT, 0, 0]] * (displacement.size // 3), atol=1e-6)
    resampled = nodes.resample(moving, fixed).astype(float)
    expected = expected_warp(fixed, moving)
    both = (resampled != 0) & (expected != 0)
    assert both.mean() > 0.3 and np.abs(resampled - expected)[both].max() <= 1


def test_volume_only_leaves_the_moving_volume_alone(channel, pair):
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "warped")
    result = run(channel, pair, output_volume=volume)
    fixed, moving = pair
    assert result.transformNode is None and moving.GetParentTransformNode() is None and result.volumeNode is volume
    array = slicer.util.arrayFromVolume(volume)
    assert array.dtype == np.int16 and array.shape == slicer.util.arrayFromVolume(fixed).shape
    # Outside stands the least value of the moving volume.
    expected = expected_warp(fixed, moving, background=float(slicer.util.arrayFromVolume(moving).min()))
    assert np.abs(array.astype(float) - expected).max() <= 1


def test_transform_and_volume_agree(channel, pair):
    fixed, moving = pair
    moving.SetAndObserveTransformNodeID(None)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "mine")
    result = run(channel, pair, output_transform=transform, create_volume=True)
    assert result.transformNode is transform and result.volumeNode is not None
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    through_node = slicer.util.arrayFromVolume(logic.ResampleVolumeToReferenceVolume(moving, fixed)).astype(float)
    volume = slicer.util.arrayFromVolume(result.volumeNode).astype(float)
    span = np.ptp(slicer.util.arrayFromVolume(moving).astype(float))
    both = (through_node != 0) & (volume != 0)
    assert both.mean() > 0.3 and np.abs(through_node - volume)[both].max() <= max(1.0, 1e-3 * span)


@pytest.mark.parametrize("stored", ["linear", "grid"])
def test_the_moving_volumes_parent_is_where_the_search_starts(channel, pair, stored):
    fixed, moving = pair
    if stored == "linear":
        parent = add_linear(affine(shift=(2, 1, -3)))
    else:
        grid = nodes.volume_grid(fixed).with_spacing(4.0).padded(8, 8)
        parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
        parent.SetAndObserveTransformFromParent(results.grid_transform(bump_on(grid), grid))
    moving.SetAndObserveTransformNodeID(parent.GetID())
    result = run(channel, pair, create_volume=True, create_transform=True)
    assert result.record["initial"] and moving.GetParentTransformNode() is result.transformNode
    through_node = nodes.resample(moving, fixed).astype(float)
    volume = slicer.util.arrayFromVolume(result.volumeNode).astype(float)
    both = (through_node != 0) & (volume != 0)
    assert both.mean() > 0.3 and np.abs(through_node - volume)[both].max() <= 2
    if stored == "linear":
        flip = np.diag([-1, -1, 1, 1])
        expected = expected_warp(fixed, moving, flip @ np.linalg.inv(affine(shift=(2, 1, -3))) @ flip)
        both = (through_node != 0) & (expected != 0)
        assert np.abs(through_node - expected)[both].max() <= 2


def test_a_second_run_into_the_same_transform_starts_where_the_first_did(channel, pair):
    _, moving = pair
    parent = add_linear(affine())
    moving.SetAndObserveTransformNodeID(parent.GetID())
    first = run(channel, pair)
    once, _ = results.read_grid(first.transformNode)
    nodes_before = slicer.mrmlScene.GetNumberOfNodes()
    second = run(channel, pair, output_transform=first.transformNode)
    twice, _ = results.read_grid(second.transformNode)
    np.testing.assert_allclose(twice, once, atol=1e-4)
    assert second.record["reused"]
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes_before
    assert second.tableNode is first.tableNode and second.chartNode is first.chartNode


def test_a_fixed_volume_under_a_transform_takes_the_moving_one_with_it(channel, pair):
    fixed, moving = pair
    parent = add_linear(affine())
    fixed.SetAndObserveTransformNodeID(parent.GetID())
    result = run(channel, pair, create_transform=True, create_volume=True)
    assert result.transformNode.GetParentTransformNode() is parent
    assert result.volumeNode.GetParentTransformNode() is parent
    through_node = nodes.resample(moving, fixed).astype(float)
    volume = slicer.util.arrayFromVolume(result.volumeNode).astype(float)
    both = (through_node != 0) & (volume != 0)
    assert both.mean() > 0.2 and np.abs(through_node - volume)[both].max() <= 2


def test_masks_labels_and_landmarks_reach_the_register_and_follow(channel, pair):
    fixed, moving = pair
    mask = np.zeros((24, 28, 30), np.uint8)
    mask[4:20, 5:25, 6:24] = 1
    fixed_mask = np.zeros((18, 20, 22), np.uint8)
    fixed_mask[4:14, 5:15, 6:16] = 1
    labels = {
        "fixed_labels": add_segmentation(fixed, {"organ": fixed_mask}),
        "moving_labels": add_segmentation(moving, {"organ": mask}),
    }
    points = {}
    for side in ("fixed", "moving"):
        points[f"{side}_points"] = node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", side)
        node.AddControlPoint(vtk.vtkVector3d(1, 2, 3))
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "surface")
    elsewhere = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "elsewhere")
    elsewhere.SetAndObserveTransformNodeID(add_linear(affine()).GetID())
    result = run(
        channel,
        pair,
        fixed_mask=labels["fixed_labels"],
        moving_mask=labels["moving_labels"],
        carry=(model, elsewhere),
        **labels,
        **points,
    )
    assert set(result.record["given"]) >= {"fixed_mask", "moving_mask", "fixed_labels", "moving_labels"}
    assert set(result.record["given"]) >= {"fixed_points", "moving_points"}
    for node in (labels["moving_labels"], points["moving_points"], model):
        assert node.GetParentTransformNode() is result.transformNode
    for node in (labels["fixed_labels"], points["fixed_points"]):
        assert node.GetParentTransformNode() is None
    assert elsewhere.GetParentTransformNode() is not result.transformNode
    assert any("'elsewhere'" in warning for warning in result.warnings)
    # A moving landmark goes where the field of the result came from: against the shift.
    ras = slicer.util.arrayFromMarkupsControlPoints(points["moving_points"], world=True)[0]
    np.testing.assert_allclose(ras, (1 + SHIFT, 2, 3), atol=0.01)


@pytest.mark.parametrize(("answer", "follows"), [(True, True), (False, False), (None, True)])
def test_landmarks_follow_a_folded_deformation_only_when_allowed(channel, pair, answer, follows):
    markups = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name) for name in ("a", "b")]
    for node in markups:
        node.AddControlPoint(vtk.vtkVector3d(1, 2, 3))
    asked = []
    request = RegistrationRequest(
        *pair,
        settings={"seed": fake_register.FOLDED, "smoothness": SHIFT},
        fixed_points=markups[0],
        moving_points=markups[1],
    )
    allow = None if answer is None else lambda percent: asked.append(percent) or answer
    result = RegistrationJob(channel, request, allow_folded=allow).wait()
    assert (markups[1].GetParentTransformNode() is result.transformNode) == follows
    assert asked == ([] if answer is None else [0.4]) and len(result.warnings) == 1


def test_the_results_of_one_run_are_complete(channel, pair):
    seen = []
    result = run(channel, pair, jacobian=True, on_event=lambda event: seen.append(event["event"]))
    jacobian = slicer.util.arrayFromVolume(result.jacobianNode)
    np.testing.assert_allclose(jacobian, 1.0, atol=1e-5)
    features = result.featureNodes["mind"]["fixed"]
    assert features.IsA("vtkMRMLVectorVolumeNode") and slicer.util.arrayFromVolume(features).dtype == np.uint8
    assert result.tableNode.GetNumberOfRows() == 2
    assert result.quality.startswith("No voxel") and result.seconds > 0
    assert result.transformNode.GetAttribute("FoundationReg.quality") == result.quality
    assert seen[-1] == "done" and "progress" in seen


def test_the_live_preview_moves_a_copy_of_the_volume_and_is_undone_by_cancel(channel, pair):
    _, moving = pair
    parent = add_linear(affine())
    moving.SetAndObserveTransformNodeID(parent.GetID())
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    view.SetBackgroundVolumeID(moving.GetID())
    before = state_of_scene()
    job = start(channel, pair, fake_register.SLOW, preview=True)
    pump_until(channel, lambda: view.GetBackgroundVolumeID() != moving.GetID())
    copy = slicer.mrmlScene.GetNodeByID(view.GetBackgroundVolumeID())
    shown = copy.GetParentTransformNode()
    assert copy.GetImageData() is moving.GetImageData() and moving.GetParentTransformNode() is parent
    assert not copy.GetSaveWithScene() and not shown.GetSaveWithScene()
    np.testing.assert_allclose(shown.GetTransformFromParent().TransformPoint(0, 0, 0), (-SHIFT, 0, 0), atol=1e-5)
    folder = channel.process.folder
    job.set_preview(False)
    assert view.GetBackgroundVolumeID() == moving.GetID()
    job.set_preview(True)
    pump_until(channel, lambda: view.GetBackgroundVolumeID() != moving.GetID())
    assert len(list(folder.glob("run-*/preview-*"))) <= 3
    job.cancel()
    assert job.state == "cancelled" and state_of_scene() == before and not folder.exists()
    with pytest.raises(Cancelled):
        job.wait()


@pytest.mark.parametrize("stage", ["sent", "align", "encode", "refine"])
def test_cancel_at_every_stage_leaves_nothing(channel, pair, stage):
    before, seen = state_of_scene(), []
    job = start(channel, pair, fake_register.SLOW, on_event=seen.append, preview=True)
    pid, folder = channel.process.pid, channel.process.folder
    pump_until(channel, lambda: stage == "sent" or any(event.get("stage") == stage for event in seen))
    job.cancel()
    assert job.state == "cancelled" and seen[-1]["event"] == "cancelled"
    assert state_of_scene() == before and not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert run(channel, pair).transformNode is not None


def test_stopping_softly_keeps_the_worker(channel, pair):
    before = state_of_scene()
    job = start(channel, pair, fake_register.SLOW, preview=True)
    pid = channel.process.pid
    job.stop_softly()
    with pytest.raises(Cancelled):
        job.wait()
    assert state_of_scene() == before and channel.process.pid == pid and channel.process.alive
    assert not list(channel.process.folder.iterdir())


def test_stop_here_accepts_what_was_found(channel, pair):
    seen = []
    job = start(channel, pair, fake_register.UNTIL_FINISH, on_event=seen.append)
    pump_until(channel, lambda: any(event["event"] == "progress" for event in seen))
    job.finish()
    assert job.wait().transformNode is not None


@pytest.mark.parametrize(
    ("action", "kind", "text"),
    [
        (fake_register.BAD_INPUT, InputError, "The fixed image is empty."),
        (fake_register.BUG, FoundationRegError, "ZeroDivisionError"),
        (fake_register.DIE, FoundationRegError, "the last words"),
    ],
)
def test_failures_are_told_and_leave_the_nodes(channel, pair, action, kind, text):
    before = state_of_scene()
    job = start(channel, pair, action, preview=True)
    with pytest.raises(kind, match=text):
        job.wait()
    assert job.state == "failed" and state_of_scene() == before
    assert run(channel, pair).transformNode is not None


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_worker_killed_from_outside(channel, pair):
    before, seen = state_of_scene(), []
    job = start(channel, pair, fake_register.NO_CHECKS, on_event=seen.append)
    pump_until(channel, lambda: any(event["event"] == "progress" for event in seen))
    os.kill(channel.process.pid, signal.SIGKILL)
    with pytest.raises(FoundationRegError, match="SIGKILL"):
        job.wait()
    assert state_of_scene() == before


def test_deleting_an_input_during_the_run_stops_it(channel, pair):
    job = start(channel, pair, fake_register.SLOW, preview=True)
    pump_until(channel, lambda: slicer.mrmlScene.GetFirstNodeByName("FoundationReg preview") is not None)
    slicer.mrmlScene.RemoveNode(pair[1])
    assert job.state == "failed" and not channel.process.alive
    with pytest.raises(InputError, match="'moving' was removed"):
        job.wait()
    assert slicer.mrmlScene.GetFirstNodeByName("FoundationReg preview") is None


def test_closing_the_scene_during_the_run_cancels_it(channel, pair):
    job = start(channel, pair, fake_register.SLOW, preview=True)
    pump_until(channel, lambda: slicer.mrmlScene.GetFirstNodeByName("FoundationReg preview") is not None)
    slicer.mrmlScene.Clear(0)
    assert job.state == "cancelled" and not channel.process.alive


def test_two_registrations_at_once_are_refused(channel, pair):
    job = start(channel, pair, fake_register.SLOW)
    with pytest.raises(InputError, match="already running"):
        start(channel, pair)
    job.cancel()


def test_bad_requests_are_refused_before_anything_starts(channel, pair):
    fixed, moving = pair
    hollow = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "hollow")
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    for request, text in (
        (RegistrationRequest(None, moving), "Choose a fixed volume"),
        (RegistrationRequest(fixed, None), "Choose a moving volume"),
        (RegistrationRequest(fixed, fixed), "are the same"),
        (RegistrationRequest(fixed, hollow), "'hollow' has no image data"),
        (RegistrationRequest(fixed, moving, output_volume=fixed), "one of the inputs"),
        (RegistrationRequest(fixed, moving, fixed_points=points), "landmarks of the moving volume too"),
        (RegistrationRequest(fixed, moving, fixed_points=points, moving_points=points), "same node"),
    ):
        with pytest.raises(InputError, match=text):
            RegistrationJob(channel, request)
    assert not channel.waiting


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TypeError("a bug"), MemoryError(), AttributeError("a bug")])
def test_any_error_while_the_result_is_taken_ends_the_job_and_leaves_the_scene(channel, pair, monkeypatch, error):
    def fail(*_arguments, **_more):
        raise error

    before = state_of_scene()
    monkeypatch.setattr(results, "set_table", fail)
    events = []
    job = start(channel, pair, on_event=events.append, create_transform=True, create_volume=True)
    with pytest.raises(FoundationRegError, match="could not be taken into the scene"):
        job.wait()
    assert not job.running and job.state == "failed" and events[-1]["event"] == "failed"
    assert state_of_scene() == before
    monkeypatch.undo()
    assert run(channel, pair).transformNode is not None


def test_cancels_at_any_moment_change_no_node(channel, pair):
    import random

    before = state_of_scene()
    for n in range(12):
        job = start(channel, pair, preview=bool(n % 2), create_volume=True)
        end = time.monotonic() + random.Random(n).uniform(0, 0.2)
        while job.running and time.monotonic() < end:
            channel.pump()
            time.sleep(0.005)
        (job.cancel if n % 6 == 0 else job.stop_softly)()
        try:
            job.wait()
            before = state_of_scene()  # it was done before the wish arrived: its nodes belong there
        except Cancelled:
            assert state_of_scene() == before
