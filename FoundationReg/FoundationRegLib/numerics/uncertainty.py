"""How far a displacement field may be from the truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .data_term import DataTerm, FeaturePair
from .fields import resize
from .filters import smooth
from .gauss_newton import FurtherTerm
from .regularisation import Regulariser


@torch.no_grad()
def posterior_deviation(
    pairs: Sequence[FeaturePair],
    displacement: Tensor,
    spacing: float,
    weight: Tensor,
    regulariser: Regulariser,
    moving_weight: Tensor | None = None,
    further: FurtherTerm | None = None,
) -> Tensor:
    """Posterior standard deviation in mm (d, h, w) of each node of ``displacement`` (3, d, h, w, mm).

    The root of the trace of the inverse of the cost's curvature, shared with the neighbourhood that the regulariser
    couples, and of the regulariser itself (the Laplace approximation of the posterior's spread). The arguments are
    those with which `gauss_newton` found the field: ``pairs`` with their weights, how much the voxels of both images
    count, and ``further`` terms such as landmarks.
    """
    shape = pairs[0].fixed.shape[1:]
    stride = max(1, shape[0] // displacement.shape[1])
    moving_weight = torch.ones_like(weight) if moving_weight is None else moving_weight
    term = DataTerm(1, pairs, weight, moving_weight, stride, robust=True)
    curvature, _, _ = term.linearised(resize(displacement, shape) / spacing)
    if further is not None:
        curvature = curvature + further(displacement / (spacing * stride))[0]
    zz, zy, zx, yy, yx, xx = smooth(smooth(curvature))
    zz, yy, xx = (values + regulariser.diagonal() * 0.1 for values in (zz, yy, xx))
    minors = (yy * xx - yx * yx) + (zz * xx - zx * zx) + (zz * yy - zy * zy)
    determinant = zz * (yy * xx - yx * yx) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx)
    return (minors / determinant.clamp_min(1e-12)).clamp_min(0).sqrt() * (spacing * stride)
