"""Landmark files: .csv, Slicer's .fcsv and .mrk.json. In memory points are LPS millimetres (x, y, z)."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.files import printable, reason, replacing
from ..core.formats import POINT_SUFFIXES, harmless_cell, is_number, suffix_of
from ..errors import InputError
from .contents import FARTHEST_MM, require_regular

_LARGEST_FILE = 1 << 26

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
_AXES = {("x", "y", "z"): 1.0, ("l", "p", "s"): 1.0, ("r", "a", "s"): _RAS_TO_LPS}
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


@dataclass(frozen=True)
class Points:
    """Landmarks: ``array`` (n, 3) in LPS mm and their ``labels``, n texts or none at all."""

    array: np.ndarray
    labels: tuple[str, ...] = field(default=())

    def __post_init__(self):
        object.__setattr__(self, "array", np.asarray(self.array, float).reshape(-1, 3))

    def __len__(self) -> int:
        return len(self.array)


def read_points(path: str | Path) -> Points:
    """Landmarks of a file.

    ``.csv``: three columns of LPS mm, with or without a header; or with columns named x y z, l p s (LPS) or r a s
    (RAS), as Slicer exports. ``.fcsv`` and ``.mrk.json``: in the coordinate system that the file names. Points that
    Slicer lists as not placed are left out. Raises `InputError`.
    """
    path = Path(path).expanduser()
    name = f"The points file {printable(path)}"
    try:
        if not path.exists():
            raise InputError(f"{name} does not exist.")
        require_regular(path, name)
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{name} is too large to hold landmarks.")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        raise InputError(f"{name} cannot be read as text.") from None
    readers = {".csv": _read_csv, ".fcsv": _read_fcsv, ".mrk.json": _read_markups}
    suffix = suffix_of(path)
    if suffix not in readers:
        raise InputError(f"{name} has an unknown extension; use {' '.join(POINT_SUFFIXES)}.")
    try:
        points = readers[suffix](text)
    except InputError as error:
        raise InputError(f"{name} {error}") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError, csv.Error):
        raise InputError(f"{name} does not hold points as rows of three numbers.") from None
    if not len(points):
        raise InputError(f"{name} holds no points.")
    if not (np.abs(points.array) <= FARTHEST_MM).all():
        raise InputError(f"{name} holds coordinates that are not finite or farther away than any image.")
    return points


def _rows(text: str) -> list[list[str]]:
    """The cells of each line that holds any, split at commas, or else semicolons, tabs or blanks."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for delimiter in (",", ";", "\t"):
        if lines and delimiter in lines[0]:
            return [
                [cell.strip() for cell in row] for row in csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter)
            ]
    return [line.split() for line in lines]


def _read_csv(text: str) -> Points:
    rows = _rows(text)
    names = [cell.lower() for cell in rows[0]] if rows else []
    for axes, sign in _AXES.items():
        if set(axes) <= set(names):
            return _from_columns(rows[1:], names, axes, sign)
    if rows and not is_number(rows[0][0]):
        raise InputError("has a header without columns x y z, l p s or r a s.")
    if any(len(row) != 3 for row in rows):
        raise InputError("needs three columns, or a header that names them (x y z, l p s or r a s).")
    return Points(np.array(rows, float))


def _from_columns(rows: list[list[str]], names: list[str], axes: tuple[str, ...], sign) -> Points:
    column = {name: names.index(name) for name in names}
    if "defined" in column:
        rows = [row for row in rows if row[column["defined"]].lower() not in ("0", "false")]
    array = np.array([[float(row[column[axis]]) for axis in axes] for row in rows]).reshape(-1, 3) * sign
    return Points(array, tuple(row[column["label"]] for row in rows) if "label" in column else ())


