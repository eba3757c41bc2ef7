"""Where the deformation starts from: a given transform or aligned centres, then a rigid and an affine stage.

All transforms map fixed to moving points in LPS mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from ..core.constants import METHOD
from ..core.progress import Progress
from ..encoders.mind import Mind
from ..errors import InputError
from ..evaluation.metrics import normalized_mutual_information
from ..images.conversion import grid_of, image_from_array
from ..images.resampling import resample_to_grid, warp
from ..images.transforms import affine_matrix, affine_transform
from ..numerics import block_matching
from ..numerics.block_matching import Description, Fit
from ..numerics.mutual_information import align
from ..numerics.parallel import each, in_threads
from .sides import Side, prepare

# Swaps left and right.
_MIRROR = np.diag([-1.0, 1.0, 1.0])


def start_transform(
    fixed: Side | sitk.Image,
    moving: Side | sitk.Image,
    start: str = "auto",
    initial: sitk.Transform | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    affine: bool = True,
    on_found: Callable[[sitk.Transform], None] = lambda _: None,
    descriptors: DescriptorPair | None = None,
) -> sitk.Transform:
    """The transform before any optimisation.

    ``initial``, of any kind, is returned as it is. Otherwise ``start`` is ``none``, ``geometry`` (centres of the images
    meet), ``mass`` (centres of the bodies meet), ``features`` (the place and turn where MIND descriptors match best,
    and an affine map, or a rigid one without ``affine``, fitted to their matches) or ``auto``: ``none``, ``geometry``
    and ``mass`` are each tried with a quick coarse rigid registration, and the start of the most similar outcome is
    taken, unless the descriptors match clearly better where ``features`` puts them. ``on_found`` gets the best outcome
    of the quick registrations as soon as it is known. ``descriptors``: of both sides, if they are there already.
    """
    if initial is not None:
        return initial
    fixed, moving = _as_side(fixed), _as_side(moving)
    progress = progress or Progress()
    shifts = {
        "none": np.zeros(3),
        "geometry": moving.center - fixed.center,
        "mass": moving.center_of_mass - fixed.center_of_mass,
    }
    if start in shifts:
        return sitk.TranslationTransform(3, shifts[start].tolist())
    if start not in ("auto", "features"):
        raise InputError(f"The start {start!r} is unknown; use auto, features, {', '.join(shifts)}.")
    pair = descriptors or DescriptorPair(fixed, moving)
    if start == "features":
        fit = pair.search(progress)
        matrix = np.eye(4) if fit is None else fit.matrix
        if fit is None:
            matrix[:3, 3] = shifts["mass"]
        return affine_transform(pair.refined(matrix, affine, progress))
    translation, outcome = _most_informative_start(fixed, moving, list(shifts.values()), seed, progress, pair)
    on_found(outcome)
    found = pair.agreement(affine_matrix(outcome))
    fit = pair.search(progress, sure=found)
    if fit is None or fit.score < METHOD.clear_gain * found:
        return translation
    better = pair.refined(fit.matrix, affine, progress)
    if fit.score < METHOD.sure_match:
        # Of two places that do not convince, a right one gains more by its neighbourhoods' matches than a wrong one.
        rival = pair.refined(affine_matrix(outcome), affine, progress)
        if pair.agreement(better) < METHOD.clear_gain * pair.agreement(rival):
            return translation
    return affine_transform(better)


def _most_informative_start(
    fixed: Side, moving: Side, shifts: list[np.ndarray], seed: int, progress: Progress, pair: DescriptorPair
) -> tuple[sitk.Transform, sitk.Transform]:
    """The shift from which a quick rigid registration gets to the most similar images, and where it gets to.

    Meanwhile the descriptors of ``pair`` are made.
    """
    candidates: list[np.ndarray] = []
    for shift in shifts:
        if all(np.linalg.norm(shift - other) > 3.0 for other in candidates):
            candidates.append(shift)

    def tried(shift: np.ndarray) -> list[tuple[float, sitk.Transform, sitk.Transform]]:
        progress.check()
        translation = sitk.TranslationTransform(3, shift.tolist())
        matrix = _optimise(fixed, moving, translation, np.eye(4), False, (3.0,), seed, Progress())
        outcomes = [translation] if matrix is None else [translation, _joined(translation, matrix)]
        return [(_similarity(fixed, moving, transform), translation, transform) for transform in outcomes]

    pieces = [lambda: pair.fixed, lambda: pair.moving]
    pieces += [lambda shift=shift: tried(shift) for shift in candidates]
    outcomes = itertools.chain(*in_threads(pieces)[2:])
    return max(outcomes, key=lambda outcome: outcome[0])[1:]


class DescriptorPair:
    """MIND descriptors of both sides on lattices of one spacing, along the patient's axes; made when asked for."""

    def __init__(self, fixed: Side, moving: Side):
        self._spacing = max(float(grid_of(side.grey).spacing.max()) for side in (fixed, moving))
        self._sides = fixed, moving
        self._along: dict[bytes, Description] = {}

    @cached_property
    def fixed(self) -> Description:
        return self._describe(self._sides[0])

    @property
    def moving(self) -> Description:
        return self._moving_along(np.eye(3))

    @cached_property
    def upright(self) -> Fit | None:
        """The best place without a turn."""
        return next(iter(block_matching.search(self.fixed, self.moving, 1)), None)

    def _describe(
        self, side: Side, rotation: np.ndarray | None = None, coarser: float = 1.0, mirrored: bool = False
    ) -> Description:
        own, spacing = grid_of(side.grey), coarser * self._spacing
        grid = block_matching.lattice(own, spacing, rotation)
        blur = 0.5 * np.sqrt(np.maximum((spacing / own.spacing) ** 2 - 1, 0))
        made = []
        for image in (side.grey, side.region if side.chosen else side.body):
            smooth = ndimage.gaussian_filter(sitk.GetArrayFromImage(image).astype(np.float32), blur)
            made.append(resample_to_grid(image_from_array(smooth, own), grid, background=0.0))
        grey, weight = (torch.from_numpy(array.astype(np.float32)) for array in made)
        return block_matching.describe(grey, weight, grid, Mind(mirrored=mirrored))

    def agreement(self, matrix: np.ndarray) -> float:
        return block_matching.agreement(self.fixed, self._turned(matrix), matrix)

    def _moving_along(self, axes: np.ndarray) -> Description:
        """The moving side described along ``axes`` (3, 3), once for all who ask."""
        key = (axes.round(6) + 0.0).tobytes()  # 0.0 and -0.0 are one
        if key not in self._along:
            self._along[key] = self._describe(self._sides[1], axes)
        return self._along[key]

    def _turned(self, matrix: np.ndarray) -> Description:
        """The moving side along the axes that ``matrix`` turns it to: descriptors tell about directions."""
        return self._moving_along(_axes(matrix))

    def is_mirrored(self, matrix: np.ndarray) -> bool:
        """Whether the descriptors match better with the moving image's left and right swapped.

        Both are refined by matched neighbourhoods, the upright one from ``matrix``, the mirrored one from its best
        places, turned as ``matrix`` does, and described along the turn that each comes to, so that they compete on
        equal terms. That is left out where the mirrored one is clearly worse before, on a coarser lattice.
        """
        fixed, moving = self._sides
        turn = block_matching.rotation_of(matrix)
        views = ((fixed, None), (moving, turn), (moving, turn @ _MIRROR))
        still, upright, swapped = each(lambda view: self._describe(*view, METHOD.turned_spacing), views)
        first = next(iter(block_matching.search(still, swapped, 1)), None)
        hint = METHOD.mirror_hint * block_matching.agreement(still, upright, matrix)
        if first is None or first.score < hint:
            return False
        swapped = self._moving_along(_axes(matrix) @ _MIRROR)
        fits = block_matching.search(self.fixed, swapped, 2)
        best = max((self._refined_agreement(fit.matrix) for fit in fits), default=0.0)
        return best > METHOD.mirror_gain * self._refined_agreement(matrix)

    def _refined_agreement(self, matrix: np.ndarray) -> float:
        """Agreement where matched neighbourhoods take ``matrix``, which may mirror, described along the turn there."""
        found = block_matching.refine(self.fixed, self._turned(matrix), matrix)
        turned = self._turned(found)
        found = block_matching.refine(self.fixed, turned, found)
        return block_matching.agreement(self.fixed, turned, found)

    def search(self, progress: Progress, sure: float = 0.0) -> Fit | None:
        """The best place; where neither it nor ``sure`` is a convincing match, the moving image is turned as well.

        First by right angles, and if that does not convince either, by `METHOD.slant` degrees about every axis, from
        upright and from the best of them on, and then by half of that; on a coarser lattice.
        """
        upright = self.upright
        if max(sure, upright.score if upright else 0.0) >= METHOD.sure_match:
            return upright
        fixed, moving = self._sides
        # What is odd about a voxel tells little here, and six channels are half of the work.
        describe = partial(self._describe, coarser=METHOD.turned_spacing, mirrored=True)
        still, best, bar = describe(fixed), np.eye(3), 0.0

        def tried(turn: np.ndarray) -> float:
            progress.check()
            return max((fit.score for fit in block_matching.search(still, describe(moving, turn), 1)), default=0.0)

        def improve(turns: Sequence[np.ndarray], margin: float) -> None:
            nonlocal best, bar
            for turn, score in zip(turns, each(tried, turns), strict=True):
                # The first is upright.
                if score > (margin if bar else 1.0) * bar:
                    best, bar = turn, score

        improve(block_matching.right_angles(), METHOD.clear_gain)
        if max(sure, bar) < METHOD.sure_match:
            straight = best
            # One right angle of 24 may match best by chance.
            for turn in (np.eye(3), straight)[: 1 if np.allclose(straight, np.eye(3)) else 2]:
                improve(block_matching.slants(turn, METHOD.slant), METHOD.clear_gain)
            if best is not straight:
                improve(block_matching.slants(best, METHOD.slant / 2, about=1), 1.0)
        if np.allclose(best, np.eye(3)):
            return upright
        return next(iter(block_matching.search(self.fixed, self._moving_along(best), 1)), upright)

    def refined(self, matrix: np.ndarray, affine: bool, progress: Progress) -> np.ndarray:
        found = block_matching.refine(self.fixed, self._turned(matrix), matrix, affine=affine, check=progress.check)
        return found if _plausible(found) else matrix


