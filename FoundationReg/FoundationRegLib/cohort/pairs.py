"""The table of pairs: a CSV file with one row for each, read and checked before any work starts."""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError

IMAGES = ("fixed", "moving")
# What may come with a pair, by the names of `register`'s arguments.
EXTRAS = (
    *("fixed_mask", "moving_mask", "exclude_fixed", "exclude_moving"),
    *("fixed_labels", "moving_labels", "fixed_points", "moving_points", "initial_transform"),
)
FILES = (*IMAGES, *EXTRAS)
COLUMNS = ("id", "task", *FILES)
# Both or none in each row.
_TOGETHER = (("fixed_labels", "moving_labels"), ("fixed_points", "moving_points"))
_SIDES = {"fix": "fixed", "mov": "moving", "fixed": "fixed", "moving": "moving"}
_KINDS = {
    **dict.fromkeys(("volume", "image"), ""),
    **dict.fromkeys(("label", "labels", "seg", "segmentation"), "_labels"),
    **dict.fromkeys(("points", "landmarks"), "_points"),
    "mask": "_mask",
}
_LONGEST_NAME = 80
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class CohortPair:
    """One row: ``files`` holds paths by the names of `register`'s arguments, always ``fixed`` and ``moving``.

    ``id`` is unique in the table, ``task`` groups pairs (empty: none), ``row`` counts as a spreadsheet does, the header
    being row 1.
    """

    id: str
    files: dict[str, str]
    task: str = ""
    row: int = 0
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of the pair's folder in the results."""
        return folder_name(self.id)


def folder_name(name: str) -> str:
    """``name`` as the name of a folder on every system, unchanged where it can be one."""
    safe = re.sub(r"[^\w.+,=@ -]", "_", name).strip(" .")[:_LONGEST_NAME]
    if safe and safe == name and not _RESERVED.fullmatch(safe):
        return name
    return f"pair-{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_pairs(path: str | Path, root: str | Path | None = None, must_exist: bool = True) -> list[CohortPair]:
    """The pairs of the CSV file ``path``.

    Columns ``fixed`` and ``moving`` are needed (the study's ``fix_volume`` and ``mov_volume`` do too); ``id``,
    ``task``, masks, labels, points and ``initial_transform`` are optional, other columns are kept as ``facts``. Paths
    are relative to ``root``, by default the file's own folder. Commas, semicolons and tabs divide cells.

    Raises `InputError` with the row and the column of the first thing that is wrong; unless ``must_exist`` is false
    that may also be a file that is not there.
    """
    path = Path(path).expanduser()
    rows = _rows(path)
    if not rows:
        raise InputError(f"{path} is empty; its first row must name the columns fixed and moving.")
    header = _header(path, rows[0][1])
    root = Path(root).expanduser() if root is not None else path.absolute().parent
    if not root.is_dir():
        raise InputError(f"The folder {root} that paths in {path.name} start from does not exist.")
    width = max(4, len(str(len(rows))))
    pairs = [
        _pair(path, header, row, cells, f"{n:0{width}d}", str(root)) for n, (row, cells) in enumerate(rows[1:], start=1)
    ]
    if not pairs:
        raise InputError(f"{path} has a header but no pairs.")
    _require_distinct(path, pairs)
    if must_exist:
        _require_files(path, pairs)
    return pairs


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Row number and cells of each row that holds something."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"The table of pairs {path} does not exist.") from None
    except OSError as error:
        raise InputError(
            f"The table of pairs {path} cannot be read: {(error.strerror or str(error)).lower()}."
        ) from None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, row {line}: the text is not UTF-8; save the table as CSV UTF-8.") from None
    first = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = max(",;\t", key=first.count)
    # Any mix of line ends divides rows; a quoted cell may hold some, and rows still count as a spreadsheet shows them.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for number, cells in enumerate(reader, start=1):
            cells = [cell.strip() for cell in cells]
            if any(cells):
                rows.append((number, cells))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; check the quotation marks.") from None
    return rows


