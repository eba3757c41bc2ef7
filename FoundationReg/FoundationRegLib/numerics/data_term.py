"""The data term of the refinement: features of two images, compared where a field takes them, and linearised."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import kernels
from .filters import smooth
from .parallel import each
from .sampling import sample_at

Box = tuple[slice, slice, slice]

# Voxels (z, y, x) of a block that the CPU works on at a time: more would leave its cache, less is mostly border.
_BLOCK = (32, 32, 128)

# A region that is explained so many times worse than the rest keeps half of its weight.
_OUTLIER = 3.0


@dataclass(frozen=True)
class FeaturePair:
    """Features (C, D, H, W) of both images on one lattice; ``weight`` is relative to the other pairs.

    ``guide``: the user says that they match, so they count everywhere, however badly they are explained.
    """

    fixed: Tensor
    moving: Tensor
    weight: float = 1.0
    guide: bool = False

    @cached_property
    def packed(self) -> tuple[Tensor, Tensor]:
        """Both as the compiled kernels read them."""
        return kernels.by_voxel(self.fixed), kernels.by_voxel(self.moving)

    def swapped(self) -> FeaturePair:
        """The same pair with the images exchanged."""
        other = replace(self, fixed=self.moving, moving=self.fixed)
        if "packed" in self.__dict__:
            other.__dict__["packed"] = self.packed[::-1]
        return other


def standardised(fixed: Tensor, moving: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both features (C, D, H, W), jointly centred by channel and scaled to mean square 1 over ``mask`` (D, H, W)."""
    if kernels.usable(fixed, moving):
        return kernels.standardised(fixed, moving, mask.to(fixed.dtype))
    share = mask.flatten().to(fixed.dtype)
    share = share / share.sum().clamp_min(1) / 2
    both = [features.flatten(1) for features in (fixed, moving)]
    mean = sum(values @ share for values in both)
    power = sum(((values - mean[:, None]).square() @ share).mean() for values in both)
    mean, scale = mean[:, None, None, None], power.sqrt().clamp_min(1e-8)
    return (fixed - mean) / scale, (moving - mean) / scale


def _cut(shift: Tensor, box: Box, shape: Sequence[int]) -> Tensor:
    """``shift`` (3, ...) at the voxels of ``box``, as `resize` would give it there.

    It lies on the voxels of ``shape`` or on a lattice of whole multiples of them over the same faces.
    """
    stride = shape[0] // shift.shape[1]
    if stride == 1:
        return shift[(slice(None), *box)]
    for axis, voxels in enumerate(box, 1):
        # Places of the voxels among the nodes, of which only those around the box are read.
        steps = torch.arange(voxels.start, voxels.stop, device=shift.device, dtype=shift.dtype)
        places = ((steps + 0.5) / stride - 0.5).clamp(0, shift.shape[axis] - 1)
        first, last = int(places[0]), math.ceil(float(places[-1]))
        nodes = torch.arange(first, last + 1, device=shift.device, dtype=shift.dtype)
        matrix = (1 - (places[:, None] - nodes).abs()).clamp_min_(0)
        shift = torch.tensordot(matrix, shift.narrow(axis, first, len(nodes)), ([1], [axis])).movedim(0, axis)
    return shift


def _sampling_grid(moved: Tensor, shape: Sequence[int], box: Box) -> Tensor:
    """Where the voxels of ``box`` in a lattice of ``shape`` land, as the grid (d, h, w, 3) of `sample_at`.

    ``moved`` (3, d, h, w): their displacement in voxels.
    """
    axes = []
    for axis, (size, part) in enumerate(zip(shape, box, strict=True)):
        steps = torch.arange(part.start, part.stop, device=moved.device, dtype=moved.dtype)
        steps = steps.reshape([-1 if n == axis else 1 for n in range(3)])
        axes.append((moved[axis] + steps).mul_(2 / max(size - 1, 1)).sub_(1))
    return torch.stack(axes[::-1], dim=-1)


