"""What the header of an image file promises, checked against what the file holds, before ITK reads it.

ITK fills a cut NIfTI file with zeros, replaces a spacing of 0 or NaN by 1, reserves whatever a header asks for, and
some of its readers crash on damaged headers. The formats: https://nifti.nimh.nih.gov/nifti-1 and nifti-2,
https://teem.sourceforge.net/nrrd/format.html, https://itk.org/Wiki/MetaIO/Documentation.
"""

from __future__ import annotations

import bz2
import gzip
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.memory import total_memory
from ..errors import InputError

# Voxels smaller or larger than these, in mm, are a mistake in the header.
SPACING_LIMITS_MM = (1e-4, 1e3)
# Coordinates beyond this, in mm, are too.
_FARTHEST_MM = 1e7
_CHUNK = 1 << 20
_LONGEST_HEADER, _LONGEST_LINE = 1 << 20, 4000
# Deflate packs at most so many bytes into one.
_DENSEST = 1032
_LARGEST_AXIS = 1 << 31
# Bytes behind the promised ones that are unpacked to find a checksum.
_MOST_PADDING = 1 << 26

_NIFTI_BYTES = {
    2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1536: 16, 1792: 16,
    2048: 32, 2304: 4,
}  # fmt: skip
_NIFTI_FLOATS = {16: "f4", 64: "f8"}
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    **{"float": 4, "double": 8},
}
_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG", "MET_ULONG", "MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}


@dataclass(frozen=True)
class Header:
    """What a checked image file is.

    ``kind``: ``nifti``, ``nrrd``, ``meta`` or ``dicom``. ``suffixes``: the extensions by which ITK knows it.
    ``detached``: the voxels lie in other files. ``broken``: flat indices of voxels that are not finite and that ITK
    would silently turn into 0 (NIfTI only).
    """

    kind: str
    suffixes: tuple[str, ...]
    detached: bool = False
    broken: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


class _Damage(Exception):
    """The end of a sentence that begins with the file's name."""


def check_header(path: Path, name: str) -> Header:
    """The header of the image file ``path``, by content. ``name`` begins the sentence of an error.

    Raises `InputError` when it is no regular file, of an unknown format, promises more than it holds or than this
    computer could, or has a size, spacing or origin that cannot be; the sentence names the field.
    """
    require_regular(path, name)
    try:
        with open(path, "rb") as file:
            begins = file.read(4096)
        packed = begins[:2] == b"\x1f\x8b"
        if packed:
            with gzip.open(path) as file:
                begins = file.read(4096)
        if begins[:7] == b"NRRD000":
            return _check_nrrd(path, packed)
        if begins[128:132] == b"DICM":
            return Header("dicom", (".dcm",))
        if len(begins) >= 348 and (order := _nifti_order(begins)):
            return _check_nifti(path, packed, begins, order)
        if re.match(rb"\s*(ObjectType|NDims|Comment|ID|TransformType)\s*=", begins):
            return _check_meta(path, packed)
    except _Damage as damage:
        raise InputError(f"{name} {damage}.") from None
    except (EOFError, OSError, zlib.error) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "the file is damaged"
        raise InputError(f"{name} cannot be read: {reason}.") from None
    raise InputError(
        f"{name} is no image that can be read; use NIfTI, NRRD or MetaImage (.nii .nii.gz .nrrd .nhdr .mha .mhd) or a "
        "folder of DICOM files."
    )


def require_regular(path: Path, name: str) -> None:
    """Raise `InputError` for what is no file with content: a pipe or a device would be waited for without end."""
    try:
        facts = os.stat(path)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {(error.strerror or 'no such file').lower()}.") from None
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"{name} is a pipe or a device and no file.")
    if facts.st_size == 0:
        raise InputError(f"{name} is empty.")


# Promised and present


def _require_room(count: int, promised: int) -> None:
    total = total_memory()
    if total and promised > total:
        raise _Damage(
            f"promises {count:.3g} voxels ({promised / 1e9:.0f} GB), more than the {total / 1e9:.0f} GB of memory here; "
            "the header is damaged, or the image must be cropped first"
        )


