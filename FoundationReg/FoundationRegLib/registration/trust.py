"""Whether a transform is right, judged by what took no part in finding it.

`Witness` gathers the evidence: the orientation of edges, which no stage optimises, compared with shifted copies of
itself and matched both ways; mutual information above that of shifted copies; how the bodies cover each other; and how
plausible the linear part and the bend are. `failure_score` weighs it by a logistic regression whose coefficients
``python dev.py benchmark trust`` finds on registrations that succeeded and failed (Resources/Trust.json).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

from ..core.constants import METHOD
from ..core.progress import Progress
from ..core.resources import resource_path
from ..evaluation.metrics import normalized_mutual_information
from ..images.conversion import grid_of
from ..images.resampling import validity, warp
from ..images.transforms import affine_matrix
from ..numerics.agreement import FAR, Agreement, axis_steps, centred, edge_orientation, shifted
from ..numerics.parallel import in_threads
from .linear import DescriptorPair, Side

# Share of the fixed body that the moving image shows, below which no result looks right. Seen: of cases cut to the
# upper 40 %, results that are 2 to 5 mm off near the cut, with the evidence of right ones.
PARTIAL = 0.5
# Seen of right ones: 0.06 (abdomen) to 0.44.
_MOST_CLARITY = 0.5
# Evidence whose scale is a ratio, and what is added before its logarithm is taken.
_LOGARITHMIC = {"miss": 0.1, "way_back": 0.1, "pull": 0.05, "scale": 0.02, "bend": 0.01}


@dataclass(frozen=True)
class Trust:
    """How far a result can be trusted.

    ``score``: 0 (right) to 1 (wrong). ``sentence``: the same in plain words. ``kept``: which candidate the result is:
    ``after`` (all stages), ``linear`` or ``before``. ``candidates``: each one's score. ``evidence`` of the kept one.
    """

    score: float
    kept: str = "after"
    candidates: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``right``, ``look`` or ``wrong``."""
        low, high = _model()["thresholds"]
        return "right" if self.score < low else "look" if self.score < high else "wrong"

    @property
    def sentence(self) -> str:
        words = {"right": "This looks right", "look": "Look here", "wrong": "This is probably wrong"}
        return f"{words[self.verdict]} (failure score {self.score:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        rounded = {name: round(value, 3) for name, value in self.evidence.items()}
        return {
            "score": round(self.score, 3),
            "verdict": self.verdict,
            "sentence": self.sentence,
            "kept": self.kept,
            "candidates": {name: round(value, 3) for name, value in self.candidates.items()},
            "evidence": rounded,
        }


