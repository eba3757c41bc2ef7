"""Discrete search for a displacement field: a cost volume and its coupled convex optimisation.

The method of ConvexAdam (Siebert, Hansen, Heinrich, "ConvexAdam: self-configuring dual-optimisation-based 3D multitask
medical image registration", IEEE TMI 2024; coupled convex: Heinrich et al., MICCAI 2014), with costs that are free of
scale, so that one schedule serves every encoder. Displacements in here are counted in nodes of the search lattice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import kernels
from .fields import compose, warp
from .filters import smooth
from .parallel import each

COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


# Candidates whose costs are smoothed at a time.
_GROUP = 16
# Distances between nodes and candidates that are held at a time.
_DISTANCES = 1 << 25


def search(
    fixed: Tensor,
    moving: Tensor,
    weight: Tensor,
    radius: int,
    room: float = math.inf,
    check: Callable[[], None] = lambda: None,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Displacement (3, D, H, W) in nodes, at most ``radius``, that takes ``fixed`` to ``moving`` (C, D, H, W).

    ``weight`` (D, H, W): how much the fixed nodes count. Where the costs of all candidates would take more than
    ``room`` bytes, the far candidates are searched on a lattice that is coarser by a whole factor, and the rest of the
    displacement on the full one. ``check`` is called now and then and may raise to stop. ``kept``: memory that a search
    has left for one of the same size, and that this one leaves: to get it from the system anew takes longer.
    """
    step = coarsening(weight, radius, room)
    if step == 1:
        offsets = candidates(_within(weight, radius), weight.device)
        memory = kept.pop() if kept else None
        cost = cost_volume(fixed, moving, offsets, weight, check, memory)
        field = coupled_convex(cost, offsets, weight)
        if kept is not None:
            kept.append(cost)
        return field
    coarse = [_pooled(values, step) for values in (fixed, moving, weight[None])]
    field = search(coarse[0], coarse[1], coarse[2][0], -(-radius // step), math.inf, check)
    scaled = F.interpolate(field[None] * step, scale_factor=step, mode="trilinear", align_corners=False)[0]
    field = scaled[(slice(None), *(slice(n) for n in weight.shape))]
    # What is left is about half a node of the coarse lattice.
    rest = next((r for r in range(step + 1, 1, -1) if search_bytes(weight, r) <= room), 1)
    moved = warp(moving, field, (1.0, 1.0, 1.0))
    return compose(field, search(fixed, moved, weight, rest, math.inf, check), (1.0, 1.0, 1.0))


def coarsening(weight: Tensor, radius: int, room: float) -> int:
    """The smallest factor by which the lattice of ``weight`` (D, H, W) must be coarser so that `search` over
    ``radius`` of its nodes takes at most ``room`` bytes."""
    for step in range(1, max(weight.shape)):
        coarse = _pooled(weight[None], step)[0] if step > 1 else weight
        if search_bytes(coarse, -(-radius // step)) <= room:
            return step
    return max(1, max(weight.shape) - 1)


def search_bytes(weight: Tensor, radius: int) -> int:
    """Bytes of the costs of all candidates within ``radius`` nodes: once by candidate, and of the nodes that count once
    more by node."""
    radii = _within(weight, radius)
    # The ellipsoid's volume, and somewhat more for small ones, whose border is wide.
    count = min(math.prod(2 * r + 1 for r in radii), 4.2 * math.prod(r + 0.35 for r in radii) + 1)
    active = int((smooth(weight) > 0).sum())
    return int(4 * count * (weight.numel() + active))


def _within(weight: Tensor, radius: int) -> tuple[int, int, int]:
    """``radius`` along each axis, but not beyond the lattice."""
    return tuple(min(radius, n - 1) for n in weight.shape)


def _pooled(values: Tensor, step: int) -> Tensor:
    """Means of (C, D, H, W) over blocks of ``step`` nodes; the last block of an axis repeats the edge."""
    pad = [n for size in reversed(values.shape[1:]) for n in (0, -size % step)]
    return F.avg_pool3d(F.pad(values[None], pad, mode="replicate"), step)[0]


def candidates(radius: tuple[int, int, int], device=None) -> Tensor:
    """Integer displacements (K, 3) inside the ellipsoid of ``radius`` nodes along (z, y, x).

    The corners of the box around it, half of its volume, would reach further than was asked for.
    """
    axes = [torch.arange(-r, r + 1, dtype=torch.float32, device=device) for r in radius]
    box = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    reach = torch.tensor([max(r, 1) for r in radius], device=device) + 0.2
    return box[(box / reach).square().sum(1) <= 1]


def cost_volume(
    fixed: Tensor,
    moving: Tensor,
    offsets: Tensor,
    weight: Tensor,
    check: Callable[[], None] = lambda: None,
    memory: Tensor | None = None,
) -> Tensor:
    """Cost (K, D, H, W) of the candidate displacements ``offsets`` (K, 3) at every node.

    ``fixed``, ``moving``: features (C, D, H, W) on the same lattice. Cost is the squared difference summed over
    channels, averaged over a 5-node neighbourhood, shifted and scaled so that the best candidate of a node costs 0 and
    the average over candidates and nodes costs 1. ``weight`` (D, H, W) of the fixed nodes: where it is zero the
    neighbours decide. ``check`` is called now and then and may raise to stop. ``memory``: a tensor that is not needed
    any more, which the costs may take the place of.
    """
    shape = fixed.shape[1:]
    reach = offsets.abs().amax(0).int().tolist()
    padded = F.pad(moving[None], [r for r in reversed(reach) for _ in range(2)], mode="replicate")[0]
    energy = padded.square().sum(0)
    share = smooth(smooth(weight)).clamp_min(1e-3)
    fits = memory is not None and memory.shape == (len(offsets), *shape) and memory.device == fixed.device
    cost = memory if fits else fixed.new_empty((len(offsets), *shape))
    if kernels.usable(fixed, moving, weight):
        kernels.cost_volume(cost, fixed, padded, energy, offsets, weight, share, check)
        least, average = kernels.cost_range(cost)
        return kernels.scale_costs(cost, least, 1 / float(_typical(average, weight)))

    def fill(first: int) -> None:
        check()
        product = torch.empty_like(fixed)
        rows = cost[first : first + _GROUP]
        for row, offset in zip(rows, offsets[first : first + _GROUP].int().tolist(), strict=True):
            there = tuple(slice(r + o, r + o + n) for r, o, n in zip(reach, offset, shape, strict=True))
            torch.mul(fixed, padded[(slice(None), *there)], out=product)
            # |f - m|^2 without |f|^2, which is the same for all candidates of a node.
            torch.sub(energy[there], product.sum(0), alpha=2, out=row)
        torch.div(smooth(smooth(rows.mul_(weight))), share, out=rows)

    each(fill, range(0, len(offsets), _GROUP), fixed.device)
    cost -= cost.amin(0)
    return cost.div_(_typical(cost.mean(0), weight))


def _typical(average: Tensor, weight: Tensor) -> Tensor:
    """Mean of ``average`` (D, H, W) where the nodes count, above zero."""
    inside = weight > 0.5
    return (average[inside].mean() if inside.any() else average.mean()).clamp_min(1e-12)


def coupled_convex(cost: Tensor, offsets: Tensor, weight: Tensor, coupling=COUPLING, chunk: int = 1024) -> Tensor:
    """Smooth displacement field (3, D, H, W) in nodes that minimises ``cost`` (K, D, H, W).

    Alternates between the best candidate of each node, pulled towards the smooth field by a growing coupling, and
    smoothing. ``offsets`` (K, 3) are the candidates. Nodes whose ``weight`` (D, H, W) is zero follow their neighbours.
    """
    active = smooth(weight) > 0
    if kernels.usable(cost, offsets):
        return _coupled_convex_compiled(cost, offsets, active, coupling)
    # Candidates last: the smallest of neighbouring numbers is found many times quicker.
    flat = cost.flatten(1).T[active.flatten()]
    squared = offsets.square().sum(1)
    chunk = max(16, min(chunk, _DISTANCES // len(offsets)))
    best = offsets[flat.argmin(1)]
    field = cost.new_zeros((3, *cost.shape[1:]))
    field[:, active] = best.T
    field = smooth(field)
    for strength in coupling:
        target = field[:, active].T

        def choose(start: int, strength: float = strength, target: Tensor = target) -> None:
            part = slice(start, start + chunk)
            # |offset - target|^2 without its part that is the same for all candidates
            distance = torch.addmm(squared, target[part], offsets.T, beta=strength, alpha=-2 * strength)
            best[part] = offsets[distance.add_(flat[part]).argmin(1)]

        each(choose, range(0, len(flat), chunk), flat.device)
        field[:, active] = best.T
        field = smooth(field)
    return field


def _coupled_convex_compiled(cost: Tensor, offsets: Tensor, active: Tensor, coupling: Sequence[float]) -> Tensor:
    """`coupled_convex` by the compiled kernels, which read the costs as they lie; ``active`` (D, H, W) is boolean."""
    field = cost.new_zeros((3, *cost.shape[1:]))
    for strength in (0.0, *coupling):
        field = smooth(kernels.choose_candidates(cost.contiguous(), offsets, active, field, strength))
    return field


def fill_inconsistent(
    field: Tensor, inconsistency: Tensor, weight: Tensor, tolerance: float, passes: int = 6
) -> Tensor:
    """``field`` (3, D, H, W) with its inconsistent nodes replaced by a weighted mean of consistent ones around them.

    ``inconsistency`` (D, H, W): inverse consistency error, in the unit of ``tolerance``; a node keeps half of its own
    value where it is about 0.6 ``tolerance``. ``weight`` (D, H, W): nodes that count. The mean is taken with ``passes``
    box filters of 3 nodes (normalised convolution: Knutsson and Westin, CVPR 1993).
    """
    confidence = (1 + (inconsistency / tolerance).square()).pow(-2)
    values, mass = field * (confidence * weight), confidence * weight + 1e-4
    for _ in range(passes):
        values, mass = smooth(values), smooth(mass)
    return confidence * field + (1 - confidence) * values / mass


def inverse_consistent(forward: Tensor, backward: Tensor, iterations: int = 15) -> Tensor:
    """``forward`` (3, D, H, W) in nodes, brought half way to the inverse of ``backward``, again and again."""
    step = (1.0, 1.0, 1.0)
    for _ in range(iterations):
        forward, backward = (
            (forward - warp(backward, forward, step)) / 2,
            (backward - warp(forward, backward, step)) / 2,
        )
    return forward