def _require_bytes(present: int, promised: int) -> None:
    if present < promised:
        raise _Damage(
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
                    data = file.read(_CHUNK)
                ended = not data
                piece = engine.decompress(data, _CHUNK)
                data = getattr(engine, "unconsumed_tail", b"")
                yield piece
                if ended and not piece and not engine.eof:
                    raise EOFError
            # Several members may follow one another; other bytes after the last are padding.
            file.seek(-len(engine.unused_data), os.SEEK_CUR)
            more = file.read(2) == b"\x1f\x8b"
            file.seek(-2, os.SEEK_CUR) if more else None


def _raw(path: Path, skip: int) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(skip)
        while piece := file.read(_CHUNK):
            yield piece


def _measured(pieces: Iterator[bytes], skip: int, promised: int, take=None) -> tuple[int, bool]:
    """Bytes behind the first ``skip`` of ``pieces``, and whether their stream ended as it should.

    ``take`` gets them one after the other. Much more than ``promised`` is not looked at.
    """
    seen, held, sound = 0, b"", True
    try:
        for piece in pieces:
            first, seen = max(skip - seen, 0), seen + len(piece)
            if take is not None:
                held += piece[first:]
                if len(held) >= _CHUNK:
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


def _require_packed(path: Path, at: int, skip: int, promised: int, packer: str, take=None) -> None:
    """Raise where the packed data at byte ``at`` do not hold ``promised`` bytes behind their first ``skip``."""
    if packer == "gzip" and promised > _DENSEST * path.stat().st_size + _CHUNK:
        _require_bytes(_DENSEST * path.stat().st_size, promised)
    present, sound = _measured(_unpacked(path, at, packer), skip, promised, take)
    _require_bytes(present, promised)
    if not sound:
        raise _Damage("is damaged: its compressed voxels do not match their checksum; copy it again")


def _require_number(value: float, what: str, largest: float = _FARTHEST_MM) -> None:
    if not math.isfinite(value) or abs(value) > largest:
        raise _Damage(f"has {value:g} in its field {what}, where a number of millimetres is needed")


def _require_spacing(value: float, what: str) -> None:
    low, high = SPACING_LIMITS_MM
    if not low <= abs(value) <= high:
        raise _Damage(f"has voxels of {abs(value):g} mm ({what}); between {low:g} and {high:g} mm are possible")


def _require_axes(sizes: list[int], what: str) -> int:
    if not sizes or any(not 1 <= n < _LARGEST_AXIS for n in sizes):
        raise _Damage(f"has the size {' x '.join(map(str, sizes)) or 'nothing'} ({what}), which cannot be")
    return math.prod(sizes)


# NIfTI


def _nifti_order(begins: bytes) -> str:
    """Byte order of a NIfTI-1 or NIfTI-2 header, or nothing when it is none."""
    for order in "<>":
        size = struct.unpack_from(f"{order}i", begins)[0]
        if size == 348 or (size == 540 and begins[4:7] in (b"n+2", b"ni2") and len(begins) >= 540):
            return order
    return ""


def _check_nifti(path: Path, packed: bool, begins: bytes, order: str) -> Header:
    def at(offset: int, code: str) -> tuple:
        return struct.unpack_from(order + code, begins, offset)

    if second := struct.unpack_from(f"{order}i", begins)[0] == 540:
        magic, (kind,), dim, pixdim, (start,) = begins[4:7], at(12, "h"), at(16, "8q"), at(104, "8d"), at(168, "q")
        scale, codes, quaternion, offsets, rows = at(176, "2d"), at(344, "2i"), at(352, "3d"), at(376, "3d"), 400
    else:
        magic, (kind,), dim, pixdim, (start,) = begins[344:347], at(70, "h"), at(40, "8h"), at(76, "8f"), at(108, "f")
        scale, codes, quaternion, offsets, rows = at(112, "2f"), at(252, "2h"), at(256, "3f"), at(268, "3f"), 280
    if magic not in (b"n+1", b"n+2"):
        raise _Damage("has its voxels in another file (an .img); save it as one .nii file")
    if not 1 <= dim[0] <= 7:
        raise _Damage(f"has {dim[0]} dimensions (dim); the header is damaged")
    count = _require_axes(list(dim[1 : dim[0] + 1]), "dim")
    if kind not in _NIFTI_BYTES:
        raise _Damage(f"has an unknown kind of voxels (datatype {kind})")
    for axis in range(1, min(dim[0], 3) + 1):
        _require_spacing(pixdim[axis], f"pixdim[{axis}]")
    for value, what in zip(scale, ("scl_slope", "scl_inter"), strict=True):
        _require_number(value, what, math.inf)
    matrix = at(rows, "12d" if second else "12f")
    if codes[1] > 0:
        _require_matrix(matrix, "srow_x, srow_y, srow_z")
    if codes[0] > 0:
        for value in (*quaternion, *offsets):
            _require_number(value, "quatern or qoffset")
    if not math.isfinite(start) or not (540 if second else 348) <= start <= 1 << 40:
        raise _Damage(f"says that its voxels begin at byte {start:g} (vox_offset), which cannot be")
    promised, start = count * _NIFTI_BYTES[kind], int(start)
    _require_room(count, promised)
    finder = _BrokenVoxels(np.dtype(order + _NIFTI_FLOATS[kind])) if kind in _NIFTI_FLOATS else None
    if packed:
        _require_packed(path, 0, start, promised, "gzip", finder)
    else:
        _require_bytes(max(path.stat().st_size - start, 0), promised)
        if finder:
            _measured(_raw(path, start), 0, promised, finder)
    broken = finder.indices(count) if finder else np.empty(0, np.int64)
    return Header("nifti", (".nii.gz",) if packed else (".nii", ".nii.gz"), broken=broken)


def _require_matrix(rows: tuple[float, ...], what: str) -> None:
    for value in rows:
        _require_number(value, what)
    matrix = np.array(rows).reshape(3, 4)[:, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not lengths.all() or abs(np.linalg.det(matrix / np.where(lengths > 0, lengths, 1))) < 1e-3:
        raise _Damage(f"has axes that lie in one plane ({what}); its geometry is damaged")
    for length in lengths:
        _require_spacing(float(length), what)


class _BrokenVoxels:
    """Collects where a stream of numbers is not finite."""

    def __init__(self, kind: np.dtype):
        self._kind, self._seen, self._found = kind, 0, []

    def __call__(self, piece: bytes) -> None:
        values = np.frombuffer(piece, self._kind, len(piece) // self._kind.itemsize)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            self._found.append(bad + self._seen)
        self._seen += len(values)

    def indices(self, count: int) -> np.ndarray:
        found = np.concatenate(self._found) if self._found else np.empty(0, np.int64)
        return found[found < count]


# NRRD


def _fields(path: Path, separator: str) -> tuple[dict[str, str], int]:
    """The lines of a text header as a table (names in lower case), and the byte behind it.

    NRRD (``:``) ends at an empty line, MetaImage (``=``) behind ElementDataFile.
    """
    found: dict[str, str] = {}
    with open(path, "rb") as file:
        while file.tell() < _LONGEST_HEADER:
            line = file.readline(_LONGEST_LINE + 1)
            if len(line) > _LONGEST_LINE:
                raise _Damage("has a header line that is too long; it is damaged")
            text = line.decode("utf-8", "replace").strip()
            if not line or (separator == ":" and not text):
                return found, file.tell()
            key, parted, value = text.partition(separator)
            if parted and not text.startswith("#") and not (separator == ":" and value.startswith("=")):
                found.setdefault(key.strip().lower(), value.strip())
                if separator == "=" and key.strip().lower() == "elementdatafile":
                    return found, file.tell()
    raise _Damage("has a header without an end; it is damaged")


def _numbers(text: str, kind, what: str) -> list:
    try:
        return [kind(part) for part in text.split()]
    except ValueError:
        raise _Damage(f"has no numbers in its field {what}") from None


def _check_nrrd(path: Path, packed: bool) -> Header:
    if packed:
        raise _Damage("is a NRRD file that was compressed as a whole; unpack it first")
    fields, start = _fields(path, ":")
    for needed in ("type", "dimension", "sizes", "encoding"):
        if needed not in fields:
            raise _Damage(f"has no field {needed} in its header")
    sizes = _numbers(fields["sizes"], int, "sizes")
    if [len(sizes)] != _numbers(fields["dimension"], int, "dimension"):
        raise _Damage(f"has {len(sizes)} sizes for the dimension {fields['dimension']}")
    count = _require_axes(sizes, "sizes")
    if fields["type"].lower() not in _NRRD_BYTES:
        raise _Damage(f"has voxels of the unknown type {fields['type'][:40]!r}")
    for vector in re.findall(r"\(([^)]*)\)", fields.get("space directions", "")):
        values = _numbers(vector.replace(",", " "), float, "space directions")
        _require_spacing(math.hypot(*values), "space directions")
    for value in _numbers(fields.get("spacings", "").lower(), float, "spacings")[-3:]:
        _require_spacing(value, "spacings")
    for value in _numbers(re.sub(r"[(),]", " ", fields.get("space origin", "")), float, "space origin"):
        _require_number(value, "space origin")
    promised = count * _NRRD_BYTES[fields["type"].lower()]
    _require_room(count, promised)
    pattern = fields.get("data file", fields.get("datafile", ""))
    skip = _numbers(fields.get("byte skip", fields.get("byteskip", "0")), int, "byte skip")[0]
    lines = _numbers(fields.get("line skip", fields.get("lineskip", "0")), int, "line skip")[0]
    files = _data_files(path, pattern, start) if pattern else [(path, start)]
    _check_data(files, _NRRD_ENCODINGS.get(fields["encoding"].lower(), ""), skip, lines, count, promised)
    return Header("nrrd", (".nhdr", ".nrrd") if pattern else (".nrrd", ".nhdr"), detached=bool(pattern))


_NRRD_ENCODINGS = {
    "raw": "raw", "ascii": "text", "text": "text", "txt": "text", "hex": "hex", "gzip": "gzip", "gz": "gzip",
    "bzip2": "bzip2", "bz2": "bzip2",
}  # fmt: skip


def _check_data(files: list[tuple[Path, int]], encoding: str, skip: int, lines: int, count: int, promised: int) -> None:
    """Raise where ``files`` (path, first byte) together do not hold the ``promised`` bytes, or ``count`` numbers."""
    if not encoding:
        raise _Damage("has voxels in an encoding that is not known here; save it as raw or gzip")
    if skip < -1 or lines < 0:
        raise _Damage("says that its voxels begin before the file does; the header is damaged")
    if encoding in ("gzip", "bzip2"):
        if len(files) > 1 or lines:
            raise _Damage("has compressed voxels in several parts; save it as one file")
        _require_packed(files[0][0], files[0][1], max(skip, 0), promised, encoding)
    elif encoding == "raw":
        present = sum(file.stat().st_size - at - (0 if skip < 0 else skip) for file, at in files)
        _require_bytes(max(present, 0), promised)
    else:
        present = sum(_text_values(file, at, encoding) for file, at in files)
        needed = promised if encoding == "hex" else count
        if present < needed:
            raise _Damage(f"promises {needed:,} values as text and holds {present:,}; it is cut off or damaged")


def _text_values(path: Path, start: int, encoding: str) -> int:
    """Numbers written as text in ``path`` behind byte ``start``: separated by blanks or commas, or hexadecimal."""
    count, rest = 0, b""
    for piece in _raw(path, start):
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
        raise _Damage("has text among its voxels that is no number") from None
    return len(parts)


def _data_files(path: Path, pattern: str, start: int) -> list[tuple[Path, int]]:
    """The files with the voxels of a detached header: one, a LIST behind the header, or a numbered pattern.

    The libraries hand a pattern to C's printf, so only one number in it is let through.
    """
    if pattern.split()[:1] == ["LIST"]:
        with open(path, "rb") as file:
            file.seek(start)
            names = [line.strip().decode("utf-8", "replace") for line in file.read(_LONGEST_HEADER).splitlines()]
    elif "%" in pattern:
        match = re.fullmatch(r"([^%]*%0?\d{0,2}d[^%]*?)\s+(\d{1,6})\s+(\d{1,6})(?:\s+(\d{1,6}))?", pattern)
        if not match or int(match[4] or 1) < 1:
            raise _Damage("names its data files by a pattern that is not known here; save it as one file")
        names = [match[1] % n for n in range(int(match[2]), int(match[3]) + 1, int(match[4] or 1))]
    else:
        names = [pattern]
    files = [path.parent / name for name in names if name]
    for file in files:
        require_regular(file, f"The data file {file} of {path.name}")
    if not files:
        raise _Damage("names no data files")
    return [(file, 0) for file in files]


# MetaImage


def _check_meta(path: Path, packed: bool) -> Header:
    if packed:
        raise _Damage("is a MetaImage file that was compressed as a whole; unpack it first")
    fields, start = _fields(path, "=")
    for needed in ("ndims", "dimsize", "elementtype", "elementdatafile"):
        if needed not in fields:
            raise _Damage(f"has no field {needed} in its header")
    axes = (_numbers(fields["ndims"], int, "NDims") or [0])[0]
    if not 1 <= axes <= 10:
        raise _Damage(f"has {axes} dimensions (NDims); the header is damaged")
    sizes = _numbers(fields["dimsize"], int, "DimSize")
    channels = (_numbers(fields.get("elementnumberofchannels", "1"), int, "ElementNumberOfChannels") or [0])[0]
    if len(sizes) != axes or not 1 <= channels <= 1000:
        raise _Damage(f"has {len(sizes)} sizes for {axes} dimensions; the header is damaged")
    count = _require_axes(sizes, "DimSize") * channels
    for key, what in (("elementspacing", "ElementSpacing"), ("elementsize", "ElementSize")):
        values = _numbers(fields[key], float, what) if key in fields else []
        if values and len(values) != axes:
            raise _Damage(f"has {len(values)} numbers in {what} for {axes} dimensions")
        for value in values[:3]:
            _require_spacing(value, what)
    for key, length in (("offset", 1), ("position", 1), ("origin", 1), ("transformmatrix", axes), ("rotation", axes),
                        ("orientation", axes), ("centerofrotation", 1)):  # fmt: skip
        values = _numbers(fields.get(key, ""), float, key)
        if values and len(values) != length * axes:
            raise _Damage(f"has {len(values)} numbers in its field {key} for {axes} dimensions")
        for value in values:
            _require_number(value, key)
    if fields["elementtype"].upper() not in _META_BYTES:
        raise _Damage(f"has voxels of the unknown type {fields['elementtype'][:40]!r}")
    promised = count * _META_BYTES[fields["elementtype"].upper()]
    _require_room(count, promised)
    pattern = fields["elementdatafile"]
    local = pattern.upper() == "LOCAL"
    binary = fields.get("binarydata", "true").lower()[:1] in "t1y"
    encoding = (
        "gzip" if fields.get("compresseddata", "").lower()[:1] in ("t", "1", "y") else "raw" if binary else "text"
    )
    skip = (_numbers(fields.get("headersize", "0"), int, "HeaderSize") or [0])[0]
    files = [(path, start)] if local else _data_files(path, pattern, start)
    _check_data(files, encoding, skip, 0, count, promised)
    return Header("meta", (".mha", ".mhd") if local else (".mhd", ".mha"), detached=not local)