def align_linearly(
    fixed: Side | sitk.Image,
    moving: Side | sitk.Image,
    start: sitk.Transform,
    rigid: bool = True,
    affine: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    descriptors: DescriptorPair | None = None,
) -> tuple[sitk.Transform, dict[str, Any]]:
    """``start`` improved by a rigid and an affine stage of `mutual_information.align`, and what came of it.

    The stages move fixed points before ``start`` does, which is kept exactly. The transform is one affine when
    ``start`` is linear, else a composite. A stage is undone when it is implausible or makes the images less similar,
    by mutual information or, where ``start`` is linear, by their descriptors: in images of partial overlap or of
    different people mutual information alone drifts away. ``descriptors``: of both sides, if they are there already.
    The record: ``kept`` (start, rigid or affine), ``nmi`` of each stage and ``warnings``. Raises `Cancelled`.
    """
    fixed, moving = _as_side(fixed), _as_side(moving)
    progress = progress or Progress()
    found = {"start": start}
    warnings: list[str] = []
    stages = [name for name, wanted in (("rigid", rigid), ("affine", affine)) if wanted]
    matrix = np.eye(4)
    for name in stages:
        with progress.stage(name, 1 / len(stages)):
            blurs = (3.0, 1.5, 0.7) if name == stages[0] else (1.5, 0.7)
            outcome = _optimise(fixed, moving, start, matrix, name == "affine", blurs, seed, progress)
        if outcome is None or not _plausible(outcome):
            warnings.append(f"The {name} alignment found no plausible solution and was left out.")
            continue
        matrix = outcome
        found[name] = _joined(start, matrix)
    nmi = {name: _similarity(fixed, moving, transform) for name, transform in found.items()}
    better = [name for name in found if nmi[name] >= nmi["start"]]
    if len(better) > 1 and start.IsLinear():
        pair = descriptors or DescriptorPair(fixed, moving)
        agreement = {name: pair.agreement(affine_matrix(found[name])) for name in better}
        better = [
            name for name in better if name == "start" or agreement[name] >= METHOD.kept_agreement * agreement["start"]
        ]
    kept = max(reversed(better), key=nmi.get)
    if kept == "start" and len(found) > 1:
        warnings.append("The linear alignment did not make the images more similar and was left out.")
    return found[kept], {"kept": kept, "nmi": nmi, "warnings": warnings}


