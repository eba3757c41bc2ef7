"""File name extensions that are read and written, and what is written into tables."""

from __future__ import annotations

from pathlib import Path

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITABLE_IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
WRITABLE_TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt")
POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json")

_DOUBLE_SUFFIXES = (".nii.gz", ".mrk.json")


def suffix_of(path: str | Path) -> str:
    """The extension in lower case; ``.nii.gz`` and ``.mrk.json`` count as one."""
    name = Path(path).name.lower()
    return next((suffix for suffix in _DOUBLE_SUFFIXES if name.endswith(suffix)), Path(name).suffix)


def harmless_cell(value):
    """``value`` for a cell of a .csv file: of a text that a spreadsheet would run as a formula, the text (OWASP)."""
    risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if risky and not is_number(value) else value


def is_number(text: str) -> bool:
    """Whether ``text`` reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
