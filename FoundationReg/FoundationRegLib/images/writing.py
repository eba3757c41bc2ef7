"""Images and transforms as files that appear whole or not at all."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import SimpleITK as sitk

from ..core.files import replacing
from ..core.formats import IMAGE_SUFFIXES, WRITABLE_IMAGE_SUFFIXES, WRITABLE_TRANSFORM_SUFFIXES, suffix_of
from ..core.memory import is_out_of_memory
from ..errors import InputError
from .native import quiet

_HDF5_OVERHEAD = 1 << 20


def write_image(image: sitk.Image, path: str | Path) -> None:
    """Write ``image``, compressed, as .nii .nii.gz .nrrd or .mha; either the whole file appears or none.

    Raises `InputError` for another extension or when the file cannot be written.
    """
    suffixes = WRITABLE_IMAGE_SUFFIXES
    size = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    _write(path, suffixes, "image", lambda name: sitk.WriteImage(image, name, useCompression=True), size)


def write_transform(transform: sitk.Transform, path: str | Path) -> None:
    """Write ``transform`` as an ITK file (.h5 .hdf5 .tfm .txt), or a displacement field also as an image.

    Either the whole file appears or none. Raises `InputError` for another extension or when it cannot be written.
    """
    if isinstance(transform, sitk.DisplacementFieldTransform) and suffix_of(path) in IMAGE_SUFFIXES:
        write_image(transform.GetDisplacementField(), path)
    else:
        suffixes = WRITABLE_TRANSFORM_SUFFIXES
        size = 8 * transform.GetNumberOfParameters()
        _write(path, suffixes, "transform", lambda name: sitk.WriteTransform(transform, name), size)


def _write(path: str | Path, suffixes: tuple[str, ...], what: str, write, size: int = 0) -> None:
    path = Path(path).expanduser()
    suffix = suffix_of(path)
    if suffix not in suffixes:
        raise InputError(f"The {what} cannot be written to {path}; use one of the extensions {' '.join(suffixes)}.")
    if not path.parent.is_dir():
        raise InputError(f"The {what} cannot be written to {path}: there is no such folder.")
    # HDF5 that runs out of space crashes the process when it ends.
    if suffix in (".h5", ".hdf5") and shutil.disk_usage(path.parent).free < size + _HDF5_OVERHEAD:
        raise InputError(f"The {what} cannot be written to {path}: the disk is full.")
    try:
        with replacing(path, suffix) as temporary, quiet():
            write(str(temporary))
            if not _is_whole(temporary, suffix, size):
                raise OSError
    except (RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            raise
        hint = "is the folder writable and the disk not full?"
        raise InputError(f"The {what} cannot be written to {path}; {hint}") from None


def _is_whole(path: Path, suffix: str, size: int) -> bool:
    """Whether a NIfTI file holds ``size`` bytes of voxels, or a text file its last line.

    On a full disk ITK writes a part of these without an error; of the other kinds it tells.
    """
    if suffix == ".nii.gz":
        try:
            with gzip.open(path) as file:
                return sum(len(block) for block in iter(lambda: file.read(1 << 20), b"")) >= size
        except EOFError:
            return False
    if suffix in (".tfm", ".txt"):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            tail = file.read()
        return b"FixedParameters:" in tail and tail.endswith(b"\n")
    return suffix != ".nii" or path.stat().st_size >= size
