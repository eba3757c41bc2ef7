"""Matched landmarks as a term of the refinement."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from ..core.constants import METHOD
from ..core.grid import Grid
from ..numerics.gauss_newton import FurtherTerm
from .pair import Pair


def landmark_term(pair: Pair, grid: Grid, device: torch.device) -> FurtherTerm | None:
    """The squared distances of landmarks of ``pair`` from where they belong, for a field on ``grid``; None without any.

    Each landmark acts on the eight nodes around it by its linear interpolation weights.
    """
    if pair.landmarks is None:
        return None
    indices, needed = pair.landmarks
    highest = np.array(grid.shape) - 1.0
    exact = np.clip(grid.indices(pair.grid.points(indices)), 0, highest)
    low = np.minimum(exact, highest - 1).astype(int)
    corners = []
    for corner in itertools.product((0, 1), repeat=3):
        share = np.prod(np.where(corner, exact - low, 1 - (exact - low)), axis=1)
        index = tuple(torch.as_tensor((low + corner)[:, n], device=device) for n in range(3))
        corners.append((index, torch.as_tensor(share, dtype=torch.float32, device=device)))
    target = torch.as_tensor(needed.T / grid.spacing[0], dtype=torch.float32, device=device)

    def term(displacement: Tensor) -> tuple[Tensor, Tensor]:
        curvature = displacement.new_zeros((6, *grid.shape))
        negative_gradient = displacement.new_zeros((3, *grid.shape))
        residual = target - sum(displacement[(slice(None), *index)] * share for index, share in corners)
        for index, share in corners:
            weight = METHOD.landmark_weight * share
            for n in (0, 3, 5):
                curvature[n].index_put_(index, weight, accumulate=True)
            for n in range(3):
                negative_gradient[n].index_put_(index, weight * residual[n], accumulate=True)
        return curvature, negative_gradient

    return term
