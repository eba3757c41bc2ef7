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

_LEAST_OVERLAP = 0.2
_TOLERANCE = 1e-5


def mutual_information(fixed: Tensor, moving: Tensor, bins: int = 32) -> Tensor:
    """Mutual information in nats of paired grey values (n,) in 0..1; differentiable in ``moving``."""
    row = (fixed * (bins - 1)).round().long().clamp(0, bins - 1)
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
    values = torch.as_tensor(values, dtype=torch.float32)
    volume = torch.as_tensor(volume, dtype=torch.float32)[None, None]
    offsets = torch.as_tensor(places - center, dtype=torch.float32)
    size = torch.tensor(grid.shape[::-1], dtype=torch.float32)
    # Offsets from the centre to the moving volume's continuous index (x, y, z).
    to_index = np.linalg.inv(grid.affine) @ matrix
    turn = torch.as_tensor(to_index[2::-1, :3].copy(), dtype=torch.float32)
    shift = torch.as_tensor((to_index[:3, :3] @ center + to_index[:3, 3])[::-1].copy(), dtype=torch.float32)
    best: tuple[float, np.ndarray | None] = (float("inf"), None)
    calls = 0

    def cost(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, calls
        calls += 1
        on_step(min(1.0, calls / (1.5 * iterations)))
        parameters = torch.tensor(numbers, dtype=torch.float32, requires_grad=True)
        linear, move = _motion(parameters, radius)
        index = (offsets @ linear.T + move) @ turn.T + shift
        inside = ((index > -0.5) & (index < size - 0.5)).all(1)
        if inside.float().mean() < _LEAST_OVERLAP:
            # Worse than anything, so that the line search turns back.
            return 1.0, np.zeros_like(numbers)
        normal = 2 * index[inside] / (size - 1).clamp(min=1) - 1
        seen = F.grid_sample(volume, normal[None, None, None], padding_mode="border", align_corners=True).flatten()
        loss = -mutual_information(values[inside], seen)
        loss.backward()
        if loss.item() < best[0]:
            best = (loss.item(), numbers.copy())
        return loss.item(), parameters.grad.double().numpy()

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


def _motion(parameters: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Linear part (3, 3) and shift (3,) in mm of 6 rigid or 12 affine ``parameters``, each in mm at ``radius``."""
    rates = parameters[3:] / radius
    if len(parameters) == 6:
        zero = rates.new_zeros(())
        x, y, z = rates
        skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
        return torch.linalg.matrix_exp(skew), parameters[:3]
    return torch.eye(3, dtype=rates.dtype) + rates.reshape(3, 3), parameters[:3]