def _as_side(image: Side | sitk.Image) -> Side:
    return image if isinstance(image, Side) else prepare(image)


def _optimise(
    fixed: Side,
    moving: Side,
    start: sitk.Transform,
    matrix: np.ndarray,
    affine: bool,
    blurs,
    seed: int,
    progress: Progress,
) -> np.ndarray | None:
    """``matrix`` (4, 4), which acts before ``start``, improved; None when the images share too little.

    ``blurs`` are the standard deviations in voxels, one per level.
    """
    if start.IsLinear():
        start_matrix, grid, seen = affine_matrix(start), grid_of(moving.grey), moving.blurred
    else:
        # The optimisation sees the moving image already warped.
        start_matrix, grid = np.eye(4), grid_of(fixed.grey)
        grey = sitk.GetArrayFromImage(warp(moving.grey, start, fixed.grey, background=0.0))
        seen = partial(ndimage.gaussian_filter, grey)
    inside = np.argwhere(sitk.GetArrayViewFromImage(fixed.region) > 0)
    random = np.random.default_rng(seed)
    values, points, volumes = [], [], []
    for n, blur in enumerate(blurs):
        count = min(len(inside), METHOD.linear_samples >> (len(blurs) - 1 - n))
        chosen = inside[random.choice(len(inside), count, replace=False)]
        values.append(fixed.blurred(blur)[tuple(chosen.T)])
        points.append(grid_of(fixed.grey).points(chosen))
        volumes.append(seen(blur))
    origin = start_matrix @ matrix
    found = align(values, points, volumes, grid, fixed.center_of_mass, origin, affine, on_step=progress.update)
    return None if found is None else np.linalg.inv(start_matrix) @ found


