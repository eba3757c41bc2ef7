"""The deformable stage: features of both images, discrete search, refinement. Torch and numpy only.

Both images lie on one isotropic grid (`Pair`), the moving one already taken through the linear stage. The lattices of
the levels share that grid's outer faces and are coarser by whole factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.grid import Grid
from ..core.progress import Progress
from ..features.extraction import FeatureRaster
from ..numerics.adam import adam
from ..numerics.fields import compose, exponential, resize, warp
from ..numerics.gauss_newton import gauss_newton
from ..numerics.regularisation import Regulariser
from ..numerics.search import candidates, cost_volume, coupled_convex, filled, inverse_consistent
from ..numerics.uncertainty import vagueness
from ..settings import Settings
from .guides import _pull_of
from .pyramid import NODE_FACTOR, Pair, _is_mind, _Levels, search_factor

# Grey values join the refinement from the first correlation on and count fully from the second. Two MR sequences were
# seen at 0.17, one sequence at 0.46 (two brains) to 0.9.
_GREY_CORRELATION = (0.25, 0.4)


# Of grey values without shading slower than so many mm, some variance stays unexplained. They count in full where that
# is at most the first share of what is left of locally normalised ones, and not at all from the second share on.
# Seen: two brains 0.16, a lung 0.22, livers 0.33 and 0.45, breasts under a bias field 0.43.
_SHADING_RATIO = (0.18, 0.28)


# The price where whole regions are compared. Seen: brains lie better under it (Dice 0.848 to 0.853) and fold
# less, lungs lie no worse.
_REGIONS = Regulariser(diffusion=0.4, bending=0.05)


# What an iteration must lower the loss by, on coarser levels and on the finest, where one costs most.
_TOLERANCES = (0.003, 0.01)


# Where there and back ends so many mm from home, the search is not believed but filled in.
_DOUBT_MM = 3.0


# Millimetres of error per millimetre of spread and doubt: breast MR under known warps, 400 points each.
_ERROR_SHARE = 0.35


@dataclass
class Deformation:
    """What the deformable stage found.

    ``displacement`` (3, d, h, w) in mm along the array axes of ``grid``, a coarser lattice over the pair's grid.
    ``losses``: loss curve by level. ``rasters``: encoder id -> (fixed, moving) principal components. ``weights``:
    SHA256 by encoder. ``uncertainty`` (d, h, w): estimated error in mm.
    ``grey``: how much grey values counted beside the encoders, as (local, wide). ``levels``: the features, to go on.
    """

    displacement: Tensor
    grid: Grid
    losses: dict[str, list[float]] = field(default_factory=dict)
    rasters: dict[str, tuple[FeatureRaster, FeatureRaster]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    uncertainty: Tensor | None = None
    grey: tuple[float, float] = (0.0, 0.0)
    levels: _Levels | None = None


def deform(
    pair: Pair,
    settings: Settings,
    device: torch.device,
    progress: Progress | None = None,
    cache: Cache | None = None,
    on_field: Callable[[str, Tensor, Grid], None] | None = None,
) -> Deformation:
    """The displacement that takes points of the pair's fixed image to the moving one.

    A discrete search, refined from level to level. From the second level on, what only one image has, such as a lesion,
    is known by how badly it is explained, and loses its say. Where grey values turn out to be comparable over whole
    regions, they count beside the encoders, and the field is priced nearly as a membrane: every node has evidence of
    its own then and need not lean on its neighbours' slopes.

    ``on_field`` gets stage, displacement in mm and its lattice now and then, for previews. Raises `Cancelled`.
    """
    progress, cache = progress or Progress(), cache or Cache()
    levels = _Levels(pair, settings, device, progress, cache)
    node_grid = levels.grid(NODE_FACTOR)
    made = Deformation(torch.zeros(3, *node_grid.shape, device=device), node_grid, levels=levels)
    with progress.stage("encode", 0.45):
        made.weights = levels.encode_all()
        made.rasters = levels.rasters
    field_mm, doubt = made.displacement, made.displacement[0]
    if settings.search_range_mm > 0:
        with progress.stage("search", 0.15):
            key = ("search", levels.key, settings.search_spacing_mm, settings.search_range_mm)
            field_mm, doubt = cache.get(key, lambda: _searched(levels, settings, progress))
        if on_field:
            on_field("search", field_mm, levels.grid(search_factor(settings, pair.grid.spacing[0])))
    share = 1.0 / len(settings.levels)
    with progress.stage("refine", 0.4):
        for n, factor in enumerate(settings.levels):
            if settings.grey_values and settings.optimizer != "adam" and n < 2:
                made.grey = _grey_weights(levels, field_mm, made.grey)
            name = f"{pair.grid.spacing[0] * factor:.3g} mm"
            with progress.stage(f"refine {name}", share):
                field_mm, made.losses[name] = _refined(levels, factor, field_mm, made.grey, on_field)
    made.displacement = _displacement(resize(field_mm, node_grid.shape), node_grid, settings)
    pairs = levels.pairs(NODE_FACTOR, _level_encoders(settings))
    spread = vagueness(
        pairs, made.displacement, levels.spacing(NODE_FACTOR), levels.mask("fixed", NODE_FACTOR),
        _regulariser(settings, made.grey),
    )  # fmt: skip
    made.uncertainty = expected_error(spread, resize(doubt[None], node_grid.shape)[0])
    return made


def _displacement(field_mm: Tensor, grid: Grid, settings: Settings) -> Tensor:
    return exponential(field_mm, grid.spacing) if settings.diffeomorphic else field_mm


def _searched(levels: _Levels, settings: Settings, progress: Progress) -> tuple[Tensor, Tensor]:
    """Displacement (3, ...) in mm on the search lattice, consistent with the way back, and the doubt (...) in mm.

    The doubt is how far a point ends from home after going there and back before both ways were made consistent.
    """
    spacing = float(levels.pair.grid.spacing[0])
    factor = search_factor(settings, spacing)
    pairs = levels.pairs(factor, list(settings.encoders))
    total = sum(pair.weight for pair in pairs)
    fixed, moving = (
        torch.cat([getattr(p, side) * (p.weight / total / p.fixed.shape[0]) ** 0.5 for p in pairs])
        for side in ("fixed", "moving")
    )
    reach = max(1, round(settings.search_range_mm / (factor * spacing)))
    radius = tuple(min(reach, n - 1) for n in fixed.shape[1:])
    offsets = candidates(radius, levels.device)
    fields = []
    for a, b, side in ((fixed, moving, "fixed"), (moving, fixed, "moving")):
        with progress.stage("search", 0.5):
            weight = levels.mask(side, factor)
            fields.append(coupled_convex(cost_volume(a, b, offsets, weight, progress.check), offsets, weight))
    forward, backward = fields
    doubt = compose(backward, forward, (1.0, 1.0, 1.0)).norm(dim=0)
    found = inverse_consistent(forward, backward) * (factor * spacing)
    doubt = doubt * (factor * spacing)
    return filled(found, doubt, levels.mask("fixed", factor), _DOUBT_MM), doubt


def _refined(levels: _Levels, factor: int, field_mm: Tensor, grey: tuple[float, float], on_field):
    settings, progress = levels.settings, levels.progress
    spacing, fixed_mask = levels.spacing(factor), levels.mask("fixed", factor)
    pairs = levels.pairs(factor, _level_encoders(settings), grey)
    nodes = tuple(n // max(factor, NODE_FACTOR) for n in levels.pair.grid.shape)
    node_grid = levels.grid(max(factor, NODE_FACTOR))

    def each(iteration: int, current: Tensor, loss: float) -> bool:
        progress.update((iteration + 1) / settings.iterations)
        if on_field and progress.wants_previews:
            on_field("refine", _displacement(current, node_grid, settings), node_grid)
        return progress.finish_early()

    moving_mask = levels.mask("moving", factor)
    if settings.optimizer == "adam":
        return adam(
            pairs, field_mm, spacing, fixed_mask, diffusion=settings.adam_diffusion * settings.smoothness,
            iterations=settings.iterations, rate=settings.adam_rate, kernel=settings.adam_kernel,
            passes=settings.adam_passes, each=each,
        )  # fmt: skip
    return gauss_newton(
        pairs, field_mm, spacing, fixed_mask, moving_mask,
        nodes=nodes, regulariser=_regulariser(settings, grey), iterations=settings.iterations,
        tolerance=_TOLERANCES[factor == min(settings.levels)],
        diffeomorphic=settings.diffeomorphic, robust=factor < max(settings.levels), guide=_pull_of(levels, node_grid),
        each=each,
    )  # fmt: skip


def _level_encoders(settings: Settings) -> list[tuple[str, float]]:
    """MIND refines, where it is among the encoders: foundation features say in the search which anatomy is meant, but
    their tokens are too coarse to place an edge, and with them the refinement got worse on every case but one."""
    fine = [(name, weight) for name, weight in settings.encoders if _is_mind(name)]
    return fine or list(settings.encoders)


def _regulariser(settings: Settings, grey: tuple[float, float]) -> Regulariser:
    """The price of the field: the settings' own, and the nearer to `_REGIONS` the more grey values count widely."""
    own = Regulariser(settings.diffusion, settings.bending, float(settings.sliding))
    full = settings.grey_weight * settings.grey_wide
    return own.mixed(_REGIONS, grey[1] / full if full else 0.0).scaled(settings.smoothness)


