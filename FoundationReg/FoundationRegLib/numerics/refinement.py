"""Continuous refinement of a displacement field.

`gauss_newton` is what the presets use: features are warped, compared and linearised at every voxel, and the small
quadratic problem that follows is solved on a coarser lattice of nodes. It reaches a lower error than Adam
(docs/accuracy.md), and sooner, because a warp of many channels buys a whole solve instead of one gradient step.
`adam` is the published schedule of ConvexAdam and of the study, kept for the preset "study".

Displacements are float32 (3, D, H, W) in mm along the array axes; all lattices of one call share their outer faces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .fields import exponential, resize, sample_at, warp
from .regularisation import Regulariser, solve
from .search import smooth

# Values of a part that the CPU works on at a time; more would leave its cache.
_PART_VALUES = 1 << 20
# Successive steps of one iteration after the other point the same way: going further saves a third of them.
_OVERSHOOT = 1.3
# A region that is explained so many times worse than the rest keeps half of its say.
_OUTLIER = 3.0


@dataclass(frozen=True)
class FeaturePair:
    """Features (C, D, H, W) of both images on one lattice; ``weight`` is relative to the other pairs.

    ``given``: the user says that they match, so they count everywhere, however badly they are explained.
    """

    fixed: Tensor
    moving: Tensor
    weight: float = 1.0
    given: bool = False


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
    moments = torch.stack([image, image.square()])
    # A wide bell is as good on blocks of voxels.
    block = max(1, int(reach / 2.5))
    if block > 1:
        pad = [n for count in reversed(image.shape) for n in (0, -count % block)]
        moments = F.avg_pool3d(F.pad(moments[None], pad, mode="replicate"), block)[0]
    # A box of 3 voxels has the variance 2/3.
    for _ in range(max(1, round(1.5 * (reach / block) ** 2))):
        moments = smooth(moments)
    if block > 1:
        moments = F.interpolate(moments[None], scale_factor=block, mode="trilinear", align_corners=False)[0]
    mean, power = moments[(slice(None), *(slice(n) for n in image.shape))]
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
    tolerance: float = 0.003,
    diffeomorphic: bool = False,
    robust: bool = False,
    guide: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    each: Callable[[int, Tensor, float], bool] = lambda *_: False,
) -> tuple[Tensor, list[float]]:
    """``displacement`` (or velocity) refined by the features of ``pairs``, on ``nodes`` (d, h, w); and the losses.

    Minimises the sum over pairs of |fixed - moving(x + u)|^2 / noise plus the regulariser. The noise is the mean
    squared residual of each pair, taken anew in each iteration: it makes the price of a pair free of scale and trusts a
    pair less the worse it can be explained. Steps are limited to about a voxel, and end when one lowers the loss by
    less than the share ``tolerance``.

    ``spacing``: mm of the (isotropic) feature lattice, whose shape must be a multiple of ``nodes``. ``fixed_weight``
    (D, H, W): how much each fixed voxel counts; ``moving_weight`` the same for where it lands. ``diffeomorphic``:
    ``displacement`` is a stationary velocity field, and the images are compared both ways, |moving - fixed(x + v)|^2
    counting as much: neither image is the only one that interpolation blurs. ``robust``: what is explained much worse
    than the rest, such as a lesion that only one image has, loses its say, so that it is neither shrunk nor torn;
    too early that would keep organs from coming together that still lie apart. ``guide``: from the current displacement
    in nodes to the (6, ...) curvature and (3, ...) pull of further terms. ``each`` is called with iteration, field in
    mm and loss after each iteration; it may raise to stop or return True to end early.

    The linearisation with the mean of both images' gradients is that of symmetric demons / ESM, the comparison both
    ways that of symmetric log-demons (Vercauteren et al., NeuroImage 2009 and MICCAI 2008); iterated warping and linear
    solves follow Brox et al., ECCV 2004.
    """
    shape = pairs[0].fixed.shape[1:]
    every = shape[0] // nodes[0]
    node_mm = spacing * every
    field = resize(displacement, nodes) / node_mm
    if moving_weight is None:
        moving_weight = torch.ones_like(fixed_weight)
    ways = [_Way(1, pairs, fixed_weight, moving_weight, every, robust)]
    if diffeomorphic:
        turned = [replace(pair, fixed=pair.moving, moving=pair.fixed) for pair in pairs]
        ways.append(_Way(-1, turned, moving_weight, fixed_weight, every, robust))
    mask = F.interpolate(fixed_weight[None, None], size=nodes)[0, 0] > 0
    losses: list[float] = []
    for iteration in range(iterations):
        curvature, pull, loss = 0.0, 0.0, 0.0
        for way in ways:
            moved = exponential(way.sign * field, (1.0, 1.0, 1.0)) if diffeomorphic else field
            terms = way.linearised(resize(moved, shape) * every)
            curvature, pull = curvature + terms[0] / len(ways), pull + way.sign * terms[1] / len(ways)
            loss += terms[2] / len(ways)
            if guide is not None and way.sign > 0:
                more_curvature, more_pull = guide(moved)
                curvature, pull = curvature + more_curvature, pull + more_pull
        eased = regulariser.eased(field, mask)
        step = solve(curvature, pull - eased.gradient(field), eased)
        length = step.square().sum(0, keepdim=True).sqrt()
        # Beyond a voxel the linearisation says nothing.
        field = field + step * (_OVERSHOOT / every / length.clamp_min(1 / every))
        losses.append(loss)
        # The loss of an iteration is that of the field before its step.
        settled = len(losses) > 2 and losses[-1] > (1 - tolerance) * losses[-2]
        if each(iteration, field * node_mm, loss) or settled:
            break
    return field * node_mm, losses


def _places(shift: Tensor, box: tuple[slice, slice, slice]) -> Tensor:
    """Where the voxels of ``box`` land, as the grid (d, h, w, 3) of `sample_at`."""
    shape, moved = shift.shape[1:], shift[(slice(None), *box)]
    axes = []
    for axis, (size, part) in enumerate(zip(shape, box, strict=True)):
        steps = torch.arange(part.start, part.stop, device=shift.device, dtype=shift.dtype)
        steps = steps.reshape([-1 if n == axis else 1 for n in range(3)])
        axes.append((moved[axis] + steps).mul_(2 / max(size - 1, 1)).sub_(1))
    return torch.stack(axes[::-1], dim=-1)


class _Way:
    """The comparison of the first features of ``pairs`` with the second ones where a field takes them.

    ``sign``: which way along the velocity that is. ``weight``: how much each voxel of the first counts; it decides
    which parts of the lattice are looked at. ``landing``: the same where voxels land. ``every``: voxels per node.
    ``robust``: as in `gauss_newton`.
    """

    def __init__(
        self, sign: int, pairs: Sequence[FeaturePair], weight: Tensor, landing: Tensor, every: int, robust: bool = False
    ):
        self.sign, self.pairs, self.weight, self.landing, self.every = sign, pairs, weight, landing, every
        self.robust = robust
        self.parts = _parts(weight, every, max(pair.fixed.shape[0] for pair in pairs))

    def linearised(self, shift: Tensor) -> tuple[Tensor, Tensor, float]:
        """Curvature (6: zz zy zx yy yx xx) and pull (3) of the data term on the nodes, and its value.

        ``shift`` (3, D, H, W) in voxels; results are per node and for displacements in nodes.
        """
        every, shape = self.every, self.weight.shape
        nodes = tuple(n // every for n in shape)
        # Per pair: three rows of pull, six of curvature, and the squared residual.
        terms = [self.weight.new_zeros((10, *nodes)) for _ in self.pairs]
        mass = self.weight.new_zeros(nodes)
        for box in self.parts:
            halo = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, shape, strict=True))
            inner = tuple(slice(s.start - h.start, s.stop - h.start) for s, h in zip(box, halo, strict=True))
            places = _places(shift, halo)
            counts = self.weight[box] * sample_at(self.landing[None], places[inner], "nearest")[0]
            here = tuple(slice(s.start // every, s.stop // every) for s in box)
            mass[here] = self._pooled(counts[None])[0]
            for n, pair in enumerate(self.pairs):
                fixed, moved = pair.fixed[(slice(None), *halo)], sample_at(pair.moving, places)
                residual = (fixed - moved)[(slice(None), *inner)].contiguous()
                slopes = _slopes(moved.add_(fixed), inner)
                product = torch.mul(residual, residual)
                square = product.sum(0)
                rows = [torch.mul(residual, slope, out=product).sum(0) for slope in slopes]
                rows += [torch.mul(slopes[a], slopes[b], out=product).sum(0) for a, b in _UPPER]
                terms[n][(slice(None), *here)] = self._pooled(torch.stack([*rows, square]).mul_(counts))
        return self._joined(terms, mass)

    def _pooled(self, values: Tensor) -> Tensor:
        """Means of (C, D, H, W) over the voxels of each node."""
        return F.avg_pool3d(values[None], self.every)[0] if self.every > 1 else values

    def _joined(self, terms: list[Tensor], mass: Tensor) -> tuple[Tensor, Tensor, float]:
        """The pairs' terms added up, each in units of its own noise; ``mass`` (d, h, w) is what each node counts."""
        seen, given, loss = torch.zeros_like(terms[0]), torch.zeros_like(terms[0]), 0.0
        importance = sum(pair.weight for pair in self.pairs)
        for pair, own in zip(self.pairs, terms, strict=True):
            channels, share = pair.fixed.shape[0], pair.weight / importance
            noise = (own[9].sum() / mass.sum().clamp_min(1e-6) / channels).clamp_min(1e-8)
            (given if pair.given else seen).add_(own * (share / (channels * noise)))
            loss += share * float(noise)
        if self.robust:
            seen *= credibility(seen[9], mass * sum(pair.weight for pair in self.pairs if not pair.given) / importance)
        rows = seen + given
        # Slopes came as sums of both images' differences over two voxels: four times the mean's per voxel.
        return rows[3:9] * (self.every / 4) ** 2, rows[:3] * (self.every / 4), loss


