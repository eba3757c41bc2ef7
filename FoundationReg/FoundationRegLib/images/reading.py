"""Image files and DICOM folders as SimpleITK images, with errors a user can act on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.files import printable
from ..core.formats import IMAGE_SUFFIXES, TRANSFORM_SUFFIXES, suffix_of
from ..core.memory import is_out_of_memory
from ..errors import InputError, OutOfMemory
from .contents import FARTHEST_MM, SPACING_LIMITS_MM, require_regular
from .conversion import grid_of, image_from_array
from .dicom import read_dicom_file, read_dicom_folder
from .headers import Header, check_header
from .native import quiet, readable, survives_reading
from .transform_headers import check_transform, require_invertible

SMALLEST_AXIS = 4
LARGEST_BROKEN_SHARE = 0.01
LARGEST_VALUE = 1e30

# Cosine between two axes of a NIfTI matrix: rounding below the first, repaired with a warning up to the second.
_SHEAR_SILENT, _SHEAR_REPAIRABLE = 1e-3, 0.02
# Columns of a direction matrix may be off orthogonal by this much: silently (rounding) or with a warning.
_SQUARE_SILENT, _SQUARE_REPAIRABLE = 1e-3, 0.02


def read_file(path: Path, name: str, warnings: list[str]) -> sitk.Image:
    """The image in the file ``path``, by its content; ``name`` opens the sentence of an error.

    The header is checked against what the file holds before ITK reads it. Raises `InputError`.
    """
    header = check_header(path, name)
    if header.kind == "dicom":
        return read_dicom_file(path, name, warnings)
    if header.detached and suffix_of(path) not in header.suffixes:
        raise InputError(f"{name} names other files with its voxels; its own must end in {header.suffixes[0]}.")
    if header.shear > _SHEAR_REPAIRABLE:
        raise InputError(f"{name} has axes that are not perpendicular (a tilted gantry?); resample it first.")
    if header.shear > _SHEAR_SILENT:
        warnings.append(f"{name} has axes that are not quite perpendicular; they were made so.")
    try:
        with quiet(), readable(path, header.suffixes) as place:
            image = sitk.ReadImage(str(place))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"{name} is too large for the memory of this computer; crop it first.") from None
        raise InputError(f"{name} cannot be read; the file is damaged or of another kind.") from None
    return _with_broken(image, header)


def _with_broken(image: sitk.Image, header: Header) -> sitk.Image:
    """``image`` with the voxels not a number that are none in the file; ITK has put 0 there."""
    if not header.broken.size:
        return image
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind == "f" and array.size > header.broken.max():
        array.ravel()[header.broken] = np.nan
        whole = sitk.GetImageFromArray(array, isVector=image.GetNumberOfComponentsPerPixel() > 1)
        whole.CopyInformation(image)
        return whole
    return image


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
        name = f"The {role} {printable(path)}"
        require_path(path, name)
        image = read_dicom_folder(path, name, warnings) if path.is_dir() else read_file(path, name, warnings)
    return _squared(_scalar_volume(image, name), name, warnings)


def require_path(path: Path, name: str) -> None:
    """Raise `InputError` when there is nothing at ``path``, or its name is none that a file could have."""
    try:
        found = path.exists()
    except (OSError, ValueError):
        raise InputError(f"{name} cannot be opened; the name is too long or not possible.") from None
    if not found:
        raise InputError(f"{name} does not exist.")


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
    low, high = SPACING_LIMITS_MM
    if not all(low <= spacing <= high for spacing in image.GetSpacing()):
        spacing = " x ".join(f"{s:g}" for s in image.GetSpacing())
        raise InputError(f"{name} has voxels of {spacing} mm; between {low:g} and {high:g} mm are possible.")
    if not all(abs(value) <= FARTHEST_MM for value in image.GetOrigin()):
        raise InputError(f"{name} has an origin that cannot be: {', '.join(f'{v:g}' for v in image.GetOrigin())} mm.")
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
        # Sums of squares of larger values overflow.
        broken = ~(np.abs(array) < LARGEST_VALUE)
        count = int(broken.sum())
        if count >= LARGEST_BROKEN_SHARE * array.size:
            share = 100 * count / array.size
            raise InputError(
                f"The {role} has {share:.0f} % voxels that are not numbers (NaN, infinite or beyond 1e30); fill them."
            )
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

    Raises `InputError` when it is missing, unreadable, not 3-D or has no inverse anywhere.
    """
    path = Path(path).expanduser()
    name = f"The transform {printable(path)}"
    require_path(path, name)
    require_regular(path, name)
    if suffix_of(path) in IMAGE_SUFFIXES:
        field = read_file(path, name, [])
        if field.GetDimension() != 3 or field.GetNumberOfComponentsPerPixel() != 3:
            raise InputError(f"{name} is no displacement field: a 3-D image with three numbers per voxel is needed.")
        transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    else:
        if suffix_of(path) not in TRANSFORM_SUFFIXES:
            known = " ".join(TRANSFORM_SUFFIXES + IMAGE_SUFFIXES)
            raise InputError(f"{name} has an unknown extension; there are: {known}.")
        suffixes = check_transform(path, name)
        try:
            with quiet(), readable(path, suffixes) as place:
                if ".h5" in suffixes and not survives_reading(place):
                    raise ValueError
                transform = sitk.ReadTransform(str(place))
        except (RuntimeError, ValueError, MemoryError):
            raise InputError(f"{name} cannot be read as an ITK transform; it is damaged.") from None
    if transform.GetDimension() != 3:
        raise InputError(f"{name} is for {transform.GetDimension()}-D images; a 3-D one is needed.")
    require_invertible(transform, name)
    return transform
