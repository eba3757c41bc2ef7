"""Where pairs are worked on: this process, workers on this machine, a running Dask cluster, or jobs of Slurm.

Every executor has ``slots``, the pairs that it works on at a time, and ``results(jobs, say, stop)``, which yields the
job and its rows as they come, in any order. A worker that dies is replaced and its pair is tried again by another.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import queue
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.threads import THREAD_ENVIRONMENT
from ..errors import Cancelled, FoundationRegError, InputError
from .job import PairJob, run_pair
from .results import failed_rows, reason_of

# A worker of the default preset on volumes of full size; what is known of a run can be said with --memory.
USUAL_GB = 4.0
# Of the machine's memory, what workers may have together.
_MEMORY_SHARE = 0.9
# How long a scheduler may take to answer, a running cluster to have a worker, and workers of our own to start.
_CONNECTED_WITHIN_SECONDS, _RUNNING_WITHIN_SECONDS, _LOCAL_WITHIN_SECONDS = 15.0, 60.0, 300.0
_ASK_EVERY_SECONDS, _COUNT_EVERY_SECONDS = 0.3, 2.0
# After a cancel, workers have so long to come to their next step; then they are left or ended.
_CANCELLED_WITHIN_SECONDS = 15.0
# Dask tries a pair again by itself; more than so many times it is not handed over anew.
_MOST_HANDOVERS = 4
# Where Linux shows that there is a card (also in its Windows subsystem): torch need not be loaded to see that none is.
_CUDA_DEVICES = ("/dev/nvidiactl", "/dev/dxg")
_NEEDS_EXTRA = "needs dask.distributed: install FoundationReg with `pip install foundationreg[batch]`"
# Registering is not what Dask's memory management was made for: nothing may be spilled or paused, only ended.
_WORKER_CONFIG = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # A long step of ITK keeps a worker from answering; one that is gone is noticed by its closed connection.
    "distributed.scheduler.worker-ttl": None,
    # Many workers that start at once, from a slow disk or on a busy machine, need their time.
    "distributed.comm.timeouts.connect": "120s",
    # What only Dask's dashboard shows costs each worker some percent of a core, waiting ones too.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "10s",
    # With Dask's value workers give back and fetch anew each large array: 14 of 34 CPU seconds of a registration.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
    "distributed.worker.preload": ["FoundationRegLib.cohort.interrupts"],
}

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Where:
    """How many workers there are and of what kind. 0 is automatic.

    ``workers``: on this machine; None is automatic too, 0 means in this very process. ``memory_gb``: of each worker.
    ``scheduler``: address or file of a running Dask scheduler. ``slurm``: file with the options of Slurm jobs.
    """

    workers: int | None = None
    memory_gb: float = 0.0
    threads: int = 1
    device: str = "auto"
    scheduler: str | None = None
    slurm: str | None = None


def has_distributed() -> bool:
    return importlib.util.find_spec("distributed") is not None


@contextmanager
def open_executor(where: Where, jobs: int, root: Path, stop: Callable[[], bool] = lambda: False):
    """The executor for ``jobs`` pairs, closed at the end.

    Raises `InputError` when the cluster cannot be reached, `Cancelled` when ``stop`` says so before there is a worker.
    """
    if where.scheduler and where.slurm:
        raise InputError("Give either --scheduler or --slurm, not both.")
    if (where.scheduler or where.slurm or where.workers) and not has_distributed():
        wanted = "--scheduler" if where.scheduler else "--slurm" if where.slurm else "--workers"
        raise InputError(f"{wanted} {_NEEDS_EXTRA}.")
    if where.workers == 0 or not has_distributed():
        yield InProcess()
        return
    import dask
    import distributed  # noqa: F401  brings its defaults, which would come over these

    with dask.config.set(_WORKER_CONFIG):
        if where.scheduler:
            with _running_cluster(where.scheduler) as client:
                _wait_for_workers(client, _RUNNING_WITHIN_SECONDS, stop)
                yield DaskExecutor(client)
            return
        with _slurm_cluster(where.slurm, root) if where.slurm else _local_cluster(where, jobs) as cluster:
            from distributed import Client

            with Client(cluster) as client:
                # Jobs of Slurm may stand in a queue for days.
                _wait_for_workers(client, math.inf if where.slurm else _LOCAL_WITHIN_SECONDS, stop)
                yield DaskExecutor(client)


class InProcess:
    """One pair after the other, in this process. A pair that ends the process ends the run, which can be resumed."""

    slots, memory_gb = 1, 0.0

    def results(self, jobs: Iterable[PairJob], say, stop: Callable[[], bool]) -> Iterator[tuple[PairJob, Rows]]:
        for job in jobs:
            if stop():
                return
            try:
                rows = run_pair(job, say)
            except Cancelled:
                return
            yield job, rows


class DaskExecutor:
    """Pairs through a Dask ``client``: never more at a time than there are workers, so that the scheduler stays small
    however long the table is, and a worker that dies takes no more with it than its own pair."""

    def __init__(self, client):
        self._client = client

    @property
    def memory_gb(self) -> float:
        """What the smallest worker may use; 0 when that is not limited."""
        limits = [worker["memory_limit"] or 0 for worker in self._workers.values()]
        return min(limits, default=0) / 1e9

    @property
    def _workers(self) -> dict[str, Any]:
        return self._client.scheduler_info(n_workers=-1)["workers"]

    @property
    def slots(self) -> int:
        return max(1, len(self._workers))

    def results(self, jobs: Iterable[PairJob], say, stop: Callable[[], bool]) -> Iterator[tuple[PairJob, Rows]]:
        waiting, done = iter(jobs), queue.Queue()
        running: dict[Any, tuple[PairJob, int]] = {}
        topic = None
        slots, asked, ended, deadline = self.slots, time.monotonic(), False, math.inf
        try:
            while True:
                while not ended and len(running) < slots and not stop():
                    job = next(waiting, None)
                    if job is None:
                        ended = True
                        break
                    if topic is None and say is not None:
                        topic = topic_of(job.run)
                        self._client.subscribe_topic(topic, lambda event: say(event[1]))
                    self._hand_over(job, 0, running, done)
                if stop():
                    deadline = min(deadline, time.monotonic() + _CANCELLED_WITHIN_SECONDS)
                if (not running and (ended or stop())) or time.monotonic() > deadline:
                    return
                if time.monotonic() - asked > _COUNT_EVERY_SECONDS:
                    slots, asked = self.slots, time.monotonic()
                try:
                    future = done.get(timeout=_ASK_EVERY_SECONDS)
                except queue.Empty:
                    continue
                job, handovers = running.pop(future)
                rows = self._rows(future, job, handovers, running, done)
                if rows is not None:
                    yield job, rows
        finally:
            if topic is not None:
                self._client.unsubscribe_topic(topic)
            self._client.cancel(list(running))

    def _hand_over(self, job: PairJob, handovers: int, running: dict, done: queue.Queue) -> None:
        key = f"pair-{job.run}-{job.folder}-{handovers}"
        future = self._client.submit(run_on_worker, job, key=key, pure=False)
        running[future] = (job, handovers)
        future.add_done_callback(done.put)

    def _rows(self, future, job: PairJob, handovers: int, running: dict, done: queue.Queue) -> Rows | None:
        """What a finished task brought; None when it was handed over anew or cancelled."""
        from distributed import CancelledError, KilledWorker

        try:
            return future.result()
        except Cancelled:
            return None
        except (KilledWorker, CancelledError) as error:
            if self._client.status != "running":
                raise FoundationRegError(
                    "The connection to the Dask scheduler is lost. Run the same command again: what is finished stays."
                ) from None
            if handovers < _MOST_HANDOVERS:
                # The job itself knows which of its variants ended two workers, and skips that one.
                self._hand_over(job, handovers + 1, running, done)
                return None
            return failed_rows(job, reason_of(error))
        except Exception as error:
            return failed_rows(job, reason_of(error))


def run_on_worker(job: PairJob) -> Rows:
    """`run_pair` on a Dask worker, whose words go to the run's topic."""
    from distributed import get_worker

    worker = get_worker()
    return run_pair(job, lambda word: worker.log_event(topic_of(job.run), {**word, "worker": worker.address}))