def _read_fcsv(text: str) -> Points:
    header = "\n".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    system = re.search(r"CoordinateSystem\s*=\s*(\w+)", header)
    columns = re.search(r"columns\s*=\s*(.+)", header)
    # Files without a system come from before Slicer 4.11 and are RAS.
    sign = _sign({"0": "RAS", "1": "LPS"}.get(system[1], system[1]) if system else "RAS")
    names = [name.strip().lower() for name in (columns[1] if columns else _FCSV_COLUMNS).split(",")]
    place, label = names.index("x"), names.index("label") if "label" in names else None
    rows = _rows(text)
    # Newer versions put the position status (0: not placed, 3: missing) after the columns that they name.
    rows = [row for row in rows if not (len(row) > 14 and row[14] in ("0", "3"))]
    array = np.array([[float(cell) for cell in row[place : place + 3]] for row in rows]).reshape(-1, 3)
    labels = () if label is None or any(len(row) <= label for row in rows) else tuple(row[label] for row in rows)
    return Points(array * sign, labels)


def _sign(system: str):
    if system.upper() == "LPS":
        return 1.0
    if system.upper() == "RAS":
        return _RAS_TO_LPS
    raise InputError(f"is in the coordinate system {system}; only LPS and RAS are known.")


def _read_markups(text: str) -> Points:
    markups = json.loads(text)["markups"]
    if len(markups) != 1:
        raise InputError(f"holds {len(markups)} markups; one list of points is needed.")
    markup = markups[0]
    placed = [point for point in markup["controlPoints"] if point.get("positionStatus", "defined") == "defined"]
    array = np.array([point["position"] for point in placed], float).reshape(-1, 3)
    units = markup.get("coordinateUnits", "mm")
    if units != "mm" and units != ["mm"] * 3:
        raise InputError(f"is in {units}; only millimetres (mm) are known.")
    return Points(array * _sign(markup.get("coordinateSystem", "LPS")), tuple(p.get("label", "") for p in placed))


def write_points(points: Points, path: str | Path) -> None:
    """Write ``points`` in the format of the extension: .csv (LPS), .fcsv or .mrk.json. The whole file appears or none.

    Raises `InputError` for another extension or when the file cannot be written.
    """
    path = Path(path).expanduser()
    writers = {".csv": _csv_text, ".fcsv": _fcsv_text, ".mrk.json": _markups_text}
    if suffix_of(path) not in writers:
        raise InputError(f"Points cannot be written to {path}; use one of the extensions {' '.join(POINT_SUFFIXES)}.")
    try:
        with replacing(path) as temporary:
            temporary.write_text(writers[suffix_of(path)](points), encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"Points cannot be written to {path}: {reason(error)}.") from None


def _csv_text(points: Points) -> str:
    # Slicer imports tables whose columns are named so.
    header = ["label", "l", "p", "s"] if points.labels else ["x", "y", "z"]
    rows = points.array.round(6).tolist()
    return _joined(
        [header, *([harmless_cell(label), *row] for label, row in _labelled(points, rows))]
        if points.labels
        else [header, *rows]
    )


def _joined(rows) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _labelled(points: Points, rows: list) -> list[tuple[str, list]]:
    labels = points.labels or tuple(str(n + 1) for n in range(len(points)))
    return list(zip(labels, rows, strict=True))


def _fcsv_text(points: Points) -> str:
    header = f"# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = {_FCSV_COLUMNS}\n"
    rows = _labelled(points, points.array.round(6).tolist())
    return header + _joined([n + 1, *row, 0, 0, 0, 1, 1, 1, 0, label, "", ""] for n, (label, row) in enumerate(rows))


def _markups_text(points: Points) -> str:
    controls = [
        {"id": str(n + 1), "label": label, "position": row, "positionStatus": "defined"}
        for n, (label, row) in enumerate(_labelled(points, points.array.round(6).tolist()))
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": controls}
    return json.dumps({"@schema": _MARKUPS_SCHEMA, "markups": [markup]}, indent=2) + "\n"


def transform_points(points: Points, transform) -> Points:
    """``points`` taken through a SimpleITK ``transform``; a registration's own takes fixed points to moving ones."""
    return Points(np.array([transform.TransformPoint(p) for p in points.array.tolist()]).reshape(-1, 3), points.labels)
