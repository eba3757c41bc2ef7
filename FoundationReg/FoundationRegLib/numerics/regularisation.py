"""The energy of a displacement field, and the linear solve of a Gauss-Newton step under that energy.

Displacements are float32 (3, D, H, W) counted in nodes of their lattice, component n along array axis n.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import kernels
from .filters import halved, smooth

# Conjugate gradient steps on the lattice itself, on one of half its resolution, and so on.
_SOLVER_STEPS = (6, 12, 24)


# Where the energy of strain turns from quadratic to linear, in medians of the field's own strain.
_SLIDING_SCALE = 0.5


# Strain below which no field is so calm that its median would tell what slides.
_LEAST_STRAIN = 0.1


@dataclass(frozen=True)
class Regulariser:
    """Regularisation energy of a displacement field per node, in units of the features' noise (see `gauss_newton`).

    ``diffusion`` weighs the squared first, ``bending`` the squared second derivatives, both per node spacing.
    ``sliding``, from 0 to 1: where the field strains much more than elsewhere, as where organs slide along each other,
    the energy grows less than quadratically with the strain, and linearly at 1 (`reweighted`). ``node_weight``
    (D, H, W) is the share of the energy that is left at each node then.
    """

    diffusion: float
    bending: float
    sliding: float = 0.0
    node_weight: Tensor | None = None

    def scaled(self, factor: float) -> Regulariser:
        return replace(self, diffusion=self.diffusion * factor, bending=self.bending * factor)

    def interpolated(self, other: Regulariser, share: float) -> Regulariser:
        """This energy for ``share`` 0, ``other`` for 1, and between them what is between."""
        names = ("diffusion", "bending", "sliding")
        return replace(self, **{n: (1 - share) * getattr(self, n) + share * getattr(other, n) for n in names})

    def reweighted(self, u: Tensor, mask: Tensor) -> Regulariser:
        """The quadratic energy that touches this one at ``u`` (iteratively reweighted least squares).

        Strain is the norm of the gradient; nodes of ``mask`` (D, H, W), boolean, give the median. A node that
        strains at e times half the median gets 1 / sqrt(1 + e^2) of the energy, times a factor that leaves a node of
        median strain as it is: Charbonnier's penalty (IEEE Trans. Image Process. 6, 1997), which comes close to total
        variation as pTVreg uses it for sliding organs (Vishnevskiy et al., IEEE Trans. Med. Imaging 36, 2017), without
        a scale to be set.
        """
        if not self.sliding:
            return self
        energy = smooth(strain_energy(u))
        typical = energy[mask] if bool(mask.any()) else energy.flatten()
        scale = _SLIDING_SCALE**2 * typical.median().clamp_min(_LEAST_STRAIN**2)
        node_weight = ((1 + 1 / _SLIDING_SCALE**2) / (1 + energy / scale)) ** (self.sliding / 2)
        # What hardly strains is not made stiffer without end.
        return replace(self, node_weight=node_weight.clamp(0.02, 2.0))

    def gradient(self, u: Tensor) -> Tensor:
        """Half the gradient of the energy at ``u``: a linear operator, for a given ``node_weight``."""
        if u.shape[0] == 3 and kernels.usable(u, *([] if self.node_weight is None else [self.node_weight])):
            return kernels.regulariser_gradient(u, self.node_weight, self.diffusion, self.bending)
        if self.node_weight is None:
            first = negative_laplacian(u)
            return self.diffusion * first + self.bending * negative_laplacian(first)
        energy = self.diffusion * negative_laplacian(u, self.node_weight)
        return energy + self.bending * negative_laplacian(self.node_weight * negative_laplacian(u))

    def diagonal(self) -> float | Tensor:
        """The operator's diagonal away from the border: 6 for the Laplacian's stencil, 42 for its square's."""
        diagonal = 6 * self.diffusion + 42 * self.bending
        return diagonal if self.node_weight is None else diagonal * self.node_weight

    def coarser(self) -> Regulariser:
        """The same energy for displacements counted in nodes that are twice as far apart."""
        node_weight = None if self.node_weight is None else halved(self.node_weight[None])[0]
        return replace(self, bending=self.bending / 4, node_weight=node_weight)


