"""One plain sentence on how far a result can be trusted."""

from __future__ import annotations

from ..evaluation.titles import FOLDED_LIMIT_PERCENT
from ..settings import Settings
from .deformable import Deformation
from .trust import Trust


def describe(scores: dict[str, dict], found: Deformation, settings: Settings, trust: Trust) -> str:
    """What the numbers mean for the user: trust, folding, size of the deformation, similarity before and after."""
    after, before = scores["after"], scores["before"]
    length = found.displacement.norm(dim=0)
    mean, largest = float(length.mean()), float(length.max())
    moved = [f"The deformation moves tissue by {mean:.1f} mm on average and {largest:.1f} mm at most"]
    parts = moved if trust.kept == "after" else ["The deformation is left out"]
    folded = after["folded_percent"]
    if folded == 0:
        parts.append("it folds nowhere")
    elif folded < FOLDED_LIMIT_PERCENT:
        parts.append(f"{folded:.3f} % of the voxels fold, which is negligible")
    else:
        parts.append(f"{folded:.2f} % of the voxels fold, so landmarks and volumes there cannot be trusted")
    if after["nmi"] < before["nmi"] - 0.005:
        parts.append("but the images became less similar: check the result before using it")
    if trust.kept == "after" and settings.search_range_mm and largest > 0.9 * settings.search_range_mm:
        parts.append("some displacements reach the search range, which may have been too small")
    return f"{trust.sentence}. {'; '.join(parts)}."
