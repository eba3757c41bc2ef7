"""Runs one input after the other, each in a forked child, and says how it ended. Linux and macOS only."""

from __future__ import annotations

import collections
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECONDS_FOR_ONE = 60.0
OUTCOMES = ("accepted", "refused", "traceback", "hang", "crash", "cut but accepted", "noise", "left behind")
BAD = OUTCOMES[2:]


@dataclass
class Case:
    """One input. ``prepare(folder)`` writes its files and gives the command line's arguments, or a function to call.

    ``whole``: False where the input is cut off, so that accepting it is wrong.
    """

    family: str
    name: str
    prepare: Callable[[Path], list[str] | Callable[[], None]]
    whole: bool = True


@dataclass
class Tally:
    """How the inputs of each family ended, and what went wrong, in words."""

    counts: dict[str, collections.Counter] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)

    def add(self, family: str, outcome: str, trouble: str = "") -> None:
        self.counts.setdefault(family, collections.Counter())[outcome] += 1
        if outcome in BAD:
            self.troubles.append(f"{family}: {outcome}: {trouble}")

    @property
    def total(self) -> int:
        return sum(sum(counter.values()) for counter in self.counts.values())

    @property
    def bad(self) -> int:
        return sum(counter[outcome] for counter in self.counts.values() for outcome in BAD)


def run(cases: list[Case], folder: Path, tally: Tally) -> None:
    """Run each of ``cases`` in a child of this process below ``folder`` and add its end to ``tally``."""
    for case in cases:
        here = folder / "case"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir(parents=True)
        outcome, text = run_one(case, here)
        tally.add(case.family, outcome, f"{case.name}: {text[-400:]!r}")


def run_one(case: Case, folder: Path, seconds: float = SECONDS_FOR_ONE) -> tuple[str, str]:
    """How ``case`` ended (one of `OUTCOMES`) and what it printed to stderr."""
    target = case.prepare(folder)
    before = set(folder.rglob("*"))
    status, text = in_child(lambda: _perform(target), folder.parent / "stderr.txt", seconds)
    after = set(folder.rglob("*"))
    lines = [line for line in text.splitlines() if line.strip()]
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    if code is None:
        return "hang", text
    if code < 0 or code == 134:
        return "crash", f"signal {-code} {text}"
    if code not in (0, 2) or "Traceback" in text:
        return "traceback", text
    if code == 0:
        return ("accepted", text) if case.whole else ("cut but accepted", text)
    if after != before:
        return "left behind", f"{sorted(str(p.name) for p in after - before)} {text}"
    if len(lines) != 1 or ".foundationreg-" in text:
        return "noise", text
    return "refused", text


def _perform(target) -> int:
    """The exit code of the command line with the arguments ``target``, or of calling it."""
    from FoundationRegLib.app import cli
    from FoundationRegLib.errors import FoundationRegError

    if not callable(target):
        return cli.main(target)
    try:
        target()
    except FoundationRegError as error:
        print(f"foundationreg: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def in_child(work: Callable[[], int], log: Path, seconds: float) -> tuple[int | None, str]:
    """The wait status of a forked child that runs ``work`` (None: it did not end in time), and its stderr."""
    process = start_child(work, log)
    end = time.monotonic() + seconds
    status = wait_until(process, end)
    if status is None:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return status, log.read_text(encoding="utf-8", errors="replace")


def start_child(work: Callable[[], int], log: Path) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = work()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        code = 99
    os._exit(code)


def wait_until(process: int, end: float) -> int | None:
    """The wait status of ``process``; None when it still runs at the time ``end``."""
    pause = 0.001
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > end:
            return None
        select.select([], [], [], pause)
        pause = min(2 * pause, 0.02)
