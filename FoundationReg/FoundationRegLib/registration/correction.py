"""A registration corrected by hand: pairs of landmarks that the transform shall obey from now on.

A correction moves fixed points before the transform found does: x -> transform(x + w(x)), where w is the flow of a
velocity that is zero far from the pairs. So nothing is searched anew, what is far away stays as it is, and the field
still cannot fold. A change is answered in two steps: first the smoothest flow through the pairs near it, then the
images around them refine that flow while springs hold the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..core.constants import METHOD
from ..core.progress import Progress
from ..errors import InputError
from ..images.conversion import grid_of
from ..images.inversion import inverse_points
from ..numerics import local_flows
from ..numerics.data_term import FeaturePair
from ..numerics.fields import compose, exponential, sample_at
from ..numerics.gauss_newton import gauss_newton
from .deformable import regulariser_of
from .workspace import Workspace

TOLERANCE_MM = 0.5
# Nothing moves so far from a pair.
_REACH_MM = 40.0
# The flow of a pair fades out over so many of its own lengths, and over no less than so many mm.
_LENGTHS, _LEAST_REACH_MM = 3.0, 25.0
# At this share of the reach the kernel is down to less than a hundredth.
_FADED = 0.8
# Within so many mm of a pair springs hold the smooth flow, at the pair so strongly; features pull with about 1.
_HELD_MM, _SPRING = 12.0, 20.0
_ITERATIONS = 5
# Shares of the way that are tried when all of it would fold.
_SHARES = (1.0, 0.75, 0.5, 0.3, 0.15)
# Features are compared within so many mm of a pair; where their difference grows by this factor, the images speak
# against it. Seen on liver MR: right corrections of wrong places up to 1.5, wrong ones by 16 mm 7.9.
_LOOK_MM, _WORSE = 8.0, 2.0


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


@dataclass(frozen=True, eq=False)
class Correction:
    """Pairs, and the field that obeys them.

    ``velocity`` (3, d, h, w): of the flow before the registration's own displacement, mm, on its nodes.
    ``displacement``: both composed. ``transform``: with the linear stage. ``residuals``: how far, in mm, the transform
    misses each pair, inactive ones included. ``conflicts``: for each pair why it cannot be trusted, or nothing.
    """

    pairs: tuple[LandmarkPair, ...]
    velocity: Tensor
    displacement: Tensor
    transform: sitk.DisplacementFieldTransform
    residuals: tuple[float, ...] = ()
    conflicts: tuple[str, ...] = ()


def uncorrected(workspace: Workspace) -> Correction:
    """The registration as it was found."""
    found = workspace.found.displacement
    return Correction((), torch.zeros_like(found), found, workspace.transform)


def correct(
    workspace: Workspace,
    before: Correction,
    pairs: Sequence[LandmarkPair],
    progress: Progress | None = None,
    on_preview: Callable[[Correction], None] | None = None,
) -> Correction:
    """``before`` with other ``pairs``; it changes only around those that came, went or moved.

    ``on_preview`` gets the smooth flow through the pairs before the images refine it. Raises `InputError` for a pair
    outside of its image, and `Cancelled`.
    """
    pairs, progress = tuple(pairs), progress or Progress()
    check_pairs(workspace, pairs)
    changed = _changed(before.pairs, pairs)
    notes = dict(zip(before.pairs, before.conflicts, strict=True))
    if not any(pair.active for pair in pairs):
        return _judged(replace(uncorrected(workspace), pairs=pairs), notes)
    if not changed:
        return _judged(replace(before, pairs=pairs), notes)
    task = _Task(workspace, before, pairs, changed)
    progress.check()
    origin = task.reset(before.velocity)
    velocity, share = task.passing(origin)
    unreached = {} if share == 1 else dict.fromkeys(task.new, "It cannot be reached without folding.")
    quick = task.finished(velocity)
    if on_preview is not None:
        on_preview(_judged(quick, {**notes, **unreached}))
    refined = task.refined(velocity, origin, share, progress)
    made = task.finished(refined) if refined is not None else quick
    progress.check()
    return _judged(made, {**notes, **task.disagreements(made.velocity), **unreached})


def check_pairs(workspace: Workspace, pairs: Sequence[LandmarkPair]) -> None:
    """Raise `InputError` when a pair lies outside of its image."""
    for number, pair in enumerate(pairs, 1):
        for side in ("fixed", "moving"):
            grid = grid_of(getattr(workspace.inputs, side))
            index = grid.indices(getattr(pair, side))
            if (index < -0.5).any() or (index > np.array(grid.shape) - 0.5).any():
                raise InputError(f"The {side} point of pair {number} lies outside of the {side} image.")


def _changed(before: Sequence[LandmarkPair], after: Sequence[LandmarkPair]) -> list[LandmarkPair]:
    """Active pairs that only one of both has."""
    old, new = ({pair for pair in pairs if pair.active} for pairs in (before, after))
    return sorted(old ^ new, key=lambda pair: (pair.fixed, pair.moving))


class _Task:
    """One change of pairs: where it acts, and what it does there. Places are in nodes."""

    def __init__(
        self, workspace: Workspace, before: Correction, pairs: tuple[LandmarkPair, ...], changed: list[LandmarkPair]
    ):
        self.workspace, self.before, self.pairs = workspace, before, pairs
        self.spacing = workspace.spacing
        active = list(dict.fromkeys(pair for pair in pairs if pair.active))
        everything = active + [pair for pair in changed if pair not in active]
        starts = workspace.nodes([pair.fixed for pair in everything])
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
        self.folded = local_flows.least_determinant(self.total(self.cut(before.velocity)), self.spacing) <= 0

    def cut(self, field: Tensor) -> Tensor:
        return field[(slice(None), *self.box)]

    def put(self, part: Tensor) -> Tensor:
        """The whole velocity with ``part`` in the box."""
        whole = self.before.velocity.clone()
        whole[(slice(None), *self.box)] = part
        return whole

    def total(self, velocity: Tensor) -> Tensor:
        """The displacement in the box with the flow of ``velocity`` before the registration's own."""
        step = (self.spacing,) * 3
        return compose(self.base, exponential(velocity, step), step)

    def folds(self, velocity: Tensor) -> bool:
        """Whether ``velocity`` turns a cell inside out that was not so before."""
        least = local_flows.least_determinant(self.total(velocity), self.spacing)
        return bool(((least <= 0) & ~self.folded).any())

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
        """``velocity`` in the box after the images had their say; None when they would fold it."""
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
                tolerance=0.01, diffeomorphic=True, robust=True, landmark_term=springs, on_iteration=lambda *_: progress.check() or False,
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

    def disagreements(self, velocity: Tensor) -> dict[LandmarkPair, str]:
        """The new pairs around which the images agree worse than without any correction."""
        pairs, weight, _ = self.features(METHOD.node_factor)
        after = exponential(self.cut(velocity), (self.spacing,) * 3)
        costs = [self._cost(pairs, flow) * weight for flow in (torch.zeros_like(after), after)]
        notes = {}
        for n in self.held:
            near = (self.places - self.starts[n]).norm(dim=-1) * self.spacing
            near = local_flows.kernel(near / _LOOK_MM) * weight
            without, with_it = (float((cost * near).sum()) for cost in costs)
            if self.everything[n] in self.new and with_it > _WORSE * without:
                notes[self.everything[n]] = "The images agree less around it than without it."
        return notes

    def _cost(self, pairs: list[FeaturePair], flow: Tensor) -> Tensor:
        """Squared difference of the features (d, h, w), each pair in units of its mean."""
        grid = _sampling(flow / self.spacing, tuple(slice(0, n) for n in self.shape), self.shape)
        total = 0.0
        for pair in pairs:
            square = (pair.fixed - sample_at(pair.moving, grid)).square().sum(0)
            total = total + pair.weight * square / square.mean().clamp_min(1e-12)
        return total

    def finished(self, velocity: Tensor) -> Correction:
        """The correction with ``velocity`` in the box."""
        whole, step = self.put(velocity), (self.spacing,) * 3
        displacement = compose(self.workspace.found.displacement, exponential(whole, step), step)
        return Correction(self.pairs, whole, displacement, self.workspace.composed(displacement))


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


