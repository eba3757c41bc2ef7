"""The price of a displacement field, and the linear solve of a Gauss-Newton step under that price.

Displacements are float32 (3, D, H, W) counted in nodes of their lattice, component n along array axis n.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .filters import _halved, smooth

# Conjugate gradient steps on the lattice itself, on one of half its resolution, and so on.
_SOLVER_STEPS = (6, 12, 24)


# Where the price of strain turns from quadratic to linear, in medians of the field's own strain.
_SLIDING_SCALE = 0.5


# Strain below which no field is so calm that its median would tell what slides.
_LEAST_STRAIN = 0.1


@dataclass(frozen=True)
class Regulariser:
    """Price of a displacement field per node, in units of the noise of the features (see `refinement.gauss_newton`).

    ``diffusion`` weighs the squared first, ``bending`` the squared second derivatives, both per node spacing.
    ``sliding``, from 0 to 1: where the field strains much more than elsewhere, as where organs slide along each other,
    the price grows less than quadratically with the strain, and linearly at 1 (`eased`). ``ease`` (D, H, W) is the
    share of the price that is left at each node then.
    """

    diffusion: float
    bending: float
    sliding: float = 0.0
    ease: Tensor | None = None

    def scaled(self, factor: float) -> Regulariser:
        return replace(self, diffusion=self.diffusion * factor, bending=self.bending * factor)

    def mixed(self, other: Regulariser, share: float) -> Regulariser:
        """This price for ``share`` 0, ``other`` for 1, and between them what is between."""
        names = ("diffusion", "bending", "sliding")
        return replace(self, **{n: (1 - share) * getattr(self, n) + share * getattr(other, n) for n in names})

    def eased(self, u: Tensor, mask: Tensor) -> Regulariser:
        """The quadratic price that touches this one at ``u`` (iteratively reweighted least squares).

        Strain is the norm of the gradient; nodes of ``mask`` (D, H, W), boolean, tell which one is usual. A node that
        strains at e times half the median gets 1 / sqrt(1 + e^2) of the price, times what leaves the median's alone:
        Charbonnier's penalty (IEEE Trans. Image Process. 6, 1997), which comes close to total variation as pTVreg uses
        it for sliding organs (Vishnevskiy et al., IEEE Trans. Med. Imaging 36, 2017), without a scale to be set.
        """
        if not self.sliding:
            return self
        energy = smooth(strain_energy(u))
        usual = energy[mask] if bool(mask.any()) else energy.flatten()
        scale = _SLIDING_SCALE**2 * usual.median().clamp_min(_LEAST_STRAIN**2)
        ease = ((1 + 1 / _SLIDING_SCALE**2) / (1 + energy / scale)) ** (self.sliding / 2)
        # What hardly strains is not made stiffer without end.
        return replace(self, ease=ease.clamp(0.02, 2.0))

    def gradient(self, u: Tensor) -> Tensor:
        """Half the gradient of the price at ``u``: a linear operator, for a given ``ease``."""
        if self.ease is None:
            first = negative_laplacian(u)
            return self.diffusion * first + self.bending * negative_laplacian(first)
        price = self.diffusion * negative_laplacian(u, self.ease)
        return price + self.bending * negative_laplacian(self.ease * negative_laplacian(u))

    def diagonal(self) -> float | Tensor:
        """The operator's diagonal away from the border: 6 for the Laplacian's stencil, 42 for its square's."""
        diagonal = 6 * self.diffusion + 42 * self.bending
        return diagonal if self.ease is None else diagonal * self.ease

    def coarser(self) -> Regulariser:
        """The same price for displacements counted in nodes that are twice as far apart."""
        return replace(self, bending=self.bending / 4, ease=None if self.ease is None else _halved(self.ease[None])[0])


def strain_energy(u: Tensor) -> Tensor:
    """Squared norm (D, H, W) of the gradient of ``u``; forward and backward differences count half each."""
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


def solve(curvature: Tensor, pull: Tensor, regulariser: Regulariser, steps: tuple[int, ...] = _SOLVER_STEPS) -> Tensor:
    """The step (3, D, H, W) with curvature @ step + regulariser(step) = pull, nearly.

    ``curvature`` (6, D, H, W: zz zy zx yy yx xx) and ``pull`` (3, D, H, W) of the data. Preconditioned conjugate
    gradients, ``steps[0]`` of them, from the solution on the lattice of half the resolution, which has ``steps[1]``,
    and so on (cascadic multigrid: Bornemann and Deuflhard, Numer. Math. 75, 1996): what is far-reaching in a step is
    found where it is cheap.
    """
    step = None
    if len(steps) > 1 and min(pull.shape[1:]) >= 8:
        # A node of the coarse lattice holds the mean of eight; its displacements count half as many nodes.
        coarse = solve(4 * _halved(curvature), 2 * _halved(pull), regulariser.coarser(), steps[1:])
        step = 2 * F.interpolate(coarse[None], scale_factor=2, mode="trilinear", align_corners=False)[0]
        step = step[tuple(slice(n) for n in pull.shape)]
    return _conjugate_gradients(curvature, pull, regulariser, step, steps[0])


def _conjugate_gradients(
    curvature: Tensor, pull: Tensor, regulariser: Regulariser, start: Tensor | None, steps: int
) -> Tensor:
    """`solve` on one lattice, from ``start`` or zero, with the diagonal as preconditioner."""
    zz, zy, zx, yy, yx, xx = curvature
    diagonal = torch.stack([zz, yy, xx]) + regulariser.diagonal()

    def apply(v: Tensor) -> Tensor:
        data = torch.stack(
            [zz * v[0] + zy * v[1] + zx * v[2], zy * v[0] + yy * v[1] + yx * v[2], zx * v[0] + yx * v[1] + xx * v[2]]
        )
        return data + regulariser.gradient(v)

    step = torch.zeros_like(pull) if start is None else start.clone()
    residual = pull.clone() if start is None else pull - apply(start)
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