def _grey_weights(levels: _Levels, field_mm: Tensor, before: tuple[float, float]) -> tuple[float, float]:
    """How much grey values count beside MIND, seen locally and widely; ``before`` is what they counted until now.

    Locally: nothing for different contrasts, the setting's weight for the same, by their correlation where the search,
    and then the coarsest level, have brought them: refined on them to the end, wrong pairs correlate too. Widely: where
    images are free of shading, whole regions and not only their edges can be compared; what has been refined on them
    looks freer of it than it is.
    """
    factor, settings = NODE_FACTOR, levels.settings
    shift = resize(_displacement(field_mm, levels.grid_like(field_mm), settings), levels.mask("fixed", factor).shape)
    spacing = (levels.spacing(factor),) * 3
    weight = levels.mask("fixed", factor) * warp(levels.mask("moving", factor)[None], shift, spacing)[0]

    def correlation(reach: float) -> float:
        pair = levels.grey(factor, reach)
        fixed, moving = pair.fixed[0], warp(pair.moving, shift, spacing)[0]
        energies = (fixed.square() * weight).sum() * (moving.square() * weight).sum()
        return float((fixed * moving * weight).sum() / energies.sqrt().clamp_min(1e-12))

    local = correlation(settings.grey_reach)
    same = settings.grey_weight * _ramp(local, *_GREY_CORRELATION)
    if not same:
        return 0.0, 0.0
    wide = correlation(levels.shading(factor))
    even = _ramp(-(1 - wide) / max(1 - local, 1e-6), *(-ratio for ratio in reversed(_SHADING_RATIO)))
    share = even * settings.grey_wide
    return same, same * (min(share, before[1] / before[0]) if before[0] else share)


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)


def expected_error(spread: Tensor, doubt: Tensor) -> Tensor:
    """Expected error in mm (d, h, w), from `refinement.vagueness` and the search's inverse-consistency error in mm."""
    return (spread.square() + doubt.square()).sqrt() * _ERROR_SHARE
