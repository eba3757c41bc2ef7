"""From images to dense features: slices, encoder, one shared principal component basis, and any lattice.

    raster = encode(image, grid, encoder, "axial")            # tokens where the encoder put them
    pca = SharedPCA.fit([fixed_raster, moving_raster], 12)    # one basis for both images
    features = place(pca.project(raster), grid)               # (12, D, H, W) on the lattice you want

A token is one feature vector of an encoder; it stands at the centre of its patch. Positions are kept exactly, so
that lattices never need to share a corner.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .encoders.base import SliceEncoder, VolumeEncoder
from .errors import InputError, OutOfMemory
from .grid import Grid
from .progress import Progress

# Which patient axes (LPS: 0 left, 1 posterior, 2 superior) run through the slices, down the rows and along the columns
# of a picture as radiologists see it, and whether against the axis. The networks know anatomy this way up.
_PLANES = {
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, 1), (2, -1), (1, 1)),
}
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True)
class FeatureRaster:
    """Feature vectors at the crossings of three sets of planes.

    ``values``: (z, y, x, C) along the axes of ``grid``'s array. ``positions``: for each of these axes the ascending
    continuous array indices on ``grid`` of the vectors; they need not be evenly spaced.
    """

    values: Tensor
    positions: tuple[np.ndarray, np.ndarray, np.ndarray]
    grid: Grid

    @property
    def channels(self) -> int:
        return self.values.shape[-1]


def foreground_box(masks: Sequence[np.ndarray], grid: Grid, margin_mm: float = 5.0) -> tuple[slice, slice, slice]:
    """The smallest box (z, y, x) of voxels that holds every mask and a margin.

    Give it to `encode` for both images: all of the encoder's pixels then go to the anatomy, at one common scale.
    """
    union = np.logical_or.reduce([np.asarray(mask, bool) for mask in masks])
    if not union.any():
        return tuple(slice(0, n) for n in grid.shape)
    box = []
    for axis in range(3):
        inside = np.flatnonzero(union.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = math.ceil(margin_mm / grid.spacing[axis])
        box.append(slice(max(0, int(inside[0]) - margin), min(grid.shape[axis], int(inside[-1]) + 1 + margin)))
    return tuple(box)


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
    cosine: bool = False,
    shifts: int = 1,
    memory_gb: float = 0.0,
    progress: Progress | None = None,
) -> FeatureRaster:
    """Tokens of ``image`` (D, H, W), float32 in 0..1 on ``grid``.

    Slice encoders see slices of ``plane`` (relative to the patient, shown as radiologists see them) at most
    ``slice_gap_mm`` apart, the first and the last one with foreground among them, with square pixels and a longer
    side of ``pixels`` (0: what suits the encoder). Volume encoders see the whole volume and ignore these arguments.

    ``mask``: the foreground; slices without it are skipped. ``box``: the part that is shown to a slice encoder.
    ``subtract_empty``: take away the tokens of an empty slice, which hold only traces of position and window borders.
    ``cosine``: bring every token to unit length. ``shifts``: encode shifted copies and interleave their tokens, which
    makes the raster ``shifts`` times finer along rows and columns at ``shifts`` squared the cost.
    ``memory_gb``: device memory to stay within; 0 is automatic. Raises `OutOfMemory` when one slice is too much.
    """
    progress = progress or Progress()
    image = torch.as_tensor(image)
    if tuple(image.shape) != grid.shape:
        raise InputError(f"An image of {tuple(image.shape)} voxels cannot lie on a grid of {grid.shape}.")
    if not isinstance(encoder, SliceEncoder):
        return _encode_volume(image, grid, encoder, cosine)
    view = _SliceView(grid, plane, encoder, pixels, box, shifts)
    numbers = _slice_numbers(image, mask, grid, view.axes[0], slice_gap_mm)
    device = torch.device(getattr(encoder, "device", "cpu"))
    rows, columns = view.resampling(device)
    slices = image.movedim(view.axes, (0, 1, 2))
    jobs = [(n, shift) for n in numbers for shift in itertools.product(range(shifts), range(shifts))]
    height, width = (n // encoder.stride for n in view.shape)
    shape = (len(numbers), height, shifts, width, shifts, encoder.channels)
    tokens = torch.empty(shape, dtype=torch.float16, device=device)
    empty = None

    def work(batch: list) -> None:
        pictures = [rows[r] @ slices[n].to(device, torch.float32) @ columns[c].T for n, (r, c) in batch]
        made = encoder(torch.stack(pictures)[:, None])
        if empty is not None:
            made = made - empty
        if cosine:
            made = torch.nn.functional.normalize(made, dim=1)
        made = made.clamp(-_FLOAT16_MAX, _FLOAT16_MAX).permute(0, 2, 3, 1)
        for (n, (r, c)), values in zip(batch, made, strict=True):
            tokens[numbers.index(n), :, r, :, c] = values

    if subtract_empty:
        empty = encoder(torch.zeros(1, 1, *view.shape, device=device))
    at_once = view.slices_at_once(encoder, memory_gb, device)
    (_in_threads if device.type == "cpu" else _in_batches)(jobs, work, at_once, progress)
    values = tokens.flatten(3, 4).flatten(1, 2)
    return view.raster(values, numbers)


def _encode_volume(image: Tensor, grid: Grid, encoder: VolumeEncoder, cosine: bool) -> FeatureRaster:
    device = torch.device(getattr(encoder, "device", "cpu"))
    pad = [-n % encoder.multiple for n in grid.shape]
    volume = image[None, None].to(device, torch.float32)
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
    values = values[:, : kept[0], : kept[1], : kept[2]]
    if cosine:
        values = torch.nn.functional.normalize(values, dim=0)
    positions = tuple((np.arange(n) + 0.5) * encoder.stride - 0.5 for n in kept)
    return FeatureRaster(values.permute(1, 2, 3, 0), positions, grid)


class _SliceView:
    """How slices of ``grid`` are shown to a slice encoder, and where its tokens then lie."""

    def __init__(self, grid: Grid, plane: str, encoder: SliceEncoder, pixels: int, box, shifts: int):
        self.grid, self.shifts = grid, shifts
        self.axes, self.signs = plane_axes(grid, plane)
        box = box or tuple(slice(0, n) for n in grid.shape)
        spacing = grid.spacing[list(self.axes[1:])]
        bounds = np.array([(box[a].start, box[a].stop) for a in self.axes[1:]], float)
        extent = (bounds[:, 1] - bounds[:, 0]) * spacing
        multiple = encoder.multiple
        longer = max(multiple, multiple * round((pixels or encoder.pixels) / multiple))
        self.stride = encoder.stride
        pixel_mm = extent.max() / longer
        self.shape = [max(1, math.ceil(e / pixel_mm / multiple - 1e-6)) * multiple for e in extent]
        # Size of a pixel in voxels of the grid, and the picture's first edge: padding is shared by both sides.
        self.pixel = pixel_mm / spacing
        self.edge = (bounds.sum(1) - np.array(self.shape) * self.pixel) / 2 - 0.5

    def _pixel_positions(self, side: int, shift: int) -> np.ndarray:
        """Array indices of the pixel centres along rows (side 0) or columns (side 1) of one shifted copy."""
        steps = np.arange(self.shape[side]) + 0.5 + (shift - (self.shifts - 1) / 2) * self.stride / self.shifts
        return self._oriented(side, steps)

    def _oriented(self, side: int, steps: np.ndarray) -> np.ndarray:
        if self.signs[1 + side] < 0:
            steps = self.shape[side] - steps
        return self.edge[side] + steps * self.pixel[side]

    def resampling(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Matrices (shifts, pixels, voxels) that resample a slice along its rows and along its columns."""
        made = []
        for side in range(2):
            voxels = self.grid.shape[self.axes[1 + side]]
            width = max(1.0, self.pixel[side])
            matrices = [_kernel(voxels, self._pixel_positions(side, s), width) for s in range(self.shifts)]
            made.append(torch.stack(matrices).to(device))
        return tuple(made)

    def raster(self, values: Tensor, numbers: list[int]) -> FeatureRaster:
        """Tokens (slices, rows, columns, C) in the array's order of axes, every axis ascending."""
        positions: list = [None, None, None]
        positions[self.axes[0]] = np.array(numbers, float)
        for side in range(2):
            count = self.shape[side] // self.stride * self.shifts
            steps = (np.arange(count) + 0.5) * self.stride / self.shifts
            along = self._oriented(side, steps)
            if self.signs[1 + side] < 0:
                along, values = along[::-1].copy(), values.flip(1 + side)
            positions[self.axes[1 + side]] = along
        return FeatureRaster(values.movedim((0, 1, 2), self.axes), tuple(positions), self.grid)

    def slices_at_once(self, encoder: SliceEncoder, memory_gb: float, device: torch.device) -> int:
        """How many slices fit into the memory; each encoder says how many bytes it takes per pixel. More than 16 at a
        time only take memory."""
        if memory_gb <= 0:
            memory_gb = torch.cuda.mem_get_info(device)[0] * 0.6e-9 if device.type == "cuda" else 2.0
        each = self.shape[0] * self.shape[1] * getattr(encoder, "bytes_per_pixel", 3000)
        return max(1, min(16, int(memory_gb * 1e9 / each)))


