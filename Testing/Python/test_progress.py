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
