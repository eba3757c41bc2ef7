"""Where one image fits into the other, found from dense descriptors without any starting point.

Images of different parts of a body, or of different modalities, leave mutual information many wrong optima. Here every
translation of one descriptor volume over the other is scored at once by a correlation that counts only what both
images show (masked correlation by FFT: Padfield, IEEE Trans. Image Process. 21, 2012, without its local means), for as
many rotations as asked for. Then neighbourhoods are matched by a discrete search, and an affine map is fitted to the
matches that agree (block matching: Ourselin et al., Image Vis. Comput. 19, 2001; here with iterated reweighting).

Matrices (4, 4) map fixed to moving points in LPS mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..core.grid import Grid
from .parallel import in_threads
from .search import candidates, cost_volume, coupled_convex

# Both bodies must share this much of the smaller one.
_LEAST_OVERLAP = 0.3
_LEAST_MATCHES = 30


@dataclass(frozen=True)
class Description:
    """Descriptors (C, D, H, W) of one image on ``grid``; ``weight`` (D, H, W), 0 to 1: where they mean something."""

    features: Tensor
    weight: Tensor
    grid: Grid


@dataclass(frozen=True)
class Fit:
    """A candidate alignment: its correlation, -1 to 1, the share of the smaller body in it, and its matrix."""

    score: float
    overlap: float
    matrix: np.ndarray


def lattice(grid: Grid, spacing: float, rotation: np.ndarray | None = None) -> Grid:
    """Isotropic grid over all of ``grid``, its axes along the patient's (z, y, x), or these turned by ``rotation``."""
    rotation = np.eye(3) if rotation is None else rotation
    corners = grid.corners() @ rotation
    low, high = corners.min(0), corners.max(0)
    shape = np.maximum(1, np.ceil((high - low) / spacing - 1e-4))
    first = (low + high) / 2 - (shape - 1) / 2 * spacing
    return Grid.from_axes(shape[::-1], (spacing,) * 3, rotation @ first, rotation[:, ::-1])


def right_angles() -> list[np.ndarray]:
    """The 24 rotations (3, 3) that map axes onto axes, the identity first, then by rising angle."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.eye(3)[list(order)] * np.array(signs)[:, None]
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return sorted(found, key=lambda matrix: -np.trace(matrix))


def rotation_of(matrix: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) that is nearest to the linear part of ``matrix`` (4, 4)."""
    left, _, right = np.linalg.svd(matrix[:3, :3])
    return left @ right


def degrees_between(first: np.ndarray, second: np.ndarray) -> float:
    """Angle of the rotation from ``first`` to ``second``, both (3, 3)."""
    return float(np.degrees(np.arccos(np.clip((np.sum(first * second) - 1) / 2, -1.0, 1.0))))


def slants(turn: np.ndarray, degrees: float, about: int = 3) -> list[np.ndarray]:
    """``turn`` (3, 3) turned further by ``degrees`` about the patient's axes: each alone and, up to ``about`` of them,
    together, both ways; 26 rotations, or 6 about one axis."""
    signs = [step for step in itertools.product((-1, 0, 1), repeat=3) if 0 < np.abs(step).sum() <= about]
    return [Rotation.from_rotvec(np.radians(degrees) * np.array(step)).as_matrix() @ turn for step in signs]


def describe(grey: Tensor, body: Tensor, grid: Grid, encoder) -> Description:
    """Descriptors of ``grey`` (D, H, W) by a `VolumeEncoder` of stride 1, free of what is common to all of ``body``."""
    features = encoder(grey[None, None].float())[0]
    weight = body.float()
    mean = (features * weight).sum((1, 2, 3), keepdim=True) / weight.sum().clamp_min(1)
    return Description((features - mean) * weight, weight, grid)


