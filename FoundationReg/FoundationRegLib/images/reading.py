"""Image files and DICOM folders as SimpleITK images, with errors a user can act on."""

from __future__ import annotations

import gzip
import os
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import InputError

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")

# Cosine between two axes of a NIfTI matrix: rounding below the first, repaired with a warning up to the second.
_SHEAR_SILENT, _SHEAR_REPAIRABLE = 1e-3, 0.02


def suffix_of(path: str | Path) -> str:
    """The extension in lower case; ``.nii.gz`` counts as one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


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
