"""Transform files, checked before ITK reads them: its readers reserve and read whatever a file asks for.

Formats: ITK's text files (.tfm, .txt), HDF5 (.h5; https://docs.hdfgroup.org, "File format specification", II.A) and
MATLAB 4 matrices (.mat), as ANTs writes them.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError
from .contents import FARTHEST_MM

_HDF5 = b"\x89HDF\r\n\x1a\n"
_SMALLEST_DETERMINANT = 1e-6
# Numbers of a text file are looked at up to this size; larger ones are displacement fields.
_LONGEST_TEXT = 1 << 28


def check_transform(path: Path, name: str) -> tuple[str, ...]:
    """The extensions by which ITK knows the transform file ``path``, by its content.

    ``name`` begins the sentence of an error. Raises `InputError` for files that are cut off, hold other numbers than
    they need, or are none of ITK's.
    """
    try:
        with open(path, "rb") as file:
            begins = file.read(4096)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {(error.strerror or 'no such file').lower()}.") from None
    if begins.startswith(_HDF5):
        if _hdf5_end(begins) > path.stat().st_size:
            raise InputError(f"{name} is cut off or damaged; copy it again.")
        return (".h5", ".hdf5")
    if begins.startswith(b"#Insight Transform File"):
        _check_text(path, name)
        return (".tfm", ".txt")
    if path.suffix.lower() == ".mat" and len(begins) >= 20:
        _check_matlab(path, begins, name)
        return (".mat",)
    raise InputError(f"{name} cannot be read as an ITK transform.")


def _hdf5_end(begins: bytes) -> int:
    """The size that a HDF5 file must have, as its superblock says; more than any file has where it says nothing."""
    version = begins[8] if len(begins) >= 96 else -1
    place = {0: 40, 1: 44, 2: 28, 3: 28}.get(version)
    widths = begins[13:15] if version < 2 else begins[9:11]
    if place is None or widths != b"\x08\x08":
        return 1 << 63
    return struct.unpack_from("<Q", begins, place)[0]


def _check_text(path: Path, name: str) -> None:
    damaged = InputError(f"{name} cannot be read as an ITK transform; it is cut off or damaged.")
    if path.stat().st_size > _LONGEST_TEXT:
        raise InputError(f"{name} is too large for a text file; save the transform as .h5.")
    text = path.read_bytes().decode("ascii", "replace")
    if not text.endswith("\n"):
        raise damaged
    kinds = re.findall(r"^Transform:\s*(\S*)", text, re.M)
    parts = re.split(r"^Transform:", text, flags=re.M)[1:]
    if not kinds or len(kinds) != len(parts):
        raise damaged
    for kind, part in zip(kinds, parts, strict=True):
        match = re.fullmatch(r"(\w+Transform)_(?:double|float)_(\d+)_(\d+)", kind)
        if not match:
            raise damaged
        if match[2] != "3" or match[3] != "3":
            raise InputError(f"{name} is for {match[2]}-D images; a 3-D one is needed.")
        if match[1] == "CompositeTransform":
            continue
        rows = [re.search(rf"^{row}:(.*)$", part, re.M) for row in ("Parameters", "FixedParameters")]
        try:
            parameters, fixed = (np.array(row[1].split(), float) for row in rows)
        except (TypeError, ValueError):
            raise damaged from None
        if not np.isfinite(parameters).all() or not np.isfinite(fixed).all():
            raise InputError(f"{name} holds numbers that are not finite.")
        if match[1].startswith(("BSpline", "DisplacementField", "Gaussian")) and not _fits(parameters, fixed):
            raise damaged


def _fits(parameters: np.ndarray, fixed: np.ndarray) -> bool:
    """Whether a lattice with the ``fixed`` parameters (size, origin, spacing, direction) has so many vectors."""
    if len(fixed) != 18 or not (fixed[:3] > 0).all() or not (fixed[:3] < 1e5).all() or not (fixed[6:9] > 0).all():
        return False
    return 3 * math.prod(int(n) for n in fixed[:3]) == len(parameters)


def _check_matlab(path: Path, begins: bytes, name: str) -> None:
    """Two matrices, one after the other: five numbers, a name, and columns of float or double."""
    size, place = path.stat().st_size, 0
    with open(path, "rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(20)
            if len(head) < 20:
                break
            kind, rows, columns, imaginary, length = struct.unpack("<5i", head)
            width = {0: 8, 10: 4}.get(kind, 0)
            if not width or imaginary or not (0 < rows <= 1000 and 0 < columns <= 1000 and 0 < length <= 200):
                break
            place += 20 + length + rows * columns * width
    if place != size:
        raise InputError(f"{name} cannot be read as an ITK transform; it is cut off or damaged.")


def require_invertible(transform: sitk.Transform, name: str) -> None:
    """Raise `InputError` where ``transform`` holds numbers that cannot be, or a part that takes volumes to planes."""
    kind = transform.GetName()
    if kind == "CompositeTransform":
        composite = sitk.CompositeTransform(transform)
        for n in range(composite.GetNumberOfTransforms()):
            require_invertible(composite.GetNthTransform(n), name)
        return
    if kind == "DisplacementFieldTransform":
        field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
        values = sitk.GetArrayViewFromImage(field)
        geometry = (*field.GetOrigin(), *field.GetSpacing(), *field.GetDirection())
    else:
        values, geometry = np.array(transform.GetParameters()), transform.GetFixedParameters()
    for numbers in (values, np.array(geometry)):
        if numbers.size and not np.abs(numbers).max() <= FARTHEST_MM:
            raise InputError(f"{name} holds numbers that are no displacements in mm.")
    if kind != "DisplacementFieldTransform" and transform.IsLinear():
        origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
        axes = np.stack([np.array(transform.TransformPoint(row)) - origin for row in np.eye(3).tolist()])
        if not abs(np.linalg.det(axes)) > _SMALLEST_DETERMINANT:
            raise InputError(f"{name} is singular: it takes volumes to planes and cannot be undone.")
