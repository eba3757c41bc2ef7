"""What a worker does for one pair: every variant of it, one after the other, each result in a folder of its own."""

from __future__ import annotations

import importlib
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.progress import Event, Progress
from ..errors import Cancelled, FoundationRegError
from .records import RESULT_FILE, Attempts, Layout, StagedFolder, described, own_models, read_finished, result_key
from .results import failed_row, reason_of, row_of

REGISTER = "FoundationRegLib.app.batch_result:register_into"
MOST_DEATHS = 2
# Seconds between two words of a worker on how far it is.
_SAY_EVERY = 2.0
# A worker process registers one pair at a time, however many threads it was given.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Variant:
    """Settings under comparison: ``name`` for people, ``folder`` for the disk, ``settings`` as plain values."""

    name: str
    folder: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What holds for every pair of a run. ``produce``: ``module:function`` that makes a result, see `Produce`.

    ``keep``: ``all`` files of a result, the transform and the warped image (``images``), the ``transform`` or only the
    ``scores``. ``features_gb``: most that the features on disk may take; 0 keeps none. ``memory_gb``: what a worker may
    use, for the sentence when it ended.
    """

    produce: str = REGISTER
    keep: str = "all"
    features_gb: float = 10.0
    memory_gb: float = 0.0
    backwards: bool = False


@dataclass(frozen=True)
class PairJob:
    """One pair and the variants that are still to be made. Small and plain: it travels to the worker."""

    root: str
    run: str
    id: str
    folder: str
    task: str
    files: dict[str, str]
    variants: tuple[Variant, ...]
    options: Options = field(default_factory=Options)
    share_features: bool = False


# Makes one result: files of a pair, settings, options, folder to write to, progress and cache in, the record out.
Produce = Callable[..., dict[str, Any]]


def cancel_file(root: str | Path, run: str) -> Path:
    """While this file exists, workers of the run stop at the next step."""
    return Path(root) / f".cancel-{run}"


def run_pair(job: PairJob, say: Callable[[dict], None] | None = None) -> list[dict[str, Any]]:
    """Make what is missing of a pair, and return a row (`results.row_of`) for each variant.

    Only a cancel raises; what else goes wrong is the ``reason`` in the row of that variant. ``say`` gets a word now
    and then on how far the work is.
    """
    with _ONE_AT_A_TIME:
        inputs: dict[str, Any] = {}
        shared = _cache_for(job)
        rows = []
        for n, variant in enumerate(job.variants):
            rows.append(_run_variant(job, variant, inputs, shared, _progress(job, n, say)))
            if shared is not None:
                shared.drop_own()
        return rows


def _run_variant(job: PairJob, variant: Variant, inputs: dict, shared, progress: Progress) -> dict[str, Any]:
    layout = Layout(Path(job.root))
    record = {"id": job.id, "task": job.task, "variant": variant.name, "folder": f"{job.folder}/{variant.folder}"}
    attempts = Attempts(layout, job.folder, variant.folder)
    place = layout.result(job.folder, variant.folder)
    try:
        if finished := read_finished(place, job.files, variant.settings, job.options.produce):
            return row_of(finished)
        if (deaths := attempts.deaths()) >= MOST_DEATHS:
            return failed_row(record, death_sentence(deaths, job.options.memory_gb))
        with attempts:
            progress.check()
            if not inputs:
                inputs.update(described(job.files))
            return row_of(_produced(job, variant, inputs, shared, progress, record, place))
    except Cancelled:
        raise
    except Exception as error:
        unexpected = not isinstance(error, (FoundationRegError, OSError, MemoryError))
        return failed_row(record, reason_of(error), traceback.format_exc() if unexpected else "")


def _produced(job, variant, inputs, shared, progress, record, place) -> dict[str, Any]:
    produce = _function(job.options.produce)
    known = {**inputs, **described(own_models(variant.settings))}
    began, cpu = time.monotonic(), time.process_time()
    memory = PeakMemory()
    with StagedFolder(place) as folder:
        saved = shared.saved if shared else 0.0
        made = produce(job.files, variant.settings, job.options, folder, progress, shared)
        made = {
            **made,
            **record,
            "status": "done",
            # What another variant of the pair had worked out before is counted as if it had been done again.
            "seconds": round(time.monotonic() - began + (shared.saved - saved if shared else 0.0), 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "memory_gb": memory.peak_gb(),
            "host": socket.gethostname(),
        }
        made["cohort"] = {"key": result_key(known, variant.settings, job.options.produce), "inputs": known}
        text = json.dumps(made, indent=1, allow_nan=False)
        (folder / RESULT_FILE).write_text(text + "\n", encoding="utf-8")
    return made


def _function(name: str) -> Produce:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _cache_for(job: PairJob):
    """What variants of a pair share in memory, and all pairs on disk."""
    if job.options.produce != REGISTER:
        return None
    from .sharing import cache_for

    store = job.share_features and job.options.features_gb > 0
    return cache_for(Layout(Path(job.root)).features if store else None, job.options.features_gb)


def _progress(job: PairJob, n: int, say) -> Progress:
    flag, asked, said = cancel_file(job.root, job.run), [0.0, False], [0.0]

    def should_cancel() -> bool:
        now = time.monotonic()
        if now - asked[0] > 1.0:
            asked[:] = now, flag.exists()
        return asked[1]

    def on_event(event: Event) -> None:
        now = time.monotonic()
        if say and now - said[0] > _SAY_EVERY:
            said[0] = now
            say({"id": job.id, "stage": event.stage, "fraction": (n + event.fraction) / len(job.variants)})

    return Progress(on_event, should_cancel=should_cancel)


def death_sentence(deaths: int, memory_gb: float) -> str:
    """What is said of a pair over which workers died."""
    limit = f" of {memory_gb:.1f} GB" if memory_gb else ""
    return (
        f"{deaths} worker processes ended while they worked on it, most likely because the memory{limit} was not "
        "enough; it was skipped. Give each worker more memory (--memory), or larger voxels (--set finest_spacing_mm=3)."
    )


class PeakMemory:
    """The most memory that this process holds from now on, in GB, as far as the system tells."""

    def __init__(self):
        self._resettable = False
        try:
            # Linux: 5 sets the highest value so far back to the present one.
            Path("/proc/self/clear_refs").write_text("5")
            self._resettable = True
        except OSError:
            pass

    def peak_gb(self) -> float | None:
        try:
            if not self._resettable:
                return None
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return round(int(line.split()[1]) / 1e6, 3)
        except (OSError, ValueError):
            pass
        return None


def limit_threads(threads: int) -> None:
    """Let SimpleITK and torch use so many threads in this process, so that results do not depend on the machine."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import SimpleITK as sitk
    import torch

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    torch.set_num_threads(threads)
