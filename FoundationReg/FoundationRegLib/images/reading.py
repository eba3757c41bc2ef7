"""Image files and DICOM folders as SimpleITK images, with errors a user can act on."""

from __future__ import annotations

import gzip
import os
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.formats import IMAGE_SUFFIXES, TRANSFORM_SUFFIXES, suffix_of
from ..errors import InputError
from .conversion import grid_of, image_from_array

# Cosine between two axes of a NIfTI matrix: rounding below the first, repaired with a warning up to the second.
_SHEAR_SILENT, _SHEAR_REPAIRABLE = 1e-3, 0.02


@contextmanager
def _quiet():
    """ITK's own warnings say less than ours, and it must accept NIfTI axes that are slightly off perpendicular."""
    shown, asked = sitk.ProcessObject.GetGlobalWarningDisplay(), os.environ.get("ITK_NIFTI_SFORM_PERMISSIVE")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = "1"
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
        if asked is None:
            del os.environ["ITK_NIFTI_SFORM_PERMISSIVE"]
        else:
            os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = asked


def read_file(path: Path, name: str, warnings: list[str]) -> sitk.Image:
    """The image in the file ``path``; ``name`` opens the sentence of an error. Raises `InputError`."""
    suffix = suffix_of(path)
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{name} has an unknown extension; use {' '.join(IMAGE_SUFFIXES)} or a folder of DICOM files.")
    try:
        with _quiet():
            image = sitk.ReadImage(str(path))
    except RuntimeError:
        raise InputError(f"{name} cannot be read; the file is damaged or of another kind.") from None
    if suffix in (".nii", ".nii.gz"):
        shear = _nifti_shear(path)
        if shear > _SHEAR_REPAIRABLE:
            raise InputError(f"{name} has axes that are not perpendicular (a tilted gantry?); resample it first.")
        if shear > _SHEAR_SILENT:
            warnings.append(f"{name} has axes that are not quite perpendicular; they were made so.")
    return image


