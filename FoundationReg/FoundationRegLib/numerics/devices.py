"""Devices: which one to compute on, whether it computes right, and how much memory and how many threads it has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.memory import total_memory
from ..errors import InputError

# Shares of a graphics card's and of the main memory that a registration may take when the user sets no limit.
_CARD_SHARE, _MAIN_SHARE = 0.8, 0.5


def memory_limit(memory_gb: float, device: torch.device) -> float:
    """Bytes that a registration may take on ``device``: ``memory_gb`` GB, or for 0 a share of all that it has.

    What is free at the moment does not count, so that the same input gives the same result.
    """
    if memory_gb:
        return memory_gb * 1e9
    if device.type == "cuda":
        return _CARD_SHARE * torch.cuda.get_device_properties(device).total_memory
    return _MAIN_SHARE * (total_memory() or 8e9)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Torch computes with ``count`` threads within the block (0: as many as before), and then as before."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def choose_device(name: str) -> torch.device:
    """The torch device of a setting; ``auto`` takes CUDA, then MPS where it computes as the CPU does, then the CPU.

    Raises `InputError` if it is not there.
    """
    mps = getattr(torch.backends, "mps", None)
    has = {"cuda": torch.cuda.is_available(), "mps": bool(mps and mps.is_available()), "cpu": True}
    if name == "auto":
        if has["mps"] and not has["cuda"] and wrong_operations("mps"):
            return torch.device("cpu")
        return torch.device(next(kind for kind, there in has.items() if there))
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        raise InputError(f"There is no device {name!r}; use auto, cpu, cuda, cuda:N or mps.") from None
    present = has.get(device.type, False)
    if present and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        present = False
    if not present:
        raise InputError(f"The device {name} is not available on this computer; use auto or cpu.")
    return device


@functools.cache
def wrong_operations(device: str) -> tuple[str, ...]:
    """Names of the operations that a registration needs and that ``device`` lacks or computes unlike the CPU.

    Each is tried on small tensors. Apple's GPUs got 3-D sampling, and its gradient, late and in part.
    """
    return tuple(name for name, operation in _OPERATIONS.items() if not _agrees(operation, device))


def _agrees(operation: Callable[[Tensor], Tensor], device: str) -> bool:
    values = torch.rand(2, 3, 6, 8, 4, generator=torch.Generator().manual_seed(0))
    try:
        here = operation(values.clone())
        there = operation(values.to(device)).cpu()
    except (RuntimeError, NotImplementedError, TypeError, AssertionError):
        return False
    return here.shape == there.shape and bool(torch.allclose(here, there, rtol=1e-3, atol=1e-4))


def _places(values: Tensor) -> Tensor:
    """Sampling places (2, 6, 8, 4, 3) made of ``values``, between -1.2 and 1.2."""
    return values.movedim(1, -1) * 2.4 - 1.2


def _sampling(mode: str, padding: str) -> Callable[[Tensor], Tensor]:
    return lambda v: F.grid_sample(v, _places(v), mode, padding, align_corners=True)


def _sampling_gradient(values: Tensor) -> Tensor:
    values = values.requires_grad_()
    places = _places(values.detach()).requires_grad_()
    F.grid_sample(values, places, "bilinear", "border", align_corners=True).square().sum().backward()
    return torch.cat([values.grad.flatten(), places.grad.flatten()])


def _scattered(values: Tensor) -> Tensor:
    index = torch.tensor([0, 1, 1, 3], device=values.device)
    return torch.zeros(4, device=values.device).index_put_((index,), values.flatten()[:4], accumulate=True)


def _pooling_gradient(values: Tensor) -> Tensor:
    values = values.requires_grad_()
    F.avg_pool3d(values, 3, stride=1, padding=1).square().sum().backward()
    return values.grad


_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "3-D sampling": _sampling("bilinear", "border"),
    "3-D sampling, zeros outside": _sampling("bilinear", "zeros"),
    "3-D sampling, nearest": _sampling("nearest", "border"),
    "gradient of 3-D sampling": _sampling_gradient,
    "gradient of 3-D pooling": _pooling_gradient,
    "3-D pooling": lambda v: F.avg_pool3d(v, 2),
    "3-D resizing": lambda v: F.interpolate(v, size=(9, 5, 7), mode="trilinear", align_corners=False),
    "3-D resizing, nearest": lambda v: F.interpolate(v, size=(3, 4, 2)),
    "3-D padding": lambda v: F.pad(v, (1, 2, 1, 1, 0, 3), mode="replicate"),
    "3-D convolution": lambda v: F.conv3d(v, torch.ones(1, 3, 3, 3, 3, device=v.device) / 81),
    "Fourier transform": lambda v: torch.fft.irfftn(torch.fft.rfftn(v, dim=(-3, -2, -1)), s=v.shape[-3:]),
    "smallest of a row": lambda v: v.flatten(1).argmin(1).float(),
    "matrix product": lambda v: torch.addmm(v[0, 0, 0], v[0, 0, 0, :, :4].T[:, :8].T, v[0, 0, 0, :4, :4], alpha=-2),
    "scattered sum": _scattered,
    "running index": lambda v: (v[0, 0] > 0.5).nonzero().float().sum(0),
}
