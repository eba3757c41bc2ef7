"""What the worker's answers hold: arrays in files, and errors."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from slicer.i18n import tr as _

from ... import errors
from ...core.grid import Grid
from ...errors import FoundationRegError


def load_array(value: dict, keep: bool = False) -> tuple[np.ndarray, Grid]:
    """The array of ``{"array": FILE.npy, "affine": 4x4}`` and its grid; the file is removed unless ``keep``."""
    array = np.load(value["array"], allow_pickle=False)
    if not keep:
        drop_array(value)
    return array, Grid(array.shape[:3], value["affine"])


def drop_array(value: dict | None) -> None:
    """Remove the file of an array that nobody wants any more."""
    if value is not None:
        with contextlib.suppress(OSError):
            Path(value["array"]).unlink()


def as_exception(event: dict) -> FoundationRegError:
    """The error that an ``error`` event tells of."""
    kind = getattr(errors, str(event.get("kind")), FoundationRegError)
    if not (isinstance(kind, type) and issubclass(kind, FoundationRegError)):
        kind = FoundationRegError
    return kind(event.get("message") or _("The registration failed."))
