"""Continuous refinement of a displacement field.

`gauss_newton` is what the presets use: features are warped, compared and linearised at every voxel, and the small
quadratic problem that follows is solved on a coarser lattice of nodes. It reaches a lower error than Adam in a tenth of
the time, because a warp of many channels buys a whole solve instead of one gradient step (Testing/Benchmarks has the
figures). `adam` is the published schedule of ConvexAdam and of the study, kept for the preset "study".

Displacements are float32 (3, D, H, W) in mm along the array axes; all lattices of one call share their outer faces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .deformation import exponential, resize
from .search import smooth

_SLAB_VALUES = 1 << 21
_SOLVER_STEPS = 20


@dataclass(frozen=True)
class FeaturePair:
    """Features (C, D, H, W) of both images on one lattice; ``weight`` is relative to the other pairs."""

    fixed: Tensor
    moving: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Regulariser:
    """Price of a displacement field per node, in units of the noise of the features (see `gauss_newton`).

    ``diffusion`` weighs the squared first, ``bending`` the squared second derivatives, both per node spacing.
    """

    diffusion: float
    bending: float

    def scaled(self, factor: float) -> Regulariser:
        return Regulariser(self.diffusion * factor, self.bending * factor)

    def gradient(self, u: Tensor) -> Tensor:
        """Half the gradient of the price at ``u`` (3, d, h, w) in nodes: a linear operator."""
        first = negative_laplacian(u)
        return (
            self.diffusion * first + self.bending * negative_laplacian(first)
            if self.bending
            else self.diffusion * first
        )

    def diagonal(self) -> float:
        """The operator's diagonal away from the border: 6 for the Laplacian's stencil, 42 for its square's."""
        return 6 * self.diffusion + 42 * self.bending


