"""A part of the image registered once more on a finer grid, and blended into the rest.

The region moves fixed points before everything else does, as corrections do: x -> transform(x + u(x)), where u is the
flow of a velocity that fades out inside of the region's faces. So the rest of the field stays as it is, and a flow does
not fold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.constants import METHOD
from ..core.grid import Grid
from ..core.progress import Progress
from ..encoders.loading import load_encoder
from ..errors import InputError
from ..images.conversion import grid_of, image_from_array
from ..images.resampling import resample_to_grid, validity
from ..images.transforms import to_field_transform
from ..numerics import local_flows
from ..numerics.data_term import FeaturePair, standardised
from ..numerics.fields import exponential
from ..numerics.filters import local_normalised
from ..numerics.gauss_newton import gauss_newton
from ..registration.deformable import regulariser_of
from ..registration.workspace import Workspace

# Voxels of a region at most; larger ones are registered on a coarser grid.
_MOST_VOXELS = 2_500_000
# Inside of the faces of the region the change fades in over so many mm, or over this share of a small region.
_FADE_MM, _FADE_SHARE = 8.0, 0.25
_LEAST_NODES = 8
# The flow is weakened step by step where all of it would fold.
_PARTS = (1.0, 0.6, 0.3)


@dataclass(frozen=True, eq=False)
class Region:
    """``velocity`` (3, d, h, w) in mm along the axes of ``grid``, whose nodes are nodes of ``lattice`` too."""

    velocity: Tensor
    grid: Grid
    lattice: Grid

    def moved(self, points: np.ndarray) -> np.ndarray:
        """Fixed ``points`` (n, 3), LPS mm, after the region's flow."""
        places = torch.as_tensor(self.grid.indices(points), dtype=torch.float32, device=self.velocity.device)
        inside = ((places >= 0) & (places <= torch.tensor(self.grid.shape, device=places.device) - 1)).all(1)
        moved = local_flows.values_at(self.displacement(), places) * inside[:, None]
        return points + moved.cpu().numpy() @ self.grid.direction.T

    def displacement(self) -> Tensor:
        """Of the flow, (3, d, h, w) in mm."""
        return exponential(self.velocity, self.grid.spacing)


def refine_region(
    workspace: Workspace, transform: sitk.DisplacementFieldTransform, corners, progress: Progress | None = None
) -> Region:
    """The part of ``workspace`` around ``corners`` (n, 3), LPS mm, registered once more on top of ``transform``.

    Its voxels are as fine as the finer ones of the fixed image, unless the region is so large that memory and time
    forbid that. Raises `InputError` when it lies outside of the fixed image or is too small, and `Cancelled`.
    """
    progress = progress or Progress()
    grid, lattice = _node_grid(workspace, np.asarray(corners, float).reshape(-1, 3))
    spacing = float(grid.spacing[0]) / METHOD.node_factor
    voxels = grid.with_spacing(spacing, tuple(METHOD.node_factor * n for n in grid.shape))
    images = [
        _scaled(resample_to_grid(image, voxels, through), workspace.device)
        for image, through in ((workspace.inputs.fixed, None), (workspace.inputs.moving, transform))
    ]
    pair = workspace.pyramid.pair
    masks = image_from_array(pair.fixed_mask.astype(np.uint8), pair.grid)
    weights = [
        torch.as_tensor(mask.astype(np.float32), device=workspace.device)
        for mask in (
            resample_to_grid(masks, voxels, None, "nearest", 0) > 0,
            validity(workspace.inputs.moving, voxels, transform),
        )
    ]
    if not bool((weights[0] > 0).any()):
        raise InputError("The region lies outside of what is compared; place it inside of the body.")
    velocity = torch.zeros(3, *grid.shape, device=workspace.device)
    for factor in (METHOD.node_factor, 1):
        progress.update(0.5 if factor == 1 else 0.0)
        seen = [_pooled(image, factor) for image in images]
        fixed_weight, moving_weight = (_pooled(weight, factor) for weight in weights)
        velocity, _ = gauss_newton(
            _features(workspace, seen, fixed_weight > 0.5), velocity, spacing * factor, fixed_weight, moving_weight,
            nodes=grid.shape, regulariser=regulariser_of(workspace.settings, workspace.found.grey),
            iterations=workspace.settings.iterations, tolerance=METHOD.tolerances[0], diffeomorphic=True, robust=True,
            on_iteration=lambda *_: progress.check() or False,
        )  # fmt: skip
    velocity = velocity * _fade(grid, velocity)
    for part in _PARTS:
        region = Region(part * velocity, grid, lattice)
        if not _folds(region, transform):
            return region
    raise InputError("The region could not be refined without folding; choose a larger one.")


