"""The parent's side of ``foundationreg batch``: a process that works on many pairs, watched and cancelled from here.

Needs neither Qt nor Slicer. `CohortProcess.poll` hands over what was said, on the caller's thread.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path

from ...core.interpreter import python_executable
from .process import PACKAGE_FOLDER, _end_tree

# So long a run may take to come to its next step after a cancel; then it is ended. What is finished stays anyway.
CANCEL_SECONDS = 20.0
_SENTENCE = "foundationreg: "


class CohortProcess:
    """One run. ``sentence``: what it said last on the error stream; ``code``: its exit code, None while it runs."""

    def __init__(self, arguments: list[str], command: list[str] | None = None):
        self._command = command or [python_executable(), "-P", "-m", "FoundationRegLib.app.cli"]
        self._arguments = ["batch", *arguments, "--json"]
        self._process: subprocess.Popen | None = None
        self._events: queue.Queue[dict] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._cancelled_at: float | None = None
        self.sentence = ""

    @property
    def code(self) -> int | None:
        return self._process.poll() if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self.code is None

    def start(self) -> None:
        paths = [str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONIOENCODING": "utf-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        options = {}
        if os.name == "nt":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options["start_new_session"] = True
        self._process = subprocess.Popen(
            [*self._command, *self._arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", env=environment, **options,
        )  # fmt: skip
        readers = ((self._read_events, self._process.stdout), (self._read_errors, self._process.stderr))
        self._threads = [threading.Thread(target=read, args=(stream,), daemon=True) for read, stream in readers]
        for thread in self._threads:
            thread.start()

    def poll(self) -> list[dict]:
        """Events since the last call; the last of all is ``{"event": "ended", "code": ..., "message": ...}``."""
        if self._cancelled_at is not None and self.running and time.monotonic() > self._cancelled_at + CANCEL_SECONDS:
            self.kill()
        ended = self._process is not None and self.code is not None
        if ended:
            for thread in self._threads:
                thread.join(timeout=1)
        events = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        if ended:
            events.append({"event": "ended", "code": self.code, "message": self.sentence})
            self._process.stdout.close()
            self._process.stderr.close()
            self._process = None
        return events

    def cancel(self) -> None:
        """Let the run stop at its next step; what is finished stays."""
        if not self.running or self._cancelled_at is not None:
            return
        self._cancelled_at = time.monotonic()
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT)

    def kill(self) -> None:
        """End the run and its workers at once."""
        if self._process is not None:
            _end_tree(self._process)

    def _read_events(self, stream) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    event = json.loads(line)
                    event["event"]
                    self._events.put(event)

    def _read_errors(self, stream) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                if line.strip():
                    self.sentence = line.strip().removeprefix(_SENTENCE)
                    self._events.put({"event": "log", "message": line.rstrip()})


def finished_results(folder: str | Path) -> list[dict]:
    """Pair, variant, fixed and moving file and folder of every result below a run's ``folder``, by name."""
    found = []
    for record in sorted(Path(folder).glob("pairs/*/*/result.json")):
        if record.parent.name.startswith("."):
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads(record.read_text(encoding="utf-8"))
            names = {name: facts[name] for name in ("id", "variant", "fixed", "moving")}
            found.append({**names, "folder": record.parent})
    return found


def failed_results(folder: str | Path) -> dict[str, str]:
    """Pair -> why it has no result, of a run's ``folder``."""
    try:
        with (Path(folder) / "failures.csv").open(encoding="utf-8-sig", newline="") as file:
            return {row["id"]: row["reason"] for row in csv.DictReader(file)}
    except (OSError, KeyError):
        return {}