def topic_of(run: str) -> str:
    return f"foundationreg-{run}"


def _wait_for_workers(client, seconds: float, stop: Callable[[], bool]) -> None:
    """Wait for a first worker, and raise `InputError` where workers lack this very package."""
    deadline = time.monotonic() + seconds
    while not client.scheduler_info(n_workers=-1)["workers"]:
        if stop():
            raise Cancelled("Stopped before a worker was there.")
        if time.monotonic() > deadline:
            raise InputError(
                f"No worker of the cluster answered within {seconds:.0f} seconds; start workers first, "
                "or look at what they say."
            )
        time.sleep(_ASK_EVERY_SECONDS)
    try:
        versions = client.run(_version)
    except (ImportError, AttributeError):
        raise InputError(
            "The workers of the cluster lack this version of FoundationReg; install the same one there."
        ) from None
    others = sorted({version for version in versions.values() if version != __version__})
    if others:
        raise InputError(
            f"Workers of the cluster have FoundationReg {', '.join(others)}, this is {__version__}; "
            "install the same version everywhere."
        )


def _version() -> str:
    return __version__


def machine_memory_gb() -> float:
    """Memory of this machine, or what its control group allows."""
    from distributed.system import MEMORY_LIMIT

    return MEMORY_LIMIT / 1e9


