"""Rigid and affine alignment by mutual information, on tensors.

Mattes et al., IEEE Trans. Med. Imaging 22 (2003): the joint histogram of grey values has a cubic B-spline as Parzen
window along the moving values, so it can be differentiated. L-BFGS with a line search climbs it; parameters are scaled
so that each moves the body's voxels by about a millimetre. Derivatives are written out: what a graph of them costs on
so few points is several times the work itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from ..core.grid import Grid

_LEAST_OVERLAP = 0.2
_TOLERANCE = 1e-5
_BINS = 32
# Two empty bins on one side and one on the other hold the skirts of the window.
_COLUMNS = _BINS + 3


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
    with _one_thread(), torch.inference_mode():
        for level, (values, places, volume) in enumerate(zip(fixed_values, points, moving, strict=True)):
            step = _share(on_step, level, len(points))
            compared = Comparison(values, places - center, volume)
            found = _climb(compared, moving_grid, center, matrix, radius, affine, iterations, step)
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


def _climb(compared, grid, center, matrix, radius, affine, iterations, on_step) -> np.ndarray | None:
    """One level of `align`."""
    # Offsets from the centre to the moving volume's continuous index (z, y, x).
    to_index = np.linalg.inv(grid.affine) @ matrix
    turn, shift = to_index[:3, :3], to_index[:3, :3] @ center + to_index[:3, 3]
    best: tuple[float, np.ndarray | None] = (float("inf"), None)
    calls = 0

    def cost(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, calls
        calls += 1
        on_step(min(1.0, calls / (1.5 * iterations)))
        linear, move, rates = _motion(numbers, radius)
        found = compared.information(turn @ linear, turn @ move + shift)
        if found is None:
            # Worse than anything, so that the line search turns back.
            return 1.0, np.zeros_like(numbers)
        information, by_linear, by_move = found
        if -information < best[0]:
            best = (-information, numbers.copy())
        return -information, -np.concatenate([by_move @ turn, np.einsum("nab,ab->n", rates, turn.T @ by_linear)])

    options = {"maxiter": iterations, "ftol": _TOLERANCE, "gtol": 1e-6}
    # Not torch.optim: its first use imports a compiler, which takes longer than all of this.
    minimize(cost, np.zeros(12 if affine else 6), jac=True, method="L-BFGS-B", options=options)
    if best[1] is None:
        return None
    linear, move, _ = _motion(best[1], radius)
    change = np.eye(4)
    change[:3, :3] = linear
    change[:3, 3] = center + move - linear @ center
    return matrix @ change


def _motion(numbers: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear part (3, 3) and shift (3,) in mm of 6 rigid or 12 affine ``numbers``, each in mm at ``radius``, and the
    derivatives (n, 3, 3) of the linear part by the numbers after the first three, which are the shift."""
    rates = numbers[3:] / radius
    if len(numbers) == 12:
        return np.eye(3) + rates.reshape(3, 3), numbers[:3], np.eye(9).reshape(9, 3, 3) / radius
    angle = float(np.linalg.norm(rates))
    if angle < 1e-8:
        return np.eye(3) + _skew(rates), numbers[:3], np.stack([_skew(axis) for axis in np.eye(3)]) / radius
    skew = _skew(rates)
    rotation = np.eye(3) + np.sin(angle) / angle * skew + (1 - np.cos(angle)) / angle**2 * (skew @ skew)
    # Gallego and Yezzi, J. Math. Imaging Vis. 51 (2015).
    rest = np.eye(3) - rotation
    slopes = [(rates[n] * skew + _skew(np.cross(rates, rest[:, n]))) @ rotation / angle**2 for n in range(3)]
    return rotation, numbers[:3], np.stack(slopes) / radius


def _skew(v: np.ndarray) -> np.ndarray:
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])


