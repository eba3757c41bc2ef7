"""What one change of the pairs does to the flow around them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..core.constants import METHOD
from ..core.progress import Progress
from ..errors import InputError
from ..images.inversion import inverse_points
from ..numerics import local_flows
from ..numerics.data_term import FeaturePair
from ..numerics.fields import compose, exponential, sample_at
from ..numerics.gauss_newton import gauss_newton
from ..registration.deformable import regulariser_of
from ..registration.workspace import Workspace
from .preference import preference
from .region import Region

# Nothing moves so far from a pair.
_REACH_MM = 40.0
# The flow of a pair fades out over so many of its own lengths, and over no less than so many mm.
_LENGTHS, _LEAST_REACH_MM = 3.0, 25.0
# At this share of the reach the kernel is down to less than a hundredth.
_FADED = 0.8
# Within so many mm of a pair springs hold the smooth flow, at the pair so strongly; features pull with about 1.
_HELD_MM, _SPRING = 12.0, 20.0
_ITERATIONS = 5
# What is left of a cell at its tightest corner at least. Flows in a box differ a little from those of the whole, which
# must not add up to a fold over many corrections.
_LEAST = 0.02
# Shares of the way that are tried when all of it would fold.
_SHARES = (1.0, 0.75, 0.5, 0.3, 0.15)
# From this doubt on the images speak against a pair; see `preference`.
_DOUBT = 0.5


@dataclass(frozen=True)
class LandmarkPair:
    """What lies at ``fixed`` belongs to what lies at ``moving``, both LPS mm. An inactive pair is only remembered."""

    fixed: tuple[float, float, float]
    moving: tuple[float, float, float]
    active: bool = True

    def __post_init__(self):
        for side in ("fixed", "moving"):
            point = tuple(float(value) for value in getattr(self, side))
            if len(point) != 3 or not np.isfinite(point).all():
                raise InputError(f"The {side} point of a pair must be x, y and z in mm, not {getattr(self, side)!r}.")
            object.__setattr__(self, side, point)


class CorrectionStep:
    """One change of pairs: the box of nodes in which it acts, and what it does there. Places are in nodes of the box.

    ``velocity``: of the flow before the change. ``active``: the pairs that count after it; ``changed``: those that
    count only before or only after it. ``regions`` move points first.
    """

    def __init__(
        self,
        workspace: Workspace,
        velocity: Tensor,
        active: list[LandmarkPair],
        changed: list[LandmarkPair],
        regions: tuple[Region, ...] = (),
    ):
        self.workspace, self.velocity = workspace, velocity
        self.spacing = workspace.spacing
        everything = active + [pair for pair in changed if pair not in active]
        origins = np.array([pair.fixed for pair in everything], float)
        for region in reversed(regions):
            origins = region.moved(origins)
        starts = workspace.nodes(origins)
        ends, reached = workspace.before_transform([pair.moving for pair in everything])
        lengths = (ends - starts).norm(dim=1) * self.spacing
        reaches = _reach(lengths)
        is_changed = torch.tensor([pair in changed for pair in everything])
        self.box = _box(starts[is_changed], ends[is_changed], reaches[is_changed], self.spacing,
                        workspace.found.grid.shape)  # fmt: skip
        corner = torch.tensor([part.start for part in self.box], dtype=torch.float32, device=workspace.device)
        size = torch.tensor([part.stop - part.start for part in self.box], device=workspace.device)
        self.shape = tuple(size.tolist())
        aligned, _ = inverse_points(workspace.linear, [pair.moving for pair in everything])
        self.wanted = (workspace.nodes(aligned) - starts) * self.spacing
        starts, ends = starts - corner, ends - corner
        self.places = local_flows.node_places(self.shape, starts)
        self.gone = [n for n, pair in enumerate(everything) if pair not in active]
        inside = ((starts >= 0) & (starts <= size - 1)).all(1)
        self.held = [n for n, pair in enumerate(everything) if pair in active and bool(inside[n]) and reached[n]]
        self.new = [pair for pair in changed if pair in active]
        self.is_new = torch.tensor([everything[n] in self.new for n in self.held], device=workspace.device)
        self.starts, self.ends, self.reaches, self.lengths = starts, ends, reaches, lengths
        self.everything, self.is_changed = everything, is_changed.to(workspace.device)
        # What the registration itself does around here, with room for where flows lead.
        self.base = workspace.found.displacement[(slice(None), *self.box)]
        self.least = local_flows.least_determinant(self.total(self.cut(velocity)), self.spacing)

    def cut(self, field: Tensor) -> Tensor:
        return field[(slice(None), *self.box)]

    def put(self, part: Tensor) -> Tensor:
        """The whole velocity with ``part`` in the box."""
        whole = self.velocity.clone()
        whole[(slice(None), *self.box)] = part
        return whole

    def total(self, velocity: Tensor) -> Tensor:
        """The displacement in the box with the flow of ``velocity`` before the registration's own."""
        step = (self.spacing,) * 3
        return compose(self.base, exponential(velocity, step), step)

    def folds(self, velocity: Tensor) -> bool:
        """Whether ``velocity`` turns a cell inside out, or nearly, that was not so before and is tighter now."""
        least = local_flows.least_determinant(self.total(velocity), self.spacing)
        return bool(((least <= _LEAST) & (least < self.least) & (self.least > 0)).any())

    def reset(self, velocity: Tensor) -> Tensor:
        """``velocity`` in the box, without the flow around the pairs that are gone."""
        part = self.cut(velocity).clone()
        for n in self.gone:
            distance = local_flows.segment_distances(self.places, self.starts[[n]], self.ends[[n]])[0] * self.spacing
            part *= 1 - local_flows.window(distance, float(self.reaches[n]), 1.3 * float(self.reaches[n]))
        return part

    def passing(self, velocity: Tensor) -> tuple[Tensor, float]:
        """``velocity`` in the box made to pass the pairs, and the share of the way that the new ones may go."""
        for share in _SHARES:
            found = self.through(velocity, velocity, share)
            if not self.folds(found):
                return found, share
        return velocity, 0.0

    def through(self, velocity: Tensor, origin: Tensor, share: float) -> Tensor:
        """``velocity`` in the box, made to pass the pairs held: the new ones by ``share`` of what ``origin`` misses."""
        held = self.held
        now = local_flows.values_at(self.total(origin), self.starts[held])
        wanted = torch.where(self.is_new[:, None], now + share * (self.wanted[held] - now), self.wanted[held])
        found, _ = local_flows.through_landmarks(
            velocity, self.starts[held], self.ends[held], self.reaches[held] / self.spacing, self.spacing, wanted,
            self.total,
        )  # fmt: skip
        return found

    def refined(self, velocity: Tensor, origin: Tensor, share: float, progress: Progress) -> Tensor | None:
        """``velocity`` in the box after the data term; None when they would fold it."""
        factors, found = self.workspace.finest_factors(), velocity
        # Right at the pairs the smooth flow through them holds against the images.
        flow = exponential(velocity, (self.spacing,) * 3) / self.spacing
        springs = local_flows.springs(_SPRING * self.near(_HELD_MM), flow)
        for n, factor in enumerate(factors):
            progress.update(n / len(factors))
            pairs, fixed_weight, moving_weight = self.features(factor)
            if not bool((fixed_weight > 0).any()):
                continue
            found, _ = gauss_newton(
                pairs, found, self.spacing * factor / METHOD.node_factor, fixed_weight, moving_weight, nodes=self.shape,
                regulariser=regulariser_of(self.workspace.settings, self.workspace.found.grey), iterations=_ITERATIONS,
                tolerance=0.01, diffeomorphic=True, robust=True, landmark_term=springs,
                on_iteration=lambda *_: progress.check() or False,
            )  # fmt: skip
        for part in (1.0, 0.5, 0.25):
            mixed = self.through(velocity + part * self.window() * (found - velocity), origin, share)
            if not self.folds(mixed):
                return mixed
        return None

    def near(self, reach_mm: float) -> Tensor:
        """How near (d, h, w) each node is to where one of the pairs held starts, from 0 at ``reach_mm`` to 1."""
        distances = [(self.places - self.starts[n]).norm(dim=-1) * self.spacing for n in self.held]
        return local_flows.kernel(torch.stack(distances) / reach_mm).amax(0)

    def window(self) -> Tensor:
        """Where the images may change the flow: 1 at the changed pairs, 0 where nothing shall move."""
        chosen = self.is_changed
        distance = local_flows.segment_distances(self.places, self.starts[chosen], self.ends[chosen]) * self.spacing
        reach = (_REACH_MM - self.lengths[chosen]).clamp(12.0, 30.0).reshape(-1, 1, 1, 1)
        return local_flows.window(distance, 0.4 * reach, reach).amax(0)

    def features(self, factor: int) -> tuple[list[FeaturePair], Tensor, Tensor]:
        """Features in the box, the moving ones seen through the registration, and what counts of both sides."""
        finer, pyramid = METHOD.node_factor // factor, self.workspace.pyramid
        box = tuple(slice(part.start * finer, part.stop * finer) for part in self.box)
        moved = local_flows.enlarged(self.workspace.found.displacement, finer, self.box) / pyramid.spacing(factor)
        grid = _sampling(moved, box, pyramid.grid(factor).shape)
        whole = (slice(None), *box)
        pairs = [
            replace(pair, fixed=pair.fixed[whole].contiguous(), moving=sample_at(pair.moving, grid))
            for pair in self.workspace.features(factor)
        ]
        moving_weight = sample_at(pyramid.mask("moving", factor)[None], grid, "nearest")[0]
        return pairs, pyramid.mask("fixed", factor)[box].contiguous(), moving_weight

    def far_reaching(self) -> dict[LandmarkPair, str]:
        """The pairs, of those that count, whose way is too long to end within the usual reach."""
        notes = {}
        for n in self.held:
            length, reach = float(self.lengths[n]), float(self.reaches[n])
            far = length + reach
            if length + _FADED * reach > _REACH_MM + 0.5:
                notes[self.everything[n]] = f"It is {length:.0f} mm long, so places up to {far:.0f} mm away move too."
        return notes

    def disagreements(self) -> dict[LandmarkPair, str]:
        """The new pairs for which the images clearly prefer another place near the one named."""
        notes = {}
        for pair in self.new:
            found = preference(self.workspace, pair.fixed, pair.moving)
            if found.clear and found.doubt > _DOUBT:
                notes[pair] = f"The images agree better with a place {found.distance_mm:.0f} mm away from it."
        return notes


