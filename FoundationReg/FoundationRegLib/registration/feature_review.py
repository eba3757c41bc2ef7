"""Features as pictures: of the encoders of a run, and of one that is asked afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..core.cache import Cache
from ..core.grid import Grid
from ..core.progress import Progress
from ..encoders.loading import require
from ..errors import InputError
from ..features.raster import FeatureRaster, resample_features
from ..images.conversion import image_from_array
from ..images.resampling import resample_to_grid
from ..numerics.devices import cpu_threads
from ..weights.catalogue import catalogue
from .encoding import encode_pair, is_mind
from .pair import Pair
from .workspace import Workspace

Pictures = dict[str, dict[str, np.ndarray]]


def encode_for_review(
    workspace: Workspace, encoder: str, progress: Progress | None = None, cache: Cache | None = None
) -> tuple[Pictures, Grid, str]:
    """Encode both images of a registration, as its working grid has them, with an ``encoder`` that took no part.

    The field stays as it is. The workspace keeps the features, so that `interaction.probe` may ask for them. Returns
    what `feature_pictures` does, and the SHA256 of the encoder's weights. Raises `InputError` and `WeightsError`.
    """
    if is_mind(encoder):
        raise InputError("MIND has no features of its own to show; choose an encoder with weights.")
    settings, pyramid = workspace.settings, workspace.pyramid
    require(encoder, settings.encoder_layers)
    alone = settings.replace(encoders=((encoder, 1.0),))
    with cpu_threads(settings.threads):
        rasters, hashes = encode_pair(
            pyramid.pair, alone, workspace.device, progress or Progress(), cache or pyramid.cache
        )
        pyramid.rasters[encoder] = rasters[encoder]
        return (*feature_pictures(rasters, pyramid.pair), hashes[encoder])


def feature_pictures(rasters: dict[str, tuple[FeatureRaster, FeatureRaster]], pair: Pair):
    """The first three principal components of both images as RGB (z, y, x, 3), black outside the body, by encoder and
    side, and their grid; None without any."""
    grid = pair.grid.with_spacing(max(2.0, float(pair.grid.spacing[0])))
    pictures = {}
    for encoder, sides in rasters.items():
        # Of one's own model not the whole path: names of scene nodes and their references are made of it.
        name = encoder if encoder in catalogue() else re.sub(r"[^\w.+-]+", "_", Path(encoder).name)
        placed = [resample_features(raster, grid)[:3].cpu().numpy() for raster in sides]
        bodies = [
            resample_to_grid(image_from_array(body, pair.grid), grid, None, "nearest", 0) > 0
            for body in (pair.fixed_body, pair.moving_body)
        ]
        inside = np.concatenate([values[:, body] for values, body in zip(placed, bodies, strict=True)], axis=1)
        low, high = np.percentile(inside, [1, 99], axis=1)
        pictures[name] = {}
        for side, values, body in zip(("fixed", "moving"), placed, bodies, strict=True):
            scaled = (np.moveaxis(values, 0, -1) - low) / np.maximum(high - low, 1e-6)
            rgb = (scaled.clip(0, 1) * 255).astype(np.uint8)
            if rgb.shape[-1] < 3:
                rgb = np.repeat(rgb[..., :1], 3, axis=-1)
            pictures[name][side] = rgb * body[..., None]
    return pictures, grid if pictures else None
