"""From what came in to what the deformable stage compares: both images, masks and guides on one working grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from ..core.constants import METHOD, SIDES
from ..core.grid import Grid
from ..errors import InputError
from ..evaluation import metrics
from ..images.conversion import grid_of, image_from_array
from ..images.inversion import inverse_points
from ..images.morphology import grown
from ..images.preprocessing import MOST_VOXELS, default_spacing, working_grid
from ..images.resampling import resample_to_grid, validity
from ..numerics.devices import memory_limit
from ..numerics.parallel import each
from ..settings import Settings
from .ahead import Ahead
from .inputs import Inputs
from .pair import Pair
from .pyramid import lattice_multiple

# Voxels of a working grid for each one of the box around the body: 8 mm of margin around 200 mm, and rounding up.
_WITH_MARGIN = 1.3


def working_voxels(settings: Settings, device: torch.device) -> int:
    """Voxels of the fixed image's working grid at most: as many as the memory holds, and no more than are of use."""
    if not settings.memory_gb and device.type != "cuda":
        return MOST_VOXELS
    room = memory_limit(settings.memory_gb, device) - METHOD.base_gb * 1e9
    return int(min(MOST_VOXELS, max(METHOD.least_voxels, room / METHOD.voxel_bytes / _WITH_MARGIN)))