def _joined(start: sitk.Transform, matrix: np.ndarray) -> sitk.Transform:
    """x -> start(matrix x): one affine when ``start`` is linear."""
    if start.IsLinear():
        return affine_transform(affine_matrix(start) @ matrix)
    return sitk.CompositeTransform([start, affine_transform(matrix)])


def _axes(matrix: np.ndarray) -> np.ndarray:
    """Along which axes (3, 3) the moving side of ``matrix`` (4, 4) is described: those turned by right angles, where
    they are near enough, so that descriptors of small turns are not made again and again. Mirrored where ``matrix``
    mirrors."""
    turn = block_matching.rotation_of(matrix)
    if np.linalg.det(turn) < 0:
        return _axes(turn @ _MIRROR) @ _MIRROR
    straight = max(block_matching.right_angles(), key=lambda other: np.sum(other * turn))
    return straight if block_matching.degrees_between(straight, turn) <= METHOD.straight_enough else turn


def _plausible(matrix: np.ndarray) -> bool:
    """Whether nobody's anatomy would be scaled or sheared more than that, or mirrored."""
    scales = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    low, high = METHOD.scales
    return bool(low < scales.min() and scales.max() < high and np.linalg.det(matrix[:3, :3]) > 0)


def _similarity(fixed: Side, moving: Side, transform: sitk.Transform) -> float:
    """Normalised mutual information over both bodies; what lies outside the moving image counts as dark.

    So it does not profit from pushing the images apart.
    """
    seen = sitk.GetArrayFromImage(warp(moving.grey, transform, fixed.grey, background=0.0))
    bodies = sitk.GetArrayFromImage(fixed.body) | sitk.GetArrayFromImage(
        warp(moving.body, transform, fixed.body, "nearest")
    )
    if fixed.chosen:
        bodies &= sitk.GetArrayFromImage(fixed.region)
    return normalized_mutual_information(sitk.GetArrayFromImage(fixed.grey), seen, bodies > 0)
