"""Grey values scaled to 0..1, the body's mask, and the isotropic grid that the registration works on."""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..core.grid import Grid
from .conversion import grid_of
from .morphology import grown, shrunk

Kind = Literal["mr", "ct"]

SOFT_TISSUE_WINDOW = (-200.0, 300.0)
LUNG_WINDOW = (-1000.0, 500.0)

_AIR_HU, _PURE_AIR_HU = -500.0, -940.0
_MASK_SPACING_MM = 3.0
_OTSU_BINS = 256


def intensity_kind(image: sitk.Image | np.ndarray) -> Kind:
    """``ct`` when the grey values look like Hounsfield units (air far below zero, tissue around it), else ``mr``."""
    array = sitk.GetArrayViewFromImage(image) if isinstance(image, sitk.Image) else np.asarray(image)
    if array.min() > _AIR_HU:
        return "mr"
    sample = array.ravel()[:: max(1, array.size // 1_000_000)]
    air = np.mean((sample > -1100) & (sample < _AIR_HU)) > 0.002
    tissue = np.mean((sample > -200) & (sample < 300)) > 0.02
    return "ct" if air and tissue else "mr"


def ct_window(array: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    """Hounsfield window (low, high) that keeps what the body in ``mask`` shows: wide when much of it is lung."""
    values = array if mask is None or not mask.any() else array[mask]
    lung = np.mean((values > -950) & (values < -600))
    tissue = np.mean((values > -200) & (values < 300))
    return LUNG_WINDOW if lung > 0.12 * (lung + tissue) else SOFT_TISSUE_WINDOW


def scale_intensity(
    array: np.ndarray, kind: Kind, window: tuple[float, float] | None = None, mask: np.ndarray | None = None
) -> np.ndarray:
    """Grey values ``array`` as float32 in 0..1, clipped to ``window`` (low, high).

    Without a window: `ct_window` for ``ct``; for ``mr`` the 1st and 99.5th percentile inside ``mask``.
    """
    if window is None and kind == "ct":
        window = ct_window(array, mask)
    if window is None:
        values = array if mask is None or not mask.any() else array[mask]
        low, high = np.percentile(values.ravel()[:: max(1, values.size // 2_000_000)], [1.0, 99.5])
        # A mask of almost one value: the whole range of the image says more.
        window = (low, high) if high > low else (array.min(), array.max())
    low, high = (float(v) for v in window)
    scaled = (np.asarray(array, np.float32) - low) / max(high - low, 1e-12)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def foreground_mask(array: np.ndarray, kind: Kind, spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    """Boolean mask of the body in ``array`` (D, H, W) with voxels of ``spacing`` mm (z, y, x), lungs and gas included.

    Works at about 3 mm. Gives all True when no body stands out (under 2 % or over 98 % of the voxels).
    """
    spacing = np.asarray(spacing, float)
    steps = np.maximum(1, np.round(_MASK_SPACING_MM / spacing)).astype(int)
    coarse = _block_mean(np.asarray(array, np.float32), steps)
    found = _solid(_bright(coarse, kind), spacing * steps)
    for axis, step in enumerate(steps):
        found = np.repeat(found, step, axis=axis)
    found = found[tuple(slice(n) for n in array.shape)]
    share = found.mean()
    return found if 0.02 < share < 0.98 else np.ones(array.shape, bool)


def _block_mean(array: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Mean over blocks of ``steps`` voxels; the last block of an axis repeats the edge."""
    array = np.pad(array, [(0, -n % s) for n, s in zip(array.shape, steps, strict=True)], mode="edge")
    blocks = [part for n, s in zip(array.shape, steps, strict=True) for part in (n // s, s)]
    return array.reshape(blocks).mean(axis=(1, 3, 5))


def _bright(array: np.ndarray, kind: Kind) -> np.ndarray:
    """What is brighter than the background."""
    if kind == "ct":
        return (array > _AIR_HU) | _lungs(array)
    lowest = array.min()
    above = array[array > lowest]
    dim = np.mean(above - lowest < 0.1 * (np.percentile(above, 99) - lowest))
    if above.size < 0.8 * array.size and dim < 0.15:
        return array > lowest  # The background was erased before: skull-stripped, or masked by someone.
    smooth = ndimage.gaussian_filter(array, 1.0)
    top = np.percentile(smooth, 99.5) - lowest
    # Noise and tissue are both wide in the logarithm; the offset keeps values near zero from stretching it.
    levels = np.log(np.clip(smooth - lowest, 0, None) / max(top, 1e-12) + 0.02)
    return levels > _otsu(levels)


def _lungs(array: np.ndarray) -> np.ndarray:
    """The connected parts of dark Hounsfield values that are not as empty as air; the image may cut through them."""
    parts, count = ndimage.label(array <= _AIR_HU)
    means = ndimage.mean(array, parts, np.arange(count + 1))
    return (means > _PURE_AIR_HU)[parts] & (parts > 0)


def _otsu(values: np.ndarray) -> float:
    """Threshold that splits ``values`` best into two classes: Otsu, IEEE Trans. SMC 9 (1979)."""
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(_OTSU_BINS)
    otsu.Execute(sitk.GetImageFromArray(np.asarray(values, np.float32)))
    # ITK gives the upper edge of the last bin of the lower class; its middle is nearer to both classes.
    return float(otsu.GetThreshold() - (values.max() - values.min()) / (2 * _OTSU_BINS))


def _solid(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The large connected parts of ``mask`` with gaps of up to 10 mm closed and enclosed air filled."""
    mask = grown(shrunk(mask, 4.0, spacing), 4.0, spacing)
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())[1:]
    mask = np.isin(parts, 1 + np.flatnonzero(sizes >= 0.1 * sizes.max()))
    margin = np.ceil(10.0 / spacing).astype(int) + 1
    padded = np.pad(mask, [(m, m) for m in margin])
    closed = shrunk(grown(padded, 10.0, spacing), 10.0, spacing) | padded
    mask = closed[tuple(slice(m, -m) for m in margin)]
    # An organ cut by a face of the image is enclosed in some planes only. That it is so in slices (axis 0) will do;
    # otherwise two kinds must agree, because the air between two breasts is enclosed in coronal planes.
    closed = np.zeros(mask.shape, np.uint8)
    for axis in range(3):
        for plane, count in zip(np.moveaxis(mask, axis, 0), np.moveaxis(closed, axis, 0), strict=True):
            count += (2 if axis == 0 else 1) * ndimage.binary_fill_holes(plane).astype(np.uint8)
    return closed >= 2


MOST_VOXELS = 4_000_000


def default_spacing(fixed: sitk.Image | Grid, voxels: int = MOST_VOXELS, foreground: np.ndarray | None = None) -> float:
    """Isotropic working spacing in mm: the fixed image's finest, or coarser so that there are ``voxels`` at most.

    Where ``foreground`` (D, H, W) on the voxels of ``fixed`` is given, those of the box around it count only: a head in
    a wide empty frame is not seen more coarsely than the same head in a narrow one.
    """
    grid = grid_of(fixed) if isinstance(fixed, sitk.Image) else fixed
    first, last = _box(grid, foreground)
    return float(max(grid.spacing.min(), np.cbrt(np.prod((last - first) * grid.spacing) / voxels)))


def _box(grid: Grid, foreground: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """First voxel (z, y, x) of the box around ``foreground`` and the one after its last; of all where there is none."""
    if foreground is None or not foreground.any():
        return np.zeros(3, int), np.array(grid.shape)
    box = ndimage.find_objects(foreground.astype(np.uint8))[0]
    return np.array([s.start for s in box]), np.array([s.stop for s in box])


def working_grid(
    fixed: sitk.Image | Grid, foreground: np.ndarray | None, spacing_mm: float, margin_mm: float = 0.0
) -> Grid:
    """Isotropic grid along the axes of ``fixed`` over its ``foreground`` and ``margin_mm`` around it.

    ``foreground`` (D, H, W) is a mask on the voxels of ``fixed``; None or an empty one means all. The grid does not
    reach further than ``margin_mm`` beyond the image.
    """
    grid = grid_of(fixed) if isinstance(fixed, sitk.Image) else fixed
    first, last = _box(grid, foreground)
    margin = margin_mm / grid.spacing
    low, high = first - margin, last + margin
    shape = np.maximum(1, np.ceil((high - low) * grid.spacing / spacing_mm - 1e-4)).astype(int)
    # What rounding up to whole voxels adds is shared by both sides.
    middle = (low + high) / 2 - 0.5
    half = (shape - 1) / 2 * spacing_mm / grid.spacing
    return Grid.from_axes(shape, (spacing_mm,) * 3, grid.points(middle - half), grid.direction)
