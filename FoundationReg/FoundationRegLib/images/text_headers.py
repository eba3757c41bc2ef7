"""Headers written as text: NRRD and MetaImage.

The formats: https://teem.sourceforge.net/nrrd/format.html and https://itk.org/Wiki/MetaIO/Documentation.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from .contents import (
    LONGEST_HEADER,
    Damage,
    check_data,
    data_files,
    require_axes,
    require_number,
    require_room,
    require_spacing,
)  # fmt: skip

_LONGEST_LINE = 4000
_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), 8),
    **{"float": 4, "double": 8},
}
_NRRD_ENCODINGS = {
    "raw": "raw", "ascii": "text", "text": "text", "txt": "text", "hex": "hex", "gzip": "gzip", "gz": "gzip",
    "bzip2": "bzip2", "bz2": "bzip2",
}  # fmt: skip
_META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG", "MET_ULONG", "MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}


def _fields(path: Path, separator: str) -> tuple[dict[str, str], int]:
    """The lines of a text header as a table (names in lower case), and the byte behind it.

    NRRD (``:``) ends at an empty line, MetaImage (``=``) behind ElementDataFile.
    """
    found: dict[str, str] = {}
    with open(path, "rb") as file:
        while file.tell() < LONGEST_HEADER:
            line = file.readline(_LONGEST_LINE + 1)
            if len(line) > _LONGEST_LINE:
                raise Damage("has a header line that is too long; it is damaged")
            text = line.decode("utf-8", "replace").strip()
            if not line or (separator == ":" and not text):
                return found, file.tell()
            key, parted, value = text.partition(separator)
            if parted and not text.startswith("#") and not (separator == ":" and value.startswith("=")):
                found.setdefault(key.strip().lower(), value.strip())
                if separator == "=" and key.strip().lower() == "elementdatafile":
                    return found, file.tell()
    raise Damage("has a header without an end; it is damaged")


def _numbers(text: str, kind, what: str) -> list:
    try:
        return [kind(part) for part in text.split()]
    except ValueError:
        raise Damage(f"has no numbers in its field {what}") from None


def check_nrrd(path: Path, packed: bool) -> bool:
    """Check a NRRD file; whether its voxels lie in other files. ``packed``: it is compressed as a whole."""
    if packed:
        raise Damage("is a NRRD file that was compressed as a whole; unpack it first")
    fields, start = _fields(path, ":")
    for needed in ("type", "dimension", "sizes", "encoding"):
        if needed not in fields:
            raise Damage(f"has no field {needed} in its header")
    sizes = _numbers(fields["sizes"], int, "sizes")
    if [len(sizes)] != _numbers(fields["dimension"], int, "dimension"):
        raise Damage(f"has {len(sizes)} sizes for the dimension {fields['dimension']}")
    count = require_axes(sizes, "sizes")
    if fields["type"].lower() not in _NRRD_BYTES:
        raise Damage(f"has voxels of the unknown type {fields['type'][:40]!r}")
    for vector in re.findall(r"\(([^)]*)\)", fields.get("space directions", "")):
        values = _numbers(vector.replace(",", " "), float, "space directions")
        require_spacing(math.hypot(*values), "space directions")
    for value in _numbers(fields.get("spacings", "").lower(), float, "spacings")[-3:]:
        require_spacing(value, "spacings")
    for value in _numbers(re.sub(r"[(),]", " ", fields.get("space origin", "")), float, "space origin"):
        require_number(value, "space origin")
    promised = count * _NRRD_BYTES[fields["type"].lower()]
    require_room(count, promised)
    pattern = fields.get("data file", fields.get("datafile", ""))
    skip = _numbers(fields.get("byte skip", fields.get("byteskip", "0")), int, "byte skip")[0]
    lines = _numbers(fields.get("line skip", fields.get("lineskip", "0")), int, "line skip")[0]
    files = data_files(path, pattern, start) if pattern else [(path, start)]
    check_data(files, _NRRD_ENCODINGS.get(fields["encoding"].lower(), ""), skip, lines, count, promised)
    return bool(pattern)


def check_meta(path: Path, packed: bool) -> bool:
    """Check a MetaImage file; whether its voxels lie in other files. ``packed``: it is compressed as a whole."""
    if packed:
        raise Damage("is a MetaImage file that was compressed as a whole; unpack it first")
    fields, start = _fields(path, "=")
    for needed in ("ndims", "dimsize", "elementtype", "elementdatafile"):
        if needed not in fields:
            raise Damage(f"has no field {needed} in its header")
    axes = (_numbers(fields["ndims"], int, "NDims") or [0])[0]
    if not 1 <= axes <= 10:
        raise Damage(f"has {axes} dimensions (NDims); the header is damaged")
    sizes = _numbers(fields["dimsize"], int, "DimSize")
    channels = (_numbers(fields.get("elementnumberofchannels", "1"), int, "ElementNumberOfChannels") or [0])[0]
    if len(sizes) != axes or not 1 <= channels <= 1000:
        raise Damage(f"has {len(sizes)} sizes for {axes} dimensions; the header is damaged")
    count = require_axes(sizes, "DimSize") * channels
    for key, what in (("elementspacing", "ElementSpacing"), ("elementsize", "ElementSize")):
        values = _numbers(fields[key], float, what) if key in fields else []
        if values and len(values) != axes:
            raise Damage(f"has {len(values)} numbers in {what} for {axes} dimensions")
        for value in values[:3]:
            require_spacing(value, what)
    for key, length in (("offset", 1), ("position", 1), ("origin", 1), ("transformmatrix", axes), ("rotation", axes),
                        ("orientation", axes), ("centerofrotation", 1)):  # fmt: skip
        values = _numbers(fields.get(key, ""), float, key)
        if values and len(values) != length * axes:
            raise Damage(f"has {len(values)} numbers in its field {key} for {axes} dimensions")
        for value in values:
            require_number(value, key)
    if fields["elementtype"].upper() not in _META_BYTES:
        raise Damage(f"has voxels of the unknown type {fields['elementtype'][:40]!r}")
    promised = count * _META_BYTES[fields["elementtype"].upper()]
    require_room(count, promised)
    pattern = fields["elementdatafile"]
    local = pattern.upper() == "LOCAL"
    binary = fields.get("binarydata", "true").lower()[:1] in "t1y"
    encoding = (
        "gzip" if fields.get("compresseddata", "").lower()[:1] in ("t", "1", "y") else "raw" if binary else "text"
    )
    skip = (_numbers(fields.get("headersize", "0"), int, "HeaderSize") or [0])[0]
    files = [(path, start)] if local else data_files(path, pattern, start)
    check_data(files, encoding, skip, 0, count, promised)
    return not local