class Witness:
    """Both images of a pair on the fixed side's lattice, ready to judge any transform between them."""

    def __init__(self, fixed: Side, moving: Side):
        self._moving = moving
        self._grid = grid_of(fixed.grey)
        self._grey = _tensor(fixed.grey)
        self._body = _tensor(fixed.body) > 0
        self._weight = _inner(_tensor(fixed.region) > 0)
        self._edges = centred(edge_orientation(self._grey), self._weight)
        self._known: dict[bytes, dict[str, float]] = {}

    def _agreement(self, transform: sitk.Transform) -> tuple[Agreement, Tensor, Tensor, Tensor]:
        """How edges agree under ``transform``; the moving grey values, what of the grid they cover, and weight."""
        grey = _tensor(warp(self._moving.grey, transform, self._grid, background=0.0))
        region = _tensor(warp(self._moving.region, transform, self._grid, "nearest")) > 0
        seen = torch.from_numpy(validity(self._moving.grey, self._grid, transform))
        weight = _inner(region & seen)
        edges = centred(edge_orientation(grey), weight)
        return Agreement(self._edges, edges, self._weight, weight), grey, seen, weight

    @torch.inference_mode()
    def support(self, transform: sitk.Transform) -> float:
        """``held`` of `evidence` alone, which is much quicker."""
        return self._agreement(transform)[0].held()

    def evidence(self, transform: sitk.Transform) -> dict[str, float]:
        """What speaks for and against ``transform`` (fixed to moving points), by name.

        That of linear ones is kept: the same are asked about after another deformation.
        """
        if not transform.IsLinear():
            return self._evidence(transform)
        matrix = affine_matrix(transform).tobytes()
        if matrix not in self._known:
            self._known[matrix] = self._evidence(transform)
        return dict(self._known[matrix])

    @torch.inference_mode()
    def _evidence(self, transform: sitk.Transform) -> dict[str, float]:
        agreement, grey, seen, weight = self._agreement(transform)
        body = _tensor(warp(self._moving.body, transform, self._grid, "nearest")) > 0
        (miss, way_back), pull, information, (here, rise, sharpness), held, offset = in_threads(
            [
                agreement.residual,
                agreement.pull,
                lambda: self._information(grey, weight),
                agreement.peak,
                agreement.held,
                agreement.offset,
            ]
        )
        both = ((self._body | body) & seen).sum()
        return {
            "covered": float((self._body & seen).sum() / self._body.sum().clamp_min(1)),
            "bodies": float((self._body & body).sum() / both.clamp_min(1)),
            "information": information,
            # Where edges agree well, one contrast is seen, and then grey values must tell as much of each other: mutual
            # information falls off sooner than the correlation of edges does. The constant is that of chance. The limit
            # is for slivers of overlap, in which mutual information is anything.
            "clarity": min(information / (here**2 + 0.1), _MOST_CLARITY),
            "agreement": here,
            "rise": rise,
            "sharpness": sharpness,
            "held": held,
            "offset": offset,
            "miss": miss,
            "way_back": way_back,
            "pull": pull,
            **self._shape(transform),
        }

    def _information(self, grey: Tensor, weight: Tensor) -> float:
        """Normalised mutual information above that of the copies that are shifted far."""

        def shared(step) -> float:
            mask = self._weight * shifted(weight, step) > 0.5
            if not bool(mask.any()):
                return 1.0
            return normalized_mutual_information(self._grey.numpy(), shifted(grey, step).numpy(), mask.numpy())

        return shared((0, 0, 0)) - float(np.mean([shared(step) for step in axis_steps(FAR)]))

    def _shape(self, transform: sitk.Transform) -> dict[str, float]:
        """``scale``: logarithm of the strongest stretch of the nearest affine map. ``bend``: root mean square of what
        is left of the transform beside it, in body radii."""
        inside = np.argwhere(self._body[::2, ::2, ::2].numpy()) * 2
        points = self._grid.points(inside[:: max(1, len(inside) // 2000)])
        moved = np.array([transform.TransformPoint(point) for point in points.tolist()])
        design = np.c_[points - points.mean(0), np.ones(len(points))]
        fit = np.linalg.lstsq(design, moved, rcond=None)[0]
        stretches = np.linalg.svd(fit[:3], compute_uv=False)
        rest = np.sqrt(np.square(moved - design @ fit).sum(1).mean())
        radius = np.sqrt(np.square(design[:, :3]).sum(1).mean())
        return {"scale": float(np.abs(np.log(stretches.clip(1e-3))).max()), "bend": float(rest / max(radius, 1e-6))}


def _tensor(image: sitk.Image) -> Tensor:
    return torch.from_numpy(sitk.GetArrayFromImage(image).astype(np.float32))


def _inner(mask: Tensor) -> Tensor:
    """1 in ``mask``, but 0 within two nodes of its border, where edges are those of the field of view."""
    return torch.from_numpy(ndimage.binary_erosion(mask.numpy(), iterations=2).astype(np.float32))


@cache
def _model() -> dict:
    return json.loads(resource_path("Trust.json").read_text(encoding="utf-8"))


def regressors(evidence: dict[str, float]) -> dict[str, float]:
    """The evidence as the regression sees it: ratios as logarithms."""
    return {
        name: math.log(max(value, 0.0) + _LOGARITHMIC[name]) if name in _LOGARITHMIC else value
        for name, value in evidence.items()
    }


def failure_score(evidence: dict[str, float]) -> float:
    """Probability, 0 to 1, that a transform with this `Witness.evidence` is wrong, where half of all are.

    Where the moving image shows less than half of the fixed body, nothing looks right: see `PARTIAL`.
    """
    model, values = _model(), regressors(evidence)
    total = model["offset"] + sum(
        weight * (values[name] - mean) / deviation for name, (mean, deviation, weight) in model["evidence"].items()
    )
    score = 1 / (1 + math.exp(-min(max(total, -50.0), 50.0)))
    return max(score, model["thresholds"][0]) if evidence["covered"] < PARTIAL else score


def keep_supported(
    fixed: Side,
    moving: Side,
    found: sitk.Transform,
    facts: dict[str, Any],
    chosen: sitk.Transform | None,
    progress: Progress | None = None,
    descriptors: DescriptorPair | None = None,
) -> tuple[sitk.Transform, dict[str, Any]]:
    """``found`` by the linear stage and its ``facts``, or the start, where nothing independent speaks for ``found``.

    The start is ``chosen``, or the images as they lie. Two modalities that hardly share anything give any similarity
    optima everywhere; then the place that a person or the scanner gave is the better guess. It is not, where the images
    do not meet there: ``found`` stays, with a warning. The facts get the ``witness``, its ``support``, whether the pair
    matches better ``mirrored``, and under ``rest`` the candidate of `choose` that the start is, where it was kept.
    ``descriptors``: of both sides, if they are there already.
    """
    witness = Witness(fixed, moving)
    start = chosen or sitk.Transform(3, sitk.sitkIdentity)
    warnings = list(facts.get("warnings", []))
    support = witness.support(found)
    facts = {**facts, "witness": witness, "support": support, "warnings": warnings}
    if progress is not None:
        progress.check()
    if support >= METHOD.least_support:
        pair = descriptors or DescriptorPair(fixed, moving)
        facts["mirrored"] = found.IsLinear() and pair.is_mirrored(affine_matrix(found))
        if facts["mirrored"]:
            warnings.append(_MIRRORED)
        return found, facts
    resting = witness.evidence(start)
    if min(resting["covered"], resting["bodies"]) < METHOD.least_cover:
        warnings.append(
            "Little speaks for the alignment that was found: check it, or give an initial transform or landmarks."
        )
        return found, facts
    warnings.append(
        "Nothing independent of its similarity speaks for the linear alignment that was found, so it was left out; "
        "check the start, or give an initial transform or landmarks."
    )
    return start, {**facts, "kept": "start", "rest": "before" if chosen is None else "linear"}


_MIRRORED_SCORE = 0.9
_MIRRORED = (
    "The images match clearly better when one of them is mirrored: left and right may be swapped in one header. "
    "Nothing was mirrored."
)


def choose(candidates: dict[str, sitk.Transform], facts: dict[str, Any], guided: bool) -> Trust:
    """Which of ``candidates`` (``after``, ``linear``, ``before``) is the result, and how far it can be trusted.

    ``after`` unless another has a clearly lower failure score, which is only asked where its own is not low, or, where
    `keep_supported` found nothing that speaks for the linear stage, unless it does not look wrong itself. What the user
    ``guided`` by labels or landmarks is not replaced. Boxes (``boxed`` of ``facts``) say where an organ lies, and that
    is not undone; but their masks are a guess, and where nothing in the images speaks for the linear stage, nothing
    speaks for bending by them either. ``facts`` are those of `keep_supported`; a pair that matches better mirrored
    looks wrong, however well it was bent.
    """
    kept = "after"
    evidence = {kept: facts["witness"].evidence(candidates[kept])}
    if "rest" in facts or failure_score(evidence[kept]) >= METHOD.clearly_safer:
        # Below that, no other can be clearly safer.
        rest = {name: transform for name, transform in candidates.items() if name != kept}
        evidence |= {name: facts["witness"].evidence(transform) for name, transform in rest.items()}
    scores = {name: failure_score(values) for name, values in evidence.items()}
    met = {name for name, values in evidence.items() if values["covered"] >= METHOD.least_cover}
    if facts.get("boxed") and not guided:
        kept = facts.get("rest", kept)
    elif not guided:
        rivals = [name for name in scores if name in met and scores[name] < scores["after"] - METHOD.clearly_safer]
        if rivals:
            kept = min(rivals, key=scores.get)
        elif "rest" in facts and Trust(scores["after"]).verdict == "wrong":
            kept = facts["rest"]
    score = max(scores[kept], _MIRRORED_SCORE) if facts.get("mirrored") else scores[kept]
    return Trust(score, kept, scores, evidence[kept])


def warnings_of(trust: Trust) -> list[str]:
    """What the user must be told about a result before using it."""
    found = []
    if trust.kept != "after":
        what = {"linear": "linear alignment", "before": "start"}[trust.kept]
        found.append(f"The deformed result looked worse or nothing spoke for it; you get the {what} instead.")
    if trust.evidence.get("covered", 1.0) < PARTIAL:
        found.append(
            f"The moving image shows only {trust.evidence['covered']:.0%} of the fixed body. Look near the "
            "cut: errors there leave few traces, and beyond it the transform is a guess."
        )
    if trust.verdict != "right":
        found.append(f"{trust.sentence}: compare the images before you use the result.")
    return found
