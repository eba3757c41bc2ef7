"""One plain sentence on how far a result can be trusted."""

from __future__ import annotations

from ..evaluation.titles import FOLDED_LIMIT_PERCENT
from ..settings import Settings
from .deformable import Deformation


def describe(scores: dict[str, dict], found: Deformation, settings: Settings) -> str:
    """What the numbers mean for the user: folding, size of the deformation, similarity before and after."""
    after, before = scores["after"], scores["before"]
    length = found.displacement.norm(dim=0)
    mean, largest = float(length.mean()), float(length.max())
    parts = [f"The deformation moves tissue by {mean:.1f} mm on average and {largest:.1f} mm at most"]
    folded = after["folded_percent"]
    if folded == 0:
        parts.append("it folds nowhere")
    elif folded < FOLDED_LIMIT_PERCENT:
        parts.append(f"{folded:.3f} % of the voxels fold, which is negligible")
    else:
        parts.append(f"{folded:.2f} % of the voxels fold, so landmarks and volumes there cannot be trusted")
    if after["nmi"] < before["nmi"] - 0.005:
        parts.append("but the images became less similar: check the result before using it")
    if settings.search_range_mm and largest > 0.9 * settings.search_range_mm:
        parts.append("some displacements reach the search range, which may have been too small")
    return "; ".join(parts) + "."
