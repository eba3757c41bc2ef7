"""Images and transforms at the border between SimpleITK and arrays.

Points and vectors are LPS millimetres (x, y, z); arrays are (z, y, x). Displacement arrays (3, D, H, W) hold
millimetres along the array axes of their `Grid`, component n along array axis n.
"""

from __future__ import annotations

import gzip
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.grid import Grid
from ..errors import InputError
from .reading import IMAGE_SUFFIXES, read_dicom_folder, read_file, suffix_of

TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
SMALLEST_AXIS = 4
LARGEST_BROKEN_SHARE = 0.01
_HDF5_OVERHEAD = 1 << 20
INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}

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


def grid_of(image: sitk.Image) -> Grid:
    """Where the voxels of a 3-D ``image`` lie."""
    direction = np.array(image.GetDirection()).reshape(3, 3)[:, ::-1]
    return Grid.from_axes(image.GetSize()[::-1], image.GetSpacing()[::-1], image.GetOrigin(), direction)


def _itk_geometry(grid: Grid) -> tuple[list, list, list, list]:
    """Size, origin, spacing and direction of ``grid`` in ITK's order."""
    return (
        list(grid.shape[::-1]),
        grid.origin.tolist(),
        grid.spacing[::-1].tolist(),
        grid.direction[:, ::-1].ravel().tolist(),
    )


