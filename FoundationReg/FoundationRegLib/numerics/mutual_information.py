"""Rigid and affine alignment by mutual information, on tensors.

Mattes et al., IEEE Trans. Med. Imaging 22 (2003): the joint histogram of grey values has a cubic B-spline as Parzen
window along the moving values, so it can be differentiated. L-BFGS with a line search climbs it; parameters are scaled
so that each moves the body's voxels by about a millimetre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from ..core.grid import Grid
from ..native import kernels

_LEAST_OVERLAP = 0.2
_TOLERANCE = 1e-5
_BINS = 32


def mutual_information(fixed: Tensor, moving: Tensor, bins: int = _BINS) -> Tensor:
    """Mutual information in nats of paired grey values (n,) in 0..1; differentiable in ``moving``."""
    row = _bins(fixed, bins)
    # Two empty bins on each side hold the skirts of the window.
    place = 1 + moving.clamp(0, 1) * (bins - 1)
    low = place.detach().floor()
    t = place - low
    weights = torch.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3],
    ) / (6 * fixed.numel())
    columns = bins + 3
    index = row * columns + low.long() - 1
    joint = torch.zeros(bins * columns + 3, dtype=moving.dtype, device=moving.device)
    for n in range(4):
        joint = joint.index_add(0, index + n, weights[n])
    joint = joint[: bins * columns].reshape(bins, columns)
    independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return (joint * ((joint + 1e-12).log() - (independent + 1e-12).log())).sum()


def align(
    fixed_values: Sequence[np.ndarray],
    points: Sequence[np.ndarray],
    moving: Sequence[np.ndarray],
    moving_grid: Grid,
    center: np.ndarray,
    matrix: np.ndarray,
    affine: bool,
    iterations: int = 30,
    on_step: Callable[[float], None] = lambda fraction: None,
) -> np.ndarray | None:
    """The (4, 4) matrix, LPS mm, that takes fixed points to where the moving volume tells most about them.

    Per level, coarse to fine: ``fixed_values`` (n,) in 0..1 at ``points`` (n, 3) LPS mm, and ``moving`` (D, H, W) in
    0..1 on ``moving_grid``. Starts from ``matrix`` and changes it by a rotation about ``center``, or with ``affine`` by
    any linear map, and a shift. ``on_step`` gets the share of the work done and may raise to stop. None when less than
    a fifth of the points fall inside the moving volume.
    """
    matrix = np.asarray(matrix, float)
    radius = max(float(np.sqrt(((points[-1] - center) ** 2).sum(1).mean())), 1.0)
    with _one_thread():
        for level, (values, places, volume) in enumerate(zip(fixed_values, points, moving, strict=True)):
            step = _share(on_step, level, len(points))
            found = _climb(values, places, volume, moving_grid, center, matrix, radius, affine, iterations, step)
            if found is None:
                return None
            matrix = found
    return matrix


@contextmanager
def _one_thread():
    """The tensors are so small that threads cost more than they give, many times more on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _share(on_step: Callable[[float], None], level: int, levels: int) -> Callable[[float], None]:
    return lambda fraction: on_step((level + fraction) / levels)


def _climb(values, places, volume, grid, center, matrix, radius, affine, iterations, on_step) -> np.ndarray | None:
    """One level of `align`."""
    by_motion = information_by_motion(values, places - center, volume)
    # Offsets from the centre to the moving volume's continuous index (x, y, z).
    to_index = np.linalg.inv(grid.affine) @ matrix
    turn = torch.from_numpy(to_index[2::-1, :3].copy())
    shift = torch.from_numpy((to_index[:3, :3] @ center + to_index[:3, 3])[::-1].copy())
    best: tuple[float, np.ndarray | None] = (float("inf"), None)
    calls = 0

    def cost(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, calls
        calls += 1
        on_step(min(1.0, calls / (1.5 * iterations)))
        parameters = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
        linear, move = _motion(parameters, radius)
        motion = torch.cat([turn @ linear, (turn @ move + shift)[:, None]], 1)
        found, inside, slopes = by_motion(motion.detach())
        if inside < _LEAST_OVERLAP:
            # Worse than anything, so that the line search turns back.
            return 1.0, np.zeros_like(numbers)
        motion.backward(-slopes)
        if -found < best[0]:
            best = (-found, numbers.copy())
        return -found, parameters.grad.numpy()

    with torch.enable_grad():
        options = {"maxiter": iterations, "ftol": _TOLERANCE, "gtol": 1e-6}
        # Not torch.optim: its first use imports a compiler, which takes longer than all of this.
        minimize(cost, np.zeros(12 if affine else 6), jac=True, method="L-BFGS-B", options=options)
    if best[1] is None:
        return None
    linear, move = _motion(torch.from_numpy(best[1]), radius)
    change = np.eye(4)
    change[:3, :3] = linear.numpy()
    change[:3, 3] = center + move.numpy() - change[:3, :3] @ center
    return matrix @ change


def information_by_motion(values, offsets, volume) -> Callable[[Tensor], tuple[float, float, Tensor]]:
    """Gives for a motion (3, 4), float64, from ``offsets`` (n, 3) to indices (x, y, z) of ``volume``: its mutual
    information with ``values`` (n,), the share of the points inside of it, and how the first changes with the motion.
    """
    values, offsets, volume = (torch.as_tensor(array, dtype=torch.float32) for array in (values, offsets, volume))
    if kernels.usable(values, offsets, volume):
        rows = _bins(values, _BINS).int()
        return lambda motion: kernels.mutual_information(offsets, rows, volume, motion, _BINS)
    size = torch.tensor(volume.shape[::-1])

    def by_motion(motion: Tensor) -> tuple[float, float, Tensor]:
        motion = motion.float().requires_grad_()
        index = offsets @ motion[:, :3].T + motion[:, 3]
        inside = ((index > -0.5) & (index < size - 0.5)).all(1)
        if not inside.any():
            return 0.0, 0.0, torch.zeros(3, 4, dtype=torch.float64)
        normal = 2 * index[inside] / (size - 1).clamp(min=1) - 1
        places = normal[None, None, None]
        seen = F.grid_sample(volume[None, None], places, padding_mode="border", align_corners=True).flatten()
        found = mutual_information(values[inside], seen, _BINS)
        found.backward()
        return found.item(), inside.float().mean().item(), motion.grad.double()

    return by_motion


def _bins(values: Tensor, bins: int) -> Tensor:
    return (values * (bins - 1)).round().long().clamp(0, bins - 1)


def _motion(parameters: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Linear part (3, 3) and shift (3,) in mm of 6 rigid or 12 affine ``parameters``, each in mm at ``radius``."""
    rates = parameters[3:] / radius
    if len(parameters) == 6:
        zero = rates.new_zeros(())
        x, y, z = rates
        skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
        return torch.linalg.matrix_exp(skew), parameters[:3]
    return torch.eye(3, dtype=rates.dtype) + rates.reshape(3, 3), parameters[:3]
