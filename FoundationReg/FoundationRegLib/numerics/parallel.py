"""Independent pieces of work side by side, each with its share of the processor's cores.

Threads inside every small tensor operation wait for each other more than they work; whole pieces do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_threads(pieces: Sequence[Callable[[], Result]], device: str | torch.device = "cpu") -> list[Result]:
    """What each of ``pieces`` returns, in order; as many run at a time as torch has threads.

    Pieces must not change what others read. Each runs with torch's threads shared out among them, and with the
    caller's gradient and inference mode. The first error is raised, after the pieces that have begun are done; others
    do not begin. On another ``device`` than the CPU they run one after the other, since that does not wait for them
    anyway.
    """
    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    count = min(threads, len(pieces))
    if count < 2:
        return [piece() for piece in pieces]
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def call(piece: Callable[[], Result]) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return piece()

    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(max(1, threads // count),))
    try:
        return list(pool.map(call, pieces))
    finally:
        pool.shutdown(cancel_futures=True)
        # The setting of a thread is also that of threads to come.
        torch.set_num_threads(threads)


def each(function: Callable[..., Result], arguments: Iterable, device: str | torch.device = "cpu") -> list[Result]:
    """``function`` of each of ``arguments``; otherwise `in_threads`."""
    return in_threads([lambda argument=argument: function(argument) for argument in arguments], device)
