"""A box around an organ in each image, turned into segmentations that guide like the user's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import torch
from scipy.optimize import linear_sum_assignment

from ..core.cache import Cache
from ..core.constants import METHOD, SIDES
from ..core.grid import Grid
from ..core.memory import out_of_memory_explained
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
from ..numerics.devices import choose_device, cpu_threads
from ..settings import Settings
from ..weights import store
from ..weights.catalogue import entry
from .content import content_hash, shown_by
from .inputs import ImageLike, Inputs, read_inputs

# Opposite corners (x, y, z, x, y, z) in LPS mm, or a table (2, 3) of them. Of a turned box all eight corners (8, 3),
# the x edge counting slowest: corner 0 and corners 4, 2 and 1 are the ends of its three edges.
BoxLike = Sequence[float] | Sequence[Sequence[float]] | np.ndarray
# The encoder whose checkpoint also holds the decoder.
BOX_ENCODER = "medsam-lite"
# Grey values that vary by less than this share of the image's range hold nothing.
_LEAST_CONTRAST = 0.01


def checked_box(box: BoxLike, side: str) -> np.ndarray:
    """The box as (2, 3), its low and its high corner in LPS mm, or (8, 3) where it is turned.

    Raises `InputError` when it is none or empty.
    """
    text = f"The {side} box must be six numbers: x, y, z of two opposite corners in LPS mm."
    try:
        corners = np.asarray(box, float).reshape(-1, 3)
    except (ValueError, TypeError):
        raise InputError(text) from None
    if len(corners) not in (2, 8):
        raise InputError(text)
    if not np.isfinite(corners).all():
        raise InputError(f"The {side} box holds a number that is not finite.")
    if len(corners) == 2:
        corners = np.sort(corners, axis=0)
        if (np.diff(corners, axis=0) <= 0).any():
            raise InputError(f"The {side} box is empty: its corners must differ along x, y and z.")
        return corners
    edges = _edges(corners)
    if not np.linalg.norm(edges, axis=1).all():
        raise InputError(f"The {side} box is empty: one of its edges has no length.")
    if not np.allclose(_corners(corners[0], edges), corners, rtol=0, atol=1e-3 * np.abs(edges).max()):
        raise InputError(f"The eight corners of the {side} box are not those of a box.")
    return corners


def _edges(corners: np.ndarray) -> np.ndarray:
    """The three edges (3, 3) that meet in the first of eight ``corners``."""
    return corners[[4, 2, 1]] - corners[0]


def _corners(first: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The eight corners (8, 3) of the box with the three ``edges`` at its corner ``first``."""
    return first + np.array([[(k >> n) & 1 for n in (2, 1, 0)] for k in range(8)]) @ edges


def _all_corners(box: np.ndarray) -> np.ndarray:
    return box if len(box) == 8 else _corners(box[0], np.diag(box[1] - box[0]))


def box_around(mask: sitk.Image) -> np.ndarray:
    """The corners (8, 3) of the box around what ``mask`` holds, along its array's axes."""
    places, grid = np.argwhere(sitk.GetArrayViewFromImage(mask) > 0), grid_of(mask)
    low, high = places.min(0) - 0.5, places.max(0) + 0.5
    return grid.points(_corners(low, np.diag(high - low)))


def bounds_on(grid: Grid, box: np.ndarray, side: str) -> Bounds:
    """Faces (low, high) of ``box`` along the array's axes, as of `features.box_masks.box_mask`, cut to the image.

    Where the box is turned against the grid, of the array-aligned box around it. Raises `InputError` for one outside of
    the image, or too small.
    """
    places = grid.indices(_all_corners(box))
    low = np.maximum(places.min(0), -0.5)
    high = np.minimum(places.max(0), np.array(grid.shape) - 0.5)
    if (high - low <= 0).any():
        raise InputError(f"The {side} box lies outside of the {side} image.")
    if (high - low < LEAST_VOXELS).any():
        raise InputError(f"The {side} box is thinner than {LEAST_VOXELS} voxels within the {side} image.")
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def require_boxes(
    fixed: BoxLike | None, moving: BoxLike | None, fixed_mask: object = None, moving_mask: object = None
) -> dict[str, np.ndarray] | None:
    """The boxes by side, as of `checked_box`; None without any box or mask.

    A side with a mask of what its box holds needs no box. Raises for a side that has neither while the other has, and
    for missing weights where something is left to segment.
    """
    given = dict(zip(SIDES, ((fixed, fixed_mask), (moving, moving_mask)), strict=True))
    there = [side for side, pair in given.items() if any(value is not None for value in pair)]
    if not there:
        return None
    if len(there) == 1:
        raise InputError("Give a box around the same organ in both images, or in none.")
    checked = {side: checked_box(box, side) for side, (box, _) in given.items() if box is not None}
    if any(mask is None for _, mask in given.values()):
        store.require(entry(BOX_ENCODER))
    return checked