def applied(region: Region, transform: sitk.DisplacementFieldTransform) -> sitk.DisplacementFieldTransform:
    """``transform`` after the flow of ``region``, with nodes as fine as the region's everywhere."""
    field = to_field_transform(transform, region.lattice).GetDisplacementField()
    vectors = sitk.GetArrayFromImage(field)
    first = np.rint(region.lattice.indices(region.grid.origin)).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(first, region.grid.shape, strict=True))
    vectors[box] = _composed(region, transform)
    return sitk.DisplacementFieldTransform(image_from_array(vectors, region.lattice))


def _composed(region: Region, transform: sitk.DisplacementFieldTransform) -> np.ndarray:
    """LPS vectors (d, h, w, 3) in mm of x -> transform(x + u(x)) at the nodes of the region."""
    nodes = region.grid.points(np.moveaxis(np.indices(region.grid.shape), 0, -1).reshape(-1, 3))
    own = region.displacement().cpu().numpy().reshape(3, -1).T @ region.grid.direction.T
    field = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
    values = torch.as_tensor(sitk.GetArrayFromImage(field)).movedim(-1, 0)
    places = torch.as_tensor(grid_of(field).indices(nodes + own), dtype=values.dtype)
    return (own + local_flows.values_at(values, places).numpy()).reshape(*region.grid.shape, 3)


def _folds(region: Region, transform: sitk.DisplacementFieldTransform) -> bool:
    """Whether the region turns a cell inside out that was not so before."""
    spacing = float(region.grid.spacing[0])
    least = []
    for one in (replace(region, velocity=torch.zeros_like(region.velocity)), region):
        along = torch.as_tensor(_composed(one, transform) @ region.grid.direction, dtype=torch.float32)
        least.append(local_flows.least_determinant(along.movedim(-1, 0), spacing))
    return bool(((least[1] <= 0) & (least[0] > 0)).any())


def _node_grid(workspace: Workspace, corners: np.ndarray) -> tuple[Grid, Grid]:
    """The nodes of the region around ``corners``, and the lattice over the whole fixed image that they belong to."""
    base = workspace.lattice or grid_of(workspace.transform.GetDisplacementField())
    fixed = grid_of(workspace.inputs.fixed)
    size = np.ptp(fixed.indices(corners), axis=0).clip(0, fixed.shape) * fixed.spacing
    finest = max(float(fixed.spacing.min()), float(np.cbrt(np.prod(size) / _MOST_VOXELS)))
    parts = max(1, round(workspace.spacing / METHOD.node_factor / finest))
    # With the nodes of before among its own, what is linear between them stays exactly as it is.
    shape = (np.array(base.shape) - 1) * parts + 1
    lattice = Grid.from_axes(shape, base.spacing / parts, base.origin, base.direction)
    limits = np.sort(lattice.indices(fixed.corners()), axis=0)[[0, -1]]
    wanted = lattice.indices(corners)
    low = np.ceil(np.maximum(wanted.min(0), limits[0])).astype(int)
    high = np.floor(np.minimum(wanted.max(0), limits[1])).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, lattice.shape)
    if (high - low < _LEAST_NODES).any():
        least = _LEAST_NODES * float(lattice.spacing.max())
        raise InputError(f"The region must cover at least {least:.0f} mm of the fixed image along each axis.")
    return lattice.padded(-low, high - np.array(lattice.shape)), lattice


def _scaled(array: np.ndarray, device: torch.device) -> Tensor:
    low, high = np.percentile(array, [1.0, 99.5])
    scaled = (array - low) / max(float(high - low), 1e-12)
    return torch.as_tensor(scaled.clip(0, 1).astype(np.float32), device=device)


def _pooled(values: Tensor, factor: int) -> Tensor:
    return F.avg_pool3d(values[None, None], factor)[0, 0] if factor > 1 else values


def _features(workspace: Workspace, images: list[Tensor], mask: Tensor) -> list[FeaturePair]:
    """MIND of both images and, as far as they count in the whole, their locally normalised grey values."""
    encoder = load_encoder("mind", str(workspace.device))
    pairs = [FeaturePair(*standardised(*(encoder(image[None, None])[0] for image in images), mask))]
    if workspace.found.grey[0] > 0:
        grey = [local_normalised(image, workspace.settings.grey_sigma) for image in images]
        pairs.append(FeaturePair(*standardised(*grey, mask), workspace.found.grey[0]))
    return pairs


def _fade(grid: Grid, like: Tensor) -> Tensor:
    """0 at the faces of ``grid`` and 1 well inside."""
    fade = torch.ones(grid.shape, device=like.device)
    for axis, count in enumerate(grid.shape):
        steps = torch.arange(count, device=like.device, dtype=like.dtype)
        depth = torch.minimum(steps, count - 1 - steps) * float(grid.spacing[axis])
        width = min(_FADE_MM, _FADE_SHARE * float(grid.extent[axis]))
        ramp = 1 - local_flows.window(depth, 0.0, width)
        fade = fade * ramp.reshape([-1 if n == axis else 1 for n in range(3)])
    return fade
