"""One run over many pairs: what is finished stays, the rest is worked on, and every number ends in one table."""

from __future__ import annotations

import datetime
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import FoundationRegError, InputError
from .cluster import Where, open_executor
from .job import Options, PairJob, Variant, cancel_file
from .pairs import CohortPair
from .records import Layout, read_finished, remove_leftovers
from .results import is_done, reason_of, row_of, write_tables, write_text

# The tables are written while the run goes on, but never for more than this share of the time.
_WRITE_EVERY_SECONDS, _WRITING_SHARE = 30.0, 0.05
RUN_FILE = "batch.json"


class SomeFailed(FoundationRegError):
    """The run is complete, but some pairs have no result."""

    exit_code = 1


@dataclass
class RunState:
    """How far a run is. ``running``: pair id -> (stage, fraction of the pair).

    Counts are results, one for each pair and variant; ``found`` were finished before this run began. ``variants``: of
    each pair.
    """

    total: int
    variants: int = 1
    found: int = 0
    done: int = 0
    failed: int = 0
    running: dict[str, tuple[str, float]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def fraction(self) -> float:
        return (self.found + self.done + self.failed) / self.total if self.total else 1.0

    def seconds_left(self) -> float | None:
        """From the results of this run so far; None while there are none."""
        under_way = sum(fraction for _, fraction in self.running.values()) * self.variants
        made = self.done + self.failed + under_way
        elapsed = time.monotonic() - self.started
        if made < 0.2 or elapsed < 2:
            return None
        return elapsed / made * max(0.0, self.total - self.found - made)


@dataclass
class Outcome:
    """What a run brought: a row (`results.row_of`) for each pair and variant, in the table's order."""

    rows: list[dict[str, Any]]
    found: int
    cancelled: bool
    seconds: float

    @property
    def failed(self) -> int:
        return sum(not is_done(row) for row in self.rows)


def run_batch(
    pairs: Sequence[CohortPair],
    variants: Sequence[Variant],
    root: str | Path,
    options: Options | None = None,
    where: Where | None = None,
    watch: Callable[[RunState], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Register every pair with every variant into ``root``, and write the tables.

    What an earlier run finished is taken over when its inputs and settings are the same. A pair that fails is told in
    its row and stops nothing. ``watch`` is called now and then, ``stop`` is asked often. Raises `InputError` when the
    folder cannot be used or another run works in it.

    Workers import the main module of the calling program: a script needs ``if __name__ == "__main__":``.
    """
    options, where = options or Options(), where or Where()
    layout = Layout(Path(root).expanduser().absolute())
    began = time.monotonic()
    with _folder_for_one_run(layout.root):
        remove_leftovers(layout)
        run = uuid.uuid4().hex[:12]
        rows = _finished_rows(pairs, variants, layout, options)
        write_text(layout.root / RUN_FILE, _description(variants, options, len(pairs)))
        jobs = _jobs(pairs, variants, layout, options, run, rows)
        state = RunState(len(pairs) * len(variants), len(variants), found=len(rows))
        found = len(rows)
        if watch:
            watch(state)
        cancelled = False
        try:
            if jobs:
                cancelled = _work(jobs, rows, state, layout, where, watch, stop, run)
        finally:
            cancel_file(layout.root, run).unlink(missing_ok=True)
            remove_leftovers(layout)
            ordered = _ordered(rows, pairs, variants)
            write_tables(ordered, layout.root)
    return Outcome(ordered, found, cancelled, time.monotonic() - began)


def _work(jobs, rows, state: RunState, layout: Layout, where: Where, watch, stop, run: str) -> bool:
    """Do ``jobs`` and put their rows into ``rows``; returns whether the user stopped it."""
    told = False

    def stopping() -> bool:
        nonlocal told
        if not told and stop():
            told = True
            cancel_file(layout.root, run).touch()
        return told

    ended: set[str] = set()

    def say(word: dict[str, Any]) -> None:
        if word["id"] in ended:  # its last words came late
            return
        state.running[word["id"]] = (word["stage"], word["fraction"])
        if watch:
            watch(state)

    pause, written = _WRITE_EVERY_SECONDS, time.monotonic()
    with open_executor(where, len(jobs), layout.root, stopping) as executor:
        state.started = time.monotonic()
        # Asked once: with many workers each answer takes the scheduler some milliseconds.
        memory_gb = executor.memory_gb
        jobs = [replace(job, options=replace(job.options, memory_gb=memory_gb)) for job in jobs]
        for job, made in executor.results(jobs, say, stopping):
            ended.add(job.id)
            state.running.pop(job.id, None)
            for row in made:
                rows[row["id"], row["variant"]] = row
                state.done += is_done(row)
                state.failed += not is_done(row)
            if watch:
                watch(state)
            if time.monotonic() - written > pause:
                written = time.monotonic()
                _try_to_write(list(rows.values()), layout.root)
                pause = max(_WRITE_EVERY_SECONDS, (time.monotonic() - written) / _WRITING_SHARE)
    return told


def _try_to_write(rows: list[dict[str, Any]], root: Path) -> None:
    """Tables of a run under way; a disk that is full for a while must not end it."""
    with suppress(FoundationRegError):
        write_tables(rows, root)


def _finished_rows(pairs, variants, layout: Layout, options: Options) -> dict[tuple[str, str], dict[str, Any]]:
    rows = {}
    for pair in pairs:
        for variant in variants:
            place = layout.result(pair.folder, variant.folder)
            record = read_finished(place, pair.files, variant.settings, options.produce)
            if record is not None and _has_files(place, options.keep):
                rows[pair.id, variant.name] = {
                    **row_of(record),
                    "id": pair.id,
                    "task": pair.task,
                    "variant": variant.name,
                }
    return rows


def _has_files(place: Path, keep: str) -> bool:
    """Whether a result holds what is now to be kept; an earlier run may have kept less."""
    both = ("transform.h5", "warped.nii.gz")
    needed = {"all": both, "images": both, "transform": ("transform.h5",), "scores": ()}[keep]
    return all((place / name).exists() for name in needed)


def _jobs(pairs, variants, layout: Layout, options: Options, run: str, rows) -> list[PairJob]:
    often = Counter(pair.files["fixed"] for pair in pairs)
    networks = [[name for name, _ in variant.settings.get("encoders", ())] for variant in variants]
    repeated = any(count > 1 for count in Counter(name for names in networks for name in set(names)).values())
    jobs = []
    for pair in pairs:
        missing = tuple(v for v in variants if (pair.id, v.name) not in rows)
        if missing:
            share = repeated or often[pair.files["fixed"]] > 1
            jobs.append(
                PairJob(str(layout.root), run, pair.id, pair.folder, pair.task, pair.files, missing, options, share)
            )
    return jobs


def _ordered(rows, pairs, variants) -> list[dict[str, Any]]:
    keys = [(pair.id, variant.name) for pair in pairs for variant in variants]
    return [rows[key] for key in keys if key in rows]


def _description(variants: Sequence[Variant], options: Options, pairs: int) -> str:
    facts = {
        "foundationreg": __version__,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "pairs": pairs,
        "variants": [asdict(variant) for variant in variants],
        "options": asdict(options),
    }
    return json.dumps(facts, indent=2) + "\n"


@contextmanager
def _folder_for_one_run(root: Path):
    """Make ``root`` and keep other runs out of it for a while. Raises `InputError`."""
    # A lock of the system's: it ends with the process, however that ends.
    from filelock import FileLock, Timeout

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        lock.acquire(timeout=0.2)
    except Timeout:
        raise InputError(f"Another run is at work in {root}; wait for its end or choose another folder.") from None
    except FileExistsError:
        raise InputError(f"The output folder {root} is a file; choose another name.") from None
    except OSError as error:
        raise InputError(f"The output folder {root} cannot be used: {reason_of(error)}") from None
    try:
        yield
    finally:
        lock.release()