def image_from_array(array: np.ndarray, grid: Grid) -> sitk.Image:
    """Image of ``array`` (D, H, W), or vector image of (D, H, W, C), on ``grid``. Boolean becomes uint8."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=array.ndim == 4)
    _, origin, spacing, direction = _itk_geometry(grid)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def default_background(image: sitk.Image) -> float:
    """The grey value for places outside ``image``: its minimum, but not below air (scanners pad CT with -2000)."""
    return float(max(sitk.GetArrayViewFromImage(image).min(), -1024))


def _antialiased(image: sitk.Image, grid: Grid) -> sitk.Image:
    """Float ``image`` blurred to the resolution of ``grid`` along each axis where the grid is coarser.

    The width matches the full width at half maximum of both voxels: Cardoso et al., "Scale factor point spread
    function matching", MICCAI 2015.
    """
    axes = np.array(image.GetDirection()).reshape(3, 3)
    spacing = np.array(image.GetSpacing())
    target = np.sqrt(((axes.T @ grid.direction) ** 2 * grid.spacing**2).sum(axis=1))
    for axis in np.flatnonzero(target > 1.1 * spacing):
        sigma = np.sqrt((target[axis] ** 2 - spacing[axis] ** 2) / (8 * np.log(2)))
        image = sitk.RecursiveGaussian(image, sigma=float(sigma), direction=int(axis))
    return image


def resample_to_grid(
    image: sitk.Image,
    grid: Grid,
    transform: sitk.Transform | None = None,
    interpolator: str = "linear",
    background: float | None = None,
    antialias: bool = True,
) -> np.ndarray:
    """Values (D, H, W), float32, of ``image`` at the points of ``grid`` taken through ``transform`` (grid to image).

    ``interpolator``: linear, nearest (for labels; never blurred) or bspline. ``antialias`` blurs first where ``grid``
    is coarser than ``image``. Outside the image stands ``background``, by default `default_background`.
    """
    background = default_background(image) if background is None else background
    image = sitk.Cast(image, sitk.sitkFloat32)
    if antialias and interpolator != "nearest":
        image = _antialiased(image, grid)
    return sitk.GetArrayFromImage(_resample(image, grid, transform, interpolator, background))


def _resample(image, grid, transform, interpolator, background) -> sitk.Image:
    size, origin, spacing, direction = _itk_geometry(grid)
    transform = sitk.Transform(3, sitk.sitkIdentity) if transform is None else transform
    kind = INTERPOLATORS[interpolator]
    return sitk.Resample(image, size, transform, kind, origin, spacing, direction, background, image.GetPixelID())


def validity(image: sitk.Image, grid: Grid, transform: sitk.Transform | None = None) -> np.ndarray:
    """Boolean (D, H, W): which points of ``grid``, taken through ``transform``, fall inside the extent of ``image``."""
    ones = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(image)
    return sitk.GetArrayFromImage(_resample(ones, grid, transform, "nearest", 0)).astype(bool)


def warp(
    moving: sitk.Image,
    transform: sitk.Transform,
    reference: sitk.Image | Grid,
    interpolator: str = "linear",
    background: float | None = None,
) -> sitk.Image:
    """``moving`` seen through ``transform`` (reference to moving) on the lattice of ``reference``, in its pixel type.

    ``background`` is 0 for ``nearest`` (labels) and `default_background` otherwise, unless given.
    """
    if background is None:
        background = 0.0 if interpolator == "nearest" else default_background(moving)
    grid = grid_of(reference) if isinstance(reference, sitk.Image) else reference
    return _resample(moving, grid, transform, interpolator, background)


def overlap_fraction(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform | None = None) -> float:
    """Share (0 to 1) of the extent of ``fixed`` that ``transform`` (fixed to moving) takes inside ``moving``."""
    grid = grid_of(fixed)
    coarse = grid.with_spacing(grid.extent / 16, shape=(16, 16, 16))
    return float(validity(moving, coarse, transform).mean())


def affine_matrix(transform: sitk.Transform) -> np.ndarray:
    """(4, 4) matrix, LPS mm, of a linear ``transform``, which may be a composite of linear ones."""
    reach = 1000.0
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    for axis in range(3):
        matrix[:3, axis] = (np.array(transform.TransformPoint((np.eye(3)[axis] * reach).tolist())) - origin) / reach
    matrix[:3, 3] = origin
    return matrix


def affine_transform(matrix: np.ndarray) -> sitk.AffineTransform:
    """The SimpleITK transform of a (4, 4) LPS ``matrix``."""
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.asarray(matrix, float)[:3, :3].ravel().tolist())
    transform.SetTranslation(np.asarray(matrix, float)[:3, 3].tolist())
    return transform


def field_image(displacement, grid: Grid) -> sitk.Image:
    """Vector image, float64 LPS mm, of a ``displacement`` (3, D, H, W) in mm along the array axes of ``grid``."""
    return image_from_array(np.einsum("cn,n...->...c", grid.direction, _as_array(displacement)), grid)


def displacement_of(field: sitk.Image) -> np.ndarray:
    """Displacement (3, D, H, W), float32 mm along the array axes, of a vector image in LPS mm: undoes `field_image`."""
    vectors = sitk.GetArrayViewFromImage(field)
    return np.einsum("cn,...c->n...", grid_of(field).direction, vectors).astype(np.float32)


def _as_array(displacement) -> np.ndarray:
    """``displacement``, a tensor on any device or an array, as float64."""
    if hasattr(displacement, "detach"):
        displacement = displacement.detach().cpu().numpy()
    return np.asarray(displacement, np.float64)


def to_field_transform(transform: sitk.Transform, grid: Grid) -> sitk.DisplacementFieldTransform:
    """Any ``transform`` as one displacement field with its nodes on ``grid``; ITK takes it as zero outside."""
    field = sitk.TransformToDisplacementField(transform, sitk.sitkVectorFloat64, *_itk_geometry(grid))
    return sitk.DisplacementFieldTransform(field)


def compose_field(
    linear: sitk.Transform | None,
    displacement,
    working_grid: Grid,
    fixed: sitk.Image | Grid,
    lattice: Grid | None = None,
) -> sitk.DisplacementFieldTransform:
    """The map x -> linear(x + u(x)) as one field that covers the whole ``fixed`` image.

    u is ``displacement`` (3, D, H, W), mm along the array axes of ``working_grid``; outside of it the nearest edge
    value holds. ``linear`` is any transform. Nodes lie on ``lattice``, by default the fixed image's own voxels; a
    coarser one must reach the outermost voxel centres, since ITK moves nothing beyond a field's last node.
    """
    fixed = grid_of(fixed) if isinstance(fixed, sitk.Image) else fixed
    lattice = fixed if lattice is None else lattice
    ends = lattice.indices(fixed.points([np.zeros(3), np.array(fixed.shape) - 1.0]))
    if ends.min() < -1e-3 or (ends > np.array(lattice.shape) - 1 + 1e-3).any():
        raise ValueError("the lattice does not cover the fixed image")
    matrix = affine_matrix(linear) if linear is not None and linear.IsLinear() else np.eye(4)
    # linear(p + u) - p = (M - 1) p + t + M u; turning u commutes with interpolating it and is cheaper before.
    turned = np.einsum("cn,n...->c...", matrix[:3, :3] @ working_grid.direction, _as_array(displacement))
    moved = matrix @ lattice.affine - lattice.affine
    z, y, x = np.ogrid[tuple(slice(n) for n in lattice.shape)]
    field = np.empty((*lattice.shape, 3))
    for c, values in enumerate(_resized(turned.astype(np.float32), working_grid, lattice)):
        plane = moved[c, 1] * y + moved[c, 2] * x + moved[c, 3]
        np.add(values, moved[c, 0] * z + plane, out=field[..., c])
    deformation = sitk.DisplacementFieldTransform(image_from_array(field, lattice))
    if linear is None or linear.IsLinear():
        return deformation
    return to_field_transform(sitk.CompositeTransform([linear, deformation]), lattice)


def _resized(displacement: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """``displacement`` (3, ...) interpolated linearly at the points of ``target``; the edge value holds outside."""
    index = np.linalg.inv(source.affine) @ target.affine
    if np.abs(index[:3, :3] - np.diag(np.diag(index))[:3, :3]).max() * max(target.shape) < 1e-3:
        for axis in range(3):
            last = source.shape[axis] - 1
            place = np.clip(index[axis, axis] * np.arange(target.shape[axis]) + index[axis, 3], 0, last)
            low = np.minimum(place.astype(int), max(last - 1, 0))
            high = np.minimum(low + 1, last)
            weight = (place - low).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
            below, above = (np.take(displacement, k, axis=axis + 1) for k in (low, high))
            displacement = below + weight * (above - below)
        return displacement
    places = np.tensordot(index[:3, :3], np.indices(target.shape), 1) + index[:3, 3].reshape(3, 1, 1, 1)
    return np.stack([ndimage.map_coordinates(u, places, order=1, mode="nearest") for u in displacement])


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


def write_image(image: sitk.Image, path: str | Path) -> None:
    """Write ``image``, compressed, as .nii .nii.gz .nrrd or .mha; either the whole file appears or none.

    Raises `InputError` for another extension or when the file cannot be written.
    """
    suffixes = (".nii.gz", ".nii", ".nrrd", ".mha")
    size = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    _write(path, suffixes, "image", lambda name: sitk.WriteImage(image, name, useCompression=True), size)


def write_transform(transform: sitk.Transform, path: str | Path) -> None:
    """Write ``transform`` as an ITK file (.h5 .hdf5 .tfm .txt), or a displacement field also as an image.

    Either the whole file appears or none. Raises `InputError` for another extension or when it cannot be written.
    """
    if isinstance(transform, sitk.DisplacementFieldTransform) and suffix_of(path) in IMAGE_SUFFIXES:
        write_image(transform.GetDisplacementField(), path)
    else:
        suffixes = (".h5", ".hdf5", ".tfm", ".txt")
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
    temporary = path.with_name(f".{uuid.uuid4().hex}{suffix}")
    try:
        write(str(temporary))
        if not _is_whole(temporary, suffix, size):
            raise OSError
        os.replace(temporary, path)
    except (RuntimeError, OSError):
        hint = "is the folder writable and the disk not full?"
        raise InputError(f"The {what} cannot be written to {path}; {hint}") from None
    finally:
        temporary.unlink(missing_ok=True)


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
