"""Devices: which one to compute on, and whether an error means that its memory ran out."""

from __future__ import annotations

import torch

from ..errors import InputError


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python or torch, on any device, ran out of memory."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def choose_device(name: str) -> torch.device:
    """The torch device of a setting; ``auto`` takes CUDA, then MPS, then the CPU. Raises `InputError` if not there."""
    mps = getattr(torch.backends, "mps", None)
    has = {"cuda": torch.cuda.is_available(), "mps": bool(mps and mps.is_available()), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in has.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"There is no device {name!r}; use auto, cpu, cuda, cuda:N or mps.") from None
    present = has.get(device.type, False)
    if present and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        present = False
    if not present:
        raise InputError(f"The device {name} is not available on this computer; use auto or cpu.")
    return device
