"""The deformable stage: features of both images, discrete search, refinement. Torch and numpy only.

Both images lie on one isotropic grid (`Pair`), the moving one already taken through the linear stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.constants import METHOD
from ..core.grid import Grid
from ..core.progress import Progress
from ..features.raster import FeatureRaster
from ..numerics.adam import adam
from ..numerics.agreement import lowest_correlation
from ..numerics.devices import memory_limit
from ..numerics.fields import compose, exponential, logarithm, resize, warp
from ..numerics.gauss_newton import gauss_newton
from ..numerics.regularisation import Regulariser
from ..numerics.search import fill_inconsistent, inverse_consistent, search
from ..numerics.uncertainty import posterior_deviation
from ..settings import Settings
from .encoding import encode_pair, is_mind
from .guides import landmark_term
from .pair import Pair
from .pyramid import FeaturePyramid, search_factor

# Called with stage, displacement in mm and its lattice, for previews.
FieldObserver = Callable[[str, Tensor, Grid], None]


@dataclass
class Deformation:
    """What the deformable stage gives.

    ``displacement`` (3, d, h, w) in mm along the array axes of ``grid``, a coarser lattice over the pair's grid.
    ``losses``: loss curve by level. ``rasters``: encoder id -> (fixed, moving) principal components. ``weights``:
    SHA256 by encoder. ``uncertainty`` (d, h, w): estimated error in mm.
    ``grey``: weights of grey values beside the encoders, as (locally normalised, bias-corrected). ``pyramid``: the
    features that were compared.
    """

    displacement: Tensor
    grid: Grid
    losses: dict[str, list[float]] = field(default_factory=dict)
    rasters: dict[str, tuple[FeatureRaster, FeatureRaster]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    uncertainty: Tensor | None = None
    grey: tuple[float, float] = (0.0, 0.0)
    pyramid: FeaturePyramid | None = None


def deform(
    pair: Pair,
    settings: Settings,
    device: torch.device,
    progress: Progress | None = None,
    cache: Cache | None = None,
    on_field: FieldObserver | None = None,
) -> Deformation:
    """The displacement that takes points of the pair's fixed image to the moving one.

    A discrete search, refined from level to level; `numerics.gauss_newton` states what is minimised. From the second
    level on, regions that only one image has, such as a lesion, are down-weighted by their residual. Where grey values
    turn out to be comparable over whole regions, they count beside the encoders and the regulariser becomes nearly that
    of a membrane: every node has evidence of its own then and need not follow its neighbours' slopes.

    ``on_field`` is called now and then, for previews. Raises `Cancelled`.
    """
    progress, cache = progress or Progress(), cache or Cache()
    if not settings.deformable:
        grid = pair.grid.with_spacing(pair.grid.extent / 2, (2, 2, 2))
        return Deformation(torch.zeros(3, *grid.shape, device=device), grid)
    with progress.stage("encode", 0.45):
        rasters, hashes = encode_pair(pair, settings, device, progress, cache)
    pyramid = FeaturePyramid(pair, settings, device, rasters, cache)
    grid = pyramid.grid(METHOD.node_factor)
    field_mm, inconsistency = torch.zeros(3, *grid.shape, device=device), torch.zeros(grid.shape, device=device)
    if settings.search_range_mm > 0:
        with progress.stage("search", 0.15):
            field_mm, inconsistency = searched(pyramid, progress)
        if on_field:
            nodes = pyramid.grid_like(field_mm)
            on_field("search", displacement_of(field_mm, nodes, settings), nodes)
    with progress.stage("refine", 0.4):
        field_mm, losses, grey = _refine(pyramid, field_mm, progress, on_field)
    displacement = displacement_of(resize(field_mm, grid.shape), grid, settings)
    uncertainty = _uncertainty(pyramid, displacement, inconsistency, grey)
    return Deformation(displacement, grid, losses, rasters, hashes, uncertainty, grey, pyramid)


def displacement_of(field_mm: Tensor, grid: Grid, settings: Settings) -> Tensor:
    """The displacement in mm of what is refined: a velocity on ``grid``, or the displacement itself."""
    return exponential(field_mm, grid.spacing) if settings.diffeomorphic else field_mm


def searched(pyramid: FeaturePyramid, progress: Progress) -> tuple[Tensor, Tensor]:
    """The field from which the refinement starts, a velocity where it is diffeomorphic, and inconsistency of `_search`.

    With the same features, weights and limits the search is not done again.
    """
    settings = pyramid.settings
    limits = (settings.search_spacing_mm, settings.search_range_mm, settings.memory_gb, settings.diffeomorphic)
    return pyramid.cache.get(("search", pyramid.key, *limits), lambda: _start_field(pyramid, progress))


def _start_field(pyramid: FeaturePyramid, progress: Progress) -> tuple[Tensor, Tensor]:
    """What `searched` keeps. A search that contradicts itself is followed by a finer one around what it found."""
    found, inconsistency = _search(pyramid, progress)
    if not pyramid.settings.diffeomorphic:
        return found, inconsistency
    velocity = logarithm(found, pyramid.grid_like(found).spacing)
    factor = search_factor(pyramid.settings, float(pyramid.pair.grid.spacing[0]))
    counted = inconsistency[pyramid.mask("fixed", factor) > 0.5]
    if len(counted) and float(counted.median()) > METHOD.contradiction_mm:
        found = _search_around(pyramid, velocity, progress)
        velocity = logarithm(found, pyramid.grid_like(found).spacing)
    return velocity, inconsistency


def _search(pyramid: FeaturePyramid, progress: Progress) -> tuple[Tensor, Tensor]:
    """Inverse-consistent displacement (3, ...) in mm on the search lattice, and its inconsistency (...) in mm.

    The inconsistency is how far a point ends from where it started after both searches, before they were reconciled.
    """
    settings = pyramid.settings
    factor = search_factor(settings, float(pyramid.pair.grid.spacing[0]))
    fixed, moving = _search_features(pyramid, factor)
    radius = max(1, round(settings.search_range_mm / pyramid.spacing(factor)))
    room = search_room(settings, pyramid.device, int(np.prod(pyramid.pair.grid.shape)))
    fields, kept = [], []
    for a, b, side in ((fixed, moving, "fixed"), (moving, fixed, "moving")):
        with progress.stage("search", 0.5):
            fields.append(search(a, b, pyramid.mask(side, factor), radius, room, progress.check, kept))
    del kept
    return _reconciled(pyramid, factor, *fields)


def _search_around(pyramid: FeaturePyramid, velocity: Tensor, progress: Progress) -> Tensor:
    """Displacement (3, ...) in mm on the refinement's nodes: the flow of ``velocity``, after what a search on these
    nodes finds between each image and the other one as that flow brings it."""
    factor, step = METHOD.node_factor, (1.0, 1.0, 1.0)
    fixed, moving = _search_features(pyramid, factor)
    spacing = pyramid.spacing(factor)
    radius = max(1, round(METHOD.second_reach_mm / spacing))
    room = search_room(pyramid.settings, pyramid.device, int(np.prod(pyramid.pair.grid.shape)))
    velocity = resize(velocity, fixed.shape[1:]) / spacing
    fields, kept = [], []
    for sign, a, b, side in ((1, fixed, moving, "fixed"), (-1, moving, fixed, "moving")):
        flow = exponential(sign * velocity, step)
        rest = search(a, warp(b, flow, step), pyramid.mask(side, factor), radius, room, progress.check, kept)
        fields.append(compose(flow, rest, step))
    return _reconciled(pyramid, factor, *fields)[0]


def _search_features(pyramid: FeaturePyramid, factor: int) -> tuple[Tensor, Tensor]:
    """Features (C, d, h, w) of both images whose squared difference is the encoders' weighted one."""
    pairs = pyramid.pairs(factor, list(pyramid.settings.encoders))
    total = sum(pair.weight for pair in pairs)
    return tuple(
        torch.cat([getattr(p, side) * (p.weight / total / p.fixed.shape[0]) ** 0.5 for p in pairs])
        for side in ("fixed", "moving")
    )


