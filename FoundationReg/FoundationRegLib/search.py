"""Discrete search for a displacement field: a cost volume and its coupled convex optimisation.

The method of ConvexAdam (Siebert, Hansen, Heinrich, "ConvexAdam: self-configuring dual-optimisation-based 3D multitask
medical image registration", IEEE TMI 2024; coupled convex: Heinrich et al., MICCAI 2014), with costs that are free of
scale, so that one schedule serves every encoder. Displacements in here are counted in nodes of the search lattice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .deformation import warp

COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def candidates(radius: tuple[int, int, int], device=None) -> Tensor:
    """All integer displacements (K, 3) within ``radius`` nodes along (z, y, x), z slowest."""
    axes = [torch.arange(-r, r + 1, dtype=torch.float32, device=device) for r in radius]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def cost_volume(
    fixed: Tensor, moving: Tensor, radius: tuple[int, int, int], weight: Tensor | None = None, check=lambda: None
) -> Tensor:
    """Cost (K, D, H, W) of every candidate displacement at every node.

    ``fixed``, ``moving``: features (C, D, H, W) on the same lattice. Cost is the squared difference summed over channels,
    averaged over a 5-node neighbourhood, shifted and scaled so that the best candidate of a node costs 0 and the average
    over candidates and nodes costs 1. ``weight`` (D, H, W) of the fixed nodes: where it is zero the neighbours decide.
    ``check`` is called between slabs and may raise to stop.
    """
    _, depth, height, width = fixed.shape
    rz, ry, rx = radius
    padded = F.pad(moving[None], (rx, rx, ry, ry, rz, rz), mode="replicate")[0]
    cost = fixed.new_empty(((2 * rz + 1) * (2 * ry + 1) * (2 * rx + 1), depth, height, width))
    k = 0
    for z in range(2 * rz + 1):
        check()
        for y in range(2 * ry + 1):
            for x in range(2 * rx + 1):
                torch.sum((fixed - padded[:, z : z + depth, y : y + height, x : x + width]).square_(), 0, out=cost[k])
                k += 1
    if weight is not None:
        cost *= weight
    cost = box(box(cost))
    if weight is not None:
        cost /= box(box(weight[None])).clamp_min(1e-3)
    cost -= cost.amin(0)
    return cost.div_(cost.mean().clamp_min(1e-12))


def box(volume: Tensor, passes: int = 1) -> Tensor:
    """Mean over 3 nodes along each axis of (C, D, H, W), ``passes`` times; border nodes are repeated outwards."""
    for _ in range(passes):
        for axis in (1, 2, 3):
            if volume.shape[axis] > 1:
                kernel = [1, 1, 1]
                kernel[axis - 1] = 3
                pad = [0] * 6
                pad[2 * (3 - axis)] = pad[2 * (3 - axis) + 1] = 1
                volume = F.avg_pool3d(F.pad(volume[None], pad, mode="replicate"), kernel, stride=1)[0]
    return volume


def coupled_convex(cost: Tensor, offsets: Tensor, coupling=COUPLING, chunk: int = 4096) -> Tensor:
    """Smooth displacement field (3, D, H, W) in nodes that minimises ``cost`` (K, D, H, W).

    Alternates between the best candidate of each node, pulled towards the smooth field by a growing coupling, and
    smoothing. ``offsets`` (K, 3) are the candidates.
    """
    shape = cost.shape[1:]
    flat = cost.flatten(1)
    best = offsets[flat.argmin(0)]
    field = box(best.T.reshape(3, *shape))
    squared = offsets.square().sum(1)[:, None]
    for strength in coupling:
        target = field.flatten(1)
        for start in range(0, flat.shape[1], chunk):
            part = slice(start, start + chunk)
            # |offset - target|^2 without its part that is the same for all candidates
            distance = squared - 2 * offsets @ target[:, part]
            best[part] = offsets[(flat[:, part] + strength * distance).argmin(0)]
        field = box(best.T.reshape(3, *shape))
    return field


def inverse_consistent(forward: Tensor, backward: Tensor, iterations: int = 15) -> Tensor:
    """``forward`` (3, D, H, W) in nodes, brought half way to the inverse of ``backward``, again and again."""
    step = (1.0, 1.0, 1.0)
    for _ in range(iterations):
        forward, backward = (
            (forward - warp(backward, forward, step)) / 2,
            (backward - warp(forward, backward, step)) / 2,
        )
    return forward