def standardised(fixed: Tensor, moving: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both features (C, D, H, W), jointly centred by channel and scaled to mean square 1 over ``mask`` (D, H, W)."""
    share = mask.flatten().to(fixed.dtype)
    share = share / share.sum().clamp_min(1) / 2
    both = [features.flatten(1) for features in (fixed, moving)]
    mean = sum(values @ share for values in both)
    power = sum(((values - mean[:, None]).square() @ share).mean() for values in both)
    mean, scale = mean[:, None, None, None], power.sqrt().clamp_min(1e-8)
    return (fixed - mean) / scale, (moving - mean) / scale


def local_normalised(image: Tensor, reach: float = 1.6) -> Tensor:
    """``image`` (D, H, W) minus its local mean, over its local standard deviation, as (1, D, H, W).

    Local is a bell with a standard deviation of ``reach`` voxels.
    """
    mean, power = image, image.square()
    # A box of 3 voxels has the variance 2/3.
    for _ in range(max(1, round(1.5 * reach**2))):
        mean, power = smooth(mean), smooth(power)
    spread = (power - mean.square()).clamp_min(0)
    # Noise in flat places is not stretched to the size of anatomy.
    return ((image - mean) / (spread + 0.1 * spread.mean()).clamp_min(1e-12).sqrt())[None]


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
    diffeomorphic: bool = False,
    guide: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    each: Callable[[int, Tensor, float], bool] = lambda *_: False,
) -> tuple[Tensor, list[float]]:
    """``displacement`` (or velocity) refined by the features of ``pairs``, on ``nodes`` (d, h, w); and the losses.

    Minimises the sum over pairs of |fixed - moving(x + u)|^2 / noise plus the regulariser. The noise is the mean
    squared residual of each pair, taken anew in each iteration: it makes the price of a pair free of scale and trusts a
    pair less the worse it can be explained. Steps are limited to one voxel.

    ``spacing``: mm of the (isotropic) feature lattice, whose shape must be a multiple of ``nodes``. ``fixed_weight``
    (D, H, W): how much each fixed voxel counts; ``moving_weight`` the same for where it lands. ``diffeomorphic``:
    ``displacement`` is a stationary velocity field. ``guide``: from the current displacement in nodes to the (6, ...)
    curvature and (3, ...) pull of further terms. ``each`` is called with iteration, field in mm and loss after each
    iteration; it may raise to stop or return True to end early.

    The linearisation with the mean of both images' gradients is that of symmetric demons / ESM (Vercauteren et al.,
    NeuroImage 2009); iterated warping and linear solves follow Brox et al., ECCV 2004.
    """
    shape = pairs[0].fixed.shape[1:]
    every = shape[0] // nodes[0]
    node_mm = spacing * every
    field = resize(displacement, nodes) / node_mm
    losses: list[float] = []
    for iteration in range(iterations):
        moved = exponential(field, (1.0, 1.0, 1.0)) if diffeomorphic else field
        fine = resize(moved, shape) * every
        weight = fixed_weight
        if moving_weight is not None:
            weight = weight * sample(moving_weight[None], fine)[0]
        curvature, pull, loss = _linearised(pairs, fine, weight, every)
        if guide is not None:
            more_curvature, more_pull = guide(moved)
            curvature, pull = curvature + more_curvature, pull + more_pull
        price = regulariser.gradient(field)
        step = _solved(curvature, pull - price, regulariser)
        length = step.norm(dim=0, keepdim=True)
        # Beyond a voxel the linearisation says nothing.
        field = field + step * (1 / every / length.clamp_min(1 / every))
        losses.append(loss)
        # The loss of an iteration is that of the field before its step.
        settled = len(losses) > 2 and losses[-1] > 0.997 * losses[-2]
        if each(iteration, field * node_mm, loss) or settled:
            break
    return field * node_mm, losses


def sample(volume: Tensor, shift: Tensor) -> Tensor:
    """``volume`` (C, D, H, W) at x + ``shift`` (3, D, H, W) in voxels, the border repeated outside.

    On the CPU the depth is split over the threads, which `grid_sample` only does over the batch.
    """
    shape = shift.shape[1:]
    return _sample_slab(volume, shift, 0, shape[0])


def _sample_slab(volume: Tensor, shift: Tensor, first: int, last: int) -> Tensor:
    """Planes ``first`` to ``last`` of `sample`."""
    depth, height, width = volume.shape[1:]
    count = last - first
    parts = torch.get_num_threads() if volume.device.type == "cpu" else 1
    parts = parts if parts > 0 and count % parts == 0 else 1
    grid = torch.empty(count, height, width, 3, device=volume.device)
    for axis, size in enumerate((depth, height, width)):
        steps = (
            torch.arange(first, last, device=volume.device) if axis == 0 else torch.arange(size, device=volume.device)
        )
        steps = steps.float().reshape([-1 if n == axis else 1 for n in range(3)])
        # Adam differentiates through this: no out=.
        grid[..., 2 - axis] = (shift[axis, first:last] + steps).mul_(2 / max(size - 1, 1)).sub_(1)
    values = F.grid_sample(
        volume[None].expand(parts, -1, -1, -1, -1),
        grid.reshape(parts, count // parts, height, width, 3),
        padding_mode="border",
        align_corners=True,
    )
    return values.transpose(0, 1).reshape(volume.shape[0], count, height, width)


def _linearised(
    pairs: Sequence[FeaturePair], shift: Tensor, weight: Tensor, every: int
) -> tuple[Tensor, Tensor, float]:
    """Curvature (6: zz zy zx yy yx xx) and pull (3) of the data term on the nodes, and its value.

    ``shift`` (3, D, H, W) in voxels; results are per node and for displacements in nodes.
    """
    depth, height, width = weight.shape
    nodes = (depth // every, height // every, width // every)
    total_curvature, total_pull = weight.new_zeros((6, *nodes)), weight.new_zeros((3, *nodes))
    total_loss = 0.0
    importance = sum(pair.weight for pair in pairs)
    mass = weight.sum().clamp_min(1e-6)
    for pair in pairs:
        curvature, pull = weight.new_zeros((6, *nodes)), weight.new_zeros((3, *nodes))
        squared = weight.new_zeros(())
        channels = pair.fixed.shape[0]
        planes = depth
        if weight.device.type == "cpu":
            planes = max(1, _SLAB_VALUES // (channels * height * width * every)) * every
        for first in range(0, depth, planes):
            last = min(first + planes, depth)
            low, high = max(first - 1, 0), min(last + 1, depth)
            moved = _sample_slab(pair.moving, shift, low, high)
            fixed = pair.fixed[:, low:high]
            inner = slice(first - low, first - low + last - first)
            residual = (fixed - moved)[:, inner]
            slopes = _slopes(moved.add_(fixed).mul_(0.5), first - low, high - last)
            part = weight[first:last]
            squared += (residual.square().sum(0) * part).sum()
            rows = slice(first // every, -(-last // every))
            n = 0
            for a in range(3):
                pull[a, rows] = _pooled((residual * slopes[a]).sum(0) * part, every)
                for b in range(a, 3):
                    curvature[n, rows] = _pooled((slopes[a] * slopes[b]).sum(0) * part, every)
                    n += 1
        noise = (squared / mass / channels).clamp_min(1e-8)
        share = pair.weight / importance / (channels * noise)
        total_curvature += curvature * (share * every * every)
        total_pull += pull * (share * every)
        total_loss += pair.weight / importance * float(noise)
    return total_curvature, total_pull, total_loss


def _slopes(values: Tensor, before: int, after: int) -> list[Tensor]:
    """Central differences of (C, D, H, W) along z, y, x, without the ``before`` and ``after`` extra planes."""
    inner = slice(before, values.shape[1] - after)
    padded = F.pad(values, (0, 0, 0, 0, 1 - before, 1 - after), mode="replicate") if before + after < 2 else values
    along_z = (padded[:, 2:] - padded[:, :-2]).mul_(0.5)
    values = values[:, inner]
    slopes = [along_z]
    for axis in (2, 3):
        slope = torch.zeros_like(values)
        count = values.shape[axis]
        if count > 2:
            torch.sub(
                values.narrow(axis, 2, count - 2),
                values.narrow(axis, 0, count - 2),
                out=slope.narrow(axis, 1, count - 2),
            )
        slopes.append(slope.mul_(0.5))
    return slopes


def _pooled(values: Tensor, every: int) -> Tensor:
    """Means over blocks of ``every`` voxels of (D, H, W)."""
    return F.avg_pool3d(values[None, None], every)[0, 0] if every > 1 else values


@torch.no_grad()
def vagueness(
    pairs: Sequence[FeaturePair], displacement: Tensor, spacing: float, weight: Tensor, regulariser: Regulariser
) -> Tensor:
    """How loosely the features hold each node of ``displacement`` (3, d, h, w, mm): a length in mm (d, h, w).

    The root of the trace of the inverse of the cost's curvature, shared with the neighbourhood that the regulariser
    couples, and of the regulariser itself (the Laplace approximation of the posterior's spread).
    """
    shape = pairs[0].fixed.shape[1:]
    every = max(1, shape[0] // displacement.shape[1])
    curvature, _, _ = _linearised(pairs, resize(displacement, shape) / spacing, weight, every)
    zz, zy, zx, yy, yx, xx = smooth(smooth(curvature))
    zz, yy, xx = (values + regulariser.diagonal() * 0.1 for values in (zz, yy, xx))
    minors = (yy * xx - yx * yx) + (zz * xx - zx * zx) + (zz * yy - zy * zy)
    determinant = zz * (yy * xx - yx * yx) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx)
    return (minors / determinant.clamp_min(1e-12)).clamp_min(0).sqrt() * (spacing * every)


def negative_laplacian(u: Tensor) -> Tensor:
    """Minus the Laplacian of (C, D, H, W) per node; nothing flows through the border."""
    out = torch.zeros_like(u)
    for axis in (1, 2, 3):
        count = u.shape[axis]
        difference = u.narrow(axis, 1, count - 1) - u.narrow(axis, 0, count - 1)
        out.narrow(axis, 0, count - 1).sub_(difference)
        out.narrow(axis, 1, count - 1).add_(difference)
    return out


def _solved(curvature: Tensor, pull: Tensor, regulariser: Regulariser) -> Tensor:
    """The step (3, d, h, w) with curvature @ step + regulariser(step) = pull, by preconditioned conjugate gradients."""
    zz, zy, zx, yy, yx, xx = curvature
    diagonal = torch.stack([zz, yy, xx]) + regulariser.diagonal()

    def apply(v: Tensor) -> Tensor:
        data = torch.stack(
            [zz * v[0] + zy * v[1] + zx * v[2], zy * v[0] + yy * v[1] + yx * v[2], zx * v[0] + yx * v[1] + xx * v[2]]
        )
        return data + regulariser.gradient(v)

    step, residual = torch.zeros_like(pull), pull.clone()
    preconditioned = residual / diagonal
    direction = preconditioned.clone()
    product = (residual * preconditioned).sum()
    for _ in range(_SOLVER_STEPS):
        image = apply(direction)
        length = product / (direction * image).sum().clamp_min(1e-30)
        step += length * direction
        residual -= length * image
        preconditioned = residual / diagonal
        previous, product = product, (residual * preconditioned).sum()
        direction = preconditioned + product / previous.clamp_min(1e-30) * direction
    return step


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
    each: Callable[[int, Tensor, float], bool] = lambda *_: False,
) -> tuple[Tensor, list[float]]:
    """``displacement`` refined by Adam on the lattice of ``pairs``, smoothed as in ConvexAdam; and the loss curve.

    The field is a raw one smoothed by ``passes`` box filters ``kernel`` nodes wide, whose border is repeated outwards.
    Loss: mean squared difference of the features plus ``diffusion`` times the mean squared forward differences of the
    field in voxels. ``each`` as in `gauss_newton`.
    """
    raw = (resize(displacement, pairs[0].fixed.shape[1:]) / spacing).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([raw], lr=rate)
    losses: list[float] = []
    mass, importance = fixed_weight.sum().clamp_min(1e-6), sum(pair.weight for pair in pairs)
    for iteration in range(iterations):
        field = _smoothed(raw, kernel, passes)
        loss = diffusion * sum(field.diff(dim=axis).square().mean() for axis in (1, 2, 3))
        for pair in pairs:
            difference = (pair.fixed - sample(pair.moving, field)).square().mean(0)
            loss = loss + pair.weight / importance * (difference * fixed_weight).sum() / mass
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        # The mean over a window, since Adam's single steps go up and down.
        still = iteration >= 100 and sum(losses[-50:]) > 0.999 * sum(losses[-100:-50])
        if each(iteration, field.detach() * spacing, losses[-1]) or still:
            break
    with torch.no_grad():
        return _smoothed(raw, kernel, passes) * spacing, losses


def _smoothed(raw: Tensor, kernel: int, passes: int) -> Tensor:
    pad = (kernel // 2,) * 6
    for _ in range(passes):
        raw = F.avg_pool3d(F.pad(raw[None], pad, mode="replicate"), kernel, stride=1)[0]
    return raw
