"""From images to dense features: slices, encoder, one shared principal component basis.

    raster = encode(image, grid, encoder, "axial")            # tokens where the encoder put them
    pca = SharedPCA.fit([fixed_raster, moving_raster], 12)    # one basis for both images
    features = resample_features(pca.project(raster), grid)               # (12, D, H, W) on the lattice you want

`encode_shared` does the first two for several images within a memory limit. `slicing` says which slices an encoder
sees, `batches` how many at a time, `pca` holds the basis, `raster` what has a place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..core.grid import Grid
from ..core.memory import is_out_of_memory
from ..core.progress import Progress
from ..encoders.base import SliceEncoder, VolumeEncoder
from ..errors import InputError, OutOfMemory
from . import batching
from .pca import Moments, SharedPCA
from .raster import FeatureRaster, resample_features, token_weights
from .slicing import SliceView, foreground_box, slice_numbers
from .store import FeatureStore, content_key

__all__ = ["FeatureRaster", "SharedPCA", "encode", "encode_shared", "foreground_box", "resample_features"]

_FLOAT16_MAX = 65504.0


def encode(
    image: np.ndarray | Tensor,
    grid: Grid,
    encoder: SliceEncoder | VolumeEncoder,
    plane: str = "axial",
    *,
    slice_gap_mm: float = 10.0,
    pixels: int = 0,
    mask: np.ndarray | None = None,
    box: tuple[slice, slice, slice] | None = None,
    subtract_empty: bool = False,
    memory_gb: float = 0.0,
    progress: Progress | None = None,
) -> FeatureRaster:
    """Tokens of ``image`` (D, H, W), float32 in 0..1 on ``grid``, kept at half precision.

    Slice encoders see slices of ``plane`` (relative to the patient, shown as radiologists see them) at most
    ``slice_gap_mm`` apart, the first and the last one with foreground among them, with square pixels and a longer
    side of ``pixels`` (0: what suits the encoder). Volume encoders see the whole volume and ignore these arguments.

    ``mask``: the foreground; slices without it are skipped. ``box``: the part that is shown to a slice encoder.
    ``subtract_empty``: take away the tokens of an empty slice, which hold only traces of position and window borders.
    ``memory_gb``: device memory to stay within; 0 is automatic. Raises `OutOfMemory` when one slice is too much.
    """
    progress = progress or Progress()
    if not isinstance(encoder, SliceEncoder):
        return _encode_volume(image, grid, encoder)
    options = {"slice_gap_mm": slice_gap_mm, "pixels": pixels, "box": box, "subtract_empty": subtract_empty}
    stream = TokenStream(image, grid, encoder, plane, mask=mask, memory_gb=memory_gb, **options)
    return kept_tokens([stream], progress)[0]


def encode_shared(
    images: Sequence[np.ndarray | Tensor],
    masks: Sequence[np.ndarray],
    grid: Grid,
    encoder: SliceEncoder | VolumeEncoder,
    components: int,
    plane: str = "axial",
    *,
    memory_gb: float = 0.0,
    store: FeatureStore | None = None,
    label: str = "",
    progress: Progress | None = None,
    **options,
) -> tuple[FeatureRaster, ...]:
    """The principal components, float32, of several images in the one basis that all of them share.

    ``masks``: each image's foreground, over which the basis is found. Further arguments are those of `encode`. Tokens
    of slice encoders are taken from ``store`` where it holds them, and put there; ``label`` says how the encoder was
    loaded.

    The slices of all images go through the encoder in one queue. Tokens are kept at half precision until the basis is
    known. Where even that would take more than half of the
    memory, every image is encoded twice instead: once for the sums, and once to be projected slice by slice.
    """
    progress = progress or Progress()
    name, share = f"encode {encoder.id}", 1 / len(images)
    if not isinstance(encoder, SliceEncoder):
        rasters = []
        for image in images:
            with progress.stage(name, share):
                rasters.append(_encode_volume(image, grid, encoder))
        pca = SharedPCA.fit(rasters, components, masks)
        return tuple(pca.project(raster) for raster in rasters)
    streams = [
        TokenStream(image, grid, encoder, plane, mask=mask, memory_gb=memory_gb, **options)
        for image, mask in zip(images, masks, strict=True)
    ]
    if sum(stream.bytes for stream in streams) <= _room(encoder, memory_gb) / 2:
        with progress.stage(name, 1.0):
            rasters = _found_or_kept(streams, store, label, progress)
        pca = SharedPCA.fit(rasters, components, masks)
        return tuple(pca.project(raster) for raster in rasters)
    moments = Moments()
    for stream, mask in zip(streams, masks, strict=True):
        weights = stream.weights(mask)
        with progress.stage(name, share / 2):
            stream.run(lambda n, tokens, weights=weights: moments.add(tokens, weights[n]), progress)
    pca = moments.basis(components)
    made = []
    for stream in streams:
        with progress.stage(name, share / 2):
            made.append(stream.projected(pca, progress))
    return tuple(made)


def _found_or_kept(
    streams: Sequence[TokenStream], store: FeatureStore | None, label: str, progress: Progress
) -> list[FeatureRaster]:
    if store is None:
        return kept_tokens(streams, progress)
    keys = [stream.key(label) for stream in streams]
    rasters = [store.get(key, stream.grid, stream.device) for key, stream in zip(keys, streams, strict=True)]
    absent = [n for n, raster in enumerate(rasters) if raster is None]
    for n, raster in zip(absent, kept_tokens([streams[n] for n in absent], progress), strict=True):
        rasters[n] = raster
        store.put(keys[n], raster)
    return rasters


def kept_tokens(streams: Sequence[TokenStream], progress: Progress) -> list[FeatureRaster]:
    """All tokens of each image, at half precision."""
    values = [
        torch.empty(*stream.shape, stream.encoder.channels, dtype=torch.float16, device=stream.device)
        for stream in streams
    ]
    run_streams(streams, lambda image, n, tokens: values[image][n].copy_(_within_half(tokens)), progress)
    return [stream.raster(tokens) for stream, tokens in zip(streams, values, strict=True)]


def run_streams(streams: Sequence[TokenStream], take: Callable[[int, int, Tensor], None], progress: Progress) -> None:
    """Call ``take(image, n, tokens)`` for slice after slice of image after image, with the slice's tokens (rows,
    columns, C) in float32. All ``streams`` show pictures of one shape to one encoder."""
    jobs: list[tuple[int, int] | None] = [(i, n) for i, stream in enumerate(streams) for n in range(stream.shape[0])]
    if not jobs:
        return
    first, empty = streams[0], torch.zeros((), device=streams[0].device)
    if first.subtract_empty:
        jobs.insert(0, None)
    resampling = first.view.resampling(first.device)

    def work(batch: Sequence[tuple[int, int] | None]) -> Tensor:
        pictures = [streams[job[0]].picture(job[1], resampling) if job else first.empty_picture() for job in batch]
        return first.encoder(torch.stack(pictures)[:, None]).permute(0, 2, 3, 1)

    def taken(job: tuple[int, int] | None, tokens: Tensor) -> None:
        nonlocal empty
        if job is None:
            empty = tokens.clone()
        else:
            take(*job, tokens - empty)

    batching.run(jobs, work, taken, first.slices_at_once(), first.device, progress)


class TokenStream:
    """The tokens of one image, slice by slice. Arguments are those of `encode`."""

    def __init__(
        self,
        image: np.ndarray | Tensor,
        grid: Grid,
        encoder: SliceEncoder,
        plane: str = "axial",
        *,
        slice_gap_mm: float = 10.0,
        pixels: int = 0,
        mask: np.ndarray | None = None,
        box: tuple[slice, slice, slice] | None = None,
        subtract_empty: bool = False,
        memory_gb: float = 0.0,
    ):
        image = _checked(image, grid)
        self.grid, self.encoder, self.device = grid, encoder, device_of(encoder)
        self._view = SliceView(grid, plane, encoder, pixels, box)
        self._image, self._chosen = image, (plane, pixels, box, subtract_empty)
        self._numbers = slice_numbers(image, mask, grid, self._view.axes[0], slice_gap_mm)
        self._slices = image.movedim(self._view.axes, (0, 1, 2))
        self.subtract_empty, self._memory_gb = subtract_empty, memory_gb
        self.shape = (len(self._numbers), *self._view.tokens)

    @property
    def view(self) -> SliceView:
        """How the encoder sees the slices."""
        return self._view

    @property
    def numbers(self) -> list[int]:
        """The encoded slices."""
        return self._numbers

    @property
    def bytes(self) -> int:
        """What all tokens take at half precision."""
        return 2 * math.prod(self.shape) * self.encoder.channels

    def key(self, label: str = "") -> str:
        """Hash of everything that the tokens depend on: image, grid, what is shown of it, weights and device."""
        encoder = self.encoder
        made_by = (encoder.id, encoder.weights_sha256, str(getattr(encoder, "precision", "")), self.device.type, label)
        box = self._chosen[2] and tuple((part.start, part.stop) for part in self._chosen[2])
        shown = (*self._chosen[:2], box, self._chosen[3], tuple(self._numbers))
        return content_key(self._image, self.grid, made_by, shown)

    def weights(self, mask: np.ndarray) -> Tensor:
        """The share (slices, rows, columns), 0 to 1, of ``mask`` around each token."""
        return self._view.to_pictures(token_weights(mask, self._view.positions(self._numbers)))

    def picture(self, n: int, resampling: tuple[Tensor, Tensor]) -> Tensor:
        """The ``n``-th encoded slice as the encoder sees it, by the matrices of `SliceView.resampling`."""
        rows, columns = resampling
        return rows @ self._slices[self._numbers[n]].to(self.device, torch.float32) @ columns.T

    def empty_picture(self) -> Tensor:
        return torch.zeros(*self._view.shape, device=self.device)

    def slices_at_once(self) -> int:
        """How many slices the memory holds at a time."""
        each = math.prod(self._view.shape) * getattr(self.encoder, "bytes_per_pixel", 3000)
        return batching.slices_at_once(each, _room(self.encoder, self._memory_gb) / 2)

    def run(self, take: Callable[[int, Tensor], None], progress: Progress) -> None:
        """Call ``take(n, tokens)`` for slice after slice, with its tokens (rows, columns, C) in float32."""
        run_streams([self], lambda _, n, tokens: take(n, tokens), progress)

    def projected(self, pca: SharedPCA, progress: Progress) -> FeatureRaster:
        """The principal components of all tokens; the tokens themselves are dropped slice by slice."""
        values = torch.empty(*self.shape, pca.components, device=self.device)
        self.run(lambda n, tokens: values[n].copy_(pca.apply(_within_half(tokens))), progress)
        return self.raster(values)

    def raster(self, values: Tensor) -> FeatureRaster:
        """``values`` (slices, rows, columns, ...) of the tokens, where they lie."""
        return FeatureRaster(self._view.to_array(values), self._view.positions(self._numbers), self.grid)


def _encode_volume(image: np.ndarray | Tensor, grid: Grid, encoder: VolumeEncoder) -> FeatureRaster:
    device = device_of(encoder)
    pad = [-n % encoder.multiple for n in grid.shape]
    volume = _checked(image, grid)[None, None].to(device, torch.float32)
    if any(pad):
        volume = torch.nn.functional.pad(volume, [p for n in reversed(pad) for p in (0, n)], mode="replicate")
    try:
        values = encoder(volume)[0]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"The memory of {device} is too small for the encoder {encoder.id} on a volume of {grid.shape} voxels; "
            "choose a coarser grid or another encoder."
        ) from None
    kept = [math.ceil(n / encoder.stride) for n in grid.shape]
    values = _within_half(values[:, : kept[0], : kept[1], : kept[2]]).half()
    positions = tuple((np.arange(n) + 0.5) * encoder.stride - 0.5 for n in kept)
    return FeatureRaster(values.permute(1, 2, 3, 0), positions, grid)


def device_of(encoder: SliceEncoder | VolumeEncoder) -> torch.device:
    return torch.device(getattr(encoder, "device", "cpu"))


def _room(encoder: SliceEncoder | VolumeEncoder, memory_gb: float) -> float:
    return batching.room(memory_gb, device_of(encoder), getattr(encoder, "weights_bytes", 0))


def _checked(image: np.ndarray | Tensor, grid: Grid) -> Tensor:
    image = torch.as_tensor(image)
    if tuple(image.shape) != grid.shape:
        raise InputError(f"An image of {tuple(image.shape)} voxels cannot lie on a grid of {grid.shape}.")
    return image


def _within_half(tokens: Tensor) -> Tensor:
    """Without what half precision cannot hold."""
    return tokens.clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
