"""Refinement by Adam, the published schedule of ConvexAdam and of the study, for the preset "study"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .data_term import FeaturePair
from .fields import resize, warp


def adam(
    pairs: Sequence[FeaturePair],
    displacement: Tensor,
    spacing: float,
    fixed_weight: Tensor,
    *,
    diffusion: float,
    iterations: int,
    rate: float,
    kernel: int,
    passes: int,
    on_iteration: Callable[[int, Tensor, float], bool] = lambda *_: False,
) -> tuple[Tensor, list[float]]:
    """``displacement`` refined by Adam on the lattice of ``pairs``, smoothed as in ConvexAdam; and the loss curve.

    The field is a raw one smoothed by ``passes`` box filters ``kernel`` nodes wide, whose border is repeated outwards.
    Loss: mean squared difference of the features plus ``diffusion`` times the mean squared forward differences of the
    field in voxels. ``on_iteration`` as in `gauss_newton`.
    """
    raw = (resize(displacement, pairs[0].fixed.shape[1:]) / spacing).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([raw], lr=rate)
    losses: list[float] = []
    mass, importance = fixed_weight.sum().clamp_min(1e-6), sum(pair.weight for pair in pairs)
    for iteration in range(iterations):
        field = _smoothed(raw, kernel, passes)
        loss = diffusion * sum(field.diff(dim=axis).square().mean() for axis in (1, 2, 3))
        for pair in pairs:
            difference = (pair.fixed - warp(pair.moving, field, (1.0, 1.0, 1.0))).square().mean(0)
            loss = loss + pair.weight / importance * (difference * fixed_weight).sum() / mass
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        # The mean over a window, since Adam's single steps go up and down.
        still = iteration >= 100 and sum(losses[-50:]) > 0.999 * sum(losses[-100:-50])
        if on_iteration(iteration, field.detach() * spacing, losses[-1]) or still:
            break
    with torch.no_grad():
        return _smoothed(raw, kernel, passes) * spacing, losses


def _smoothed(raw: Tensor, kernel: int, passes: int) -> Tensor:
    pad = (kernel // 2,) * 6
    for _ in range(passes):
        raw = F.avg_pool3d(F.pad(raw[None], pad, mode="replicate"), kernel, stride=1)[0]
    return raw
