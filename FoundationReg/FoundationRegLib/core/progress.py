"""What long work says while it runs, and how it is told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..errors import Cancelled
from .grid import Grid


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
        self.seconds: dict[str, float] = {}

    @property
    def wants_previews(self) -> bool:
        return self._on_preview is not None

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
        self.update(0.0, force=True)
        try:
            yield self
            self.update(1.0, force=True)
        finally:
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
        elapsed = now - self._started
        left = elapsed * (1 - total) / total if total > 0.02 and elapsed > 1 else None
        self._on_event(Event(self._name, total, message, left))

    def preview(self, preview: Preview) -> None:
        if self._on_preview is not None:
            self._on_preview(preview)

    def check(self) -> None:
        """Raise `Cancelled` when the user wants the job to stop."""
        if self._should_cancel is not None and self._should_cancel():
            raise Cancelled("The registration was cancelled; nothing was changed.")

    def finish_early(self) -> bool:
        """Whether the user accepts what has been found so far."""
        return self._should_finish is not None and self._should_finish()
