"""Features and masks of a pair on the lattices of the levels.

The lattices share the outer faces of the pair's grid and are coarser by whole factors.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.cache import Cache
from ..core.constants import METHOD
from ..core.grid import Grid
from ..encoders.loading import fingerprint, load_encoder
from ..features.raster import resample_features
from ..numerics.data_term import FeaturePair, standardised
from ..numerics.filters import halved, local_normalised
from ..settings import Settings
from .encoding import RasterPair, encoder_options
from .pair import Pair


def search_factor(settings: Settings, spacing: float) -> int:
    """Voxels of the working grid per node of the discrete search."""
    factor = METHOD.node_factor
    return max(factor, factor * round(settings.search_spacing_mm / spacing / factor))


def lattice_multiple(settings: Settings, spacing: float) -> int:
    """What every side of the working grid must be a multiple of, so that the lattices of all levels share its faces."""
    return math.lcm(search_factor(settings, spacing), METHOD.node_factor, *settings.levels)


class FeaturePyramid:
    """Features and masks of ``pair`` by level, computed when asked for and kept in ``cache``.

    ``rasters``: encoder id -> (fixed, moving) principal components, as of `encoding.encode_pair`. ``factor`` of a level
    is its voxel size as a multiple of the pair's.
    """

    def __init__(
        self, pair: Pair, settings: Settings, device: torch.device, rasters: dict[str, RasterPair], cache: Cache
    ):
        self.pair, self.settings, self.device = pair, settings, device
        self.rasters, self.cache = rasters, cache
        files = [fingerprint(name) for name, _ in settings.encoders]
        self.key = (pair.key(), encoder_options(settings, device), str([settings.encoders, files]))
        self._masks: dict[tuple[str, int], Tensor] = {}
        self._shown = (pair.encoder_key, encoder_options(settings, device))

    @property
    def coarse_key(self) -> tuple:
        """What the field after the coarsest level is kept by, whatever else was chosen: see `retuning`."""
        return ("coarse field", *self._shown)

    def grid(self, factor: int) -> Grid:
        shape = tuple(n // factor for n in self.pair.grid.shape)
        return self.pair.grid.with_spacing(self.pair.grid.spacing * factor, shape)

    def grid_like(self, field_mm: Tensor) -> Grid:
        """The lattice of ``field_mm`` (3, d, h, w), which covers the pair's grid."""
        shape = tuple(field_mm.shape[1:])
        return self.pair.grid.with_spacing(self.pair.grid.extent / np.array(shape), shape)

    def spacing(self, factor: int) -> float:
        """Millimetres between the voxels of a level."""
        return float(self.pair.grid.spacing[0]) * factor

    def mask(self, side: str, factor: int) -> Tensor:
        """Share (d, h, w), 0 to 1, of the mask of ``side`` (fixed or moving) in each voxel of the level."""
        if (side, factor) in self._masks:
            return self._masks[side, factor]
        mask = self.pooled(getattr(self.pair, f"{side}_mask"), factor)
        # That of the finest level would take much memory and hardly any time.
        if factor > 1:
            self._masks[side, factor] = mask
        return mask

    def pooled(self, array: np.ndarray | Tensor, factor: int) -> Tensor:
        """Mean over blocks of ``factor`` voxels of (D, H, W) or (C, D, H, W), on the device."""
        values = torch.as_tensor(array, dtype=torch.float32, device=self.device)
        while factor > 1:
            # Pooling in steps of at most 4 keeps the CPU's kernels quick.
            step = 2 if factor % 2 == 0 else factor
            stacked = values if values.ndim == 4 else values[None]
            even = step == 2 and not any(n % 2 for n in stacked.shape[1:])
            stacked = halved(stacked) if even else F.avg_pool3d(stacked[None], step)[0]
            values = stacked if values.ndim == 4 else stacked[0]
            factor //= step
        return values

    def pairs(
        self, factor: int, names: list[tuple[str, float]], grey: tuple[float, float] = (0.0, 0.0)
    ) -> list[FeaturePair]:
        """Standardised features of the encoders ``names`` (id, weight) on the level's lattice.

        Grey values, locally normalised and bias-corrected, follow with ``grey`` times the encoders' weight, then
        guiding segmentations with the weight of all.
        """
        mask = self.mask("fixed", factor) > 0.5
        pairs = []
        for name, weight in names:
            fixed, moving = self.features(name, factor)
            pairs.append(FeaturePair(*standardised(fixed, moving, mask), weight))
        importance = sum(pair.weight for pair in pairs)
        sigmas = (self.settings.grey_sigma, self.shading_sigma(factor))
        for sigma, share in zip(sigmas, grey, strict=True):
            if share > 0:
                pairs.append(replace(self.grey(factor, sigma), weight=share * importance))
        if self.pair.guides is not None:
            fixed, moving = (self.pooled(channels, factor) for channels in self.pair.guides)
            importance = sum(pair.weight for pair in pairs)
            pairs.append(FeaturePair(*standardised(fixed, moving, mask), importance, guide=True))
        return pairs

    def shading_sigma(self, factor: int) -> float:
        """Standard deviation, in voxels of the level, of the shading that is taken away from grey values."""
        return METHOD.shading_mm / self.spacing(factor)

    def grey(self, factor: int, sigma: float) -> FeaturePair:
        """Both images' grey values, normalised under a Gaussian of ``sigma`` voxels of the level.

        Their squared difference is local cross-correlation (Avants et al., Med. Image Anal. 2008), which places the
        edges of one contrast more exactly than MIND. Only what both images show counts: of a head that one image cuts,
        the Gaussian would otherwise take the missing part for a dark one.
        """

        def compute() -> FeaturePair:
            images = (self.pooled(image, factor) for image in (self.pair.fixed, self.pair.moving))
            seen = None if self.pair.seen is None else self.pooled(self.pair.seen, factor)
            normalised = [local_normalised(image, sigma, seen) for image in images]
            return FeaturePair(*standardised(*normalised, self.mask("fixed", factor)))

        return self.cache.get(("grey", factor, sigma, *self.key), compute)

    def features(self, name: str, factor: int) -> tuple[Tensor, Tensor]:
        """Features (C, d, h, w) of both images by one encoder on the level's lattice."""
        key = ("level", name, factor, fingerprint(name), *self._shown)
        return self.cache.get(key, lambda: self._features(name, factor))

    def _features(self, name: str, factor: int) -> tuple[Tensor, Tensor]:
        if name in self.rasters:
            return tuple(resample_features(raster, self.grid(factor), self.device) for raster in self.rasters[name])
        if factor > 1:
            # Descriptors of the fine image, averaged, tell more than those of a coarse image.
            finer = METHOD.node_factor if factor > METHOD.node_factor and factor % METHOD.node_factor == 0 else 1
            return tuple(self.pooled(features, factor // finer) for features in self.features(name, finer))
        encoder = load_encoder(name, str(self.device))
        images = (self.pooled(image, 1) for image in (self.pair.fixed, self.pair.moving))
        return tuple(encoder(image[None, None])[0] for image in images)
