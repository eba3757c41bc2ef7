"""The deformable stage: features of both images, discrete search, refinement. Torch and numpy only.

Both images lie on one isotropic grid (`Pair`), the moving one already taken through the linear stage. The lattices of
the levels share that grid's outer faces and are coarser by whole factors.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cache import Cache
from ..core.grid import Grid
from ..core.progress import Progress
from ..encoders.base import SliceEncoder
from ..encoders.loading import fingerprint, load_encoder
from ..features.extraction import FeatureRaster, encode_shared, foreground_box, place
from ..features.raster import lattice_positions
from ..numerics.fields import compose, exponential, resize, warp
from ..numerics.refinement import (
    FeaturePair,
    Regulariser,
    adam,
    gauss_newton,
    local_normalised,
    standardised,
    vagueness,
)
from ..numerics.search import candidates, cost_volume, coupled_convex, filled, inverse_consistent
from ..settings import Settings
from ..weights.catalogue import catalogue, entry

# Displacements live on every second voxel of the finest level; finer ones would fit noise.
NODE_FACTOR = 2
# Grey values join the refinement from the first correlation on and count fully from the second. Two MR sequences were
# seen at 0.17, one sequence at 0.46 (two brains) to 0.9.
_GREY_CORRELATION = (0.25, 0.4)
# Of grey values without shading slower than so many mm, some variance stays unexplained. They count in full where that
# is at most the first share of what is left of locally normalised ones, and not at all from the second share on.
# Seen: two brains 0.16, a lung 0.22, livers 0.33 and 0.45, breasts under a bias field 0.43.
_SHADING_MM, _SHADING_RATIO = 30.0, (0.18, 0.28)
# The price where whole regions are compared. Seen: brains lie better under it (Dice 0.848 to 0.853) and fold
# less, lungs lie no worse.
_REGIONS = Regulariser(diffusion=0.4, bending=0.05)
# What an iteration must lower the loss by, on coarser levels and on the finest, where one costs most.
_TOLERANCES = (0.003, 0.01)
# Pull of a landmark on its nodes; a voxel's features pull with about 1.
_SPRING = 200.0
# Where there and back ends so many mm from home, the search is not believed but filled in.
_DOUBT_MM = 3.0
# Millimetres of error per millimetre of spread and doubt: breast MR under known warps, 400 points each.
_ERROR_SHARE = 0.35


@dataclass(frozen=True, eq=False)
class Pair:
    """Both images, float32 (D, H, W) in 0..1, on one isotropic ``grid``, its shape a multiple of the coarsest factor.

    ``*_body``: what the encoders are shown. ``*_mask``: where similarity counts; both boolean (D, H, W). ``guides``:
    further channels (C, D, H, W) in 0..1 of fixed and moving that shall match, from segmentations. ``landmarks``:
    (n, 3) continuous array indices of fixed points and the displacement (n, 3) in mm along the axes that they need.
    """

    grid: Grid
    fixed: np.ndarray
    moving: np.ndarray
    fixed_body: np.ndarray
    moving_body: np.ndarray
    fixed_mask: np.ndarray
    moving_mask: np.ndarray
    guides: tuple[np.ndarray, np.ndarray] | None = None
    landmarks: tuple[np.ndarray, np.ndarray] | None = None

    def key(self) -> str:
        """Hash of everything that the features and the search depend on."""
        return self.shown() + _digest(self.fixed_mask, self.moving_mask, *(self.guides or ()))

    def shown(self) -> str:
        """Hash of everything that the encoders are shown."""
        return _digest(self.grid.affine, self.fixed, self.moving, self.fixed_body, self.moving_body)


@dataclass
class Deformation:
    """What the deformable stage found.

    ``displacement`` (3, d, h, w) in mm along the array axes of ``grid``, a coarser lattice over the pair's grid.
    ``losses``: loss curve by level. ``rasters``: encoder id -> (fixed, moving) principal components. ``weights``:
    SHA256 by encoder. ``uncertainty`` (d, h, w): estimated error in mm.
    ``grey``: how much grey values counted beside the encoders, as (local, wide).
    """

    displacement: Tensor
    grid: Grid
    losses: dict[str, list[float]] = field(default_factory=dict)
    rasters: dict[str, tuple[FeatureRaster, FeatureRaster]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    uncertainty: Tensor | None = None
    grey: tuple[float, float] = (0.0, 0.0)


def search_factor(settings: Settings, spacing: float) -> int:
    """Voxels of the working grid per node of the discrete search."""
    return max(NODE_FACTOR, NODE_FACTOR * round(settings.search_spacing_mm / spacing / NODE_FACTOR))


def lattice_multiple(settings: Settings, spacing: float) -> int:
    """What every side of the working grid must be a multiple of, so that the lattices of all levels share its faces."""
    return math.lcm(search_factor(settings, spacing), NODE_FACTOR, *settings.levels)


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
    made = Deformation(torch.zeros(3, *node_grid.shape, device=device), node_grid)
    with progress.stage("encode", 0.45):
        levels.encode_all(made)
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


class _Levels:
    """Features and masks of a pair on the lattices of the levels, made when asked for."""

    def __init__(self, pair: Pair, settings: Settings, device: torch.device, progress: Progress, cache: Cache):
        self.pair, self.settings, self.device = pair, settings, device
        self.progress, self.cache = progress, cache
        self.rasters: dict[str, tuple[FeatureRaster, FeatureRaster]] = {}
        chosen = [settings.planes, settings.slice_gap_mm, settings.pca_components, str(device)]
        chosen += [getattr(settings, f"encoder_{what}") for what in ("pixels", "layers", "normalisation", "precision")]
        files = [fingerprint(name) for name, _ in settings.encoders]
        self.shown = (pair.shown(), str(chosen))
        self.key = (pair.key(), str([*chosen, settings.encoders, files]))

    def grid(self, factor: int) -> Grid:
        shape = tuple(n // factor for n in self.pair.grid.shape)
        return self.pair.grid.with_spacing(self.pair.grid.spacing * factor, shape)

    def grid_like(self, field_mm: Tensor) -> Grid:
        """The lattice of ``field_mm`` (3, d, h, w), which covers the pair's grid."""
        shape = tuple(field_mm.shape[1:])
        return self.pair.grid.with_spacing(self.pair.grid.extent / np.array(shape), shape)

    def pooled(self, array: np.ndarray | Tensor, factor: int) -> Tensor:
        """Mean over blocks of ``factor`` voxels of (D, H, W) or (C, D, H, W), on the device."""
        values = torch.as_tensor(array, dtype=torch.float32, device=self.device)
        while factor > 1:
            # Pooling in steps of at most 4 keeps the CPU's kernels quick.
            step = 2 if factor % 2 == 0 else factor
            values = F.avg_pool3d(values[None] if values.ndim == 4 else values[None, None], step)[0]
            values = values[0] if np.ndim(array) == 3 else values
            factor //= step
        return values

    def encode_all(self, made: Deformation) -> None:
        """Encode both images with every foundation encoder and project them on their shared components."""
        foundation = [name for name, _ in self.settings.encoders if not _is_mind(name)]
        for name in foundation:
            with self.progress.stage(f"encode {name}", 1 / len(foundation)):
                made.rasters[name], made.weights[name] = self.cache.get(
                    ("rasters", name, fingerprint(name), *self.shown), lambda name=name: self._encoded(name)
                )
        self.rasters = made.rasters

    def _encoded(self, name: str) -> tuple[tuple[FeatureRaster, FeatureRaster], str]:
        """Principal components of both images in one basis, and the SHA256 of the encoder's weights."""
        settings, pair = self.settings, self.pair
        chosen = {what: getattr(settings, f"encoder_{what}") for what in ("precision", "layers", "normalisation")}
        encoder = self.cache.get(
            ("encoder", name, fingerprint(name), str(self.device), str(chosen)),
            lambda: load_encoder(name, str(self.device), progress=self.progress, **chosen),
        )
        bodies = (pair.fixed_body, pair.moving_body)
        planes = settings.planes if isinstance(encoder, SliceEncoder) else settings.planes[:1]
        parts = []
        for plane in planes:
            with self.progress.stage(f"encode {name}", 1 / len(planes)):
                made = encode_shared(
                    (pair.fixed, pair.moving), bodies, pair.grid, encoder, settings.pca_components, plane,
                    slice_gap_mm=settings.slice_gap_mm, pixels=settings.encoder_pixels, subtract_empty=True,
                    box=foreground_box(bodies, pair.grid), memory_gb=settings.memory_gb, progress=self.progress,
                )  # fmt: skip
                parts.append(made)
        both = parts[0] if len(parts) == 1 else tuple(self._joined(sides) for sides in zip(*parts, strict=True))
        return both, encoder.weights_sha256

    def _joined(self, rasters: tuple[FeatureRaster, ...]) -> FeatureRaster:
        """The mean planes' channels side by side on the lattice of the search."""
        grid = self.grid(NODE_FACTOR * 2 if min(self.pair.grid.shape) >= NODE_FACTOR * 2 else 1)
        placed = torch.cat([place(raster, grid, self.device) for raster in rasters])
        positions = lattice_positions(grid, self.pair.grid)
        return FeatureRaster(placed.permute(1, 2, 3, 0), positions, self.pair.grid)

    def pairs(
        self, factor: int, names: list[tuple[str, float]], grey: tuple[float, float] = (0.0, 0.0)
    ) -> list[FeaturePair]:
        """Standardised features of the encoders ``names`` (id, weight) on the level's lattice.

        Grey values, seen locally and widely, follow with ``grey`` times the encoders' weight, then guiding
        segmentations with the weight of all.
        """
        mask = self.mask("fixed", factor) > 0.5
        made = []
        for name, weight in names:
            fixed, moving = self.cache.get(
                ("level", name, factor, *self.key), lambda name=name: self._level(name, factor)
            )
            made.append(FeaturePair(*standardised(fixed, moving, mask), weight))
        importance = sum(pair.weight for pair in made)
        views = (self.settings.grey_reach, self.shading(factor))
        for reach, share in zip(views, grey, strict=True):
            if share > 0:
                made.append(replace(self.grey(factor, reach), weight=share * importance))
        if self.pair.guides is not None:
            fixed, moving = (self.pooled(channels, factor) for channels in self.pair.guides)
            guiding = FeaturePair(*standardised(fixed, moving, mask), sum(pair.weight for pair in made), given=True)
            made.append(guiding)
        return made

    def _level(self, name: str, factor: int) -> tuple[Tensor, Tensor]:
        if name in self.rasters:
            return tuple(place(raster, self.grid(factor), self.device) for raster in self.rasters[name])
        encoder = load_encoder(name, str(self.device))
        if factor <= NODE_FACTOR:
            images = (self.pooled(image, factor) for image in (self.pair.fixed, self.pair.moving))
            return tuple(encoder(image[None, None])[0] for image in images)
        # Descriptors of the fine image, averaged, tell more than those of a coarse image.
        fine = self.cache.get(("level", name, 1, *self.key), lambda: self._level(name, 1))
        return tuple(self.pooled(features, factor) for features in fine)

    def shading(self, factor: int) -> float:
        """Reach in voxels of the level of the shading that is taken away."""
        return _SHADING_MM / self.spacing(factor)

    def grey(self, factor: int, reach: float) -> FeaturePair:
        """Both images' grey values, normalised over ``reach`` voxels of the level.

        Their squared difference is local cross-correlation (Avants et al., Med. Image Anal. 2008), which places the
        edges of one contrast more exactly than MIND.
        """

        def make() -> FeaturePair:
            seen = [
                local_normalised(self.pooled(image, factor), reach) for image in (self.pair.fixed, self.pair.moving)
            ]
            return FeaturePair(*standardised(*seen, self.mask("fixed", factor)))

        return self.cache.get(("grey", factor, reach, *self.key), make)

    def mask(self, side: str, factor: int) -> Tensor:
        return self.pooled(getattr(self.pair, f"{side}_mask"), factor)

    def spacing(self, factor: int) -> float:
        """Millimetres between the voxels of a level."""
        return float(self.pair.grid.spacing[0]) * factor


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _is_mind(name: str) -> bool:
    return name in catalogue() and entry(name).family == "mind"


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


