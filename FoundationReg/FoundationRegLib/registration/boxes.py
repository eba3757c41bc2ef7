"""A box around an organ in each image, turned into segmentations that guide like the user's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch

from ..core.constants import METHOD
from ..core.grid import Grid
from ..core.progress import Progress
from ..encoders.box_decoder import build_box_decoder
from ..encoders.loading import load_encoder
from ..errors import InputError
from ..evaluation.metrics import dice
from ..features.box_masks import LEAST_VOXELS, Bounds, box_mask, voxels_within
from ..images.conversion import grid_of, image_from_array
from ..images.preprocessing import foreground_mask, intensity_kind, scale_intensity
from ..images.resampling import warp
from ..images.transforms import affine_transform
from ..settings import Settings
from ..weights import store
from ..weights.catalogue import entry

# Opposite corners (x, y, z, x, y, z) in LPS mm, or a table (2, 3) of them.
BoxLike = Sequence[float] | np.ndarray
# The encoder whose checkpoint also holds the decoder.
BOX_ENCODER = "medsam-lite"
# Grey values that vary by less than this share of the image's range hold nothing.
_LEAST_CONTRAST = 0.01


def checked_box(box: BoxLike, side: str) -> np.ndarray:
    """The box as (2, 3): its low and its high corner in LPS mm. Raises `InputError` when it is none or empty."""
    try:
        corners = np.asarray(box, float).reshape(2, 3)
    except (ValueError, TypeError):
        raise InputError(f"The {side} box must be six numbers: x, y, z of two opposite corners in LPS mm.") from None
    if not np.isfinite(corners).all():
        raise InputError(f"The {side} box holds a number that is not finite.")
    corners = np.sort(corners, axis=0)
    if (np.diff(corners, axis=0) <= 0).any():
        raise InputError(f"The {side} box is empty: its corners must differ along x, y and z.")
    return corners


def bounds_on(grid: Grid, box: np.ndarray, side: str) -> Bounds:
    """Faces (low, high) of ``box`` along the array's axes, as of `features.box_masks.box_mask`, cut to the image.

    On an oblique grid the array-aligned box around it. Raises `InputError` for one outside of the image, or too small.
    """
    corners = [[box[(k >> n) & 1, n] for n in range(3)] for k in range(8)]
    places = grid.indices(corners)
    low = np.maximum(places.min(0), -0.5)
    high = np.minimum(places.max(0), np.array(grid.shape) - 0.5)
    if (high - low <= 0).any():
        raise InputError(f"The {side} box lies outside of the {side} image.")
    if (high - low < LEAST_VOXELS).any():
        raise InputError(f"The {side} box is thinner than {LEAST_VOXELS} voxels within the {side} image.")
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def require_boxes(fixed: BoxLike | None, moving: BoxLike | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Both boxes as of `checked_box`; None without any. Raises for one box alone, and for missing weights."""
    if fixed is None and moving is None:
        return None
    if fixed is None or moving is None:
        raise InputError("Give a box around the same organ in both images, or in none.")
    boxes = checked_box(fixed, "fixed"), checked_box(moving, "moving")
    store.require(entry(BOX_ENCODER))
    return boxes


def segment_boxes(
    images: tuple[sitk.Image, sitk.Image],
    boxes: tuple[np.ndarray, np.ndarray],
    settings: Settings,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[sitk.Image, sitk.Image]:
    """Masks (uint8) of what the boxes hold in the fixed and the moving image, each on its image's lattice.

    Raises `InputError` for a box outside of its image or around nothing.
    """
    progress = progress or Progress()
    sides = ("fixed", "moving")
    shown = [_shown(image, box, side, settings) for image, box, side in zip(images, boxes, sides, strict=True)]
    encoder = load_encoder(BOX_ENCODER, str(device), settings.encoder_precision, progress)
    path, _ = store.ensure(entry(BOX_ENCODER))
    decoder = build_box_decoder(path).to(device)
    masks = []
    for (grey, grid, bounds), side in zip(shown, sides, strict=True):
        with progress.stage(f"segment the {side} box", 0.5), torch.inference_mode():
            mask = box_mask(grey, grid, bounds, encoder, decoder, memory_gb=settings.memory_gb, progress=progress)
        if not mask.any():
            raise InputError(f"Nothing was found in the {side} box; draw it closely around one organ.")
        masks.append(image_from_array(mask, grid))
    return masks[0], masks[1]


def _shown(image: sitk.Image, box: np.ndarray, side: str, settings: Settings) -> tuple[np.ndarray, Grid, Bounds]:
    """Grey values in 0..1, their lattice, and the box's faces on it. Raises `InputError` for a box around nothing."""
    grid = grid_of(image)
    bounds = bounds_on(grid, box, side)
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    kind, window = getattr(settings, f"{side}_intensity"), getattr(settings, f"{side}_window")
    kind = intensity_kind(values) if kind == "auto" else kind
    grey = scale_intensity(values, kind, window, foreground_mask(values, kind, grid.spacing))
    inside = grey[voxels_within(bounds, grid.shape)]
    if float(inside.max() - inside.min()) < _LEAST_CONTRAST:
        raise InputError(f"The {side} box holds nothing: the {side} image has one grey value there.")
    return grey, grid, bounds


def box_start(fixed: np.ndarray, moving: np.ndarray, affine: bool = True) -> sitk.AffineTransform:
    """The map that brings the centre of the ``fixed`` box (2, 3) to that of the ``moving`` one.

    With ``affine`` it also stretches along x, y and z, by a part of what the sizes of the boxes say
    (``METHOD.box_stretch``), and by what anatomy of two people can show at most.
    """
    sizes = np.diff(moving, axis=0)[0] / np.diff(fixed, axis=0)[0]
    stretch = np.clip(sizes**METHOD.box_stretch, *METHOD.scales)
    matrix = np.diag([*(stretch if affine else np.ones(3)), 1.0])
    matrix[:3, 3] = moving.mean(0) - matrix[:3, :3] @ fixed.mean(0)
    return affine_transform(matrix)


def overlap(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Dice of the ``fixed`` mask and the ``moving`` one under ``transform``."""
    moved = warp(moving, transform, fixed, "nearest")
    return dice(sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(moved), [1])[1]