def correlate(fixed: Description, moving: Description) -> tuple[Tensor, Tensor, np.ndarray]:
    """Correlation and overlap for the shifts of ``moving``'s indices against ``fixed``'s, and the first shift (3,).

    Both (D, H, W), where index n stands for the shift n plus the first one. Left out are shifts along one axis whose
    overlap must be below the least that `search` wants; none may be left. What lies around the bodies is cut off.
    """
    boxes = [_box(side.weight) for side in (fixed, moving)]
    if None in boxes:
        return *fixed.weight.new_zeros(2, 0, 0, 0), np.zeros(3, int)
    bodies = [side.weight[box] for side, box in zip((fixed, moving), boxes, strict=True)]
    first, last = np.array([_possible_shifts(*bodies, axis) for axis in range(3)]).T
    if (first > last).any():
        return *fixed.weight.new_zeros(2, 0, 0, 0), np.zeros(3, int)
    # So long that what a shift beyond these reaches around the end falls on another one that is left out.
    sizes = zip(first.tolist(), last.tolist(), *(body.shape for body in bodies), strict=True)
    lengths = [next_fast_len(max(a + high, b - low, a, b), real=True) for low, high, a, b in sizes]
    features = [side.features[(slice(None), *box)] for side, box in zip((fixed, moving), boxes, strict=True)]
    energies = [values.square().sum(0) for values in features]

    def spectrum(values: Tensor) -> Tensor:
        return torch.fft.rfftn(values, s=lengths)

    def back(product: Tensor) -> Tensor:
        values = torch.fft.irfftn(product, s=lengths)
        for axis in range(3):
            places = torch.arange(int(first[axis]), int(last[axis]) + 1) % lengths[axis]
            values = values.index_select(axis, places)
        return values

    def shared_by_features(channels: range) -> Tensor:
        return sum(spectrum(features[0][n]).conj() * spectrum(features[1][n]) for n in channels)

    def of_energies() -> tuple[Tensor, ...]:
        a, b = ((spectrum(energies[n]), spectrum(bodies[n])) for n in range(2))
        return tuple(back(one.conj() * other) for one, other in ((a[0], b[1]), (a[1], b[0]), (a[1], b[1])))

    count = len(features[0])
    pairs = [range(n, min(n + 2, count)) for n in range(0, count, 2)]
    *parts, (of_fixed, of_moving, shared) = in_threads(
        [*(lambda pair=pair: shared_by_features(pair) for pair in pairs), of_energies]
    )
    floor = 1e-4 * float(energies[0].sum())
    score = back(sum(parts)) / (of_fixed.clamp_min(floor) * of_moving.clamp_min(floor)).sqrt()
    starts = [np.array([part.start for part in box]) for box in boxes]
    least = min(float(body.sum()) for body in bodies)
    return score, shared / least, first + starts[1] - starts[0]


def _box(weight: Tensor) -> tuple[slice, slice, slice] | None:
    """The smallest part of ``weight`` (D, H, W) that holds all that is above 0; None where nothing is."""
    inside = weight > 0
    ranges = [inside.any(dim=tuple(n for n in range(3) if n != axis)).nonzero().flatten() for axis in range(3)]
    if not len(ranges[0]):
        return None
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in ranges)


def _possible_shifts(fixed: Tensor, moving: Tensor, axis: int) -> tuple[int, int]:
    """First and last shift along ``axis`` for which two bodies (D, H, W) of weights up to 1 may share enough: no more
    than what each of them holds in the planes that both reach. The last lies before the first where there is none."""
    others = tuple(n for n in range(3) if n != axis)
    sums = [np.r_[0.0, np.cumsum(body.sum(others, dtype=torch.float64).numpy())] for body in (fixed, moving)]
    sizes = [len(total) - 1 for total in sums]
    shifts = np.arange(1 - sizes[0], sizes[1])
    low, high = np.maximum(0, -shifts), np.minimum(sizes[0], sizes[1] - shifts)
    most = np.minimum(sums[0][high] - sums[0][low], sums[1][high + shifts] - sums[1][low + shifts])
    enough = shifts[most >= 0.999 * _LEAST_OVERLAP * min(total[-1] for total in sums)]
    return (int(enough[0]), int(enough[-1])) if len(enough) else (1, 0)


def search(fixed: Description, moving: Description, count: int = 3) -> list[Fit]:
    """The ``count`` best translations of different places, best first; ``moving``'s axes may be turned."""
    score, overlap, first = correlate(fixed, moving)
    # A small overlap matches by chance: what counts is the correlation beyond chance, which falls with its root.
    merit = torch.where(overlap >= _LEAST_OVERLAP, score * overlap.clamp(0, 1).sqrt(), torch.full_like(score, -1))
    fits = []
    for _ in range(count if merit.numel() else 0):
        place = np.unravel_index(int(merit.argmax()), merit.shape)
        if merit[place] <= 0:
            break
        fits.append(Fit(float(merit[place]), float(overlap[place]), _matrix(fixed.grid, moving.grid, first + place)))
        merit[tuple(slice(max(0, n - 3), n + 4) for n in place)] = -1
    return fits


