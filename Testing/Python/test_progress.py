"""The progress bar's arithmetic, and how a job is told to stop."""

import json

import pytest
import torch
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.errors import Cancelled
from FoundationRegLib.registration import pace


def test_nested_stages_fill_the_bar_once():
    events = []
    progress = Progress(events.append)
    with progress.stage("one", 0.5):
        with progress.stage("a", 0.5):
            progress.update(0.5, force=True)
        with progress.stage("b", 0.5):
            pass
    with progress.stage("two", 0.5):
        progress.update(1.0, force=True)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert (0.125, "a") in [(event.fraction, event.stage) for event in events]
    assert next(event.fraction for event in events if event.stage == "b") == 0.25
    assert next(event.fraction for event in events if event.stage == "two") == 0.5
    assert set(progress.seconds) == {"one", "a", "b", "two"}


def test_fractions_outside_their_range_stay_on_the_bar():
    events = []
    progress = Progress(events.append)
    for fraction in (-1.0, 7.0):
        progress.update(fraction, force=True)
    assert [event.fraction for event in events] == [0, 1]


def test_cancel_is_raised_at_the_next_update_and_the_stage_is_left():
    stop = []
    progress = Progress(should_cancel=lambda: bool(stop))
    with pytest.raises(Cancelled), progress.stage("long", 1.0):
        progress.update(0.1)
        stop.append(1)
        progress.update(0.2)
    assert "long" in progress.seconds


def test_silent_progress_costs_nothing_and_never_stops():
    progress = Progress()
    progress.update(0.5)
    progress.check()
    assert not progress.finish_early() and not progress.wants_previews
    assert Progress(should_finish=lambda: True).finish_early()


def test_a_message_is_always_sent():
    events = []
    progress = Progress(events.append)
    for n in range(5):
        progress.update(0.1, f"step {n}")
    assert [event.message for event in events] == [f"step {n}" for n in range(5)]


def test_time_left_follows_the_forecast_and_the_pace_of_the_stages_so_far(monkeypatch):
    from FoundationRegLib.core import progress as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    events = []
    progress = Progress(events.append)
    with progress.stage("load", 0.1):
        progress.expect({"align": 10.0, "encode": 100.0, "refine": 30.0})
    with progress.stage("align", 0.1):
        clock[0] += 20.0  # twice as slow as foreseen
    assert 200 < events[-1].seconds_left < 260
    with progress.stage("encode", 0.6):
        clock[0] += 0.01  # its result was kept
    assert 45 < events[-1].seconds_left < 60
    with progress.stage("refine", 0.2):
        for step in range(4):
            clock[0] += 15.0
            progress.update((step + 1) / 4, force=True)
            assert events[-1].seconds_left == pytest.approx(15.0 * (3 - step), abs=6.0)


def test_parts_that_were_kept_from_before_are_left_out_with_their_stage(monkeypatch):
    from FoundationRegLib.core import progress as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    events = []
    progress = Progress(events.append)
    progress.expect({"align/linear": 40.0, "align/check": 20.0, "refine/2": 10.0})
    with progress.stage("align", 0.5):
        assert events[-1].seconds_left == pytest.approx(70)
    assert events[-1].seconds_left == pytest.approx(10)
    with progress.stage("refine", 0.5), progress.stage("refine 3 mm", 1.0, "refine/2"):
        clock[0] += 8.0
        progress.update(0.3, force=True)
        assert events[-1].seconds_left == pytest.approx(2.0), "iterations may end before the last one"
    assert events[-1].seconds_left == pytest.approx(0) and progress.measured() == {"refine/2": 8.0}


def test_a_forecast_is_revised_for_what_has_not_begun(monkeypatch):
    from FoundationRegLib.core import progress as module

    clock, events = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    progress = Progress(events.append)
    progress.expect({"prepare": 10.0, "search": 10.0, "refine/1": 10.0})
    with progress.stage("prepare", 0.2):
        clock[0] += 10.0
        progress.revise({"prepare": 99.0, "search": 30.0, "refine/1": 50.0})
        progress.update(1.0, force=True)
        assert events[-1].seconds_left == pytest.approx(80), "what has begun stays as it was foreseen"
    assert progress.measured() == {"prepare": 10.0}


