"""What long work says while it runs, and how it is told to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..errors import Cancelled
from .grid import Grid

# The forecast weighs as much as this share of the work; stages that take less than so much of theirs were skipped.
_PRIOR_SHARE, _SKIPPED = 0.02, 0.02
# So much of a stage's steps is taken to be left when its time is over.
_LATE = 0.1


@dataclass(frozen=True)
class Event:
    """One step of progress. ``fraction`` of the whole job runs from 0 to 1; ``seconds_left`` is None while unknown."""

    stage: str
    fraction: float
    message: str = ""
    seconds_left: float | None = None


@dataclass(frozen=True)
class Preview:
    """The transform found so far, coarse enough to be shown while the search goes on.

    ``displacement`` is float32 (z, y, x, 3): the LPS vector (x, y, z) in mm that takes each point of ``grid`` (fixed
    side) to its place in the moving image, all stages composed.
    """

    stage: str
    grid: Grid
    displacement: np.ndarray


class Progress:
    """Carries events and previews out of a job, and the user's wish to cancel or to finish early into it.

    Every argument may be left out. ``should_cancel`` and ``should_finish`` are asked often and must be cheap.
    Stages nest: ``with progress.stage("encode", 0.4): ...`` takes the next 40 % of the enclosing stage.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None] | None = None,
        on_preview: Callable[[Preview], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
        should_finish: Callable[[], bool] | None = None,
    ):
        self._on_event, self._on_preview = on_event, on_preview
        self._should_cancel, self._should_finish = should_cancel, should_finish
        self._started = time.monotonic()
        self._name, self._low, self._high = "", 0.0, 1.0
        self._used = 0.0
        self._last_sent = -1.0
        self._expected: dict[str, float] = {}
        self._open: dict[str, tuple[float, float, float]] = {}
        self._done: dict[str, float] = {}  # zero: left out
        self.seconds: dict[str, float] = {}

    @property
    def wants_previews(self) -> bool:
        return self._on_preview is not None

    def expect(self, seconds: dict[str, float]) -> None:
        """Say how long stages will take, by name, as far as that can be foreseen; they must not contain each other.

        ``a/b`` is stage b inside of stage a, and left out when a ends without it. What is left is told from this and
        from how much slower or faster the stages so far have been than foreseen.
        """
        self._expected, self._open, self._done = dict(seconds), {}, {}

    def revise(self, seconds: dict[str, float]) -> None:
        """Say anew how long stages will take, which of them have not begun, now that more is known."""
        begun = {*self._open, *self._done}
        self._expected |= {name: value for name, value in seconds.items() if name not in begun}

    def measured(self) -> dict[str, float]:
        """Seconds that each of the expected stages took, without those that were left out or whose result was kept
        from before."""
        return {
            name: taken for name, taken in self._done.items() if taken > _SKIPPED * self._expected[name] and taken > 0
        }

    @contextmanager
    def stage(self, name: str, share: float, expected: str | None = None):
        """Name the work inside the block; it takes ``share`` (0 to 1) of the enclosing stage's part of the bar.

        Seconds spent are added up by name in ``seconds``; a part of the same name belongs to the whole. ``expected``:
        what `expect` calls it, if not by its name.
        """
        outer = (self._name, self._low, self._high, self._used)
        width = self._high - self._low
        low = self._low + self._used * width
        self._name, self._low, self._high, self._used = name, low, min(self._high, low + share * width), 0.0
        began = time.monotonic()
        forecast = self._key(expected or name, outer[0])
        if forecast:
            self._open[forecast] = (began, self._low, self._high)
        self.update(0.0, force=True)
        try:
            yield self
            self._close(name, forecast, began)
            self.update(1.0, force=True)
        finally:
            self._open.pop(forecast, None)
            if name != outer[0]:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            self._name, self._low, self._high, self._used = *outer[:3], min(1.0, outer[3] + share)

    def _key(self, name: str, outer: str) -> str | None:
        """What `expect` calls stage ``name`` inside of ``outer``; None when it is not expected, or not again."""
        for key in (f"{outer}/{name}", name):
            if key in self._expected and key not in self._open and key not in self._done:
                return key
        return None

    def _close(self, name: str, forecast: str | None, began: float) -> None:
        """Stage ``name`` is done; parts of it that have not begun will not come."""
        if self._open.pop(forecast, None):
            self._done[forecast] = time.monotonic() - began
        for key in self._expected:
            if key.startswith(f"{name}/") and key not in self._open:
                self._done.setdefault(key, 0.0)

    def update(self, fraction: float, message: str = "", force: bool = False) -> None:
        """Say that ``fraction`` (0 to 1) of the current stage is done. Raises `Cancelled` when the user wishes so."""
        self.check()
        now = time.monotonic()
        if self._on_event is None or not (force or message or now - self._last_sent > 0.1):
            return
        self._last_sent = now
        total = self._low + (self._high - self._low) * min(max(fraction, 0.0), 1.0)
        self._on_event(Event(self._name, total, message, self._left(now, total)))

    def _left(self, now: float, total: float) -> float | None:
        """Seconds until the end; None while that is unknown."""
        elapsed = now - self._started
        if not self._expected:
            return elapsed * (1 - total) / total if total > 0.02 and elapsed > 1 else None
        pace = self._pace(now)
        remaining = 0.0
        for name, expected in self._expected.items():
            if name in self._open:
                began, low, high = self._open[name]
                done = min(max((total - low) / max(high - low, 1e-9), 0.0), 1.0)
                remaining += _left_of(expected * pace, now - began, done)
            elif name not in self._done:
                remaining += expected * pace
        return remaining

    def _pace(self, now: float) -> float:
        """How many times slower than foreseen this run is: the mean ratio of its stages so far, as a logarithm and by
        their share of the work, so that one stage that has more to do than others had does not count for all."""
        # A stage whose result was kept from before says nothing about the others.
        kept = {name for name, seconds in self._done.items() if seconds <= _SKIPPED * self._expected[name]}
        total = sum(expected for name, expected in self._expected.items() if name not in kept)
        ratios = [
            (self._expected[name] / total, math.log(seconds / self._expected[name]))
            for name, seconds in self._done.items() if name not in kept and self._expected[name] > 0
        ]  # fmt: skip

        def mean() -> float:
            return math.exp(sum(w * ratio for w, ratio in ratios) / (sum(w for w, _ in ratios) + _PRIOR_SHARE))

        for name, (began, *_) in self._open.items():
            expected, spent = self._expected[name], now - began
            if expected > 0 and spent > expected * mean():  # slower than thought until now
                ratios.append((expected / total, math.log(spent / expected)))
        return mean()

    def preview(self, preview: Preview) -> None:
        if self._on_preview is not None:
            self._on_preview(preview)

    def cancelled(self) -> bool:
        """Whether the user wants the job to stop."""
        return self._should_cancel is not None and self._should_cancel()

    def check(self) -> None:
        """Raise `Cancelled` when the user wants the job to stop."""
        if self.cancelled():
            raise Cancelled("The registration was cancelled; nothing was changed.")

    def finish_early(self) -> bool:
        """Whether the user accepts what has been found so far."""
        return self._should_finish is not None and self._should_finish()


def _left_of(whole: float, spent: float, done: float) -> float:
    """Seconds left of a stage that should take ``whole`` and of which ``spent`` have passed, with ``done`` (0 to 1) of
    its steps behind it. Iterations may end before the last one, so the clock counts as long as there is time left."""
    return min(whole * (1 - done), max(whole - spent, _LATE * whole * (1 - done)))
