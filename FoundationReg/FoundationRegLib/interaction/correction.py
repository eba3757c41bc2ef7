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

from ..core.progress import Progress
from ..errors import InputError
from ..images.conversion import grid_of
from ..numerics.fields import compose, exponential
from ..registration.workspace import Workspace
from .correction_step import CorrectionStep, LandmarkPair
from .region import Region, applied, refine_region

TOLERANCE_MM = 0.5


@dataclass(frozen=True, eq=False)
class Correction:
    """Pairs, and the field that obeys them.

    ``velocity`` (3, d, h, w): of the flow before the registration's own displacement, mm, on its nodes.
    ``displacement``: both composed. ``transform``: with the linear stage. ``residuals``: how far, in mm, the transform
    misses each pair, inactive ones included. ``conflicts``: for each pair why it cannot be trusted, or nothing.
    ``remarks``: what else is to be known of each pair, or nothing.
    ``regions``: registered once more on a finer grid, the last one first to move a point; in ``transform`` only.
    """

    pairs: tuple[LandmarkPair, ...]
    velocity: Tensor
    displacement: Tensor
    transform: sitk.DisplacementFieldTransform
    residuals: tuple[float, ...] = ()
    conflicts: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()


def uncorrected(workspace: Workspace, regions: tuple[Region, ...] = ()) -> Correction:
    """The registration as it was found, but for ``regions`` that were refined since."""
    found = workspace.found.displacement
    transform = _with_regions(workspace.transform, regions)
    return Correction((), torch.zeros_like(found), found, transform, regions=regions)


def refine_here(workspace: Workspace, before: Correction, corners, progress: Progress | None = None) -> Correction:
    """``before`` with the region around ``corners`` (n, 3), LPS mm, registered once more: `region.refine_region`."""
    region = refine_region(workspace, before.transform, corners, progress)
    made = replace(before, transform=applied(region, before.transform), regions=(*before.regions, region))
    return _judged(made, *_said(before))


def with_regions(workspace: Workspace, before: Correction, regions: tuple[Region, ...]) -> Correction:
    """``before`` with other refined regions."""
    if regions == before.regions:
        return before
    transform = _with_regions(workspace.composed(before.displacement), regions)
    made = replace(before, transform=transform, regions=regions)
    return _judged(made, *_said(before))


def _with_regions(transform: sitk.DisplacementFieldTransform, regions: tuple[Region, ...]):
    for region in regions:
        transform = applied(region, transform)
    return transform


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
    notes, remarks = _said(before)
    if not any(pair.active for pair in pairs):
        return _judged(replace(uncorrected(workspace, before.regions), pairs=pairs), notes, remarks)
    if not changed:
        return _judged(replace(before, pairs=pairs), notes, remarks)
    active = list(dict.fromkeys(pair for pair in pairs if pair.active))
    step = CorrectionStep(workspace, before.velocity, active, changed, before.regions)
    remarks |= step.far_reaching()
    progress.check()
    origin = step.reset(before.velocity)
    velocity, share = step.passing(origin)
    unreached = {} if share == 1 else dict.fromkeys(step.new, "It cannot be reached without folding.")
    quick = _composed(workspace, pairs, step.put(velocity), before.regions)
    if on_preview is not None:
        on_preview(_judged(quick, {**notes, **unreached}, remarks))
    refined = step.refined(velocity, origin, share, progress)
    made = _composed(workspace, pairs, step.put(refined), before.regions) if refined is not None else quick
    progress.check()
    return _judged(made, {**notes, **step.disagreements(), **unreached}, remarks)


def _composed(
    workspace: Workspace, pairs: tuple[LandmarkPair, ...], velocity: Tensor, regions: tuple[Region, ...]
) -> Correction:
    """The correction with the flow of ``velocity`` before the registration's own displacement."""
    spacing = (workspace.spacing,) * 3
    displacement = compose(workspace.found.displacement, exponential(velocity, spacing), spacing)
    transform = _with_regions(workspace.composed(displacement), regions)
    return Correction(pairs, velocity, displacement, transform, regions=regions)


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


def _said(correction: Correction) -> tuple[dict[LandmarkPair, str], dict[LandmarkPair, str]]:
    """Conflicts and remarks of ``correction`` by pair."""
    pairs = correction.pairs
    return dict(zip(pairs, correction.conflicts, strict=True)), dict(zip(pairs, correction.remarks, strict=True))


def _judged(made: Correction, notes: dict[LandmarkPair, str], remarks: dict[LandmarkPair, str]) -> Correction:
    """``made`` with its residuals, conflicts and remarks; ``notes`` say why a pair is doubtful, if something else
    does."""
    residuals, conflicts = [], []
    for pair in made.pairs:
        moved = np.array(made.transform.TransformPoint(pair.fixed))
        residuals.append(float(np.linalg.norm(moved - pair.moving)))
        note = notes.get(pair, "")
        if pair.active and residuals[-1] > TOLERANCE_MM and not note:
            note = "It contradicts another pair, or lies where the transform does not reach."
        conflicts.append(note if pair.active else "")
    known = tuple(remarks.get(pair, "") if pair.active else "" for pair in made.pairs)
    return replace(made, residuals=tuple(residuals), conflicts=tuple(conflicts), remarks=known)


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

    def refine_here(self, corners, progress: Progress | None = None) -> Correction:
        """Register the box around ``corners`` (n, 3), LPS mm of the fixed side, once more on a finer grid."""
        made = refine_here(self.workspace, self.current, corners, progress)
        self._past = [*self._past, self.current][-self.keep :]
        self._future.clear()
        self.current = made
        return made

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
