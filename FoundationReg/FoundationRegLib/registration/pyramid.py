"""Features and masks of a pair on the lattices of the levels."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

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
from ..numerics.data_term import FeaturePair, standardised
from ..numerics.filters import local_normalised
from ..settings import Settings
from ..weights.catalogue import catalogue, entry

# Displacements live on every second voxel of the finest level; finer ones would fit noise.
NODE_FACTOR = 2


_SHADING_MM = 30.0


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

    def encode_all(self) -> dict[str, str]:
        """Encode both images with every foundation encoder and project them on their shared components.

        Fills ``rasters`` and returns the SHA256 of the weights by encoder.
        """
        foundation = [name for name, _ in self.settings.encoders if not _is_mind(name)]
        hashes = {}
        for name in foundation:
            with self.progress.stage(f"encode {name}", 1 / len(foundation)):
                self.rasters[name], hashes[name] = self.cache.get(
                    ("rasters", name, fingerprint(name), *self.shown), lambda name=name: self._encoded(name)
                )
        return hashes

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
            fixed, moving = self.features(name, factor)
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

    def features(self, name: str, factor: int) -> tuple[Tensor, Tensor]:
        """Features (C, D, H, W) of both images by the encoder ``name`` on the level's lattice."""
        return self.cache.get(("level", name, factor, fingerprint(name), *self.shown), lambda: self._level(name, factor))

    def _level(self, name: str, factor: int) -> tuple[Tensor, Tensor]:
        if name in self.rasters:
            return tuple(place(raster, self.grid(factor), self.device) for raster in self.rasters[name])
        encoder = load_encoder(name, str(self.device))
        if factor <= NODE_FACTOR:
            images = (self.pooled(image, factor) for image in (self.pair.fixed, self.pair.moving))
            return tuple(encoder(image[None, None])[0] for image in images)
        # Descriptors of the fine image, averaged, tell more than those of a coarse image.
        return tuple(self.pooled(features, factor) for features in self.features(name, 1))

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


def search_factor(settings: Settings, spacing: float) -> int:
    """Voxels of the working grid per node of the discrete search."""
    return max(NODE_FACTOR, NODE_FACTOR * round(settings.search_spacing_mm / spacing / NODE_FACTOR))


def lattice_multiple(settings: Settings, spacing: float) -> int:
    """What every side of the working grid must be a multiple of, so that the lattices of all levels share its faces."""
    return math.lcm(search_factor(settings, spacing), NODE_FACTOR, *settings.levels)