def _reach(lengths: Tensor) -> Tensor:
    """Over how many mm the flow of a pair fades out, by how far it has to go in mm.

    Wide enough to be smooth, but what lies `_REACH_MM` away from the pair must not feel it; where both cannot be had,
    because the way is as long as that, smoothness counts more.
    """
    wide = (_LENGTHS * lengths).clamp_min(_LEAST_REACH_MM)
    return torch.maximum(wide.minimum((_REACH_MM - lengths) / _FADED), 0.8 * lengths).clamp_min(10.0)


def _box(starts: Tensor, ends: Tensor, reaches: Tensor, spacing: float, shape) -> tuple[slice, slice, slice]:
    """The nodes in which a change acts."""
    margin = (1.3 * reaches / spacing)[:, None] + 2
    low = (torch.minimum(starts, ends) - margin).amin(0).floor().clamp_min(0).long().tolist()
    high = (torch.maximum(starts, ends) + margin).amax(0).ceil().long().tolist()
    box = []
    for first, last, count in zip(low, high, shape, strict=True):
        stop = min(count, last + 1)
        first = min(first, max(stop - 8, 0))
        box.append(slice(first, max(stop, min(first + 8, count))))
    return tuple(box)


def _sampling(shift: Tensor, box: tuple[slice, slice, slice], shape) -> Tensor:
    """Where the voxels of ``box`` of a lattice of ``shape`` land under ``shift`` (3, d, h, w), as `sample_at` takes it.

    ``shift`` is in voxels and holds the box only.
    """
    axes = []
    for axis, (part, size) in enumerate(zip(box, shape, strict=True)):
        steps = torch.arange(part.start, part.stop, device=shift.device, dtype=shift.dtype)
        steps = steps.reshape([-1 if n == axis else 1 for n in range(3)])
        axes.append((shift[axis] + steps) * (2 / max(size - 1, 1)) - 1)
    return torch.stack(axes[::-1], dim=-1)
