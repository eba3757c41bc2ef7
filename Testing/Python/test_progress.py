"""The progress bar's arithmetic, and how a job is told to stop."""

import pytest
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.errors import Cancelled


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