def segment_boxes(
    images: Sequence[sitk.Image],
    boxes: Sequence[np.ndarray],
    settings: Settings,
    device: torch.device,
    progress: Progress | None = None,
    sides: Sequence[str] = SIDES,
) -> tuple[sitk.Image, ...]:
    """Masks (uint8) of what the ``boxes`` hold in the ``images`` of those ``sides``, each on its image's lattice.

    Raises `InputError` for a box outside of its image or around nothing.
    """
    progress = progress or Progress()
    shown = [_shown(image, box, side, settings) for image, box, side in zip(images, boxes, sides, strict=True)]
    encoder = load_encoder(BOX_ENCODER, str(device), settings.encoder_precision, progress)
    path, _ = store.ensure(entry(BOX_ENCODER))
    decoder = build_box_decoder(path).to(device)
    masks = []
    for (grey, grid, bounds), box, side in zip(shown, boxes, sides, strict=True):
        with progress.stage(f"segment the {side} box", 1 / len(sides)), torch.inference_mode():
            mask = box_mask(grey, grid, bounds, encoder, decoder, memory_gb=settings.memory_gb, progress=progress)
        mask &= _inside(box, grid, bounds)
        if not mask.any():
            raise InputError(f"Nothing was found in the {side} box; draw it closely around one organ.")
        masks.append(image_from_array(mask, grid))
    return tuple(masks)


def _inside(box: np.ndarray, grid: Grid, bounds: Bounds) -> np.ndarray:
    """Voxels of ``grid`` whose centres lie in ``box``, which is smaller than its ``bounds`` where it is turned."""
    inside = np.zeros(grid.shape, bool)
    part = voxels_within(bounds, grid.shape)
    places = np.moveaxis(np.mgrid[part], 0, -1)
    corners = _all_corners(box)
    shares = (grid.points(places) - corners[0]) @ np.linalg.inv(_edges(corners))
    inside[part] = ((shares >= 0) & (shares <= 1)).all(-1)
    return inside


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
    """The map that brings the centre of the ``fixed`` box (2, 3) or (8, 3) to that of the ``moving`` one.

    With ``affine`` it also stretches along x, y and z, by a part of what the sizes of the boxes say
    (``METHOD.box_stretch``), and by what anatomy of two people can show at most. It does not turn.
    """
    sizes = _sizes(moving) / _sizes(fixed)
    stretch = np.clip(sizes**METHOD.box_stretch, *METHOD.scales)
    matrix = np.diag([*(stretch if affine else np.ones(3)), 1.0])
    matrix[:3, 3] = moving.mean(0) - matrix[:3, :3] @ fixed.mean(0)
    return affine_transform(matrix)


def _sizes(box: np.ndarray) -> np.ndarray:
    """Lengths of the edges that run mostly along x, y and z."""
    if len(box) == 2:
        return box[1] - box[0]
    edges = _edges(box)
    lengths = np.linalg.norm(edges, axis=1)
    rows, axes = linear_sum_assignment(-np.abs(edges / lengths[:, None]))
    sizes = np.empty(3)
    sizes[axes] = lengths[rows]
    return sizes


def overlap(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Dice of the ``fixed`` mask and the ``moving`` one under ``transform``."""
    moved = warp(moving, transform, fixed, "nearest")
    return dice(sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(moved), [1])[1]


def segment_into(
    inputs: Inputs,
    around: dict[str, np.ndarray],
    settings: Settings,
    device: torch.device,
    progress: Progress,
    cache: Cache,
) -> None:
    """Put the boxes ``around`` and what they hold into ``inputs``; masks that are there stay."""
    sides = [side for side in SIDES if getattr(inputs, f"{side}_box_mask") is None]
    if sides:
        images = [getattr(inputs, side) for side in sides]
        key = ("boxes", content_hash(*images), shown_by(settings), *(around[side].tobytes() for side in sides))
        wanted = [around[side] for side in sides]
        masks = cache.get(key, lambda: segment_boxes(images, wanted, settings, device, progress, sides))
        for side, mask in zip(sides, masks, strict=True):
            setattr(inputs, f"{side}_box_mask", mask)
    for side in SIDES:
        box = around.get(side)
        setattr(inputs, f"{side}_box", box if box is not None else box_around(getattr(inputs, f"{side}_box_mask")))


def segment_in_boxes(
    fixed: ImageLike,
    moving: ImageLike,
    fixed_box: BoxLike,
    moving_box: BoxLike,
    settings: Settings | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> tuple[sitk.Image, sitk.Image]:
    """What the boxes of `pipeline.register` hold, without registering: masks (uint8) on the lattices of both images, to
    look at and to correct. Raises as `register` does."""
    settings, progress, cache = settings or Settings.from_preset(), progress or Progress(), cache or Cache()
    device = choose_device(settings.device)
    around = require_boxes(fixed_box, moving_box)
    if around is None:
        raise InputError("Give a box around the same organ in both images.")
    with cpu_threads(settings.threads), out_of_memory_explained(device):
        with progress.stage("load", 0.05):
            inputs = read_inputs(fixed, moving)
        with progress.stage("segment", 0.95):
            segment_into(inputs, around, settings, device, progress, cache)
    return inputs.fixed_box_mask, inputs.moving_box_mask
