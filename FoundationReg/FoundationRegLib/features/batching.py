"""Runs an encoder over many slices within the memory: several at a time, fewer when it runs out."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..core.memory import is_out_of_memory
from ..core.progress import Progress
from ..errors import OutOfMemory

# More slices at a time than these only take memory.
_MOST_AT_ONCE = 16


# Bytes of main memory when the user sets no limit.
_MAIN_MEMORY = 4e9


Work = Callable[[Sequence[Any]], Sequence[Tensor]]


Take = Callable[[Any, Tensor], None]


def room(memory_gb: float, device: torch.device, weights: int = 0) -> float:
    """Bytes that encoding may take on ``device`` beside the ``weights``, which lie there already: by the user's limit,
    or for 0 most of what a GPU has free."""
    if memory_gb > 0:
        return memory_gb * 1e9 - weights
    return 0.9 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _MAIN_MEMORY


def slices_at_once(each: float, available: float) -> int:
    """How many slices of ``each`` bytes fit into ``available`` bytes; at least one."""
    return max(1, min(_MOST_AT_ONCE, int(available / each)))


def run(jobs: Sequence, work: Work, take: Take, at_once: int, device: torch.device, progress: Progress) -> None:
    """Hand ``take(job, result)`` the results of ``work(jobs)`` in the order of ``jobs``, ``at_once`` at a time.

    When memory runs out, half as many go at a time. Raises `OutOfMemory` when one is too much.
    """
    attempt = _in_threads if device.type == "cpu" else _in_batches
    done = 0
    while done < len(jobs):
        rest = jobs[done:]

        def report(finished: int, before: int = done) -> None:
            progress.update((before + finished) / len(jobs))

        done += attempt(rest, work, take, at_once, report)
        if done < len(jobs):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if at_once == 1:
                raise OutOfMemory(
                    f"The memory of {device} is too small for one slice; choose fewer encoder pixels or a smaller "
                    "encoder."
                )
            at_once = max(1, min(at_once, len(jobs) - done) // 2)


def _in_batches(jobs: Sequence, work: Work, take: Take, at_once: int, report: Callable[[int], None]) -> int:
    """Several jobs in one call of ``work``, until the end or until memory runs out; how many were finished."""
    done = 0
    while done < len(jobs):
        report(done)
        batch = jobs[done : done + at_once]
        try:
            made = work(batch)
        except Exception as error:
            if is_out_of_memory(error):
                return done
            raise
        for job, result in zip(batch, made, strict=True):
            take(job, result)
        done += len(batch)
    return done


def _in_threads(jobs: Sequence, work: Work, take: Take, at_once: int, report: Callable[[int], None]) -> int:
    """As `_in_batches`, with each job in a thread that has its share of the processor's cores.

    Slices do not wait for one another, so this keeps all cores busy where threads inside every small operation do not.
    """
    threads = torch.get_num_threads()
    at_once = min(at_once, threads, len(jobs))
    rest, running, done = iter(jobs), collections.deque(), 0
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(max(1, threads // at_once),))
    try:
        while True:
            # One more than there are threads waits, so that none is idle while ``take`` works.
            for job in itertools.islice(rest, at_once + 1 - len(running)):
                running.append((job, pool.submit(work, [job])))
            if not running:
                return done
            report(done)
            job, future = running.popleft()
            take(job, future.result()[0])
            done += 1
    except Exception as error:
        if is_out_of_memory(error):
            return done
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
