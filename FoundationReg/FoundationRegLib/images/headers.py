"""What the header of an image file promises, checked against what the file holds, before ITK reads it.

ITK fills a cut NIfTI file with zeros, replaces a spacing of 0 or NaN by 1, reserves whatever a header asks for, and
some of its readers crash on damaged headers. NIfTI: https://nifti.nimh.nih.gov/nifti-1 and nifti-2.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError
from .contents import (
    Damage,
    measured,
    raw,
    require_axes,
    require_bytes,
    require_number,
    require_packed,
    require_regular,
    require_room,
    require_spacing,
)  # fmt: skip
from .text_headers import check_meta, check_nrrd

_NIFTI_BYTES = {
    2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1536: 16, 1792: 16,
    2048: 32, 2304: 4,
}  # fmt: skip
_NIFTI_FLOATS = {16: "f4", 64: "f8"}


@dataclass(frozen=True)
class Header:
    """What a checked image file is.

    ``kind``: ``nifti``, ``nrrd``, ``meta`` or ``dicom``. ``suffixes``: the extensions by which ITK knows it.
    ``detached``: the voxels lie in other files. ``broken``: flat indices of voxels that are not finite and that ITK
    would silently turn into 0 (NIfTI only). ``shear``: largest cosine between two axes of a NIfTI's matrix, which ITK
    straightens without a word.
    """

    kind: str
    suffixes: tuple[str, ...]
    detached: bool = False
    broken: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    shear: float = 0.0


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
            detached = check_nrrd(path, packed)
            return Header("nrrd", (".nhdr", ".nrrd") if detached else (".nrrd", ".nhdr"), detached)
        if begins[128:132] == b"DICM":
            return Header("dicom", (".dcm",))
        if len(begins) >= 348 and (order := _nifti_order(begins)):
            return _check_nifti(path, packed, begins, order)
        if re.match(rb"\s*(ObjectType|NDims|Comment|ID|TransformType)\s*=", begins):
            detached = check_meta(path, packed)
            return Header("meta", (".mhd", ".mha") if detached else (".mha", ".mhd"), detached)
    except Damage as damage:
        raise InputError(f"{name} {damage}.") from None
    except (EOFError, OSError, zlib.error) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "the file is damaged"
        raise InputError(f"{name} cannot be read: {reason}.") from None
    raise InputError(
        f"{name} is no image that can be read; use NIfTI, NRRD or MetaImage (.nii .nii.gz .nrrd .nhdr .mha .mhd) or a "
        "folder of DICOM files."
    )


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
        raise Damage("has its voxels in another file (an .img); save it as one .nii file")
    if not 1 <= dim[0] <= 7:
        raise Damage(f"has {dim[0]} dimensions (dim); the header is damaged")
    count = require_axes(list(dim[1 : dim[0] + 1]), "dim")
    if kind not in _NIFTI_BYTES:
        raise Damage(f"has an unknown kind of voxels (datatype {kind})")
    for axis in range(1, min(dim[0], 3) + 1):
        require_spacing(pixdim[axis], f"pixdim[{axis}]")
    for value, what in zip(scale, ("scl_slope", "scl_inter"), strict=True):
        require_number(value, what, math.inf)
    matrix = at(rows, "12d" if second else "12f")
    shear = _require_matrix(matrix, "srow_x, srow_y, srow_z") if codes[1] > 0 else 0.0
    if codes[0] > 0:
        for value in (*quaternion, *offsets):
            require_number(value, "quatern or qoffset")
    if not math.isfinite(start) or not (540 if second else 348) <= start <= 1 << 40:
        raise Damage(f"says that its voxels begin at byte {start:g} (vox_offset), which cannot be")
    promised, start = count * _NIFTI_BYTES[kind], int(start)
    require_room(count, promised)
    finder = _BrokenVoxels(np.dtype(order + _NIFTI_FLOATS[kind])) if kind in _NIFTI_FLOATS else None
    if packed:
        require_packed(path, 0, start, promised, "gzip", finder)
    else:
        require_bytes(max(path.stat().st_size - start, 0), promised)
        if finder:
            measured(raw(path, start), 0, promised, finder)
    broken = finder.indices(count) if finder else np.empty(0, np.int64)
    return Header("nifti", (".nii.gz",) if packed else (".nii", ".nii.gz"), broken=broken, shear=shear)


def _require_matrix(rows: tuple[float, ...], what: str) -> float:
    """The largest cosine between two axes of the matrix."""
    for value in rows:
        require_number(value, what)
    matrix = np.array(rows).reshape(3, 4)[:, :3]
    lengths = np.linalg.norm(matrix, axis=0)
    if not lengths.all() or abs(np.linalg.det(matrix / np.where(lengths > 0, lengths, 1))) < 1e-3:
        raise Damage(f"has axes that lie in one plane ({what}); its geometry is damaged")
    for length in lengths:
        require_spacing(float(length), what)
    axes = matrix / lengths
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


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