def _nifti_shear(path: Path) -> float:
    """Largest cosine between two axes of the sform matrix in a NIfTI-1 header; ITK straightens them without a word."""
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
        header = file.read(348)
    if len(header) < 348:
        return 0.0
    order = "<" if struct.unpack_from("<i", header)[0] == 348 else ">"
    if struct.unpack_from(f"{order}i", header)[0] != 348 or struct.unpack_from(f"{order}h", header, 254)[0] <= 0:
        return 0.0
    axes = np.array(struct.unpack_from(f"{order}12f", header, 280)).reshape(3, 4)[:, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not lengths.all():
        return 0.0
    axes = axes / lengths
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def read_dicom_folder(folder: Path, name: str, warnings: list[str]) -> sitk.Image:
    """The series with the most files in ``folder``. Says in ``warnings`` which one when there are several."""
    with _quiet():
        series = {
            uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
            for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        }
        if not series:
            raise InputError(f"{name} is a folder without DICOM images; give the one that directly holds the slices.")
        files = series[max(series, key=lambda uid: (len(series[uid]), uid))]
        try:
            image = sitk.ReadImage(files[0]) if len(files) == 1 else sitk.ReadImage(files)
        except RuntimeError:
            raise InputError(f"{name} holds a DICOM series that cannot be read as one volume.") from None
        if len(series) > 1:
            counts = ", ".join(str(len(f)) for f in sorted(series.values(), key=len, reverse=True))
            title = _description(files[0])
            warnings.append(f"{name} holds {len(series)} DICOM series ({counts} files); the largest{title} was taken.")
    return image


def _description(file: str) -> str:
    """The series description of a DICOM ``file`` in quotes with a space before, or nothing."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    text = reader.GetMetaData("0008|103e").strip() if reader.HasMetaDataKey("0008|103e") else ""
    return f' "{text}"' if text else ""


SMALLEST_AXIS = 4


LARGEST_BROKEN_SHARE = 0.01


# Columns of a direction matrix may be off orthogonal by this much: silently (rounding) or with a warning.
_SQUARE_SILENT, _SQUARE_REPAIRABLE = 1e-3, 0.02


def read_image(source: str | Path | sitk.Image, role: str, warnings: list[str] | None = None) -> sitk.Image:
    """A scalar 3-D image from a file, a DICOM folder (its largest series) or an image already in memory.

    ``role`` names the image in errors ("fixed image"). What was chosen or repaired is appended to ``warnings``.
    Raises `InputError` when it cannot be used.
    """
    warnings = [] if warnings is None else warnings
    if isinstance(source, sitk.Image):
        image, name = source, f"The {role}"
    else:
        path = Path(source).expanduser()
        name = f"The {role} {path}"
        if not path.exists():
            raise InputError(f"{name} does not exist.")
        image = read_dicom_folder(path, name, warnings) if path.is_dir() else read_file(path, name, warnings)
    return _squared(_scalar_volume(image, name), name, warnings)


def _scalar_volume(image: sitk.Image, name: str) -> sitk.Image:
    if image.GetNumberOfPixels() == 0:
        raise InputError(f"{name} is empty.")
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise InputError(f"{name} has {image.GetDimension()} dimensions; one 3-D volume is needed.")
    if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
        raise InputError(f"{name} holds colours, vectors or complex numbers; one grey value per voxel is needed.")
    if min(image.GetSize()) < SMALLEST_AXIS:
        size = " x ".join(map(str, image.GetSize()))
        raise InputError(f"{name} has {size} voxels; at least {SMALLEST_AXIS} along each axis are needed.")
    return image


def _squared(image: sitk.Image, name: str, warnings: list[str]) -> sitk.Image:
    """``image`` with the orthonormal direction nearest to its own. Raises `InputError` when that is far away."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    skew = np.abs(direction.T @ direction - np.eye(3)).max()
    if not skew < _SQUARE_REPAIRABLE:
        raise InputError(f"{name} has axes that are not perpendicular (a tilted gantry?); resample it first.")
    if skew > _SQUARE_SILENT:
        warnings.append(f"{name} has axes that are not quite perpendicular; they were made so.")
    if skew > 1e-9:
        left, _, right = np.linalg.svd(direction)
        image = sitk.Image(image)
        image.SetDirection((left @ right).ravel().tolist())
    return image


def repair(image: sitk.Image, role: str) -> tuple[sitk.Image, list[str]]:
    """``image`` with its few NaN and infinite voxels replaced by their nearest good neighbour, and warnings.

    Raises `InputError` when 1 % or more of the voxels are not finite, or all have one value.
    """
    array = sitk.GetArrayViewFromImage(image)
    warnings = []
    if array.dtype.kind == "f":
        broken = ~np.isfinite(array)
        count = int(broken.sum())
        if count >= LARGEST_BROKEN_SHARE * array.size:
            share = 100 * count / array.size
            raise InputError(f"The {role} has {share:.0f} % voxels that are not numbers (NaN or infinite); fill them.")
        if count:
            nearest = ndimage.distance_transform_edt(broken, return_distances=False, return_indices=True)
            array = array[tuple(nearest)]
            image = image_from_array(array, grid_of(image))
            warnings.append(f"The {role} has {count} voxels that are not numbers; their neighbours' values were taken.")
    if array.min() == array.max():
        raise InputError(f"The {role} has the same value in every voxel.")
    return image, warnings


def read_transform(path: str | Path) -> sitk.Transform:
    """A transform from a file of ITK's (.h5 .tfm .txt .mat) or from a displacement image in LPS mm.

    Raises `InputError` when it is missing, unreadable or not 3-D.
    """
    path = Path(path).expanduser()
    name = f"The transform {path}"
    if not path.is_file():
        raise InputError(f"{name} does not exist.")
    if suffix_of(path) in IMAGE_SUFFIXES:
        field = read_file(path, name, [])
        if field.GetDimension() != 3 or field.GetNumberOfComponentsPerPixel() != 3:
            raise InputError(f"{name} is no displacement field: a 3-D image with three numbers per voxel is needed.")
        return sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    if suffix_of(path) not in TRANSFORM_SUFFIXES:
        known = " ".join(TRANSFORM_SUFFIXES + IMAGE_SUFFIXES)
        raise InputError(f"{name} has an unknown extension; there are: {known}.")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError:
        raise InputError(f"{name} cannot be read as an ITK transform.") from None
    if transform.GetDimension() != 3:
        raise InputError(f"{name} is for {transform.GetDimension()}-D images; a 3-D one is needed.")
    return transform