class DataTerm:
    """The squared difference of the first features of ``pairs`` and the second ones, warped by a displacement.

    ``sign``: 1 compares forward, -1 backward along the velocity. ``weight`` (D, H, W): how much each voxel of the first
    features counts; blocks without weight are skipped. ``landing``: the same for the second ones, where voxels land.
    ``stride``: voxels per node. ``robust``: as in `gauss_newton`.
    """

    def __init__(
        self, sign: int, pairs: Sequence[FeaturePair], weight: Tensor, landing: Tensor, stride: int, robust=False
    ):
        self.sign, self.pairs, self.weight, self.landing, self.stride = sign, pairs, weight, landing, stride
        self.robust = robust
        tensors = [weight, landing, *(features for pair in pairs for features in (pair.fixed, pair.moving))]
        shapes = {tuple(values.shape[-3:]) for values in tensors}
        self.compiled = kernels.usable(*tensors) and len(shapes) == 1 and all(n % stride == 0 for n in weight.shape)
        if self.compiled:
            self.packed = [pair.packed for pair in pairs]
            self.extents = kernels.row_extents(weight)

    @cached_property
    def blocks(self) -> list[Box]:
        """What torch works on, piece by piece."""
        return _blocks(self.weight, self.stride)

    def linearised(self, shift: Tensor) -> tuple[Tensor, Tensor, float]:
        """Curvature (6: zz zy zx yy yx xx) and negative gradient (3) of the data term on the nodes, and its value.

        ``shift`` (3, ...) in voxels, on the voxels or on the nodes; results are per node and for displacements in
        nodes.
        """
        nodes = tuple(n // self.stride for n in self.weight.shape)
        mass = self.weight.new_zeros(nodes)
        if self.compiled and kernels.usable(shift) and kernels.fits(shift.shape[1:], self.weight.shape):
            terms = [
                kernels.data_term(
                    *packed, self.weight, self.landing, shift, self.extents, self.stride, None if n else mass
                )
                for n, packed in enumerate(self.packed)
            ]
            return self._combined(terms, mass)
        # Per pair: three rows of the negative gradient, six of curvature, and the squared residual.
        terms = [self.weight.new_zeros((10, *nodes)) for _ in self.pairs]
        each(lambda box: self._fill(box, shift, terms, mass), self.blocks, self.weight.device)
        return self._combined(terms, mass)

    def _fill(self, box: Box, shift: Tensor, terms: list[Tensor], mass: Tensor) -> None:
        """Work out the voxels of ``box`` and write what its nodes get into ``terms`` and ``mass``."""
        stride, shape = self.stride, self.weight.shape
        halo = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
        inner = tuple(slice(s.start - h.start, s.stop - h.start) for s, h in zip(box, halo, strict=True))
        sampling_grid = _sampling_grid(_cut(shift, halo, shape), shape, halo)
        counts = self.weight[box] * sample_at(self.landing[None], sampling_grid[inner], "nearest")[0]
        here = tuple(slice(s.start // stride, s.stop // stride) for s in box)
        mass[here] = self._pooled(counts[None])[0]
        for pair, term in zip(self.pairs, terms, strict=True):
            fixed, moved = pair.fixed[(slice(None), *halo)], sample_at(pair.moving, sampling_grid)
            residual = fixed[(slice(None), *inner)] - moved[(slice(None), *inner)]
            slopes = _central_differences(moved.add_(fixed), inner)
            product = torch.mul(residual, residual)
            rows = counts.new_empty((10, *counts.shape))
            torch.sum(product, 0, out=rows[9])
            for n, slope in enumerate(slopes):
                torch.sum(torch.mul(residual, slope, out=product), 0, out=rows[n])
            for n, (a, b) in enumerate(_UPPER, 3):
                torch.sum(torch.mul(slopes[a], slopes[b], out=product), 0, out=rows[n])
            term[(slice(None), *here)] = self._pooled(rows.mul_(counts))

    def _pooled(self, values: Tensor) -> Tensor:
        """Means of (C, D, H, W) over the voxels of each node."""
        if self.stride != 2 or values.device.type != "cpu":
            return F.avg_pool3d(values[None], self.stride)[0] if self.stride > 1 else values
        for axis in (1, 2, 3):
            pairs = values.unflatten(axis, (-1, 2))
            values = pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1)
        return values.div_(8)

    def _combined(self, terms: list[Tensor], mass: Tensor) -> tuple[Tensor, Tensor, float]:
        """The pairs' ``terms`` added up, each in units of its own noise; ``mass`` (d, h, w) is what each node counts.

        Works in the memory of ``terms``.
        """
        loss, importance = 0.0, sum(pair.weight for pair in self.pairs)
        images, guides = None, None
        for pair, own in zip(self.pairs, terms, strict=True):
            channels, share = pair.fixed.shape[0], pair.weight / importance
            noise = (own[9].sum() / mass.sum().clamp_min(1e-6) / channels).clamp_min(1e-8)
            own *= share / (channels * noise)
            loss += share * float(noise)
            if pair.guide:
                guides = own if guides is None else guides.add_(own)
            else:
                images = own if images is None else images.add_(own)
        if images is not None and self.robust:
            unguided = sum(pair.weight for pair in self.pairs if not pair.guide) / importance
            images[:9] *= outlier_weight(images[9], mass * unguided)
        rows = guides if images is None else images if guides is None else images.add_(guides)
        # Slopes came as sums of both images' differences over two voxels: four times the mean's per voxel.
        return rows[3:9].mul_((self.stride / 4) ** 2), rows[:3].mul_(self.stride / 4), loss


def outlier_weight(squares: Tensor, mass: Tensor) -> Tensor:
    """The share of its weight that each node keeps (d, h, w).

    ``squares`` (d, h, w): residuals in units of the noise, which ``mass`` (d, h, w) voxels have contributed to.

    With e, the mean over a node and its neighbours, it is 1 / (1 + (e / 3)^4): noise is left alone, and a region that
    is explained some times worse than the rest is an outlier (Black and Anandan, CVIU 63, 1996), where single edges
    that do not meet yet are not.
    """
    excess = smooth(squares) / smooth(mass).clamp_min(1e-3)
    return 1 / (1 + (excess / _OUTLIER) ** 4)


_UPPER = [(a, b) for a in range(3) for b in range(a, 3)]


def _blocks(weight: Tensor, stride: int) -> list[Box]:
    """Boxes of whole nodes that hold all of ``weight`` (D, H, W): what is empty around them need not be looked at.

    On the CPU they fit its cache and are cut to what each holds; elsewhere it is one box.
    """
    held, shape = weight > 0, weight.shape
    steps = shape
    if weight.device.type == "cpu":
        steps = [max(1, n // stride) * stride for n in _BLOCK]
    blocks = []
    for corner in itertools.product(*(range(0, n, step) for n, step in zip(shape, steps, strict=True))):
        part = held[tuple(slice(first, first + step) for first, step in zip(corner, steps, strict=True))]
        if bool(part.any()):
            extents = zip(corner, (_extent(part, axis, stride) for axis in range(3)), strict=True)
            blocks.append(tuple(slice(first + e.start, first + e.stop) for first, e in extents))
    return blocks


def _extent(mask: Tensor, axis: int, stride: int) -> slice:
    """Indices along ``axis`` between which ``mask`` (D, H, W) holds anything, out to multiples of ``stride``."""
    found = mask.movedim(axis, 0).flatten(1).any(1).nonzero()
    return slice(int(found[0]) // stride * stride, -(-(int(found[-1]) + 1) // stride) * stride)


def _central_differences(values: Tensor, inner: Box) -> list[Tensor]:
    """Differences of (C, D, H, W) between the next and the previous voxel along z, y, x, inside ``inner``.

    Where ``inner`` touches a face of ``values`` there is no neighbour and the slope is zero.
    """
    slopes = []
    for axis, part in enumerate(inner):
        lines = values[(slice(None), *(slice(None) if n == axis else s for n, s in enumerate(inner)))]
        count = lines.shape[axis + 1]
        low, high = max(part.start, 1), min(part.stop, count - 1)
        slope = lines.narrow(axis + 1, low + 1, high - low) - lines.narrow(axis + 1, low - 1, high - low)
        missing = [low - part.start, part.stop - high]
        if any(missing):
            slope = F.pad(slope, [p for n in (2, 1, 0) for p in (missing if n == axis else (0, 0))])
        slopes.append(slope)
    return slopes