def _reconciled(pyramid: FeaturePyramid, factor: int, forward: Tensor, backward: Tensor) -> tuple[Tensor, Tensor]:
    """One inverse-consistent displacement in mm of the two, in nodes, with what contradicts itself filled in from
    around, and their inconsistency in mm."""
    spacing = pyramid.spacing(factor)
    inconsistency = compose(backward, forward, (1.0, 1.0, 1.0)).norm(dim=0) * spacing
    field_mm = inverse_consistent(forward, backward) * spacing
    filled = fill_inconsistent(field_mm, inconsistency, pyramid.mask("fixed", factor), METHOD.inconsistency_mm)
    return filled, inconsistency


def search_room(settings: Settings, device: torch.device, voxels: int) -> float:
    """Bytes that the search may take beside what a working grid of ``voxels`` holds of images and features."""
    limit = memory_limit(settings.memory_gb, device)
    held = METHOD.base_gb * 1e9 + METHOD.held_bytes * voxels
    return max(limit - held, METHOD.least_search_share * limit)


def _refine(
    pyramid: FeaturePyramid, field_mm: Tensor, progress: Progress, on_field: FieldObserver | None
) -> tuple[Tensor, dict[str, list[float]], tuple[float, float]]:
    """The field after all levels, the losses by level, and the weights of the grey values."""
    settings = pyramid.settings
    losses, grey = {}, (0.0, 0.0)
    for n, factor in enumerate(settings.levels):
        if settings.grey_values and settings.optimizer != "adam" and n < 2:
            grey = _grey_weights(pyramid, field_mm, grey)
        name = f"{pyramid.spacing(factor):.3g} mm"
        with progress.stage(f"refine {name}", 1.0 / len(settings.levels), level_key(factor)):
            field_mm, losses[name] = refine_level(pyramid, factor, field_mm, grey, progress, on_field)
        if n == 0:
            pyramid.cache.put(pyramid.coarse_key, (field_mm, grey))
    return field_mm, losses, grey