def _pull_of(levels: _Levels, grid: Grid):
    """Springs from matched landmarks to the field, as the ``guide`` of `gauss_newton`; None without landmarks."""
    if levels.pair.landmarks is None:
        return None
    places, wanted = levels.pair.landmarks
    highest = np.array(grid.shape) - 1.0
    exact = np.clip(grid.indices(levels.pair.grid.points(places)), 0, highest)
    low = np.minimum(exact, highest - 1).astype(int)
    corners = []
    for corner in itertools.product((0, 1), repeat=3):
        share = np.prod(np.where(corner, exact - low, 1 - (exact - low)), axis=1)
        index = tuple(torch.as_tensor((low + corner)[:, n], device=levels.device) for n in range(3))
        corners.append((index, torch.as_tensor(share, dtype=torch.float32, device=levels.device)))
    target = torch.as_tensor(wanted.T / grid.spacing[0], dtype=torch.float32, device=levels.device)

    def guide(displacement: Tensor) -> tuple[Tensor, Tensor]:
        curvature = displacement.new_zeros((6, *grid.shape))
        pull = displacement.new_zeros((3, *grid.shape))
        missing = target - sum(displacement[(slice(None), *index)] * share for index, share in corners)
        for index, share in corners:
            for n in (0, 3, 5):
                curvature[n].index_put_(index, _SPRING * share, accumulate=True)
            for n in range(3):
                pull[n].index_put_(index, _SPRING * share * missing[n], accumulate=True)
        return curvature, pull

    return guide


def expected_error(spread: Tensor, doubt: Tensor) -> Tensor:
    """Expected error in mm (d, h, w), from `refinement.vagueness` and the search's inverse-consistency error in mm."""
    return (spread.square() + doubt.square()).sqrt() * _ERROR_SHARE