def _matrix(fixed: Grid, moving: Grid, shift) -> np.ndarray:
    move = np.eye(4)
    move[:3, 3] = shift
    return moving.affine @ move @ np.linalg.inv(fixed.affine)


def agreement(fixed: Description, moving: Description, matrix: np.ndarray) -> float:
    """The merit of `search` for any ``matrix``: correlation in what both show, times the root of its share."""
    features, weight = _through(fixed, moving, matrix)
    shared = fixed.weight * weight
    overlap = float(shared.sum()) / min(float(fixed.weight.sum()), _volume_ratio(fixed, moving, matrix))
    energies = [(side.square() * shared).sum() for side in (fixed.features, features)]
    score = (fixed.features * features * shared).sum() / (energies[0] * energies[1]).sqrt().clamp_min(1e-12)
    return float(score) * min(overlap, 1.0) ** 0.5


def refine(
    fixed: Description,
    moving: Description,
    matrix: np.ndarray,
    reaches: tuple[int, ...] = (4, 3, 2),
    affine: bool = True,
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """``matrix`` bettered by affine or rigid maps fitted to matches within ``reaches`` nodes, one after the other.

    A map that does not raise the `agreement` is left out. ``check`` is called now and then and may raise to stop.
    """
    best = agreement(fixed, moving, matrix)
    for reach in reaches:
        features, weight = _through(fixed, moving, matrix)
        shared = fixed.weight * weight
        offsets = candidates(tuple(min(reach, n - 1) for n in shared.shape))
        field = coupled_convex(cost_volume(fixed.features, features, offsets, shared, check), offsets, shared)
        inside = (shared > 0.5).nonzero().numpy()
        if len(inside) < _LEAST_MATCHES:
            break
        moves = field[(slice(None), *inside.T)].T.double().numpy()
        change = fixed.grid.affine @ _robust_map(inside, moves, affine) @ np.linalg.inv(fixed.grid.affine)
        reached = agreement(fixed, moving, matrix @ change)
        if reached > best:
            best, matrix = reached, matrix @ change
    return matrix


def _robust_map(points: np.ndarray, moves: np.ndarray, affine: bool, passes: int = 10) -> np.ndarray:
    """Matrix (4, 4) that takes ``points`` (n, 3) to ``points + moves``, in nodes; matches that disagree lose weight.

    A ridge of 5 % of the points holds back scales and shears that nothing but a thin slab's noise asks for.
    """
    center = points.mean(0)
    design = np.c_[points - center, np.ones(len(points))]
    ridge = np.diag([0.05 * len(points) * (np.square(points - center).sum(1).mean() / 3)] * 3 + [0.0])
    weight = np.ones(len(points))
    for _ in range(passes):
        weighted = design * weight[:, None]
        solution = np.linalg.solve(design.T @ weighted + ridge, weighted.T @ moves)
        rest = np.square(moves - design @ solution).sum(1)
        weight = np.square(1 / (1 + rest / max(float(np.median(rest)), 0.25)))
    change = np.eye(4)
    change[:3, :3] += solution[:3].T
    if not affine:
        left, _, right = np.linalg.svd(change[:3, :3])
        change[:3, :3] = left @ right
    change[:3, 3] = center + solution[3] - change[:3, :3] @ center
    return change


def _through(fixed: Description, moving: Description, matrix: np.ndarray) -> tuple[Tensor, Tensor]:
    """Features and weight of ``moving`` at the nodes of ``fixed``, found through ``matrix``; 0 outside."""
    to_index = np.linalg.inv(moving.grid.affine) @ matrix @ fixed.grid.affine
    theta = torch.as_tensor(to_index, dtype=torch.float32)
    axes = [torch.arange(n, dtype=torch.float32) for n in fixed.grid.shape]
    nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    index = nodes @ theta[:3, :3].T + theta[:3, 3]
    size = torch.tensor(moving.grid.shape, dtype=torch.float32)
    normal = ((2 * index + 1) / size - 1).flip(-1)
    both = torch.cat([moving.features, moving.weight[None]])[None]
    seen = F.grid_sample(both, normal[None], align_corners=False, padding_mode="zeros")[0]
    return seen[:-1], seen[-1]


def _volume_ratio(fixed: Description, moving: Description, matrix: np.ndarray) -> float:
    """The moving body's volume in nodes of the fixed lattice."""
    nodes = np.linalg.inv(fixed.grid.affine) @ np.linalg.inv(matrix) @ moving.grid.affine
    return float(moving.weight.sum()) * abs(np.linalg.det(nodes[:3, :3]))
