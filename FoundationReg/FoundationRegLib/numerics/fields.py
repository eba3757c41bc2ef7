"""Displacement fields as tensors: warp, compose, invert, exponentiate, resize, Jacobian.

A displacement u is float32 (3, D, H, W) in mm, component n along array axis n; it takes the point x of a lattice to
x + u(x). ``spacing`` is (z, y, x) in mm. Everything is differentiable unless it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.grid import Grid
from ..native import kernels
from .sampling import sample_at


def warp(
    volume: Tensor, displacement: Tensor, spacing: Sequence[float], mode: str = "bilinear", padding: str = "border"
) -> Tensor:
    """``volume`` (C, D, H, W) taken at x + u(x), on the lattice of ``displacement``; both share that lattice.

    ``mode``: bilinear (trilinear here) or nearest. ``padding``: border repeats the edge outside, zeros does not.
    """
    shared = volume.shape[1:] == displacement.shape[1:]
    if mode == "bilinear" and padding == "border" and shared and kernels.usable(volume, displacement):
        return kernels.warp(volume, displacement, spacing)
    voxels = displacement / _column(spacing, displacement)
    places = [voxels[n] + _steps(n, displacement) for n in range(3)]
    return _sample(volume, places, mode, padding)


def _column(values, like: Tensor) -> Tensor:
    """Three numbers as a tensor (3, 1, 1, 1)."""
    return torch.as_tensor(np.asarray(values, np.float32), device=like.device, dtype=like.dtype).reshape(3, 1, 1, 1)


def _steps(axis: int, like: Tensor) -> Tensor:
    """Voxel indices along array ``axis``, shaped to broadcast over (D, H, W)."""
    count = like.shape[axis + 1]
    return torch.arange(count, device=like.device, dtype=like.dtype).reshape([-1 if n == axis else 1 for n in range(3)])


def _sample(volume: Tensor, places: Sequence[Tensor], mode: str, padding: str) -> Tensor:
    """``volume`` (C, D, H, W) at continuous indices ``places`` (z, y, x), each (d, h, w)."""
    # align_corners=True puts -1 and 1 at the centres of the first and last voxel.
    scaled = [2 * place / max(size - 1, 1) - 1 for place, size in zip(places, volume.shape[1:], strict=True)]
    grid = torch.stack(torch.broadcast_tensors(*scaled[::-1]), dim=-1)
    return sample_at(volume, grid.to(volume.dtype), mode, padding)


def compose(u: Tensor, v: Tensor, spacing: Sequence[float]) -> Tensor:
    """First ``v``, then ``u``: the displacement of x -> x + v(x) + u(x + v(x)), all on one lattice."""
    return v + warp(u, v, spacing)


@torch.no_grad()
def inverse(
    u: Tensor, spacing: Sequence[float], iterations: int = 50, tolerance_mm: float = 0.01
) -> tuple[Tensor, float]:
    """The displacement v with x + v(x) + u(x + v(x)) = x, and the largest residual of that in mm.

    Damped fixed-point iteration (Chen et al., Med. Phys. 35, 2008: v <- -u(x + v)); stops at ``tolerance_mm``. Where
    u folds no inverse exists and the residual stays large. Not differentiable.
    """
    v = torch.zeros_like(u)
    best, least, step = v, float("inf"), 1.0
    for _ in range(iterations):
        error = compose(u, v, spacing)
        residual = float(error.norm(dim=0).max())
        if residual < least:
            best, least = v, residual
        else:
            # Overshot where u is steep.
            step = max(0.5 * step, 0.1)
        if residual <= tolerance_mm:
            break
        v = v - step * error
    return best, least


def exponential(velocity: Tensor, spacing: Sequence[float], steps: int | None = None) -> Tensor:
    """The displacement after flowing one unit of time along the stationary ``velocity`` (3, D, H, W) in mm.

    Scaling and squaring (Arsigny et al., MICCAI 2006) of a midpoint step over 1 / 2 ** ``steps`` of the time; by
    default as many as keep that step below a voxel. Its inverse is ``exponential(-velocity)``.
    """
    shape = velocity.shape[1:]
    if steps is None:
        longest = float((velocity.detach() / _column(spacing, velocity)).abs().max())
        steps = max(1, math.ceil(math.log2(longest))) if longest > 0 else 0
    if kernels.usable(velocity):
        return kernels.exponential(velocity, spacing, steps)
    # Worked on in the order and units of `sample_at`, so that a composition is one sum and one look-up.
    unit = _column([2 / (max(n - 1, 1) * s) for n, s in zip(shape, spacing, strict=True)], velocity)
    axes = [torch.linspace(-1, 1, n, device=velocity.device) if n > 1 else velocity.new_zeros(1) for n in shape]
    home = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1])
    u = (velocity * unit).flip(0) / 2**steps
    u = sample_at(u, (home + 0.5 * u).movedim(0, -1))
    for _ in range(steps):
        u = u + sample_at(u, (home + u).movedim(0, -1))
    return u.flip(0) / unit


@torch.no_grad()
def logarithm(u: Tensor, spacing: Sequence[float], iterations: int = 5) -> Tensor:
    """A stationary velocity whose flow ends at the displacement ``u`` (3, D, H, W), both in mm, nearly.

    Fixed-point iteration v <- v + u - exp(v), the first-order one of Bossa et al. (MICCAI 2007), as long as it comes
    nearer: where ``u`` folds there is no such velocity. Not differentiable.
    """
    velocity, best, least = u, u, math.inf
    for _ in range(iterations):
        rest = u - exponential(velocity, spacing)
        missed = float(rest.square().sum(0).mean())
        if missed >= least:
            break
        best, least = velocity, missed
        velocity = velocity + rest
    return best


def jacobian_determinant(u: Tensor, spacing: Sequence[float]) -> Tensor:
    """Determinant (D, H, W) of the Jacobian of x -> x + u(x): the local change of volume, at most 0 where it folds.

    Central differences, one-sided at the border.
    """
    rows = []
    for n in range(3):
        row = [_slope(u[n], axis, float(spacing[axis])) for axis in range(3)]
        row[n] = row[n] + 1
        rows.append(row)
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _slope(values: Tensor, axis: int, spacing: float) -> Tensor:
    if values.shape[axis] < 2:
        return torch.zeros_like(values)
    return torch.gradient(values, spacing=spacing, dim=axis)[0]


def folded_percent(u: Tensor, spacing: Sequence[float]) -> float:
    """Share of voxels in percent where the Jacobian determinant is not positive; the border voxels do not count."""
    return 100 * float((_inner(jacobian_determinant(u, spacing)) <= 0).float().mean())


def _inner(values: Tensor) -> Tensor:
    return values[tuple(slice(1, -1) if n > 2 else slice(None) for n in values.shape)]


def resize(u: Tensor, shape: Sequence[int]) -> Tensor:
    """``u`` on ``shape`` (z, y, x) voxels over the same outer faces; millimetres stay. Also for other (C, D, H, W)."""
    if tuple(u.shape[1:]) == tuple(shape):
        return u
    return F.interpolate(u[None], size=tuple(int(n) for n in shape), mode="trilinear", align_corners=False)[0]


def resample(u: Tensor, source: Grid, target: Grid) -> Tensor:
    """``u`` on ``source`` as the same field on ``target``: by physical position, its edge value outside.

    The components follow the axes of ``target``, wherever these point.
    """
    index = np.linalg.inv(source.affine) @ target.affine
    steps = [_steps(n, u.new_empty((3, *target.shape))) for n in range(3)]
    places = [sum(float(index[n, m]) * steps[m] for m in range(3)) + float(index[n, 3]) for n in range(3)]
    sampled = _sample(u, places, "bilinear", "border")
    turn = target.direction.T @ source.direction
    if np.allclose(turn, np.eye(3), atol=1e-9):
        return sampled
    return torch.einsum("nm,mdhw->ndhw", torch.as_tensor(turn, device=u.device, dtype=u.dtype), sampled)
