"""Gauss-Newton refinement of a displacement or velocity field.

Features are warped, compared and linearised at every voxel, and the small quadratic problem that follows is solved on
a coarser lattice of nodes. It reaches a lower error than Adam (docs/accuracy.md), and sooner, because a warp of many
channels buys a whole solve instead of one gradient step.

Displacements are float32 (3, D, H, W) in mm along the array axes; all lattices of one call share their outer faces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .data_term import DataTerm, FeaturePair
from .fields import exponential, resize
from .parallel import each
from .regularisation import Regulariser, solve

# Over-relaxation. Steps of successive iterations point the same way: longer ones save a third of the iterations.
_RELAXATION = 1.3

# Further terms: displacement (3, d, h, w) in nodes -> curvature (6, d, h, w) and negative gradient (3, d, h, w).
FurtherTerm = Callable[[Tensor], tuple[Tensor, Tensor]]


def gauss_newton(
    pairs: Sequence[FeaturePair],
    displacement: Tensor,
    spacing: float,
    fixed_weight: Tensor,
    moving_weight: Tensor | None = None,
    *,
    nodes: tuple[int, int, int],
    regulariser: Regulariser,
    iterations: int = 8,
    tolerance: float = 0.003,
    diffeomorphic: bool = False,
    robust: bool = False,
    landmark_term: FurtherTerm | None = None,
    on_iteration: Callable[[int, Tensor, float], bool] = lambda *_: False,
) -> tuple[Tensor, list[float]]:
    """``displacement`` refined by the features of ``pairs``; returns the field (3, d, h, w) in mm and the losses.

    With F_p and M_p the C_p standardised channels of pair p, w_p its relative weight, m the masks and u the
    displacement, the minimum is sought of

        sum_x m(x) sum_p w_p / (C_p n_p) |F_p(x) - M_p(x + u(x))|^2
            + sum_nodes diffusion |grad u|^2 + bending |Laplacian u|^2 + landmarks,

    where the noise n_p is the mean squared residual per channel, taken anew in each iteration: it makes the energy
    free of the features' scale and trusts a pair less the worse it can be explained. With ``diffeomorphic``,
    ``displacement`` is a stationary velocity field v, u = exp(v), and half of the data term compares backward,
    |M_p - F_p(exp(-v))|^2, so that neither image is the only one blurred by interpolation.

    Args:
        pairs: features (C, D, H, W) of both images on one isotropic lattice.
        displacement: (3, ...) in mm along the array axes, on any lattice over the same faces.
        spacing: mm between the voxels of the features.
        fixed_weight: (D, H, W), 0 to 1: how much each fixed voxel counts. moving_weight: the same for where it lands.
        nodes: (d, h, w) of the field, of which the features' shape must be a multiple.
        regulariser: weights per node; see `Regulariser`.
        iterations: at most so many; ends before when one lowers the loss by less than the share ``tolerance``.
        robust: down-weight regions that are explained much worse than the rest, such as a lesion that only one image
            has, so that it is neither shrunk nor torn. Too early it would keep organs apart that do not overlap yet.
        landmark_term: further terms of the energy, see `FurtherTerm`.
        on_iteration: called with iteration, field in mm and loss; may raise to stop or return True to end early.

    The linearisation with the mean of both images' gradients is that of symmetric demons / ESM, the symmetric
    comparison that of symmetric log-demons (Vercauteren et al., NeuroImage 2009 and MICCAI 2008); iterated warping
    and linear solves follow Brox et al., ECCV 2004.
    """
    shape = pairs[0].fixed.shape[1:]
    stride = shape[0] // nodes[0]
    node_mm = spacing * stride
    field = resize(displacement, nodes) / node_mm
    terms = _data_terms(pairs, fixed_weight, moving_weight, stride, robust, diffeomorphic)
    mask = F.interpolate(fixed_weight[None, None], size=nodes)[0, 0] > 0
    losses: list[float] = []
    for iteration in range(iterations):
        curvature, negative_gradient, loss = None, None, 0.0
        flows = [field]
        if diffeomorphic:
            velocities = [term.sign * field for term in terms]
            flows = each(lambda velocity: exponential(velocity, (1.0, 1.0, 1.0)), velocities, field.device)
        for term, flow in zip(terms, flows, strict=True):
            hessian, descent, value = term.linearised(flow * stride)
            hessian, descent = hessian.div_(len(terms)), descent.mul_(term.sign / len(terms))
            curvature = hessian if curvature is None else curvature.add_(hessian)
            negative_gradient = descent if negative_gradient is None else negative_gradient.add_(descent)
            loss += value / len(terms)
            if landmark_term is not None and term.sign > 0:
                hessian, descent = landmark_term(flow)
                curvature, negative_gradient = curvature + hessian, negative_gradient + descent
        reweighted = regulariser.reweighted(field, mask)
        step = solve(curvature, negative_gradient.sub_(reweighted.gradient(field)), reweighted)
        length = step.square().sum(0, keepdim=True).sqrt()
        # Beyond a voxel the linearisation says nothing.
        field = field + step * (_RELAXATION / stride / length.clamp_min(1 / stride))
        losses.append(loss)
        # The loss of an iteration is that of the field before its step.
        converged = len(losses) > 2 and losses[-1] > (1 - tolerance) * losses[-2]
        if on_iteration(iteration, field * node_mm, loss) or converged:
            break
    return field * node_mm, losses


def _data_terms(
    pairs: Sequence[FeaturePair],
    fixed_weight: Tensor,
    moving_weight: Tensor | None,
    stride: int,
    robust: bool,
    symmetric: bool,
) -> list[DataTerm]:
    """The forward comparison and, where ``symmetric``, the backward one."""
    if moving_weight is None:
        moving_weight = torch.ones_like(fixed_weight)
    forward = DataTerm(1, pairs, fixed_weight, moving_weight, stride, robust)
    if not symmetric:
        return [forward]
    return [forward, DataTerm(-1, [pair.swapped() for pair in pairs], moving_weight, fixed_weight, stride, robust)]
