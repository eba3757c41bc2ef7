"""Features of a pair by the foundation encoders of the settings, in bases that both images share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor

import torch

from ..core.cache import Cache
from ..core.constants import METHOD
from ..core.grid import Grid
from ..core.progress import Progress
from ..encoders.base import SliceEncoder, VolumeEncoder
from ..encoders.loading import fingerprint, load_encoder
from ..features.extraction import encode_shared, foreground_box
from ..features.raster import FeatureRaster, lattice_positions, resample_features
from ..settings import Settings
from ..weights.catalogue import catalogue, entry
from .pair import Pair

RasterPair = tuple[FeatureRaster, FeatureRaster]


def is_mind(name: str) -> bool:
    """Whether the encoder ``name`` is MIND, which has no weights and is computed per level."""
    return name in catalogue() and entry(name).family == "mind"


def encoder_options(settings: Settings, device: torch.device) -> str:
    """Everything but the images that decides what the encoders give."""
    options = [settings.planes, settings.slice_gap_mm, settings.pca_components, str(device)]
    options += [getattr(settings, f"encoder_{name}") for name in ("pixels", "layers", "normalisation", "precision")]
    return str(options)


def begin_loading(settings: Settings, device: torch.device, cache: Cache) -> Callable[[], None]:
    """Load the foundation encoders of ``settings`` that ``cache`` lacks, in a thread, where there may be more than one.
    What is returned waits for them and puts them there, or raises what loading has raised."""
    names = [name for name, _ in settings.encoders if not is_mind(name)] if settings.deformable else []
    missing = {_encoder_key(name, settings, device): name for name in names}
    missing = {key: name for key, name in missing.items() if cache.find(key) is None}
    if not missing or settings.threads == 1 or torch.get_num_threads() == 1:
        return lambda: None
    pool = ThreadPoolExecutor(1)
    begun = {key: pool.submit(_load, name, settings, device) for key, name in missing.items()}
    pool.shutdown(wait=False)

    def finish() -> None:
        for key, encoder in begun.items():
            cache.get(key, encoder.result)

    return finish


def _loading_options(settings: Settings) -> dict:
    return {option: getattr(settings, f"encoder_{option}") for option in ("precision", "layers", "normalisation")}


def _encoder_key(name: str, settings: Settings, device: torch.device) -> Hashable:
    return "encoder", name, fingerprint(name), str(device), str(_loading_options(settings))


def _load(name: str, settings: Settings, device: torch.device) -> SliceEncoder | VolumeEncoder:
    return load_encoder(name, str(device), **_loading_options(settings))


def encode_pair(
    pair: Pair, settings: Settings, device: torch.device, progress: Progress, cache: Cache
) -> tuple[dict[str, RasterPair], dict[str, str]]:
    """Principal components of fixed and moving by foundation encoder, and the SHA256 of each encoder's weights."""
    foundation = [name for name, _ in settings.encoders if not is_mind(name)]
    key = (pair.encoder_key, encoder_options(settings, device)) if foundation else ()
    rasters, hashes = {}, {}
    for name in foundation:
        with progress.stage(f"encode {name}", 1 / len(foundation)):
            rasters[name], hashes[name] = cache.get(
                ("rasters", name, fingerprint(name), *key),
                lambda name=name: _encode_with(name, pair, settings, device, progress, cache),
            )
    return rasters, hashes


def _encode_with(
    name: str, pair: Pair, settings: Settings, device: torch.device, progress: Progress, cache: Cache
) -> tuple[RasterPair, str]:
    encoder = cache.get(_encoder_key(name, settings, device), lambda: _load(name, settings, device))
    bodies = (pair.fixed_body, pair.moving_body)
    planes = settings.planes if isinstance(encoder, SliceEncoder) else settings.planes[:1]
    by_plane = []
    for plane in planes:
        with progress.stage(f"encode {name}", 1 / len(planes)):
            rasters = encode_shared(
                (pair.fixed, pair.moving), bodies, pair.grid, encoder, settings.pca_components, plane,
                slice_gap_mm=settings.slice_gap_mm, pixels=settings.encoder_pixels, subtract_empty=True,
                box=foreground_box(bodies, pair.grid), memory_gb=settings.memory_gb, progress=progress,
                store=cache.store, label=str(_loading_options(settings)),
            )  # fmt: skip
            by_plane.append(rasters)
    if len(by_plane) == 1:
        return by_plane[0], encoder.weights_sha256
    grid = _joint_grid(pair.grid)
    fixed, moving = (_join_planes(rasters, grid, pair.grid, device) for rasters in zip(*by_plane, strict=True))
    return (fixed, moving), encoder.weights_sha256


def _joint_grid(grid: Grid) -> Grid:
    factor = METHOD.node_factor * 2 if min(grid.shape) >= METHOD.node_factor * 2 else 1
    return grid.with_spacing(grid.spacing * factor, tuple(n // factor for n in grid.shape))


def _join_planes(rasters: tuple[FeatureRaster, ...], grid: Grid, base: Grid, device: torch.device) -> FeatureRaster:
    """The channels of all planes side by side on ``grid``."""
    values = torch.cat([resample_features(raster, grid, device) for raster in rasters])
    return FeatureRaster(values.permute(1, 2, 3, 0), lattice_positions(grid, base), base)
