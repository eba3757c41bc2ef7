"""The mask of what a box around an organ holds, slice by slice with MedSAM-Lite's own decoder.

The slice in the middle is asked with the box itself, each further one with the box around its neighbour's mask, from
the middle outwards. Of a rounded organ a 2-D decoder makes a cylinder, since it likes to fill the box that it is asked
with; the ellipsoid that touches the box's faces is then the better guess at its ends. Where the decoder's masks agree
with that ellipsoid, all slices are asked once more, with the guess added to the logits in the masks and in the boxes
that are handed on. A liver, which fills its box in no such way, is left to the decoder.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.grid import Grid
from ..core.progress import Progress
from ..encoders.base import SliceEncoder
from .extraction import TokenStream
from .slicing import SliceView

# Voxels of a box along each axis at least.
LEAST_VOXELS = 2
# A neighbour's box grows by so many mm: an organ may be wider in the next slice.
_MARGIN_MM = 2.0
# The decoder's logits count up to this, the ellipsoid's guess is this many at its centre and 0 on its surface.
_LOGIT_LIMIT, _ELLIPSOID_LOGIT = 5.0, 10.0
# Dice of the decoder's masks and the ellipsoid from which the guess is believed.
_ROUNDED = 0.65

# (tokens (1, C, h, w), boxes (n, 4) in 0..1) to logits (n, H, W), as `encoders.box_decoder.BoxDecoder`.
Decoder = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Bounds = tuple[tuple[float, float], ...]


def box_mask(
    image: np.ndarray,
    grid: Grid,
    bounds: Bounds,
    encoder: SliceEncoder,
    decoder: Decoder,
    *,
    gap_mm: float = 5.0,
    memory_gb: float = 0.0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Boolean mask (D, H, W) of what the box holds.

    ``image`` (D, H, W): grey values in 0..1 on ``grid``. ``bounds``: the box's faces (low, high) along the array's axes
    as continuous indices, voxel n from n - 0.5 to n + 0.5. Axial slices at most ``gap_mm`` apart are decoded; logits
    between them are interpolated.
    """
    inside = np.zeros(grid.shape, bool)
    inside[voxels_within(bounds, grid.shape)] = True
    stream = TokenStream(image, grid, encoder, slice_gap_mm=gap_mm, mask=inside, memory_gb=memory_gb)
    tokens: dict[int, Tensor] = {}
    stream.run(lambda n, values: tokens.__setitem__(n, values.half()), progress or Progress())
    view = stream.view
    order = [bounds[axis] for axis in view.axes]
    guess = _ellipsoid(order, [grid.shape[axis] for axis in view.axes])
    spread = _outwards(stream.numbers, sum(order[0]) / 2)
    within = np.moveaxis(inside, view.axes, (0, 1, 2))

    def decoded(prior: np.ndarray) -> np.ndarray:
        logits = _decoded(view, tokens, stream.numbers, spread, order[1:], prior, decoder)
        return (_between(logits, guess.shape[0]) + prior > 0) & within

    mask = decoded(np.zeros_like(guess))
    rounded = (guess > 0) & within
    if 2 * (mask & rounded).sum() >= _ROUNDED * (mask.sum() + rounded.sum()):
        mask = decoded(guess)
    return np.moveaxis(mask, (0, 1, 2), view.axes)


def voxels_within(bounds: Bounds, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The voxels whose centres lie between the faces."""
    lows = [max(0, int(np.ceil(low))) for low, _ in bounds]
    highs = [min(n, int(np.floor(high)) + 1) for (_, high), n in zip(bounds, shape, strict=True)]
    return tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))


def _ellipsoid(bounds: list[tuple[float, float]], shape: list[int]) -> np.ndarray:
    """Logits of the ellipsoid that touches the faces."""
    axes = [
        np.square((np.arange(n) - (low + high) / 2) / ((high - low) / 2))
        for n, (low, high) in zip(shape, bounds, strict=True)
    ]
    squares = axes[0][:, None, None] + axes[1][:, None] + axes[2]
    return (_ELLIPSOID_LOGIT * (1 - squares)).astype(np.float32)


def _outwards(numbers: list[int], middle: float) -> list[tuple[int, int | None]]:
    """(slice, neighbour that it gets its box from), both as places in ``numbers``, from the middle outwards."""
    start = int(np.argmin([abs(n - middle) for n in numbers]))
    upwards = [(n, n - 1) for n in range(start + 1, len(numbers))]
    return [(start, None), *upwards, *((n, n + 1) for n in range(start - 1, -1, -1))]


def _decoded(
    view: SliceView,
    tokens: dict[int, Tensor],
    numbers: list[int],
    spread: list[tuple[int, int | None]],
    whole: list[tuple[float, float]],
    guess: np.ndarray,
    decoder: Decoder,
) -> dict[int, np.ndarray]:
    """Logits (rows, columns) by slice number; where a neighbour's mask has ended, the slices beyond it have none."""
    shape = tuple(guess.shape[1:])
    spacing = view.grid.spacing[list(view.axes[1:])]
    found: dict[int, np.ndarray] = {}
    for place, neighbour in spread:
        number, box = numbers[place], whole
        if neighbour is not None:
            before = numbers[neighbour]
            mask = (found[before] + guess[before] > 0) if before in found else np.zeros(shape, bool)
            box = _around(mask, whole, _MARGIN_MM / spacing)
        if box is None:
            continue
        sides = [sorted(view.fractions(side, np.array(box[side]))) for side in (0, 1)]
        (top, bottom), (left, right) = sides
        seen = tokens[place].permute(2, 0, 1)[None].float()
        prompt = torch.tensor([[left, top, right, bottom]], dtype=torch.float32, device=seen.device)
        answer, _ = decoder(seen, prompt)
        found[number] = _on_voxels(view, answer, shape).clip(-_LOGIT_LIMIT, _LOGIT_LIMIT)
    return found


def _around(mask: np.ndarray, whole: list[tuple[float, float]], margin: np.ndarray) -> list[tuple[float, float]] | None:
    """The box around ``mask``, wider by ``margin`` voxels, within ``whole``; None when nothing is left of it."""
    box = []
    for axis, (low, high) in enumerate(whole):
        filled = np.flatnonzero(mask.any(axis=1 - axis))
        if not len(filled):
            return None
        part = max(low, filled[0] - 0.5 - margin[axis]), min(high, filled[-1] + 0.5 + margin[axis])
        if part[1] - part[0] < LEAST_VOXELS:
            return None
        box.append(part)
    return box


def _on_voxels(view: SliceView, picture: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """Values of a ``picture`` (1, H, W) of the view at the centres of the slice's voxels."""
    y, x = (torch.as_tensor(2 * view.fractions(side, np.arange(n)) - 1) for side, n in enumerate(shape))
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None].to(picture)
    return F.grid_sample(picture[None], places, align_corners=False, padding_mode="border")[0, 0].cpu().numpy()


def _between(logits: dict[int, np.ndarray], count: int) -> np.ndarray:
    """Logits (count, rows, columns), interpolated between the decoded slices; far below zero without any."""
    numbers = sorted(logits)
    stacked = np.stack([logits[n] for n in numbers])
    volume = np.full((count, *stacked.shape[1:]), -1e6, np.float32)
    for n in range(count):
        place = float(np.interp(n, numbers, np.arange(len(numbers))))
        low = min(int(place), max(len(numbers) - 2, 0))
        share = place - low
        volume[n] = stacked[low] if share == 0 else (1 - share) * stacked[low] + share * stacked[low + 1]
    return volume
