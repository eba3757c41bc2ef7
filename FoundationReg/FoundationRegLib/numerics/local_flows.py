"""Flows that act near single points only: passing through landmarks, windows to blend with, and a strict fold test.

Velocities and displacements are float32 (3, D, H, W) in mm along the array axes, on lattices whose nodes are
``spacing`` mm apart along every axis. Places are (n, 3) continuous node indices in the order (z, y, x).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .fields import exponential, sample_at

# Share of a landmark's own kernel that is added to the diagonal: two landmarks at one place stay solvable.
_RIDGE = 0.02
# An iteration that leaves more of the largest miss than this is the last: the ways contradict each other.
_STALLED = 0.95


def values_at(field: Tensor, places: Tensor) -> Tensor:
    """``field`` (C, D, H, W) at ``places`` (n, 3) by linear interpolation, its border value outside: (n, C)."""
    if not len(places):
        return field.new_zeros((0, field.shape[0]))
    size = torch.tensor(field.shape[1:], device=field.device, dtype=field.dtype)
    grid = (2 * places / (size - 1).clamp_min(1) - 1).flip(-1)
    return sample_at(field, grid.reshape(1, 1, -1, 3))[:, 0, 0].T


def kernel(ratio: Tensor) -> Tensor:
    """Wendland's C2 function (Adv. Comput. Math. 4, 1995) of distance over reach: 1 at 0, and 0 from 1 on."""
    return (1 - ratio).clamp_min(0).pow(4) * (4 * ratio + 1)


def window(distance: Tensor, full: Tensor | float, reach: Tensor | float) -> Tensor:
    """1 up to ``full``, 0 from ``reach`` on, and between them smooth to the second derivative."""
    share = ((reach - distance) / (reach - full)).clamp(0, 1)
    return share**3 * (share * (6 * share - 15) + 10)


def segment_distances(places: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Distances (n, ...) of ``places`` (..., 3) to the straight lines from ``starts`` to ``ends``, each (n, 3)."""
    shape = (len(starts), *[1] * (places.ndim - 1), 3)
    along = (ends - starts).reshape(shape)
    offset = places - starts.reshape(shape)
    share = ((offset * along).sum(-1) / along.square().sum(-1).clamp_min(1e-12)).clamp(0, 1)
    return (offset - share[..., None] * along).norm(dim=-1)


def node_places(shape: tuple[int, int, int], like: Tensor) -> Tensor:
    """Indices (D, H, W, 3) of all nodes of a lattice."""
    axes = [torch.arange(n, device=like.device, dtype=like.dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def through_landmarks(
    velocity: Tensor,
    starts: Tensor,
    ends: Tensor,
    reaches: Tensor,
    spacing: float,
    wanted: Tensor | None = None,
    displacement: Callable[[Tensor], Tensor] | None = None,
    iterations: int = 20,
    tolerance: float = 0.03,
) -> tuple[Tensor, Tensor]:
    """``velocity`` changed near the landmarks so that its flow takes ``starts`` to ``ends``; and the misses (n,) in mm.

    Each landmark adds a constant velocity along its way, which fades out over its reach (``reaches`` (n,), in nodes) as
    `kernel` does; the strengths are found by solving for all landmarks at once and correcting by what the flow on the
    lattice misses, until that is below ``tolerance`` mm. A flow cannot fold as long as the lattice resolves it. Ways
    that cross cannot all be followed; then the misses are the smallest found.

    ``displacement``: where another map follows, the displacement of flow and map together by the velocity; it shall be
    ``wanted`` (n, 3) in mm at the starts.
    """
    if not len(starts):
        return velocity, starts.new_zeros(0)
    if displacement is None:
        wanted = (ends - starts) * spacing

        def displacement(v: Tensor) -> Tensor:
            return exponential(v, (spacing,) * 3)

    bumps = kernel(segment_distances(node_places(velocity.shape[1:], velocity), starts, ends) / _over(reaches, 4))
    # How much the velocity of one landmark adds along the way of another.
    ways = torch.stack([starts, (starts + ends) / 2, ends])
    shares = kernel(segment_distances(ways, starts, ends) / _over(reaches, 3)).mean(1).T
    system = shares + _RIDGE * torch.eye(len(starts), device=velocity.device, dtype=velocity.dtype)
    strengths = torch.zeros_like(starts)
    best, least = velocity, None
    # Where ways cross nothing would ever be enough.
    limit = reaches[:, None] * spacing
    for _ in range(iterations):
        current = velocity + torch.einsum("nc,nzyx->czyx", strengths, bumps)
        missing = wanted - values_at(displacement(current), starts)
        misses = missing.norm(dim=1)
        stalled = least is not None and misses.max() > _STALLED * least.max()
        if least is None or misses.max() < least.max():
            best, least = current, misses
        if misses.max() <= tolerance or stalled:
            break
        strengths = (strengths + torch.linalg.solve(system, missing)).clamp(-limit, limit)
    return best, least


def _over(reaches: Tensor, ndim: int) -> Tensor:
    return reaches.reshape(-1, *[1] * (ndim - 1))


def least_determinant(displacement: Tensor, spacing: float) -> Tensor:
    """The smallest Jacobian determinant in each cell (D-1, H-1, W-1) of x -> x + u(x) between the nodes.

    It is taken at all eight corners with the differences along the cell's own edges, which central differences at the
    nodes would average away: where it is positive everywhere, no cell of the interpolated map is turned inside out at
    a corner.
    """
    depth, height, width = displacement.shape[1:]
    steps = []
    for axis in range(3):
        slope = displacement.diff(dim=axis + 1) / spacing
        slope[axis] += 1
        steps.append(slope)
    least = None
    for corner in itertools.product((0, 1), repeat=3):
        columns = []
        for axis, slope in enumerate(steps):
            part = [slice(c, c + n - 1) for c, n in zip(corner, (depth, height, width), strict=True)]
            part[axis] = slice(None)
            columns.append(slope[(slice(None), *part)])
        (a, d, g), (b, e, h), (c, f, i) = columns
        found = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        least = found if least is None else torch.minimum(least, found)
    return least


def springs(stiffness: Tensor, rest: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Springs of ``stiffness`` (D, H, W) that pull a displacement to ``rest`` (3, D, H, W), both in nodes.

    The answer takes the displacement and gives curvature (6, D, H, W) and pull (3, D, H, W) on the nodes, as the
    ``landmark_term`` of `gauss_newton`.
    """
    nothing = torch.zeros_like(stiffness)
    curvature = torch.stack([stiffness, nothing, nothing, stiffness, nothing, stiffness])
    return lambda displacement: (curvature, stiffness * (rest - displacement))


def enlarged(field: Tensor, factor: int, box: tuple[slice, slice, slice]) -> Tensor:
    """``field`` (C, D, H, W) on a lattice ``factor`` times as fine, in the nodes of ``box`` only.

    The same as resizing all of it and cutting out the part, at the cost of the part.
    """
    halo = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, field.shape[1:], strict=True))
    part = field[(slice(None), *halo)]
    if factor > 1:
        part = F.interpolate(part[None], scale_factor=factor, mode="trilinear", align_corners=False)[0]
    inner = tuple(
        slice((s.start - h.start) * factor, (s.stop - h.start) * factor) for s, h in zip(box, halo, strict=True)
    )
    return part[(slice(None), *inner)]