def prepare_pair(
    ahead: Ahead, linear: sitk.Transform, settings: Settings, voxels: int, by_labels: bool, by_points: bool
) -> Pair:
    """Both images of ``ahead`` on the working grid, the moving one through the linear stage.

    ``by_labels``, ``by_points``: the inputs have them on both sides, and they guide.
    """
    inputs = ahead.inputs
    details = dict(zip(SIDES, each(ahead.detail, SIDES), strict=True))
    grid = _working_grid(inputs, details["fixed"].body, settings, voxels)

    def placed(side: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        image, through, found = getattr(inputs, side), linear if side == "moving" else None, details.pop(side)
        inside = validity(image, grid, through)
        body = _mask_on(image_from_array(found.body, grid_of(image)), grid, through)
        body = body if settings.body_mask and body.any() else inside
        arrays = {
            side: resample_to_grid(found.scaled, grid, through, background=0.0),
            f"{side}_body": body,
            f"{side}_mask": _similarity_mask(inputs, side, body, inside, grid, through),
        }
        return arrays, inside

    (fixed, fixed_seen), (moving, moving_seen) = each(placed, SIDES)
    seen = fixed_seen & moving_seen
    cut = seen[fixed["fixed_body"]].mean() < METHOD.least_seen
    if cut and (shared := fixed["fixed_mask"] & seen).any():
        # What one image does not show has no match: the search would find it something in the rest.
        fixed["fixed_mask"] = shared
        moving["moving"] = _continued(moving["moving"], moving_seen)
    guides = _guides(inputs, grid, linear, by_labels)
    landmarks = _landmarks(inputs, grid, linear) if by_points else None
    return Pair(grid, **fixed, **moving, guides=guides, landmarks=landmarks, seen=seen if cut else None)


def _continued(image: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """``image`` with what is not ``seen`` taken from the nearest seen voxel: where a body is cut, there is no edge."""
    nearest = ndimage.distance_transform_edt(~seen, return_distances=False, return_indices=True)
    return image[tuple(nearest)]


def _working_grid(inputs: Inputs, body: np.ndarray, settings: Settings, voxels: int) -> Grid:
    """The isotropic grid over the fixed body, padded to what the lattices of the levels need."""
    foreground = body if settings.body_mask else None
    spacing = settings.finest_spacing_mm or default_spacing(inputs.fixed, voxels, foreground)
    grid = working_grid(inputs.fixed, foreground, spacing, METHOD.margin_mm)
    multiple = lattice_multiple(settings, spacing)
    extra = [-n % multiple for n in grid.shape]
    return grid.padded([n // 2 for n in extra], [n - n // 2 for n in extra])


def _mask_on(image: sitk.Image, grid: Grid, transform: sitk.Transform | None) -> np.ndarray:
    return resample_to_grid(image, grid, transform, "nearest", 0) > 0


def _similarity_mask(
    inputs: Inputs, side: str, body: np.ndarray, inside: np.ndarray, grid: Grid, transform: sitk.Transform | None
) -> np.ndarray:
    """Where similarity counts on ``grid``: around the body, inside of the user's mask and away from exclusions."""
    spacing = float(grid.spacing[0])
    mask = _near(body, spacing) & inside
    wanted, excluded = (getattr(inputs, name) for name in (f"{side}_mask", f"exclude_{side}"))
    if wanted is not None:
        mask &= _mask_on(wanted, grid, transform)
    if excluded is not None and (lesion := _mask_on(excluded, grid, transform)).any():
        mask &= ~_near(lesion, spacing, METHOD.descriptor_voxels * spacing)
    if not mask.any():
        raise InputError(f"Nothing of the {side} image is left to compare; check the masks and the initial alignment.")
    return mask


def with_masks(pair: Pair, inputs: Inputs, linear: sitk.Transform) -> Pair:
    """``pair`` with the masks of ``inputs``; the images and what the encoders are shown stay."""
    masks = {}
    for side, through in (("fixed", None), ("moving", linear)):
        inside = validity(getattr(inputs, side), pair.grid, through)
        body = getattr(pair, f"{side}_body")
        masks[f"{side}_mask"] = _similarity_mask(inputs, side, body, inside, pair.grid, through)
    if pair.seen is not None and (shared := masks["fixed_mask"] & pair.seen).any():
        masks["fixed_mask"] = shared
    made = replace(pair, **masks)
    made.__dict__["encoder_key"] = pair.encoder_key
    return made


def _near(body: np.ndarray, spacing: float, distance: float = 5.0) -> np.ndarray:
    """``body`` and what lies within ``distance`` mm of it: the skin's outer side belongs to the similarity.

    To within a voxel: distances are those of blocks of two voxels along each axis, an eighth of the work.
    """
    blocks = body.reshape([n for count in body.shape for n in (count // 2, 2)]).any(axis=(1, 3, 5))
    near = grown(blocks, distance, (2 * spacing,) * 3)
    return near.repeat(2, 0).repeat(2, 1).repeat(2, 2)


def _guides(
    inputs: Inputs, grid: Grid, linear: sitk.Transform, by_labels: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Channels of the labels, if they guide, and of the boxes' masks, if there are any."""
    pairs = [(inputs.fixed_labels, inputs.moving_labels)] if by_labels else []
    if inputs.fixed_box_mask is not None:
        pairs.append((inputs.fixed_box_mask, inputs.moving_box_mask))
    if not pairs:
        return None
    fixed, moving = zip(*(_label_channels(*pair, grid, linear) for pair in pairs), strict=True)
    return np.concatenate(fixed), np.concatenate(moving)


def _label_channels(
    fixed_labels: sitk.Image, moving_labels: sitk.Image, grid: Grid, linear: sitk.Transform
) -> tuple[np.ndarray, np.ndarray]:
    """Each common label as a soft channel (C, D, H, W), blurred by a few mm so that it pulls from afar."""
    labels = metrics.common_labels(fixed_labels, moving_labels)
    fixed = resample_to_grid(fixed_labels, grid, None, "nearest", 0)
    moving = resample_to_grid(moving_labels, grid, linear, "nearest", 0)
    sigma = 3.0 / grid.spacing
    soft = [
        np.stack([ndimage.gaussian_filter((values == label).astype(np.float32), sigma) for label in labels])
        for values in (fixed, moving)
    ]
    return soft[0], soft[1]


def _landmarks(inputs: Inputs, grid: Grid, linear: sitk.Transform) -> tuple[np.ndarray, np.ndarray]:
    """Fixed landmarks as indices of the working grid, and the displacement in mm that each needs."""
    aligned, _ = inverse_points(linear, inputs.moving_points)
    needed = (aligned - inputs.fixed_points) @ grid.direction
    return grid.indices(inputs.fixed_points), needed
