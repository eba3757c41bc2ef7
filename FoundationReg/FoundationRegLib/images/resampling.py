"""An image on another lattice, seen through a transform."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from ..core.grid import Grid
from .conversion import default_background, grid_of, itk_geometry

INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}


def antialiased(image: sitk.Image, grid: Grid) -> sitk.Image:
    """``image`` as float, blurred to the resolution of ``grid`` along each axis where the grid is coarser.

    The width matches the full width at half maximum of both voxels: Cardoso et al., "Scale factor point spread
    function matching", MICCAI 2015. Of voxels much smaller than the grid's, blocks are blurred.
    """
    image = binned(image, grid, 0.5)
    spacing, target = np.array(image.GetSpacing()), _spacing_along(image, grid)
    for axis in np.flatnonzero(target > 1.1 * spacing):
        sigma = np.sqrt((target[axis] ** 2 - spacing[axis] ** 2) / (8 * np.log(2)))
        image = sitk.RecursiveGaussian(image, sigma=float(sigma), direction=int(axis))
    return image


def binned(image: sitk.Image, grid: Grid, share: float = 1.0) -> sitk.Image:
    """``image`` as float, its voxels put together to blocks of their mean that are no larger than ``share`` of those of
    ``grid`` along each axis; at least four are left, which ITK's Gaussian needs. Where the last block of an axis is not
    full, the edge is repeated."""
    if image.GetPixelID() != sitk.sitkFloat32:
        image = sitk.Cast(image, sitk.sitkFloat32)
    size, most = np.array(image.GetSize()), share * _spacing_along(image, grid) / np.array(image.GetSpacing())
    blocks = np.clip(np.floor(most + 1e-6).astype(int), 1, np.maximum(size // 4, 1))
    if blocks.max() == 1:
        return image
    missing = (-size % blocks).tolist()
    if any(missing):
        image = sitk.ZeroFluxNeumannPad(image, [0, 0, 0], missing)
    return sitk.BinShrink(image, blocks.tolist())


def _spacing_along(image: sitk.Image, grid: Grid) -> np.ndarray:
    """Spacing of ``grid`` in mm along the axes x, y, z of ``image``."""
    axes = np.array(image.GetDirection()).reshape(3, 3)
    return np.sqrt(((axes.T @ grid.direction) ** 2 * grid.spacing**2).sum(axis=1))


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
    if antialias and interpolator != "nearest":
        image = antialiased(image, grid)
    elif image.GetPixelID() != sitk.sitkFloat32:
        image = sitk.Cast(image, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(_resample(image, grid, transform, interpolator, background))


def _resample(image, grid, transform, interpolator, background) -> sitk.Image:
    size, origin, spacing, direction = itk_geometry(grid)
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
