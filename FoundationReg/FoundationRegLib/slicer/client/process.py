"""The parent's side of `FoundationRegLib.worker`: start it, talk to it, and end it with all its children.

Needs neither Qt nor Slicer. Threads collect what the worker says; `WorkerProcess.poll` hands it over on the caller's
thread, typically from a timer.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path

from ...core.interpreter import python_executable

PACKAGE_FOLDER = Path(__file__).resolve().parents[3]
LOG_LINES = 400
LAUNCHER_SAYS = "exit abnormally"

_running: weakref.WeakSet[WorkerProcess] = weakref.WeakSet()


class WorkerProcess:
    """One worker process with its private folder. `start` it, `send` requests, `poll` events, `close` or `kill` it.

    :param command: what to run instead of ``python -m FoundationRegLib.worker``; ``--folder FOLDER`` is appended.
    :param environment: changes to the environment; they take effect at the next start.
    :param parent_folder: where the private folder is made, by default where temporary files lie.

    With ``keep_files`` the folders of requests stay when the process is ended, for a bug report.
    """

    def __init__(
        self,
        command: list[str] | None = None,
        environment: dict[str, str] | None = None,
        parent_folder: str | None = None,
    ):
        self._command = command or [python_executable(), "-P", "-m", "FoundationRegLib.worker"]
        self.environment = dict(environment or {})
        self.parent_folder, self.keep_files = parent_folder, False
        self._process: subprocess.Popen | None = None
        self._events: queue.Queue[dict] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._pending: set[int] = set()
        self._next = 1
        self.folder: Path | None = None
        self.log: collections.deque[str] = collections.deque(maxlen=LOG_LINES)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def busy(self) -> bool:
        """Whether a request is still to be answered."""
        return bool(self._pending)

    def start(self) -> None:
        """Start the process, unless it runs. What an earlier process left behind is removed first."""
        if self.alive:
            return
        self.kill()
        self._events = queue.Queue()
        if self.parent_folder is not None:
            Path(self.parent_folder).mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="foundationreg-", dir=self.parent_folder))
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1", **self.environment}
        paths = [str(PACKAGE_FOLDER), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        options = {}
        if os.name == "nt":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
        else:
            options["start_new_session"] = True
        try:
            self._process = subprocess.Popen(
                [*self._command, "--folder", str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                bufsize=1,
                env=environment,
                cwd=str(self.folder),
                **options,
            )
        except OSError:
            self._remove_folder()
            raise
        _running.add(self)
        self._threads = [
            threading.Thread(target=self._read_events, args=(self._process.stdout, self._events), daemon=True),
            threading.Thread(target=self._read_log, args=(self._process.stderr, self._events), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def run_folder(self) -> Path:
        """A new folder for the files of one request, inside the private one. Starts the worker when needed."""
        self.start()
        return Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))

    def send(self, command: str, **values) -> int:
        """Send a request and return its id. Starts the worker when needed."""
        self.start()
        number, self._next = self._next, self._next + 1
        if command not in ("cancel", "finish", "shutdown"):
            self._pending.add(number)
        with contextlib.suppress(OSError, ValueError):  # a worker that just died is reported by poll()
            self._process.stdin.write(json.dumps({"id": number, "command": command, **values}) + "\n")
            self._process.stdin.flush()
        return number

    def poll(self) -> list[dict]:
        """Events since the last call, oldest first. A worker that died answers each open request with an event
        ``{"event": "error", "kind": "died"}`` that tells why."""
        died = self._process is not None and self._process.poll() is not None
        if died:
            for thread in self._threads:
                thread.join(timeout=1)
        events = []
        with contextlib.suppress(queue.Empty):
            while True:
                events.append(self._events.get_nowait())
        for event in events:
            if event["event"] in ("result", "error"):
                self._pending.discard(event.get("id"))
        if died:
            for number in sorted(self._pending):
                events.append({"id": number, "event": "error", "kind": "died", "message": self._reason()})
            self.kill()
        return events

    def kill(self) -> None:
        """End the process and its children at once, and remove its folder. Open requests get no answer."""
        process, self._process = self._process, None
        if process is not None:
            _end_tree(process)
            for stream in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.close()
        for thread in self._threads:
            thread.join(timeout=2)
        self._threads = []
        self._pending.clear()
        self._remove_folder()
        _running.discard(self)

    def close(self, seconds: float = 2.0) -> None:
        """Let an idle worker end by itself, then make sure that it did."""
        if self.alive and not self.busy:
            self.send("shutdown")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self.kill()

    def _read_events(self, stream, events: queue.Queue) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                try:
                    event = json.loads(line)
                    event["event"]
                except (ValueError, KeyError, TypeError):
                    event = {"id": None, "event": "log", "message": line.rstrip()}
                events.put(event)

    def _read_log(self, stream, events: queue.Queue) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in stream:
                self.log.append(line.rstrip())
                events.put({"id": None, "event": "log", "message": line.rstrip()})

    def _reason(self) -> str:
        code = self._process.returncode
        last = [line for line in list(self.log)[-12:] if line.strip()]
        # PythonSlicer is CTK's launcher: it outlives a child that was killed, says so and ends with code 1
        # (commontk/AppLauncher, ctkAppLauncher.cpp, applicationFinished).
        if code == 1 and any(LAUNCHER_SAYS in line for line in last):
            last = [line for line in last if LAUNCHER_SAYS not in line]
            how = "was killed (often because the computer ran out of memory)"
        elif code is not None and code < 0 and os.name != "nt":
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = str(-code)
            how = f"was ended by the signal {name}"
            if name == "SIGKILL":
                how += " (often because the computer ran out of memory)"
        else:
            how = f"ended with code {code}"
        said = f" It last said: {last[-1].strip()}" if last else ""
        return f"The registration process {how}. Nothing was changed; you can run it again.{said}"

    def _remove_folder(self) -> None:
        folder, self.folder = self.folder, None
        if folder is None or (self.keep_files and any(folder.glob("run-*"))):
            return
        for _ in range(20):  # Windows keeps files of a dying process for a moment
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                return
            time.sleep(0.05)


def _end_tree(process: subprocess.Popen) -> None:
    """Kill ``process`` and everything that it started."""
    if os.name == "nt":
        if process.poll() is None:
            subprocess.run(
                ["taskkill", "/T", "/F", "/PID", str(process.pid)],
                capture_output=True,
                creationflags=subprocess.CREATE_NO_WINDOW,
                check=False,
            )
    else:
        # The worker leads a session of its own, so its group is exactly its family, also when itself is gone.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


@atexit.register
def kill_all() -> None:
    """End every worker of this process; called when Python ends and when Slicer quits."""
    for worker in list(_running):
        worker.kill()
