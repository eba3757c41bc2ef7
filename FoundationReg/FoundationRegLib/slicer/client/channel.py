"""Questions to the worker process, and who gets the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .process import WorkerProcess


class Channel:
    """Hands the worker's answers to whoever asked. ``wake`` is called when somebody begins to wait."""

    def __init__(self, process: WorkerProcess | None = None):
        self.process = process or WorkerProcess()
        self._handlers: dict[int, Callable[[dict], None]] = {}
        # The `RegistrationJob` that runs, of which there is one at a time.
        self.job: Any = None
        self.wake: Callable[[], None] = lambda: None

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for an answer, so that `pump` must be called."""
        return bool(self._handlers)

    def ask(self, handler: Callable[[dict], None], command: str, **values: Any) -> int:
        """Send a request; ``handler`` gets its events, the last of which is ``result`` or ``error``."""
        number = self.process.send(command, **values)
        self._handlers[number] = handler
        self.wake()
        return number

    def pump(self) -> None:
        """Deliver what the worker said since the last call."""
        for event in self.process.poll():
            number = event.get("id")
            if number is None:
                for handler in list(self._handlers.values()):
                    handler(event)
                continue
            final = event["event"] in ("result", "error")
            handler = self._handlers.pop(number, None) if final else self._handlers.get(number)
            if handler is not None:
                handler(event)

    def kill(self) -> None:
        """End the worker with all that it started; what was asked stays unanswered."""
        self._handlers.clear()
        self.process.kill()

    def close(self) -> None:
        """End the worker, gently when it has nothing to do."""
        if self.job is not None and self.job.running:
            self.job.cancel()
        self._handlers.clear()
        self.process.close()