def refine_level(
    pyramid: FeaturePyramid,
    factor: int,
    field_mm: Tensor,
    grey: tuple[float, float],
    progress: Progress,
    on_field: FieldObserver | None,
) -> tuple[Tensor, list[float]]:
    settings = pyramid.settings
    spacing, fixed_mask = pyramid.spacing(factor), pyramid.mask("fixed", factor)
    pairs = pyramid.pairs(factor, refining_encoders(settings), grey)
    node_grid = pyramid.grid(max(factor, METHOD.node_factor))

    def on_iteration(iteration: int, current: Tensor, loss: float) -> bool:
        progress.update((iteration + 1) / settings.iterations)
        if on_field and progress.wants_previews:
            on_field("refine", displacement_of(current, node_grid, settings), node_grid)
        return progress.finish_early()

    if settings.optimizer == "adam":
        return adam(
            pairs, field_mm, spacing, fixed_mask, diffusion=settings.adam_diffusion * settings.smoothness,
            iterations=settings.iterations, rate=settings.adam_rate, kernel=settings.adam_kernel,
            passes=settings.adam_passes, on_iteration=on_iteration,
        )  # fmt: skip
    return gauss_newton(
        pairs, field_mm, spacing, fixed_mask, pyramid.mask("moving", factor),
        nodes=node_grid.shape, regulariser=regulariser_of(settings, grey), iterations=settings.iterations,
        tolerance=METHOD.tolerances[factor == min(settings.levels)],
        diffeomorphic=settings.diffeomorphic, robust=factor < max(settings.levels),
        landmark_term=landmark_term(pyramid.pair, node_grid, pyramid.device), on_iteration=on_iteration,
    )  # fmt: skip


def refining_encoders(settings: Settings) -> list[tuple[str, float]]:
    """MIND refines, where it is among the encoders: foundation features say in the search which anatomy is meant, but
    their tokens are too coarse to place an edge, and with them the refinement got worse on every case but one."""
    fine = [(name, weight) for name, weight in settings.encoders if is_mind(name)]
    return fine or list(settings.encoders)


