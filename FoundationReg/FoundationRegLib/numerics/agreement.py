"""How well two feature volumes agree where they lie, beside how well shifted copies of them would.

A registration that is right is a peak: moved by a few nodes in any direction, the images agree less, everywhere. A
wrong one agrees as well as its shifted copies do, whatever similarity was optimised. (The landscape of a similarity
around its optimum as a sign of confidence: Kybic, IEEE Trans. Image Process. 19, 2010; here by shifts.)
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from .fields import compose
from .filters import smooth
from .search import candidates, cost_volume, coupled_convex

Step = tuple[int, int, int]

# Nodes that copies are moved by along each axis: near ones tell how sharp the peak is, far ones what chance gives.
NEAR, FAR = 1, 4
# Boxes of 3 nodes that blur a neighbourhood, and every how many nodes one is looked at.
_BLURS, _EVERY = 6, 4
# Nodes, of twice the size, by which neighbourhoods are matched again; and of the lattice itself, for what is left.
_REACH, _NEAR_REACH = 3, 2
# Boxes of 3 nodes over which what neighbourhoods want is averaged.
_PARTS = 3


def edge_orientation(image: Tensor, softness: float = 0.5) -> Tensor:
    """Orientation of the edges of ``image`` (D, H, W): the 6 products of the normalised gradient, (6, D, H, W).

    Free of contrast and of its sign. Gradients below ``softness`` times their mean are damped (normalised
    gradient fields: Haber and Modersitzki, MICCAI 2006).
    """
    blurred = smooth(image)
    slopes = torch.stack([torch.gradient(blurred, dim=n)[0] for n in range(3)])
    power = slopes.square().sum(0)
    unit = slopes / (power + (softness * power.sqrt().mean()).square() + 1e-12).sqrt()
    pairs = itertools.combinations_with_replacement(range(3), 2)
    return torch.stack([unit[a] * unit[b] * (1.0 if a == b else 2**0.5) for a, b in pairs])


def centred(features: Tensor, weight: Tensor) -> Tensor:
    """``features`` (C, D, H, W) less their mean over ``weight`` (D, H, W), and 0 where that is 0."""
    mean = (features * weight).sum((1, 2, 3), keepdim=True) / weight.sum().clamp_min(1)
    return (features - mean) * (weight > 0)


def shifted(values: Tensor, step: Step) -> Tensor:
    """``values`` (..., D, H, W) read at x + ``step`` nodes; 0 outside."""
    padded = F.pad(values, [p for n in reversed(step) for p in (max(-n, 0), max(n, 0))])
    starts = [max(n, 0) for n in step]
    return padded[(..., *(slice(a, a + n) for a, n in zip(starts, values.shape[-3:], strict=True)))]


def axis_steps(length: int) -> list[Step]:
    """The six moves of ``length`` nodes along the axes."""
    return [tuple(sign * length * (n == axis) for n in range(3)) for axis, sign in itertools.product(range(3), (1, -1))]


def lowest_correlation(products: Tensor, sigma: float, share: float = 0.1) -> float:
    """The correlation, -1 to 1, below which ``share`` of the neighbourhoods lie, each counted by its energy.

    ``products`` (3, D, H, W): of both signals and of each with itself. Neighbourhoods are Gaussians with a standard
    deviation of ``sigma`` voxels, taken on blocks.
    """
    block = max(1, int(sigma / 2.5))
    if block > 1:
        products = F.avg_pool3d(products[None], block, ceil_mode=True, count_include_pad=False)[0]
    # A box of 3 voxels has the variance 2/3.
    for _ in range(max(1, round(1.5 * (sigma / block) ** 2))):
        products = smooth(products)
    both, first, second = products.flatten(1)
    energy = first + second
    return _quantile(both / (first * second).sqrt().clamp_min(1e-12), energy, share) if bool(energy.any()) else 0.0


class Agreement:
    """Correlation of ``fixed`` and ``moving`` features (C, D, H, W), both `centred`, on one lattice.

    ``*_weight`` (D, H, W), 0 to 1: where the features mean something.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, fixed_weight: Tensor, moving_weight: Tensor):
        self._fixed, self._moving = fixed, moving
        self._weights = fixed_weight, moving_weight
        self._energies = fixed.square().sum(0), moving.square().sum(0)

    def overall(self, step: Step = (0, 0, 0)) -> float:
        """Correlation, -1 to 1, of the fixed features and the moving ones ``step`` nodes away."""
        both, fixed, moving = (part.sum(dtype=torch.float64) for part in self._products(step))
        return float(both / (fixed * moving).sqrt().clamp_min(1e-12))

    def peak(self) -> tuple[float, float, float]:
        """Correlation here; its rise above the mean of far shifts; and the share of the rise lost one node away.

        That share, -1 to 1, is low or below zero where the images lie beside the peak.
        """
        here = self.overall()
        near, far = (sum(map(self.overall, axis_steps(length))) / 6 for length in (NEAR, FAR))
        rise = here - far
        return here, rise, min(max((here - near) / max(abs(rise), 1e-3), -1.0), 1.0)

    def held(self) -> float:
        """Share, 0 to 1, of the neighbourhoods that agree better where they lie than at any far shift."""
        here, weight = self._local((0, 0, 0))
        best = torch.stack([self._local(step)[0] for step in axis_steps(FAR)]).amax(0)
        return float(((here > best) * weight).sum() / weight.sum().clamp_min(1e-12))

    def offset(self) -> float:
        """Mean distance in nodes, up to 1.7, from where neighbourhoods lie to the top of the parabola through the
        correlations here and one node away along each axis: what is left of an error smaller than a node."""
        here, weight = self._local((0, 0, 0))
        square = 0.0
        for axis in range(3):
            forth, back = axis_steps(NEAR)[2 * axis : 2 * axis + 2]
            ahead, behind = self._local(forth)[0], self._local(back)[0]
            curvature = (2 * here - ahead - behind).clamp_min(0.02)
            square = square + ((ahead - behind) / (2 * curvature)).clamp(-1, 1).square()
        return float((square.sqrt() * weight).sum() / weight.sum().clamp_min(1e-12))

    def residual(self) -> tuple[float, float]:
        """Mean distance by which neighbourhoods match elsewhere, and by which they miss their way back; in two nodes.

        A coarse discrete search each way; 0 for images in place, about 2 for unrelated ones.
        """
        fixed, moving = (F.avg_pool3d(side[None], 2)[0] for side in (self._fixed, self._moving))
        shared = F.avg_pool3d((self._weights[0] * self._weights[1])[None], 2)[0]
        if float(shared.sum()) < 1:
            return float(_REACH), float(_REACH)
        there, back = _matched(fixed, moving, shared, _REACH)
        lengths = [field.norm(dim=0) for field in (there, compose(back, there, (1.0, 1.0, 1.0)))]
        return tuple(float((length * shared).sum() / shared.sum()) for length in lengths)

    def pull(self) -> float:
        """Nodes, up to 2, by which a quarter of the image would rather lie elsewhere: the third quartile, over parts
        of the body, of the displacement that discrete searches forth and back agree upon, less what they miss their way
        back by.

        Noise makes each search want something, but not both the same; an error of a node or less does. A mean over
        everything would hide a part that is off.
        """
        shared = self._weights[0] * self._weights[1]
        if float(shared.sum()) < 8:
            return float(_NEAR_REACH)
        there, back = _matched(self._fixed, self._moving, shared, _NEAR_REACH)
        missed = compose(back, there, (1.0, 1.0, 1.0)).norm(dim=0)
        shown = smooth(smooth(self._energies[0] * shared)) * (shared > 0)
        parts = torch.cat([(there - back) / 2 * shown, (missed * shown)[None], shown[None]])
        for _ in range(_PARTS):
            parts = smooth(parts)
        parts = parts[:4] / parts[4].clamp_min(1e-9)
        return _quantile((parts[:3].norm(dim=0) - parts[3]).clamp_min(0), shown, 0.75)

    def _products(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """At every node: the product of both features, and the squares of each, where both mean something."""
        shared = self._weights[0] * shifted(self._weights[1], step)
        product = (self._fixed * shifted(self._moving, step)).sum(0)
        return product * shared, self._energies[0] * shared, shifted(self._energies[1], step) * shared

    def _local(self, step: Step) -> tuple[Tensor, Tensor]:
        """Correlation in the neighbourhood of every fourth node, and how much the fixed image shows there."""
        parts = torch.stack(self._products(step))
        for _ in range(_BLURS):
            parts = smooth(parts)
        both, fixed, moving = parts[:, ::_EVERY, ::_EVERY, ::_EVERY]
        return both / (fixed * moving).sqrt().clamp_min(1e-6), fixed


def _matched(fixed: Tensor, moving: Tensor, shared: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Displacements (3, D, H, W) in nodes, at most ``reach``, that take either side to the other."""
    offsets = candidates(tuple(min(reach, n - 1) for n in shared.shape))
    sides = ((fixed, moving), (moving, fixed))
    return tuple(coupled_convex(cost_volume(*pair, offsets, shared), offsets, shared) for pair in sides)


def _quantile(values: Tensor, weight: Tensor, share: float) -> float:
    """The least of ``values`` that ``share`` of the ``weight`` (of one shape) does not exceed."""
    values, weight = values[weight > 0], weight[weight > 0]
    order = values.argsort()
    below = weight[order].cumsum(0) / weight.sum()
    return float(values[order[min(int((below < share).sum()), len(order) - 1)]])
