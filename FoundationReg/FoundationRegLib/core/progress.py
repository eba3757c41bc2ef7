"""What long work says while it runs, and how it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..errors import Cancelled
from .grid import Grid

# The forecast weighs as much as so many seconds of work; stages that take less than this share of it were skipped.
_PRIOR_SECONDS, _SKIPPED = 3.0, 0.1


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
        self._done: dict[str, float] = {}
        self.seconds: dict[str, float] = {}

    @property
    def wants_previews(self) -> bool:
        return self._on_preview is not None

    def expect(self, seconds: dict[str, float]) -> None:
        """Say how long stages will take, by name, as far as that can be foreseen; they must not contain each other.

        What is left is told from this and from how much slower or faster the stages so far have been than foreseen.
        """
        self._expected, self._open, self._done = dict(seconds), {}, {}

    @contextmanager
    def stage(self, name: str, share: float):
        """Name the work inside the block; it takes ``share`` (0 to 1) of the enclosing stage's part of the bar.

        Seconds spent are added up by name in ``seconds``; a part of the same name belongs to the whole.
        """
        outer = (self._name, self._low, self._high, self._used)
        width = self._high - self._low
        low = self._low + self._used * width
        self._name, self._low, self._high, self._used = name, low, min(self._high, low + share * width), 0.0
        began = time.monotonic()
        forecast = name in self._expected and name not in self._open
        if forecast:
            self._open[name] = (began, self._low, self._high)
        self.update(0.0, force=True)
        try:
            yield self
            self.update(1.0, force=True)
        finally:
            if forecast and self._open.pop(name, None):
                self._done[name] = time.monotonic() - began
            if name != outer[0]:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began
            self._name, self._low, self._high, self._used = *outer[:3], min(1.0, outer[3] + share)

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
        remaining, foreseen, taken = 0.0, _PRIOR_SECONDS, _PRIOR_SECONDS
        for name, expected in self._expected.items():
            if name in self._open:
                began, low, high = self._open[name]
                done = min(max((total - low) / max(high - low, 1e-9), 0.0), 1.0)
                remaining += expected * (1 - done)
                if now - began > _SKIPPED * expected * done:
                    foreseen, taken = foreseen + expected * done, taken + (now - began) * (done > 0)
            elif name not in self._done:
                remaining += expected
            elif self._done[name] > _SKIPPED * expected:
                # A stage whose result was kept from before says nothing about the others.
                foreseen, taken = foreseen + expected, taken + self._done[name]
        return remaining * taken / foreseen

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
