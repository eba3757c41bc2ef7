"""Finding and loading the compiled kernels."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..core.resources import resource_path
from .build import library_name, user_folder, variants

_OFF = ("0", "false", "no", "off")
# Variant and library, once it has been looked for.
_loaded: tuple[str, ctypes.CDLL] | None = None
_looked = False


def library() -> ctypes.CDLL | None:
    """The compiled kernels for this processor; None where none were built or FOUNDATIONREG_NATIVE is 0."""
    global _loaded, _looked
    if not _looked:
        _loaded = _load()
        _looked = True
    return _loaded[1] if _loaded else None


def in_use() -> str:
    """What a record says about them: their variant in lower case (``avx2``), or ``none``."""
    return _loaded[0].lower() if library() is not None and _loaded else "none"


@contextlib.contextmanager
def without() -> Iterator[None]:
    """A block in which torch does all the work, for comparisons."""
    global _loaded, _looked
    before = (_loaded, _looked)
    _loaded, _looked = None, True
    try:
        yield
    finally:
        _loaded, _looked = before


def _load() -> tuple[str, ctypes.CDLL] | None:
    if os.environ.get("FOUNDATIONREG_NATIVE", "").lower() in _OFF:
        return None
    # torch calls what goes beyond AVX2 by other names.
    names = list(variants())
    best = torch.backends.cpu.get_cpu_capability()
    usable = names[: names.index(best) + 1] if best in names else names if best.startswith("AVX512") else names[:1]
    for variant in reversed(usable):
        for folder in _folders():
            path = folder / library_name(variant)
            if path.is_file():
                with contextlib.suppress(OSError):
                    return variant, ctypes.CDLL(str(path))
    return None


def _folders() -> list[Path]:
    """Where libraries may lie: with the package, as the extension brings them, or in the user's folder."""
    return [resource_path("Kernels"), user_folder()]