def strain_energy(u: Tensor) -> Tensor:
    """Squared norm (D, H, W) of the gradient of ``u``; forward and backward differences count half each."""
    if u.shape[0] == 3 and kernels.usable(u):
        return kernels.strain_energy(u)
    energy = torch.zeros_like(u[0])
    for axis in (0, 1, 2):
        count = u.shape[axis + 1]
        squares = u.diff(dim=axis + 1).square().sum(0)
        energy.narrow(axis, 0, count - 1).add_(squares, alpha=0.5)
        energy.narrow(axis, 1, count - 1).add_(squares, alpha=0.5)
    return energy


def negative_laplacian(u: Tensor, weight: Tensor | None = None) -> Tensor:
    """Minus the Laplacian of (C, D, H, W) per node; nothing flows through the border.

    ``weight`` (D, H, W): each flow between two nodes is multiplied by the mean of theirs.
    """
    out = torch.zeros_like(u)
    for axis in (1, 2, 3):
        count = u.shape[axis]
        flow = u.diff(dim=axis)
        if weight is not None:
            low, high = weight.narrow(axis - 1, 0, count - 1), weight.narrow(axis - 1, 1, count - 1)
            flow *= torch.add(low, high).mul_(0.5)
        out.narrow(axis, 0, count - 1).sub_(flow)
        out.narrow(axis, 1, count - 1).add_(flow)
    return out


def solve(
    curvature: Tensor, negative_gradient: Tensor, regulariser: Regulariser, steps: tuple[int, ...] = _SOLVER_STEPS
) -> Tensor:
    """The step (3, D, H, W) with curvature @ step + regulariser(step) = negative_gradient, nearly.

    ``curvature`` (6, D, H, W: zz zy zx yy yx xx) and ``negative_gradient`` (3, D, H, W) of the data. Preconditioned
    conjugate gradients, ``steps[0]`` of them, from the solution on the lattice of half the resolution, which has
    ``steps[1]``, and so on (cascadic multigrid: Bornemann and Deuflhard, Numer. Math. 75, 1996): what is far-reaching
    in a step is found where it is cheap.
    """
    step = None
    if len(steps) > 1 and min(negative_gradient.shape[1:]) >= 8:
        # A node of the coarse lattice holds the mean of eight; its displacements count half as many nodes.
        coarse = solve(4 * halved(curvature), 2 * halved(negative_gradient), regulariser.coarser(), steps[1:])
        step = 2 * F.interpolate(coarse[None], scale_factor=2, mode="trilinear", align_corners=False)[0]
        step = step[tuple(slice(n) for n in negative_gradient.shape)]
    return _conjugate_gradients(curvature, negative_gradient, regulariser, step, steps[0])


def _conjugate_gradients(
    curvature: Tensor, negative_gradient: Tensor, regulariser: Regulariser, start: Tensor | None, steps: int
) -> Tensor:
    """`solve` on one lattice, from ``start`` or zero, with the diagonal as preconditioner."""
    weight = regulariser.node_weight
    given = [values for values in (curvature, negative_gradient, start, weight) if values is not None]
    if kernels.usable(*given):
        diffusion, bending = regulariser.diffusion, regulariser.bending
        return kernels.conjugate_gradients(curvature, negative_gradient, weight, diffusion, bending, start, steps)
    zz, zy, zx, yy, yx, xx = curvature
    diagonal = torch.stack([zz, yy, xx]) + regulariser.diagonal()

    def apply(v: Tensor) -> Tensor:
        data = torch.stack(
            [zz * v[0] + zy * v[1] + zx * v[2], zy * v[0] + yy * v[1] + yx * v[2], zx * v[0] + yx * v[1] + xx * v[2]]
        )
        return data + regulariser.gradient(v)

    step = torch.zeros_like(negative_gradient) if start is None else start.clone()
    residual = negative_gradient.clone() if start is None else negative_gradient - apply(start)
    preconditioned = residual / diagonal
    direction = preconditioned.clone()
    product = (residual * preconditioned).sum()
    for _ in range(steps):
        image = apply(direction)
        length = product / (direction * image).sum().clamp_min(1e-30)
        step += length * direction
        residual -= length * image
        preconditioned = residual / diagonal
        previous, product = product, (residual * preconditioned).sum()
        direction = preconditioned + product / previous.clamp_min(1e-30) * direction
    return step