def graphics_cards(device: str) -> int:
    """Cards that a run on ``device`` may use. CUDA is not started, since workers could not use it then."""
    if device not in ("auto", "cuda") or (sys.platform == "linux" and not any(map(os.path.exists, _CUDA_DEVICES))):
        return 0
    import torch

    return torch.cuda.device_count() if torch.version.cuda else 0


def workers_on_this_machine(where: Where, jobs: int, cards: int) -> tuple[int, float]:
    """How many workers to start, and the GB of memory that each may use."""
    room = machine_memory_gb() * _MEMORY_SHARE
    wanted = where.workers or cards or max(1, min(os.cpu_count() or 1, int(room // (where.memory_gb or USUAL_GB))))
    count = max(1, min(wanted, jobs))
    return count, where.memory_gb or room / count


def worker_environments(count: int, cards: int, threads: int) -> list[dict[str, str]]:
    """Environment of each worker: its threads, and the one graphics card that it sees, in turn."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in visible.split(",")] if visible else [str(n) for n in range(cards)]
    made = []
    for n in range(count):
        card = {"CUDA_VISIBLE_DEVICES": names[n % cards]} if cards else {}
        made.append({"OMP_NUM_THREADS": str(threads), **THREAD_ENVIRONMENT, **card})
    return made


@contextmanager
def _local_cluster(where: Where, jobs: int):
    from distributed import LocalCluster

    cards = graphics_cards(where.device)
    count, memory_gb = workers_on_this_machine(where, jobs, cards)
    cluster = LocalCluster(
        n_workers=0, threads_per_worker=1, memory_limit=int(memory_gb * 1e9), security=_encrypted(),
        dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False}, silence_logs="CRITICAL",
    )  # fmt: skip
    with cluster:
        specification = cluster.new_spec
        for n, environment in enumerate(worker_environments(count, cards, where.threads)):
            options = {**specification["options"], "env": environment}
            cluster.worker_spec[n] = {"cls": specification["cls"], "options": options}
        cluster.scale(count)
        yield cluster


def _encrypted():
    """Certificates for this run alone: without them, other users of the machine could run code through the scheduler.
    None where the package for them is absent."""
    if importlib.util.find_spec("cryptography") is None:
        return None
    from distributed.security import Security

    return Security.temporary()


@contextmanager
def _running_cluster(address: str):
    from distributed import Client

    file = Path(address).expanduser()
    try:
        given = {"scheduler_file": str(file)} if file.is_file() else {"address": address}
        client = Client(**given, timeout=_CONNECTED_WITHIN_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"The Dask scheduler {address} cannot be reached: {reason}.") from None
    with client:
        yield client


@contextmanager
def _slurm_cluster(options_file: str, root: Path):
    jobs, options = read_slurm_options(options_file)
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise InputError(f"--slurm {_NEEDS_EXTRA}.")
    from dask_jobqueue import SLURMCluster

    folder = root / ".cluster"
    folder.mkdir(exist_ok=True)
    usual = {
        "processes": 1,
        "security": _encrypted(),
        "shared_temp_directory": str(folder),
        "log_directory": str(folder / "logs"),
        "scheduler_options": {"dashboard_address": "127.0.0.1:0", "dashboard": False},
        "job_script_prologue": [f"export {name}={value}" for name, value in THREAD_ENVIRONMENT.items()],
    }
    try:
        cluster = SLURMCluster(**{**usual, **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"The options in {options_file} do not fit: {' '.join(str(error).split())[:300]}") from None
    with cluster:
        # Kept at this number: jobs that end early, by a time limit or a fault, are replaced.
        replacing = cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        try:
            yield cluster
        finally:
            # Else it may ask for new jobs while the cluster closes, which then waits for them.
            replacing.stop()


def read_slurm_options(path: str) -> tuple[int, dict[str, Any]]:
    """Number of jobs and the options of each, of a JSON or YAML file: ``jobs``, and the arguments of
    `dask_jobqueue.SLURMCluster` such as ``queue``, ``cores``, ``memory``, ``walltime``. Raises `InputError`."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() == ".json":
            options = json.loads(text)
        else:
            import yaml

            options = yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError(f"The file with Slurm's options {path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The file with Slurm's options {path} cannot be read: {error}.") from None
    except Exception as error:
        raise InputError(f"{path} is not valid: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(options, dict):
        raise InputError(f"{path} must hold options by name, such as jobs, queue, cores, memory and walltime.")
    jobs = options.pop("jobs", 1)
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise InputError(f"{path}: jobs must be a whole number above zero, not {jobs!r}.")
    absent = [name for name in ("cores", "memory") if name not in options]
    if absent:
        raise InputError(f"{path} lacks {' and '.join(absent)}, what one job of Slurm gets.")
    return jobs, options
