"""MIND-SSC: the self-similarity context of every voxel, a handcrafted descriptor that needs no weights.

Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using self-similarities (MICCAI
2013). Around each voxel lie six neighbours, one step along each axis to either side. Channel (p, q) of the twelve
pairs of neighbours that touch along an edge is

    exp(-(D(p, q) - min D) / V),    D(p, q) = mean over a box of (I(x + p) - I(x + q))^2,    V = mean of D - min D

so it tells which neighbouring patches look alike, whatever the modality. Outside, the image goes on as at its border.

A pair and its mirror image (-p, -q) can be averaged (`Mind`'s ``mirrored``): what then is left out is odd about the
voxel. Of the twelve principal components of MIND over real images, the six strongest are even and the others odd; and
between two MR sequences the odd ones are what does not match (docs/accuracy.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import kernels


def _opposite(offset: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(-n for n in offset)


_NEIGHBOURS = [tuple(sign if a == axis else 0 for a in range(3)) for axis in range(3) for sign in (-1, 1)]
PAIRS = [
    (p, q)
    for p, q in itertools.combinations(_NEIGHBOURS, 2)
    if sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) == 2
]
# One of each two pairs that mirror each other.
MIRRORED = [(p, q) for n, (p, q) in enumerate(PAIRS) if {_opposite(p), _opposite(q)} not in map(set, PAIRS[:n])]
# Numbers worked on at a time on the CPU.
_SLAB_VALUES = 1 << 21


class Mind:
    """MIND-SSC as a `VolumeEncoder`: 12 channels in 0..1 at every voxel, or 6 where it is ``mirrored``.

    ``radius``: patches are 2 * radius + 1 voxels wide. ``dilation``: distance of the neighbours in voxels.
    ``binomial``: patches are weighted binomially (1, 2, 1 for radius 1), as the first MIND's were (Heinrich et al.,
    Med. Image Anal. 2012), instead of evenly: edges are told more sharply at hardly more noise. ``mirrored``: the
    distances of each pair and of its mirror image are averaged.
    """

    stride = 1
    multiple = 1
    weights_sha256 = ""

    def __init__(
        self,
        id: str = "mind",
        radius: int = 1,
        dilation: int = 2,
        device: str | torch.device = "cpu",
        binomial: bool = False,
        mirrored: bool = False,
    ):
        self.id, self.radius, self.dilation, self.device = id, radius, dilation, torch.device(device)
        self.mean = binomial_mean if binomial else box_mean
        self.mirrored = mirrored
        self.pairs = MIRRORED if mirrored else PAIRS
        self.channels = len(self.pairs)

    @torch.inference_mode()
    def __call__(self, volume: Tensor) -> Tensor:
        """(1, C, D, H, W), float32, of a grey ``volume`` (1, 1, D, H, W); channels in the order of ``pairs``."""
        image = volume[0, 0].to(self.device, torch.float32)
        border = self.radius + 2 * self.dilation
        padded = F.pad(image[None, None], (border,) * 6, mode="replicate")[0, 0]
        if kernels.usable(padded):
            return self._compiled(padded, image.shape)
        depth = image.shape[0]
        slab = depth if self.device.type != "cpu" else max(1, _SLAB_VALUES // image[0].numel())
        result = torch.empty(self.channels, *image.shape, device=self.device)
        noise = torch.empty(image.shape, device=self.device)
        for top in range(0, depth, slab):
            bottom = min(top + slab, depth)
            out = result[:, top:bottom]
            self._distances(padded[top : bottom + 2 * border], out)
            out -= out.amin(0)
            torch.mean(out, 0, out=noise[top:bottom])
        noise.clamp_(*_bounds(noise))
        for top in range(0, depth, slab):
            part = result[:, top : top + slab]
            part.div_(noise[top : top + slab]).neg_().exp_()
        return result[None]

    def _compiled(self, padded: Tensor, shape: Sequence[int]) -> Tensor:
        """`__call__` by the compiled kernels, for an image of ``shape`` with its border."""
        width = 2 * self.radius + 1
        binomial = [math.comb(2 * self.radius, n) / 4**self.radius for n in range(width)]
        taps = torch.tensor(binomial if self.mean is binomial_mean else [1 / width] * width)
        geometry = torch.tensor(sorted(self._geometry(), key=lambda row: row[1:4]), dtype=torch.int32)
        distances, noise = kernels.mind_distances(padded, geometry, taps, self.dilation, shape)
        return kernels.mind_descriptors(distances, noise, *_bounds(noise))[None]

    def _geometry(self) -> Iterator[tuple[int, ...]]:
        """By channel: its number, the move p - q of a pair, and the two places where its patch mean is read.

        Read at x + q it is D(p, q), read at x - p it is D(-p, -q); opposite moves have one and the same.
        """
        moves = set()
        for channel, (p, q) in enumerate(self.pairs):
            move = tuple(a - b for a, b in zip(p, q, strict=True))
            if _opposite(move) in moves:
                p, q, move = q, p, _opposite(move)
            moves.add(move)
            yield channel, *move, *q, *(_opposite(p) if self.mirrored else q)

    def _distances(self, padded: Tensor, out: Tensor) -> None:
        """Fill ``out`` (C, D, H, W) with the pairs' distances, from the image with a border of radius + 2 dilation.

        Six patch means of the squared difference between I and I moved by p - q serve twelve pairs.
        """
        size, shared = out.shape[1:], {}

        def read(at: tuple[int, int, int], move: tuple[int, int, int]) -> Tensor:
            starts = [self.dilation * (1 + n) for n in at]
            return shared[move][tuple(slice(a, a + n) for a, n in zip(starts, size, strict=True))]

        for channel, *numbers in self._geometry():
            move, one, other = (tuple(numbers[n : n + 3]) for n in (0, 3, 6))
            if move not in shared:
                shared[move] = self._moved_difference(padded, move)
            if one != other:
                torch.add(read(one, move), read(other, move), out=out[channel]).mul_(0.5)
            else:
                out[channel] = read(one, move)

    def _moved_difference(self, padded: Tensor, move: tuple[int, int, int]) -> Tensor:
        """Patch mean of (I(x + move) - I(x))^2 wherever x is at most ``dilation`` outside of the image."""
        d, n = self.dilation, padded.shape
        here = tuple(slice(d, n[a] - d) for a in range(3))
        there = tuple(slice(d + d * move[a], n[a] - d + d * move[a]) for a in range(3))
        return self.mean((padded[there] - padded[here]).square_(), self.radius)


def _bounds(noise: Tensor) -> tuple[float, float]:
    """Where nothing but noise or nothing at all is near, the variance is kept within sane bounds."""
    average = float(noise.mean(dtype=torch.float64))
    return max(0.001 * average, 1e-12), max(1000 * average, 1e-12)


def box_mean(values: Tensor, radius: int) -> Tensor:
    """Mean over boxes of 2 * radius + 1 voxels; the result is smaller by ``radius`` at every face."""
    width = 2 * radius + 1
    for axis in range(3):
        length = values.shape[axis] - 2 * radius
        total = values.narrow(axis, 0, length).clone()
        for step in range(1, width):
            total += values.narrow(axis, step, length)
        values = total
    return values.div_(width**3)


def binomial_mean(values: Tensor, radius: int) -> Tensor:
    """Binomial mean over 2 * radius + 1 voxels along each axis; the result is smaller by ``radius`` at every face."""
    for axis in range(3):
        for _ in range(2 * radius):
            length = values.shape[axis] - 1
            values = (values.narrow(axis, 0, length) + values.narrow(axis, 1, length)).mul_(0.5)
    return values
