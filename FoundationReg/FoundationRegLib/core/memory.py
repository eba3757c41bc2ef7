"""How much memory the computer has, and whether an error says that it ran out."""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager

from ..errors import OutOfMemory

# What Python, torch (CPU, CUDA, MPS), ITK, HDF5 and the C++ library say when memory runs out, in lower case.
_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "failed to allocate memory",
    "unable to allocate",
    "bad_alloc",
    "memory allocation failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch on any device, numpy or ITK ran out of memory.

    Only a `MemoryError`, torch's own error type or a `RuntimeError` (which torch's CPU allocator and SimpleITK raise)
    can mean that; their texts differ.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(known in text for known in _TEXTS)


@contextmanager
def out_of_memory_explained(device: object):
    """Turns running out of memory on ``device`` (named as it is printed) in the block into a sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"The memory of {device} is not enough; set a larger finest_spacing_mm or choose the preset fast."
        ) from None


def total_memory() -> int:
    """Bytes of main memory that this computer, or the container around this process, has; 0 where nobody tells.

    It does not depend on what else runs, so that decisions made by it are the same in every run.
    """
    if os.name == "nt":
        return _windows_memory()
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
    limit = _container_limit()
    return min(total, limit) if limit else total


def _container_limit() -> int:
    """Bytes that the control group of this process may take (cgroup version 2 or 1); 0 for no limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return 0


def _windows_memory() -> int:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "free", "page_total", "page_free", "virtual_total", "virtual_free", "extended")
        ]

    status = Status()
    status.length = ctypes.sizeof(status)
    return int(status.total) if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else 0