def plane_axes(grid: Grid, plane: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The array axes that run through the slices of ``plane``, down their rows and along their columns, and +1 or -1
    for each: whether the picture shows it in the array's order. Oblique grids take the nearest assignment."""
    if plane not in _PLANES:
        raise InputError(f"The plane must be one of {', '.join(_PLANES)}, not {plane!r}.")
    direction = grid.direction
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(direction[n, p[n]]) for n in range(3)))
    axes = tuple(order[patient] for patient, _ in _PLANES[plane])
    signs = tuple(int(np.sign(direction[patient, order[patient]])) * sign for patient, sign in _PLANES[plane])
    return axes, signs


def _slice_numbers(image: Tensor, mask: np.ndarray | None, grid: Grid, axis: int, gap_mm: float) -> list[int]:
    """Slices to encode: from the first to the last one with foreground, evenly spread, at most ``gap_mm`` apart."""
    foreground = torch.as_tensor(mask).bool() if mask is not None else image > 0
    if tuple(foreground.shape) != grid.shape:
        raise InputError(f"A mask of {tuple(foreground.shape)} voxels cannot lie on a grid of {grid.shape}.")
    filled = torch.nonzero(foreground.movedim(axis, 0).flatten(1).any(1)).flatten()
    first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, grid.shape[axis] - 1)
    steps = math.ceil((last - first) * grid.spacing[axis] / gap_mm - 1e-6)
    return sorted({round(n) for n in np.linspace(first, last, steps + 1)})