def regulariser_of(settings: Settings, grey: tuple[float, float]) -> Regulariser:
    """The settings' own regulariser, and the nearer to a membrane the more bias-corrected grey values count."""
    own = Regulariser(settings.diffusion, settings.bending, float(settings.sliding))
    full = settings.grey_weight * settings.bias_corrected_weight
    share = grey[1] / full if full else 0.0
    return own.interpolated(Regulariser(*METHOD.membrane), share).scaled(settings.smoothness)


def _grey_weights(pyramid: FeaturePyramid, field_mm: Tensor, before: tuple[float, float]) -> tuple[float, float]:
    """Weights of grey values beside MIND, locally normalised and bias-corrected; ``before``: those until now.

    Locally normalised ones count by their correlation where the search, and then the coarsest level, have brought
    them: nothing for different contrasts, the setting's weight for the same. Two contrasts may agree in most of what is
    shown, such as muscle, and be opposite in the rest: so the lowest tenth of the neighbourhoods must correlate, too.
    Refined on grey values to the end, wrong pairs correlate as well. Bias-corrected ones count where images are free of
    faster shading, so that whole regions and not only their edges can be compared; what has been refined on them looks
    freer of it than it is.
    """
    factor, settings = METHOD.node_factor, pyramid.settings
    shape = pyramid.mask("fixed", factor).shape
    displacement = resize(displacement_of(field_mm, pyramid.grid_like(field_mm), settings), shape)
    spacing = (pyramid.spacing(factor),) * 3
    weight = pyramid.mask("fixed", factor) * warp(pyramid.mask("moving", factor)[None], displacement, spacing)[0]

    def products(sigma: float) -> Tensor:
        pair = pyramid.grey(factor, sigma)
        fixed, moving = pair.fixed[0], warp(pair.moving, displacement, spacing)[0]
        return torch.stack([fixed * moving, fixed.square(), moving.square()]) * weight

    def correlation(sums: Tensor) -> float:
        both, first, second = sums.sum((1, 2, 3))
        return float(both / (first * second).sqrt().clamp_min(1e-12))

    sums = products(settings.grey_sigma)
    local = correlation(sums)
    least = lowest_correlation(sums, METHOD.neighbourhood_mm / spacing[0])
    share = min(_ramp(local, *METHOD.grey_correlation), _ramp(least, *METHOD.least_correlation))
    local_weight = settings.grey_weight * share
    if not local_weight:
        return 0.0, 0.0
    corrected = correlation(products(pyramid.shading_sigma(factor)))
    unexplained = (1 - corrected) / max(1 - local, 1e-6)
    low, high = METHOD.shading_ratio
    share = _ramp(-unexplained, -high, -low) * settings.bias_corrected_weight
    return local_weight, local_weight * (min(share, before[1] / before[0]) if before[0] else share)


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _uncertainty(
    pyramid: FeaturePyramid, displacement: Tensor, inconsistency: Tensor, grey: tuple[float, float]
) -> Tensor:
    """Expected error (d, h, w) in mm on the nodes of ``displacement``."""
    factor, settings = METHOD.node_factor, pyramid.settings
    deviation = posterior_deviation(
        pyramid.pairs(factor, refining_encoders(settings), grey), displacement, pyramid.spacing(factor),
        pyramid.mask("fixed", factor), regulariser_of(settings, grey), pyramid.mask("moving", factor),
        landmark_term(pyramid.pair, pyramid.grid(factor), pyramid.device),
    )  # fmt: skip
    return expected_error(deviation, resize(inconsistency[None], tuple(deviation.shape))[0])


def expected_error(deviation: Tensor, inconsistency: Tensor) -> Tensor:
    """Expected error in mm (d, h, w), from the posterior deviation and the search's inverse consistency error in mm."""
    return (deviation.square() + inconsistency.square()).sqrt() * METHOD.error_share


def level_key(factor: int) -> str:
    """What a forecast of the seconds calls the level of the refinement with this ``factor``."""
    return f"refine/{factor}"
