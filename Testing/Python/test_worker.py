"""The worker's protocol and its life and death, with a register that takes no time."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import fake_register
import numpy as np
import pytest
import SimpleITK as sitk
from FoundationRegLib.app import exchange
from FoundationRegLib.core.grid import Grid
from FoundationRegLib.slicer.client.process import PACKAGE_FOLDER, WorkerProcess

COMMAND = [sys.executable, "-P", fake_register.__file__]
AFFINE = Grid.from_axes((6, 8, 10), (3.0, 2.0, 1.0), (5, -7, 11), np.eye(3)[:, ::-1]).affine


@pytest.fixture
def process():
    process = WorkerProcess(COMMAND)
    yield process
    process.kill()


def request(process, action=fake_register.QUICK, **changes):
    """A register request for a small pair of volumes."""
    folder = process.run_folder()
    values = {}
    for count, side in enumerate(("fixed", "moving")):
        np.save(folder / f"{side}.npy", np.random.default_rng(count).normal(size=(6, 8, 10)).astype(np.float32))
        values[side] = {"array": str(folder / f"{side}.npy"), "affine": AFFINE.tolist()}
    settings = {"seed": action, "smoothness": 2.5}
    return process.send("register", folder=str(folder), settings=settings, **{**values, **changes})


def wait_for(process, number, wanted=("result", "error"), seconds=60):
    """Events up to and including the first of ``wanted`` that answers ``number``."""
    events, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        for event in process.poll():
            events.append(event)
            if event.get("id") == number and event["event"] in wanted:
                return events
        time.sleep(0.01)
    raise AssertionError(f"no {wanted} after {seconds} s, but {events[-5:]}, log {list(process.log)[-5:]}")


def is_running(pid):
    """Whether the process lives; a zombie that only waits to be collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until_gone(pid, seconds=10):
    end = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_running(pid)


def test_images_cross_the_border_with_their_place(tmp_path):
    image = sitk.Image(10, 8, 6, sitk.sitkInt16)
    image.SetSpacing((1.5, 0.7, 3.2))
    image.SetOrigin((5, -7, 11))
    versor = sitk.VersorTransform((0.3, 0.5, -0.2), 0.7).GetMatrix()
    image.SetDirection((np.reshape(versor, (3, 3)) @ np.diag([1, -1, 1])).ravel().tolist())
    image[3, 4, 5] = -77
    back = exchange.load_image(exchange.save_image(tmp_path / "a.npy", image))
    assert back.GetPixelID() == sitk.sitkInt16 and back[3, 4, 5] == -77
    for index in ((0, 0, 0), (9, 2, 5), (3, 7, 1)):
        np.testing.assert_allclose(
            back.TransformIndexToPhysicalPoint(index), image.TransformIndexToPhysicalPoint(index), atol=1e-9
        )


def test_transforms_cross_the_border(tmp_path):
    matrix = np.eye(4)
    matrix[:3] = [[1.1, 0.1, 0, 4], [0, 0.9, 0.2, -2], [0.1, 0, 1, 7]]
    point = np.array([3.0, -5.0, 8.0])
    np.testing.assert_allclose(
        exchange.load_transform({"matrix": matrix.tolist()}).TransformPoint(point),
        matrix[:3, :3] @ point + matrix[:3, 3],
    )
    grid = Grid((6, 8, 10), AFFINE)
    inside = grid.points((2.5, 3.0, 4.0))
    field = np.zeros((*grid.shape, 3), np.float32)
    field[...] = (1, -2, 3)
    transform = exchange.load_transform(exchange.save_array(tmp_path / "field.npy", field, grid))
    np.testing.assert_allclose(transform.TransformPoint(inside), inside + np.array([1, -2, 3]), atol=1e-5)


def test_register_answers_progress_previews_and_a_result(process):
    number = request(process, preview=True)
    events = wait_for(process, number)
    stages = {event["stage"] for event in events if event["event"] == "progress"}
    assert {"align", "encode", "refine"} <= stages
    fractions = [event["fraction"] for event in events if event["event"] == "progress"]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] <= 1
    preview = next(event for event in events if event["event"] == "preview")
    assert np.load(preview["array"]).shape[-1] == 3
    result = events[-1]
    assert result["event"] == "result"
    field = np.load(result["transform"]["array"])
    assert field.dtype == np.float32 and field.shape == (6, 8, 10, 3)
    np.testing.assert_allclose(field[..., 0], 2.5, atol=1e-6)
    np.testing.assert_allclose(result["transform"]["affine"], AFFINE, atol=1e-9)
    assert np.load(result["features"]["mind"]["moving"]["array"]).dtype == np.uint8
    assert not any(event["event"] == "preview" for event in wait_for(process, request(process)))


def test_masks_labels_points_and_initial_transform_are_handed_on(process):
    folder = process.run_folder()
    np.save(folder / "mask.npy", np.ones((6, 8, 10), np.uint8))
    mask = {"array": str(folder / "mask.npy"), "affine": AFFINE.tolist()}
    number = request(
        process,
        fixed_mask=mask,
        moving_labels=mask,
        fixed_points=[[1, 2, 3]],
        moving_points=[[1, 2, 3]],
        initial_transform={"matrix": np.eye(4).tolist()},
    )
    result = wait_for(process, number)[-1]
    assert {"fixed_mask", "moving_labels", "fixed_points", "moving_points"} <= set(result["record"]["given"])
    assert result["record"]["initial"]
    assert np.load(result["warped_labels"]["array"]).dtype == np.uint8