def _judged(made: Correction, notes: dict[LandmarkPair, str]) -> Correction:
    """``made`` with its residuals and conflicts; ``notes`` say why a pair is doubtful, if something else does."""
    residuals, conflicts = [], []
    for pair in made.pairs:
        moved = np.array(made.transform.TransformPoint(pair.fixed))
        residuals.append(float(np.linalg.norm(moved - pair.moving)))
        note = notes.get(pair, "")
        if pair.active and residuals[-1] > TOLERANCE_MM and not note:
            note = "It contradicts another pair, or lies where the transform does not reach."
        conflicts.append(note if pair.active else "")
    return replace(made, residuals=tuple(residuals), conflicts=tuple(conflicts))


@dataclass(eq=False)
class Corrections:
    """All corrections of one registration, with undo and redo. ``current`` is the one in force.

    ``keep``: fields that are remembered; older ones can no longer be gone back to.
    """

    workspace: Workspace
    keep: int = 100
    _past: list[Correction] = field(default_factory=list)
    _future: list[Correction] = field(default_factory=list)

    def __post_init__(self):
        self.current = uncorrected(self.workspace)

    @property
    def pairs(self) -> tuple[LandmarkPair, ...]:
        return self.current.pairs

    def set(self, pairs: Sequence[LandmarkPair], progress: Progress | None = None, on_preview=None) -> Correction:
        """Take ``pairs`` instead of the present ones, in one step that `undo` takes back."""
        made = correct(self.workspace, self.current, pairs, progress, on_preview)
        self._past = [*self._past, self.current][-self.keep :]
        self._future.clear()
        self.current = made
        return made

    def add(self, fixed, moving, **options) -> Correction:
        """What lies at ``fixed`` belongs to what lies at ``moving`` (LPS mm)."""
        return self.set((*self.pairs, LandmarkPair(tuple(fixed), tuple(moving))), **options)

    def move(self, number: int, fixed=None, moving=None, **options) -> Correction:
        """Put one or both points of pair ``number``, from 0, elsewhere."""
        old = self.pairs[number]
        changed = replace(old, fixed=old.fixed if fixed is None else tuple(fixed),
                          moving=old.moving if moving is None else tuple(moving))  # fmt: skip
        return self._replaced(number, changed, options)

    def switch(self, number: int, active: bool, **options) -> Correction:
        """Let pair ``number`` count, or only remember it."""
        return self._replaced(number, replace(self.pairs[number], active=active), options)

    def remove(self, number: int, **options) -> Correction:
        return self.set([pair for n, pair in enumerate(self.pairs) if n != number], **options)

    def _replaced(self, number: int, pair: LandmarkPair, options: dict) -> Correction:
        return self.set([pair if n == number else other for n, other in enumerate(self.pairs)], **options)

    def undo(self) -> Correction:
        """Back to before the last change. Nothing happens when there is none."""
        if self._past:
            self._future.append(self.current)
            self.current = self._past.pop()
        return self.current

    def redo(self) -> Correction:
        """The change that was last undone again. Nothing happens when there is none."""
        if self._future:
            self._past.append(self.current)
            self.current = self._future.pop()
        return self.current
