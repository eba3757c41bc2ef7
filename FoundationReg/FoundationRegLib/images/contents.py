"""What a file holds, counted in bounded memory, and the limits of what a header may promise."""

from __future__ import annotations

import bz2
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..core.memory import total_memory
from ..errors import InputError

# Voxels smaller or larger than these, in mm, are a mistake in the header.
SPACING_LIMITS_MM = (1e-4, 1e3)
# Coordinates beyond this, in mm, are too.
FARTHEST_MM = 1e7
CHUNK = 1 << 20
LONGEST_HEADER = 1 << 20
# Deflate packs at most so many bytes into one.
_DENSEST = 1032
_LARGEST_AXIS = 1 << 31
# Bytes behind the promised ones that are unpacked to find a checksum.
_MOST_PADDING = 1 << 26


class Damage(Exception):
    """The end of a sentence that begins with the file's name."""


def require_regular(path: Path, name: str) -> None:
    """Raise `InputError` for what is no file with content: a pipe or a device would be waited for without end."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        why = (getattr(error, "strerror", None) or "the name is not possible").lower()
        raise InputError(f"{name} cannot be read: {why}.") from None
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"{name} is a pipe or a device and no file.")
    if facts.st_size == 0:
        raise InputError(f"{name} is empty.")


def require_room(count: int, promised: int) -> None:
    total = total_memory()
    if total and promised > total:
        raise Damage(
            f"promises {count:.3g} voxels ({promised / 1e9:.0f} GB), above the {total / 1e9:.0f} GB of memory here: "
            "the header is damaged, or the image must be cropped first"
        )


def require_bytes(present: int, promised: int) -> None:
    if present < promised:
        raise Damage(
            f"promises {promised:,} bytes of voxels and holds {present:,}; it is cut off or damaged, so copy it again"
        )


def _unpacked(path: Path, skip: int, packer: str) -> Iterator[bytes]:
    """The content of ``path`` behind ``skip`` bytes, unpacked in bounded pieces: ``gzip`` (and zlib) or ``bzip2``.

    Raises EOFError where the stream has no end, and zlib.error or OSError where it or its checksum is damaged.
    """
    with open(path, "rb") as file:
        file.seek(skip)
        more = True
        while more:
            engine = bz2.BZ2Decompressor() if packer == "bzip2" else zlib.decompressobj(47)
            data = b""
            while not engine.eof:
                if not data and getattr(engine, "needs_input", True):
                    data = file.read(CHUNK)
                ended = not data
                piece = engine.decompress(data, CHUNK)
                data = getattr(engine, "unconsumed_tail", b"")
                yield piece
                if ended and not piece and not engine.eof:
                    raise EOFError
            # Several members may follow one another; other bytes after the last are padding.
            file.seek(-len(engine.unused_data), os.SEEK_CUR)
            more = file.read(2) == b"\x1f\x8b"
            file.seek(-2, os.SEEK_CUR) if more else None


def raw(path: Path, skip: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(skip)
        while piece := file.read(CHUNK):
            yield piece


def measured(pieces: Iterator[bytes], skip: int, promised: int, take=None) -> tuple[int, bool]:
    """Bytes behind the first ``skip`` of ``pieces``, and whether their stream ended as it should.

    ``take`` gets them one after the other. Much more than ``promised`` is not looked at.
    """
    seen, held, sound = 0, b"", True
    try:
        for piece in pieces:
            first, seen = max(skip - seen, 0), seen + len(piece)
            if take is not None:
                held += piece[first:]
                if len(held) >= CHUNK:
                    whole = len(held) // 8 * 8
                    take(held[:whole])
                    held = held[whole:]
            if seen - skip > promised + _MOST_PADDING:
                break
    except (zlib.error, OSError, EOFError):
        sound = False
    if take is not None and held:
        take(held)
    return max(seen - skip, 0), sound


def require_packed(path: Path, at: int, skip: int, promised: int, packer: str, take=None) -> None:
    """Raise where the packed data at byte ``at`` do not hold ``promised`` bytes behind their first ``skip``."""
    if packer == "gzip" and promised > _DENSEST * path.stat().st_size + CHUNK:
        require_bytes(_DENSEST * path.stat().st_size, promised)
    present, sound = measured(_unpacked(path, at, packer), skip, promised, take)
    require_bytes(present, promised)
    if not sound:
        raise Damage("is damaged: its compressed voxels do not match their checksum; copy it again")


def require_number(value: float, what: str, largest: float = FARTHEST_MM) -> None:
    if not math.isfinite(value) or abs(value) > largest:
        raise Damage(f"has {value:g} in its field {what}, where a number of millimetres is needed")


def require_spacing(value: float, what: str) -> None:
    low, high = SPACING_LIMITS_MM
    if not low <= abs(value) <= high:
        raise Damage(f"has voxels of {abs(value):g} mm ({what}); between {low:g} and {high:g} mm are possible")


def require_axes(sizes: list[int], what: str) -> int:
    if not sizes or any(not 1 <= n < _LARGEST_AXIS for n in sizes):
        raise Damage(f"has the size {' x '.join(map(str, sizes)) or 'nothing'} ({what}), which cannot be")
    return math.prod(sizes)


def check_data(files: list[tuple[Path, int]], encoding: str, skip: int, lines: int, count: int, promised: int) -> None:
    """Raise where ``files`` (path, first byte) together do not hold the ``promised`` bytes, or ``count`` numbers."""
    if not encoding:
        raise Damage("has voxels in an encoding that is not known here; save it as raw or gzip")
    if skip < -1 or lines < 0:
        raise Damage("says that its voxels begin before the file does; the header is damaged")
    if encoding in ("gzip", "bzip2"):
        if len(files) > 1 or lines:
            raise Damage("has compressed voxels in several parts; save it as one file")
        require_packed(files[0][0], files[0][1], max(skip, 0), promised, encoding)
    elif encoding == "raw":
        present = sum(file.stat().st_size - at - (0 if skip < 0 else skip) for file, at in files)
        require_bytes(max(present, 0), promised)
    else:
        present = sum(_text_values(file, at, encoding) for file, at in files)
        needed = promised if encoding == "hex" else count
        if present < needed:
            raise Damage(f"promises {needed:,} values as text and holds {present:,}; it is cut off or damaged")


def _text_values(path: Path, start: int, encoding: str) -> int:
    """Numbers written as text in ``path`` behind byte ``start``: separated by blanks or commas, or hexadecimal."""
    count, rest = 0, b""
    for piece in raw(path, start):
        if encoding == "hex":
            count += len(re.findall(rb"[0-9a-fA-F]", piece))
            continue
        *parts, rest = re.split(rb"[\s,]+", rest + piece)
        count += _count_numbers(parts)
    return count // 2 if encoding == "hex" else count + _count_numbers([rest])


def _count_numbers(parts: list[bytes]) -> int:
    parts = [part for part in parts if part]
    try:
        for part in parts:
            float(part)
    except ValueError:
        raise Damage("has text among its voxels that is no number") from None
    return len(parts)


def data_files(path: Path, pattern: str, start: int) -> list[tuple[Path, int]]:
    """The files with the voxels of a detached header: one, a LIST behind the header, or a numbered pattern.

    The libraries hand a pattern to C's printf, so only one number in it is let through.
    """
    if pattern.split()[:1] == ["LIST"]:
        with open(path, "rb") as file:
            file.seek(start)
            names = [line.strip().decode("utf-8", "replace") for line in file.read(LONGEST_HEADER).splitlines()]
    elif "%" in pattern:
        match = re.fullmatch(r"([^%]*%0?\d{0,2}d[^%]*?)\s+(\d{1,6})\s+(\d{1,6})(?:\s+(\d{1,6}))?", pattern)
        if not match or int(match[4] or 1) < 1:
            raise Damage("names its data files by a pattern that is not known here; save it as one file")
        names = [match[1] % n for n in range(int(match[2]), int(match[3]) + 1, int(match[4] or 1))]
    else:
        names = [pattern]
    files = [path.parent / name for name in names if name]
    for file in files:
        require_regular(file, f"The data file {file} of {path.name}")
    if not files:
        raise Damage("names no data files")
    return [(file, 0) for file in files]