def test_a_second_run_finds_the_worker_and_its_cache_warm(process):
    first = wait_for(process, request(process))[-1]
    pid = process.pid
    second = wait_for(process, request(process))[-1]
    assert (first["record"]["reused"], second["record"]["reused"]) == (False, True)
    assert process.pid == pid


@pytest.mark.parametrize(
    ("action", "kind", "text"),
    [
        (fake_register.BAD_INPUT, "InputError", "The fixed image is empty."),
        (fake_register.BUG, "internal", "ZeroDivisionError"),
    ],
)
def test_errors_come_back_as_a_sentence_and_the_worker_lives_on(process, action, kind, text):
    event = wait_for(process, request(process, action))[-1]
    assert event["event"] == "error" and event["kind"] == kind and text in event["message"]
    assert wait_for(process, request(process))[-1]["event"] == "result"


def test_bad_settings_and_unknown_commands_are_errors(process):
    folder = process.run_folder()
    number = process.send("register", fixed="a", moving="b", settings={"smoothnes": 1}, folder=str(folder))
    assert "smoothnes" in wait_for(process, number)[-1]["message"]
    assert "dance" in wait_for(process, process.send("dance"))[-1]["message"]


def test_prints_of_libraries_and_children_do_not_break_the_protocol(process):
    events = wait_for(process, request(process, fake_register.NOISE))
    logged = [event["message"] for event in events if event["event"] == "log"]
    assert sum(event["event"] == "result" for event in events) == 1
    assert events[-1]["transform"]
    time.sleep(0.2)
    logged += [event["message"] for event in process.poll()]
    assert {"a library prints", "a child prints"} <= set(logged)


def test_cancel_between_steps_leaves_the_worker_warm(process):
    number = request(process, fake_register.SLOW)
    wait_for(process, number, wanted=("progress",))
    pid = process.pid
    process.send("cancel", target=number)
    event = wait_for(process, number)[-1]
    assert (event["event"], event["kind"]) == ("error", "Cancelled")
    assert wait_for(process, request(process))[-1]["event"] == "result" and process.pid == pid


def test_finish_accepts_what_was_found_so_far(process):
    number = request(process, fake_register.UNTIL_FINISH)
    wait_for(process, number, wanted=("progress",))
    process.send("finish", target=number)
    assert wait_for(process, number, seconds=10)[-1]["event"] == "result"


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes")
def test_kill_ends_the_whole_family_and_removes_the_folder(process):
    number = request(process, fake_register.CHILD)
    events = wait_for(process, number, wanted=("progress",))
    while "child" not in events[-1].get("message", ""):
        events = wait_for(process, number, wanted=("progress",))
    child, parent, folder = int(events[-1]["message"].split()[1]), process.pid, process.folder
    assert is_running(child)
    process.kill()
    assert wait_until_gone(child) and wait_until_gone(parent)
    assert not folder.exists() and not process.busy


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX processes")
def test_the_folder_is_private(process):
    process.start()
    assert stat.S_IMODE(os.stat(process.folder).st_mode) == 0o700


def test_a_worker_that_dies_says_why_and_can_be_started_again(process):
    event = wait_for(process, request(process, fake_register.DIE))[-1]
    assert event["kind"] == "died" and "code 7" in event["message"] and "the last words" in event["message"]
    assert process.folder is None and not process.alive
    assert wait_for(process, request(process))[-1]["event"] == "result"


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_worker_killed_from_outside_is_noticed(process):
    number = request(process, fake_register.NO_CHECKS)
    wait_for(process, number, wanted=("progress",))
    folder = process.folder
    os.kill(process.pid, signal.SIGKILL)
    event = wait_for(process, number)[-1]
    assert event["kind"] == "died" and "SIGKILL" in event["message"]
    assert not folder.exists()


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_the_worker_ends_and_tidies_up_when_its_parent_dies_during_a_run():
    script = (
        "import sys, time; sys.path[:0] = sys.argv[1:3]\n"
        "import test_worker as t\n"
        "p = t.WorkerProcess(t.COMMAND); n = t.request(p, t.fake_register.NO_CHECKS)\n"
        "t.wait_for(p, n, wanted=('progress',))\n"
        "print(p.pid, p.folder, flush=True); time.sleep(60)\n"
    )
    folders = [str(Path(__file__).parent), str(PACKAGE_FOLDER)]
    parent = subprocess.Popen([sys.executable, "-c", script, *folders], stdout=subprocess.PIPE, text=True)
    pid, folder = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until_gone(int(pid))
    assert not Path(folder).exists()


def test_close_lets_an_idle_worker_end_by_itself(process):
    wait_for(process, request(process))
    folder = process.folder
    process.close()
    assert not process.alive and not folder.exists()


def test_the_real_worker_describes_the_device():
    process = WorkerProcess([sys.executable, "-P", "-m", "FoundationRegLib.worker"], {"OMP_NUM_THREADS": "1"})
    try:
        answer = wait_for(process, process.send("warm", settings={"device": "cpu"}))[-1]
        assert answer["event"] == "result" and answer["device"] == "cpu" and answer["torch"][0].isdigit()
    finally:
        process.kill()