def credibility(squares: Tensor, mass: Tensor) -> Tensor:
    """How much of its say each node keeps, from ``squares`` (d, h, w), its residuals in units of the noise, and mass.

    With e, the mean over a node and its neighbours, it is 1 / (1 + (e / 3)^4): noise is left alone, and a region that
    is explained some times worse than the rest is an outlier (Black and Anandan, CVIU 63, 1996), where single edges
    that do not meet yet are not.
    """
    excess = smooth(squares) / smooth(mass).clamp_min(1e-3)
    return 1 / (1 + (excess / _OUTLIER) ** 4)


_UPPER = [(a, b) for a in range(3) for b in range(a, 3)]


def _parts(weight: Tensor, every: int, channels: int) -> list[tuple[slice, slice, slice]]:
    """Boxes of whole nodes that hold all of ``weight`` (D, H, W): what is empty around them need not be looked at.

    On the CPU they are slabs that fit its cache, cut to what each holds; elsewhere one box.
    """
    held = weight > 0
    depth, height, width = weight.shape
    planes = depth
    if weight.device.type == "cpu":
        planes = max(1, _PART_VALUES // (channels * height * width * every)) * every
    parts = []
    for first in range(0, depth, planes):
        part = held[first : first + planes]
        if bool(part.any()):
            box = [_occupied(part, axis, every) for axis in range(3)]
            parts.append((slice(box[0].start + first, box[0].stop + first), *box[1:]))
    return parts


def _occupied(mask: Tensor, axis: int, every: int) -> slice:
    """Indices along ``axis`` between which ``mask`` (D, H, W) holds anything, out to multiples of ``every``."""
    found = mask.movedim(axis, 0).flatten(1).any(1).nonzero()
    return slice(int(found[0]) // every * every, -(-(int(found[-1]) + 1) // every) * every)


def _slopes(values: Tensor, inner: tuple[slice, slice, slice]) -> list[Tensor]:
    """Differences of (C, D, H, W) between the next and the previous voxel along z, y, x, inside ``inner``.

    Where ``inner`` touches a face of ``values`` there is no neighbour and the slope is zero.
    """
    slopes = []
    for axis, part in enumerate(inner):
        lines = values[(slice(None), *(slice(None) if n == axis else s for n, s in enumerate(inner)))]
        count = lines.shape[axis + 1]
        low, high = max(part.start, 1), min(part.stop, count - 1)
        slope = lines.narrow(axis + 1, low + 1, high - low) - lines.narrow(axis + 1, low - 1, high - low)
        missing = [low - part.start, part.stop - high]
        if any(missing):
            slope = F.pad(slope, [p for n in (2, 1, 0) for p in (missing if n == axis else (0, 0))])
        slopes.append(slope)
    return slopes


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
    way = _Way(1, pairs, weight, torch.ones_like(weight), every, robust=True)
    curvature, _, _ = way.linearised(resize(displacement, shape) / spacing)
    zz, zy, zx, yy, yx, xx = smooth(smooth(curvature))
    zz, yy, xx = (values + regulariser.diagonal() * 0.1 for values in (zz, yy, xx))
    minors = (yy * xx - yx * yx) + (zz * xx - zx * zx) + (zz * yy - zy * zy)
    determinant = zz * (yy * xx - yx * yx) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx)
    return (minors / determinant.clamp_min(1e-12)).clamp_min(0).sqrt() * (spacing * every)


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
            difference = (pair.fixed - warp(pair.moving, field, (1.0, 1.0, 1.0))).square().mean(0)
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