class Comparison:
    """Mutual information between points of the fixed image and a moving ``volume`` (D, H, W), both in 0..1.

    ``values`` (n,): the fixed grey values at ``offsets`` (n, 3) from any origin, mm, which linear maps take to the
    volume's indices (z, y, x).
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray, volume: np.ndarray):
        rows = torch.as_tensor(values, dtype=torch.float32).mul(_BINS - 1).round_().long().clamp_(0, _BINS - 1)
        # Bins begin with one empty column, and the window with the bin before.
        self._rows = rows * _COLUMNS
        self._offsets = torch.as_tensor(offsets.T.copy(), dtype=torch.float32)
        self._shape = volume.shape
        self._cells = _cells(torch.as_tensor(volume, dtype=torch.float32))

    def information(self, linear: np.ndarray, move: np.ndarray) -> tuple[float, np.ndarray, np.ndarray] | None:
        """Mutual information in nats where index = ``linear`` (3, 3) offset + ``move`` (3,), and its derivatives by
        both. None when less than a fifth of the points fall inside the volume."""
        seen = self._seen(linear, move)
        count = seen.column.numel()
        if count < _LEAST_OVERLAP * len(self._rows):
            return None
        information, slope = _information(_histogram(seen) / count)
        sums = _summed_slopes(seen, _slope_polynomial(slope.flatten() / count).float()).double().numpy()
        return information, sums[:, :3], sums[:, 3]

    def _seen(self, linear: np.ndarray, move: np.ndarray) -> _Seen:
        rows, offsets = self._rows, self._offsets
        index = torch.addmm(_column(move), torch.from_numpy(linear).float(), offsets)
        last = _column(np.array(self._shape) - 1.0)
        inside = ((index > -0.5) & (index < last + 0.5)).all(0)
        if not bool(inside.all()):
            rows, offsets, index = rows[inside], offsets[:, inside], index[:, inside]
        # The volume goes on beyond its outermost voxels' centres as it is there, without a slope.
        nearest = torch.minimum(index.clamp(min=0), last)
        low = torch.minimum(nearest.floor(), (last - 1).clamp(min=0))
        number = low[0].mul(self._shape[1]).add_(low[1]).mul_(self._shape[2]).add_(low[2]).long()
        z, y, x = nearest - low
        a, by_z, by_y, by_x, by_zy, by_zx, by_yx, by_zyx = self._cells[number].T.contiguous()
        both = torch.addcmul(by_zy, by_zyx, x)
        along_y = torch.addcmul(by_y, by_yx, x)
        along_z = torch.addcmul(by_z, by_zx, x).addcmul_(y, both)
        value = a.addcmul_(by_x, x).addcmul_(along_y, y).addcmul_(along_z, z)
        along_x = by_x.addcmul_(by_yx, y).addcmul_(by_zx.addcmul_(by_zyx, y), z)
        slopes = torch.stack([along_z, along_y.addcmul_(both, z), along_x]).mul_(nearest == index)
        bin = value.clamp_(0, 1).mul_(_BINS - 1)
        column = bin.floor()
        return _Seen(rows + column.long(), bin - column, slopes, offsets)


@dataclass(frozen=True)
class _Seen:
    """Points inside of the volume: where their window begins in the flat histogram (n,), how far they lie from there
    (n,), 0 to 1 bin, the slopes (3, n) of their values along (z, y, x), and their offsets (3, n)."""

    column: Tensor
    place: Tensor
    slopes: Tensor
    offsets: Tensor


# Cubic B-spline: the weight of each of four bins (rows) by the powers 0 to 3 of the place (columns).
_WINDOW = torch.tensor([[1, -3, 3, -1], [4, 0, -6, 3], [1, 3, 3, -3], [0, 0, 0, 1]], dtype=torch.float64) / 6


def _cells(volume: Tensor) -> Tensor:
    """Trilinear interpolation in every cell of ``volume`` as a polynomial: (voxels, 8), the factors of 1, z, y, x, zy,
    zx, yx and zyx. The cells at the end of an axis have no slope along it."""
    corners = F.pad(volume[None, None], (0, 1) * 3, mode="replicate")[0, 0]
    by_x = corners.diff(dim=2)
    corners, by_y, by_yx = corners[..., :-1], corners[..., :-1].diff(dim=1), by_x.diff(dim=1)
    along = {"": corners[:, :-1], "y": by_y, "x": by_x[:, :-1], "yx": by_yx}
    level = {name: values[:-1] for name, values in along.items()}
    rising = {name: values.diff(dim=0) for name, values in along.items()}
    order = [level[""], rising[""], level["y"], level["x"], rising["y"], rising["x"], level["yx"], rising["yx"]]
    return torch.stack(order, -1).reshape(-1, 8)


def _histogram(seen: _Seen) -> Tensor:
    """Joint histogram (bins, columns), float64, in points."""
    place = seen.place.double()
    moments = [torch.bincount(seen.column, minlength=_BINS * _COLUMNS).double()]
    power = torch.ones_like(place)
    for _ in range(3):
        power = power * place
        moments.append(torch.bincount(seen.column, power, minlength=_BINS * _COLUMNS))
    counts = (_WINDOW @ torch.stack(moments)).reshape(4, _BINS, _COLUMNS)
    return sum(counts[n].roll(n, 1) for n in range(4))


def _information(joint: Tensor) -> tuple[float, Tensor]:
    """Mutual information of a ``joint`` distribution and its derivative by each entry, up to a constant."""
    rows, columns = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    slope = (joint + 1e-12).log() - (rows * columns + 1e-12).log()
    return float((joint * slope).sum()), slope


def _slope_polynomial(slope: Tensor) -> Tensor:
    """For each place in the flat histogram the factors (n, 3) of 1, t and t^2 in the derivative of the information by
    a value whose window begins there, t bins further on; ``slope`` (n,): that by the entries."""
    ahead = torch.stack([slope.roll(-n) for n in range(4)], 1)
    return ahead @ (_WINDOW[:, 1:] * torch.tensor([1.0, 2.0, 3.0]).double()) * (_BINS - 1)


def _summed_slopes(seen: _Seen, polynomial: Tensor) -> Tensor:
    """The derivatives (3, 4) of the information by the linear map and the shift, summed over the points."""
    constant, first, second = polynomial[seen.column].T.contiguous()
    by_value = second.mul_(seen.place).add_(first).mul_(seen.place).add_(constant)
    by_index = seen.slopes * by_value
    return torch.cat([by_index @ seen.offsets.T, by_index.sum(1, keepdim=True)], 1)


def _column(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).float()[:, None]
