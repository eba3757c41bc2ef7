"""What an encoder sees at one point: how alike every place of the other image is to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.constants import METHOD
from ..core.grid import Grid
from ..errors import InputError
from ..images.conversion import grid_of
from ..images.inversion import inverse_points
from ..numerics.data_term import standardised
from ..numerics.local_flows import values_at
from ..registration.workspace import Workspace
from ..weights.catalogue import catalogue, entry

Side = Literal["fixed", "moving"]

# MIND tells little of one voxel; tokens of foundation encoders are wide by themselves.
_PATCHES = {"mind": 1}
# Millimetres between the voxels of the map that is shown.
_MAP_MM = 3.0
# A start that bends is inverted at points so many mm apart.
_BENT_MM = 8.0


@dataclass(frozen=True, eq=False)
class Correspondence:
    """An encoder's answer for ``point``, a point of the image ``side``; all points are LPS mm.

    ``similarity`` (z, y, x), float32, on ``grid`` over the other image: 1 is the same, 0 as different as places of the
    body are on average, and 0 also outside of it. ``match`` is the most similar place within the range of the search;
    ``transform`` where the transform goes, or, for a point of the moving image, where it comes from.
    ``similarity_at_match``, ``similarity_at_transform``: the same measure there. ``distance_mm``: between both.
    ``expected_error_mm``: what the registration says of its own error there; nan where it says nothing.
    """

    encoder: str
    side: Side
    point: np.ndarray
    match: np.ndarray
    transform: np.ndarray
    distance_mm: float
    similarity_at_match: float
    similarity_at_transform: float
    expected_error_mm: float
    similarity: np.ndarray
    grid: Grid


def encoders(workspace: Workspace) -> list[str]:
    """The encoders that can be asked: those of the run, those that were encoded since, and MIND without weights."""
    names = [name for name, _ in workspace.settings.encoders]
    return list(dict.fromkeys([*names, *workspace.pyramid.rasters, "mind"]))


def correspondence(
    workspace: Workspace,
    point,
    encoder: str | None = None,
    side: Side = "fixed",
    transform: sitk.Transform | None = None,
) -> Correspondence:
    """Where ``encoder`` (by default the run's first) sees ``point`` of the image ``side`` in the other image.

    ``transform``: the one to compare with, fixed to moving; by default that of the registration. Raises `InputError`
    for a point outside of its image or an encoder that the run did not have.
    """
    encoder = encoder or encoders(workspace)[0]
    if encoder not in encoders(workspace):
        raise InputError(f"The images were not encoded with {encoder!r}; ask one of {', '.join(encoders(workspace))}.")
    if side not in ("fixed", "moving"):
        raise InputError(f"The side must be fixed or moving, not {side!r}.")
    point = np.asarray(point, float).reshape(3)
    index = grid_of(getattr(workspace.inputs, side)).indices(point)
    size = np.array(grid_of(getattr(workspace.inputs, side)).shape)
    if not np.isfinite(point).all() or (index < -0.5).any() or (index > size - 0.5).any():
        raise InputError(f"The point lies outside of the {side} image.")
    transform = transform or workspace.transform
    if side == "fixed":
        goal = np.array(transform.TransformPoint(point.tolist()))
        here, there = point, inverse_points(workspace.linear, goal)[0][0]
    else:
        goal = inverse_points(transform, point)[0][0]
        here, there = inverse_points(workspace.linear, point)[0][0], goal
    volume = _similarity(workspace, encoder, side, workspace.nodes(here)[0])
    found = here if side == "fixed" else goal
    best, score = _highest(workspace, volume, side, workspace.nodes(there)[0])
    match = workspace.found.grid.points(best.cpu().numpy())
    if side == "fixed":
        match = np.array(workspace.linear.TransformPoint(match.tolist()))
    shown, grid = _on_image(workspace, volume, side)
    return Correspondence(
        encoder, side, point, match, goal, float(np.linalg.norm(match - goal)), score,
        float(values_at(volume[None], workspace.nodes(there))[0, 0]), _expected_error(workspace, found),
        shown, grid,
    )  # fmt: skip


def _sides(workspace: Workspace, encoder: str) -> tuple[Tensor, Tensor]:
    """Standardised features of both images on the nodes of the field."""
    pyramid = workspace.pyramid
    if encoder not in workspace.kept:
        mask = pyramid.mask("fixed", METHOD.node_factor) > 0.5
        made = pyramid.features(encoder, METHOD.node_factor)
        workspace.kept[encoder] = standardised(*made, mask)
    return workspace.kept[encoder]


def _similarity(workspace: Workspace, encoder: str, side: Side, node: Tensor) -> Tensor:
    """Similarity (d, h, w) of every node of the other image to what lies at ``node`` in ``side``."""
    features = _sides(workspace, encoder)
    own, other = features if side == "fixed" else features[::-1]
    family = entry(encoder).family if encoder in catalogue() else ""
    reach = _PATCHES.get(family, 0)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=own.device)
    around = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    patch = values_at(own, node + around)
    width = 2 * reach + 1
    kernel = patch.T.reshape(1, own.shape[0], width, width, width)
    padded = F.pad(other[None], (reach,) * 6, mode="replicate") if reach else other[None]
    # |f - m|^2 over the patch, as a correlation and two sums of squares.
    cross = F.conv3d(padded, kernel)[0, 0]
    energy = padded.square().sum(1, keepdim=True)
    energy = F.avg_pool3d(energy, width, stride=1)[0, 0] * width**3
    cost = (energy - 2 * cross + patch.square().sum()).clamp_min_(0)
    body = _body(workspace, "moving" if side == "fixed" else "fixed")
    return (1 - cost / cost[body].mean().clamp_min(1e-12)).clamp_min_(0) * body


def _body(workspace: Workspace, side: Side) -> Tensor:
    key = f"body {side}"
    if key not in workspace.kept:
        inside = workspace.pyramid.mask(side, METHOD.node_factor) > 0.5
        workspace.kept[key] = inside if bool(inside.any()) else torch.ones_like(inside)
    return workspace.kept[key]


def _highest(workspace: Workspace, volume: Tensor, side: Side, around: Tensor) -> tuple[Tensor, float]:
    """The node index (3,) of the most similar place, to a part of a node, and the similarity there.

    Looked for within the range of the search around ``around``: nothing else could have been found.
    """
    reach = workspace.settings.search_range_mm / workspace.spacing
    if reach > 0:
        axes = [torch.arange(n, device=volume.device) - float(c) for n, c in zip(volume.shape, around, strict=True)]
        squares = sum((a.square().reshape([-1 if m == n else 1 for m in range(3)]) for n, a in enumerate(axes)))
        near = squares <= reach**2
        volume = torch.where(near, volume, volume.new_tensor(-1.0)) if bool(near.any()) else volume
    flat = int(volume.argmax())
    peak = np.array(np.unravel_index(flat, volume.shape))
    score, exact = float(volume.flatten()[flat]), torch.tensor(peak, dtype=torch.float32, device=volume.device)
    for axis in range(3):
        # The vertex of the parabola through the peak and its neighbours.
        if 0 < peak[axis] < volume.shape[axis] - 1:
            ends = [float(volume[tuple(peak + step * np.eye(3, dtype=int)[axis])]) for step in (-1, 1)]
            bend = ends[0] - 2 * score + ends[1]
            if bend < 0 and min(ends) >= 0:
                exact[axis] += 0.5 * (ends[0] - ends[1]) / bend
    return exact, score


def _on_image(workspace: Workspace, volume: Tensor, side: Side) -> tuple[np.ndarray, Grid]:
    """``volume`` on a lattice along the axes of the image that it is to be shown over."""
    other = "moving" if side == "fixed" else "fixed"
    key = f"map {other}"
    if key not in workspace.kept:
        grid = grid_of(getattr(workspace.inputs, other))
        grid = grid.with_spacing(np.maximum(grid.spacing, _MAP_MM))
        points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3))
        if other == "moving":
            points = _before_linear(workspace.linear, points, grid)
        size = torch.tensor(workspace.found.grid.shape, device=workspace.device)
        places = 2 * workspace.nodes(points) / (size - 1).clamp_min(1) - 1
        workspace.kept[key] = places.flip(-1).reshape(1, *grid.shape, 3), grid
    places, grid = workspace.kept[key]
    shown = F.grid_sample(volume[None, None], places, "bilinear", "zeros", align_corners=True)[0, 0]
    return shown.cpu().numpy(), grid


def _before_linear(linear: sitk.Transform, points: np.ndarray, grid: Grid) -> np.ndarray:
    """The points that ``linear`` takes to ``points`` (n, 3) of ``grid``; interpolated where it bends."""
    if linear.IsLinear():
        return inverse_points(linear, points)[0]
    coarse = grid.with_spacing(_BENT_MM).padded(1, 1)
    nodes = coarse.points(np.moveaxis(np.indices(coarse.shape), 0, -1).reshape(-1, 3))
    found, _ = inverse_points(linear, nodes)
    moved = torch.as_tensor((found - nodes).reshape(*coarse.shape, 3), dtype=torch.float32).movedim(-1, 0)
    return points + values_at(moved, torch.as_tensor(coarse.indices(points), dtype=torch.float32)).numpy()


def _expected_error(workspace: Workspace, point: np.ndarray) -> float:
    uncertainty = workspace.found.uncertainty
    if uncertainty is None:
        return float("nan")
    return float(values_at(uncertainty[None], workspace.nodes(point))[0, 0])