def test_the_pace_of_this_computer_is_learnt_and_a_broken_file_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("FOUNDATIONREG_CACHE", str(tmp_path / "cache"))
    cpu, expected = torch.device("cpu"), {"align/check": 10.0, "search": 1.0, "output": 5.0}
    assert pace.Pace(cpu).foreseen(expected) == expected
    pace.Pace(cpu).learn(expected, {"align/check": 5.0, "search": 2.0, "unknown": 9.0})
    first = pace.Pace(cpu).foreseen(expected)
    assert first == pytest.approx({"align/check": 5.0, "search": 2.0, "output": 5.0}), "its mean pace for the new one"
    pace.Pace(cpu).learn(expected, {"align/check": 2.0, "search": 0.002})
    second = pace.Pace(cpu).foreseen(expected)
    assert second["align/check"] == pytest.approx(10**0.5, rel=1e-3), "the mean of both, as logarithms"
    assert second["search"] > 1.9, "what takes no time says little"
    assert pace.Pace(torch.device("cuda")).foreseen(expected) == expected
    (file,) = (tmp_path / "cache").iterdir()
    for broken in ("[1]", "{", json.dumps({"cpu": {"search": "x"}}), json.dumps({"cpu": 3})):
        file.write_text(broken)
        assert pace.Pace(cpu).foreseen(expected) == expected
    monkeypatch.setenv("FOUNDATIONREG_CACHE", str(file / "inside"))
    pace.Pace(cpu).learn(expected, {"search": 2.0})  # cannot be kept, and nobody is bothered


def test_a_small_body_in_a_wide_frame_is_foreseen_to_take_less_once_it_is_found(tmp_path, monkeypatch):
    import numpy as np
    from fakes import blob_image
    from FoundationRegLib.core.grid import Grid
    from FoundationRegLib.registration.forecast import Forecast, expected_seconds
    from FoundationRegLib.registration.inputs import Inputs
    from FoundationRegLib.registration.pair import Pair
    from FoundationRegLib.settings import Settings

    monkeypatch.setenv("FOUNDATIONREG_CACHE", str(tmp_path))
    image, settings, cpu = blob_image((64, 64, 64), (1.0, 1.0, 1.0)), Settings(), torch.device("cpu")
    inputs = Inputs(fixed=image, moving=image)
    forecast, progress = Forecast(inputs, settings, cpu), Progress()
    first = expected_seconds(inputs, settings, cpu)
    progress.expect(forecast.seconds)
    grey, body = np.zeros((32, 32, 32), np.float32), np.ones((32, 32, 32), bool)
    grid = Grid.from_axes(grey.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)[:, ::-1])
    forecast.revise(Pair(grid, grey, grey, body, body, body, body), progress)
    for stage in ("search", "refine/2", "refine/1"):
        assert 0.1 < progress._expected[stage] / first[stage] < 0.5, "an eighth of the voxels, all of them compared"
    assert progress._expected["output"] == first["output"]


def test_the_stages_that_register_names_are_those_foreseen(pair, tmp_path, monkeypatch):
    from FoundationRegLib.registration import pipeline
    from FoundationRegLib.settings import Settings

    monkeypatch.setenv("FOUNDATIONREG_CACHE", str(tmp_path))
    settings = Settings.from_dict({"encoders": [["mind", 1.0]], "levels": [4, 2], "iterations": 2})
    progress = Progress()
    pipeline.register(pair / "fixed.nii.gz", pair / "moving.nii.gz", settings, progress=progress)
    (kind,) = json.loads((tmp_path / "pace.json").read_text()).values()
    stages = {"align/start", "align/linear", "align/check", "prepare", "search", "refine/4", "refine/2", "output"}
    assert set(progress._expected) == stages and set(progress._done) == stages
    assert {"align/check", "output"} <= set(kind) <= stages