def _in_batches(jobs: list, work, size: int, progress: Progress) -> None:
    """Call ``work`` on batches of ``jobs``; when memory runs out, halve the batch and go on."""
    done = 0
    while done < len(jobs):
        progress.update(done / len(jobs))
        batch = jobs[done : done + size]
        try:
            work(batch)
            done += len(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _release_memory()
            if size == 1:
                raise OutOfMemory(
                    "The device's memory is too small for one slice; choose fewer encoder pixels or a smaller encoder."
                ) from None
            size //= 2


def _in_threads(jobs: list, work, at_once: int, progress: Progress) -> None:
    """Call ``work`` on every job by itself, several at a time, each with its share of the processor's threads.

    Slices do not wait for one another, so this keeps all cores busy where threads inside every small operation do not.
    """
    threads = torch.get_num_threads()
    at_once = max(1, min(at_once, threads, len(jobs)))
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(max(1, threads // at_once),))
    try:
        running = [pool.submit(work, [job]) for job in jobs]
        for done, future in enumerate(running):
            progress.update(done / len(jobs))
            future.result()
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                "The memory is too small for these slices; choose fewer encoder pixels, a smaller encoder or a lower "
                "memory limit."
            ) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def _release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _kernel(count: int, positions: np.ndarray, width: float = 1.0) -> Tensor:
    """Matrix (positions, count) that reads values at 0, 1, ... count - 1 at ``positions`` with a triangle of half
    width ``width``: linear interpolation for 1, anti-aliased shrinking above. Beyond the outer faces it reads zero."""
    weights = np.maximum(0, 1 - np.abs(positions[:, None] - np.arange(count)) / width)
    total = weights.sum(1, keepdims=True)
    outside = (positions < -0.5) | (positions > count - 0.5)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    weights[outside] = 0
    return torch.from_numpy(weights.astype(np.float32))


def _between(source: np.ndarray, target: np.ndarray) -> Tensor:
    """Matrix (target, source) of linear interpolation from ascending positions; beyond the ends the nearest value."""
    matrix = np.zeros((len(target), len(source)), np.float32)
    if len(source) == 1:
        matrix[:, 0] = 1
        return torch.from_numpy(matrix)
    left = np.clip(np.searchsorted(source, target, side="right") - 1, 0, len(source) - 2)
    share = np.clip((target - source[left]) / (source[left + 1] - source[left]), 0, 1)
    every = np.arange(len(target))
    matrix[every, left] = 1 - share
    matrix[every, left + 1] = share
    return torch.from_numpy(matrix)


def place(raster: FeatureRaster, grid: Grid, device: str | torch.device | None = None) -> Tensor:
    """Features (C, D, H, W), float32, at the voxel centres of ``grid`` by linear interpolation between the tokens.

    ``grid`` may have any spacing, size and origin, but its axes must be parallel to those of the raster's grid.
    """
    values = raster.values.to(device=device, dtype=torch.float32) if device else raster.values.float()
    corner = raster.grid.indices(grid.points(np.zeros(3)))
    steps = raster.grid.indices(grid.points(np.eye(3))) - corner
    if np.abs(steps - np.diag(np.diag(steps))).max() * max(grid.shape) > 0.05:
        raise InputError("Features can only be placed on a grid whose axes are parallel to those of the images' grid.")
    targets = [corner[a] + steps[a, a] * np.arange(grid.shape[a]) for a in range(3)]
    matrices = [_between(raster.positions[a], targets[a]).to(values.device) for a in range(3)]
    # The axis that shrinks most goes first, so that what lies between the steps stays small.
    result = values.permute(3, 0, 1, 2)
    for axis in sorted(range(3), key=lambda a: len(targets[a]) / len(raster.positions[a])):
        result = torch.tensordot(matrices[axis], result, dims=([1], [1 + axis])).movedim(0, 1 + axis)
    return result.contiguous()


def token_weights(mask: np.ndarray | Tensor, raster: FeatureRaster) -> Tensor:
    """The share (z, y, x), 0 to 1, of ``mask`` around each token of the raster."""
    result = torch.as_tensor(mask).to(torch.float32)
    for axis, positions in enumerate(raster.positions):
        step = np.diff(positions).mean() if len(positions) > 1 else 1.0
        matrix = _kernel(raster.grid.shape[axis], positions, max(1.0, float(step)))
        result = torch.tensordot(matrix, result, dims=([1], [axis])).movedim(0, axis)
    return result


@dataclass(frozen=True)
class SharedPCA:
    """One principal component basis for several rasters: ``(tokens - mean) @ basis``.

    ``mean`` (C), ``basis`` (C, k, columns scaled so that the features' mean square over channels is 1 over all tokens
    that were fitted), ``explained``: share (k) of the total variance that each component holds.
    """

    mean: Tensor
    basis: Tensor
    explained: np.ndarray

    @classmethod
    def fit(
        cls,
        rasters: Sequence[FeatureRaster],
        components: int,
        masks: Sequence[np.ndarray | None] | None = None,
        whiten: float = 0.0,
    ) -> SharedPCA:
        """The basis of all tokens of ``rasters``, those outside their masks left out.

        Mean and covariance are summed up slice by slice in float64, so the tokens are never copied as a whole.
        ``whiten``: 0 keeps the components' relative strength, 1 gives all the same, between is between.
        Each component's largest entry is positive: the result does not depend on the solver.
        """
        masks = masks or [None] * len(rasters)
        total, mean, scatter = 0.0, None, None
        for raster, mask in zip(rasters, masks, strict=True):
            weights = token_weights(mask, raster) if mask is not None else None
            for n, block in enumerate(raster.values):
                block = block.flatten(0, 1).float()
                weight = torch.ones(len(block)) if weights is None else weights[n].flatten()
                keep = weight > 0
                if not keep.any():
                    continue
                block, weight = block[keep.to(block.device)], weight[keep].to(block.device)
                if mean is None:
                    shift = block.mean(0)
                    mean = torch.zeros(len(shift), dtype=torch.float64)
                    scatter = torch.zeros(len(shift), len(shift), dtype=torch.float64)
                # Sums of differences from a typical token stay accurate in float32.
                block = block - shift.to(block.device)
                weighted = block * weight[:, None]
                total += float(weight.sum(dtype=torch.float32))
                mean += weighted.sum(0).cpu().double()
                scatter += (block.T @ weighted).cpu().double()
        if mean is None:
            raise InputError("No feature lies inside the foreground masks.")
        mean /= total
        covariance = scatter / total - torch.outer(mean, mean)
        variances, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        k = min(components, len(variances))
        variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
        kept, basis = variances[:k], vectors[:, :k]
        signs = torch.sign(basis.gather(0, basis.abs().argmax(0, keepdim=True)))
        floor = kept[0].clamp(min=1e-30)
        scale = (kept / floor).clamp(min=1e-6).pow(-whiten / 2)
        scale = scale / ((kept * scale**2).mean().clamp(min=1e-30)).sqrt()
        return cls(
            mean=(mean + shift.cpu().double()).float(),
            basis=(basis * signs * scale).float(),
            explained=(kept / variances.sum().clamp(min=1e-30)).numpy(),
        )

    def project(self, raster: FeatureRaster) -> FeatureRaster:
        """The raster with its k components instead of the encoder's channels, float32."""
        mean, basis = self.mean.to(raster.values.device), self.basis.to(raster.values.device)
        projected = torch.stack([(block.float() - mean) @ basis for block in raster.values])
        return replace(raster, values=projected)


def cache_key(image: np.ndarray | Tensor, grid: Grid, encoder: SliceEncoder | VolumeEncoder, **settings) -> str:
    """A name for the features of ``image``: it changes with voxels and place, the encoder's weights and settings."""
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes())
    digest.update(grid.affine.tobytes())
    precision = str(getattr(encoder, "precision", ""))
    facts = [list(grid.shape), encoder.id, encoder.weights_sha256, precision, settings]
    digest.update(json.dumps(facts, sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def _plain(value):
    if isinstance(value, slice):
        return [value.start, value.stop]
    if isinstance(value, (np.ndarray, Tensor)):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    raise TypeError(f"A setting of the type {type(value).__name__} cannot be part of a cache key.")