def _header(path: Path, cells: list[str]) -> list[str]:
    """The columns by our own names; names of others stay as they are."""
    names = [_known_name(cell) for cell in cells]
    for n, name in enumerate(names):
        if name and name in names[:n]:
            raise InputError(f"{path}, row 1: two columns mean {name}: {cells[names.index(name)]!r} and {cells[n]!r}.")
    missing = [name for name in IMAGES if name not in names]
    if missing:
        found = ", ".join(repr(cell) for cell in cells[:12])
        raise InputError(
            f"{path}, row 1: there is no column {' and no column '.join(missing)}; there are: {found}. "
            "The columns fixed and moving (or fix_volume and mov_volume) hold the paths of the images."
        )
    for name in names:
        near = [] if name in COLUMNS else difflib.get_close_matches(name.lower(), COLUMNS, 1, 0.85)
        if near:
            raise InputError(f"{path}, row 1: there is no column {name!r}; did you mean {near[0]!r}?")
    for one, other in _TOGETHER:
        if (one in names) != (other in names):
            there, absent = (one, other) if one in names else (other, one)
            raise InputError(f"{path}, row 1: the column {there} also needs a column {absent}.")
    return names


def _known_name(cell: str) -> str:
    name = re.sub(r"[\s-]+", "_", cell.lower())
    if name in COLUMNS:
        return name
    side, _, kind = name.partition("_")
    return _SIDES[side] + _KINDS[kind] if side in _SIDES and kind in _KINDS else cell


def _pair(path: Path, header: list[str], row: int, cells: list[str], number: str, root: str) -> CohortPair:
    if len(cells) > len(header) and any(cells[len(header) :]):
        raise InputError(
            f"{path}, row {row}: there are {len(cells)} cells for {len(header)} columns; put paths that hold the "
            "delimiter in quotation marks."
        )
    values = dict(zip(header, cells, strict=False))
    for name in IMAGES:
        if not values.get(name):
            raise InputError(f"{path}, row {row}, column {name}: the cell is empty.")
    for one, other in _TOGETHER:
        if bool(values.get(one)) != bool(values.get(other)):
            empty = other if values.get(one) else one
            raise InputError(f"{path}, row {row}, column {empty}: the cell is empty, but the other side has a file.")
    files = {name: _absolute(values[name], root) for name in FILES if values.get(name)}
    facts = {name: value for name, value in values.items() if name not in COLUMNS and name and value}
    return CohortPair(values.get("id") or number, files, values.get("task", ""), row, facts)


@functools.lru_cache(maxsize=1024)
def _absolute(text: str, root: str) -> str:
    return os.path.normpath(os.path.join(root, os.path.expanduser(text)))


def _require_distinct(path: Path, pairs: Iterable[CohortPair]) -> None:
    ids: dict[str, CohortPair] = {}
    seen: dict[tuple, CohortPair] = {}
    for pair in pairs:
        # Folders of names that differ in case alone are one on many systems.
        if before := ids.get(pair.id.casefold()):
            raise InputError(f"{path}, row {pair.row}, column id: {pair.id!r} is already the id of row {before.row}.")
        ids[pair.id.casefold()] = pair
        files = (pair.task, *(pair.files.get(name) for name in FILES))
        if before := seen.get(files):
            raise InputError(f"{path}, row {pair.row}: this is the same pair as in row {before.row}.")
        seen[files] = pair


def _require_files(path: Path, pairs: Iterable[CohortPair]) -> None:
    known: dict[str, bool] = {}
    missing: list[tuple[int, str, str]] = []
    for pair in pairs:
        for name, file in pair.files.items():
            if file not in known:
                known[file] = os.path.exists(file)
            if not known[file]:
                missing.append((pair.row, name, file))
    if missing:
        row, name, file = missing[0]
        more = f" ({len(missing) - 1} more cells name files that do not exist)" if len(missing) > 1 else ""
        raise InputError(
            f"{path}, row {row}, column {name}: the file {file} does not exist{more}. Correct the table, or add "
            "--skip-missing to list such pairs as failed and to register the others."
        )
