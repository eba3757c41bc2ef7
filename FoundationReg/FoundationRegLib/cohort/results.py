"""Rows of numbers, one for each pair and variant, and the files that hold them."""

from __future__ import annotations

import csv
import errno
import importlib.util
import math
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core import files
from ..core.formats import harmless_cell
from ..errors import FoundationRegError, InputError

# What a row begins with, in the tables too. Numbers of the result follow.
FACTS = (
    "id",
    "task",
    "variant",
    "status",
    "reason",
    "seconds",
    "cpu_seconds",
    "memory_gb",
    "host",
    "folder",
    "quality",
)
STAGES = ("before", "linear", "after")
DICE_OF_LABEL = "dice_label_"
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_PLAIN_METRICS = (
    *("dice", "hd95_mm", "tre_mm", "tre_p95_mm", "nmi", "folded_percent", "sd_log_jacobian"),
    *("uncertainty_mm", "inverse_consistency_mm"),
)


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a result's record, flat: ``dice`` is after the registration, ``dice_before`` as the images lie,
    ``dice_linear`` after the linear part, ``dice_label_1`` that of one label."""
    row = {name: record.get(name) for name in FACTS if name != "reason"}
    for stage in STAGES:
        end = "" if stage == "after" else f"_{stage}"
        scores = (record.get("metrics") or {}).get(stage) or {}
        for name in _PLAIN_METRICS:
            if scores.get(name) is not None:
                row[name + end] = scores[name]
        for label, value in (scores.get("dice_per_label") or {}).items():
            if value is not None:
                row[f"{DICE_OF_LABEL}{label}{end}"] = value
    row["warnings"] = len(record.get("warnings") or ())
    return row


def failed_row(record: dict[str, Any], reason: str, details: str = "") -> dict[str, Any]:
    """The row of a pair that failed: ``record`` says which one."""
    row = {name: record.get(name) for name in ("id", "task", "variant", "folder")}
    return {**row, "status": "failed", "reason": reason, **({"details": details} if details else {})}


def failed_rows(job, reason: str) -> list[dict[str, Any]]:
    """Rows for every variant of a `PairJob` that none could work on."""
    return [
        failed_row({"id": job.id, "task": job.task, "variant": v.name, "folder": f"{job.folder}/{v.folder}"}, reason)
        for v in job.variants
    ]


def is_done(row: dict[str, Any]) -> bool:
    return row["status"] == "done"


def value_of(row: dict[str, Any], name: str) -> float:
    """A number of a row; nan when it was not measured."""
    value = row.get(name)
    return math.nan if value is None else float(value)


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Every column that a row has, in an order that reads well."""
    found = dict.fromkeys(name for row in rows for name in row)
    found.pop("details", None)
    ends = ("", "_linear", "_before")
    metrics = [name + end for name in _PLAIN_METRICS for end in ends]
    labels = sorted((n for n in found if n.startswith(DICE_OF_LABEL)), key=_label_order)
    order = [*FACTS, *metrics, *labels, "warnings"]
    return [name for name in order if name in found or name in FACTS]


def _label_order(column: str) -> tuple:
    number, _, end = column.removeprefix(DICE_OF_LABEL).partition("_")
    return (0, int(number), end) if number.isdigit() else (1, 0, column)


def write_tables(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write results.csv, results.parquet where pyarrow is there, and failures.csv, each as a whole or not at all."""
    columns = columns_of(rows)
    made = [write_csv(folder / "results.csv", columns, rows)]
    if importlib.util.find_spec("pyarrow") is not None:
        made.append(_write_parquet(folder / "results.parquet", columns, rows))
    failures = [row for row in rows if not is_done(row)]
    place = folder / "failures.csv"
    if failures:
        made.append(write_csv(place, ["id", "task", "variant", "reason", "details"], failures))
    else:
        place.unlink(missing_ok=True)
    return made


def write_csv(path: Path, columns: list[str], rows: Iterable[dict[str, Any]]) -> Path:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: harmless_cell(value) for name, value in row.items() if value is not None})
    return path


def _write_parquet(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    from pyarrow import parquet

    texts = {*FACTS} - {"seconds", "cpu_seconds", "memory_gb"}
    arrays = []
    for name in columns:
        values = [row.get(name) for row in rows]
        if name in texts:
            arrays.append(pyarrow.array([None if v is None else str(v) for v in values], pyarrow.string()))
        else:
            arrays.append(pyarrow.array([None if v is None else float(v) for v in values], pyarrow.float64()))
    with replacing(path) as temporary:
        parquet.write_table(pyarrow.table(arrays, names=columns), temporary)
    return path


@contextmanager
def replacing(path: Path):
    """A temporary path that takes the place of ``path`` when the block ends well.

    Raises `InputError` when the file cannot be written.
    """
    try:
        with files.replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}") from None


def write_text(path: Path, text: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def reason_of(error: BaseException) -> str:
    """Why a pair failed, in one sentence."""
    if isinstance(error, FoundationRegError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "The memory was not enough; use fewer workers, a faster preset or larger voxels."
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in _DISK_FULL:
            return f"The disk is full{where}."
        return f"A file cannot be read or written: {(error.strerror or str(error)).lower()}{where}."
    text = " ".join(str(error).split())
    return f"The registration stopped on an unexpected error ({type(error).__name__}: {text[:300]})."
