"""Names, units and directions of the metrics, for every place that shows them."""

from __future__ import annotations

import math
from typing import Any

# Share of folded voxels from which landmarks and volumes under a transform are warned of.
FOLDED_LIMIT_PERCENT = 0.05

# Key of a metric: title, unit, decimals, whether more is better (None: neither).
METRICS: dict[str, tuple[str, str, int, bool | None]] = {
    "tre_mm": ("Target registration error, mean", "mm", 2, False),
    "tre_p95_mm": ("Target registration error, 95th percentile", "mm", 2, False),
    "dice": ("Dice overlap, mean over labels", "", 3, True),
    "predicted_dice": ("Dice overlap, mean over predicted regions", "", 3, True),
    "hd95_mm": ("Hausdorff distance, 95th percentile", "mm", 2, False),
    "nmi": ("Normalised mutual information", "", 3, True),
    "folded_percent": ("Folded voxels", "%", 3, None),
    "sd_log_jacobian": ("Spread of the log Jacobian", "", 3, None),
}


# Titles above the rows of metrics that have a value per label or structure.
_GROUPS = {
    "dice_per_label": "Dice overlap:",
    "predicted_dice_per_structure": "Dice overlap of predicted regions:",
}


def metric_text(key: str, value: Any) -> str:
    """``value`` of the metric ``key`` with its unit, or a dash when it was not measured."""
    _, unit, decimals, _ = METRICS[key]
    known = value is not None and math.isfinite(value)
    return f"{value:.{decimals}f} {unit}".strip() if known else "–"


def metric_title(key: str) -> str:
    """Title of the metric ``key`` with its unit and, where there is one, its better direction; for tables."""
    if key not in METRICS:
        return _GROUPS.get(key, key.replace("_", " "))
    title, unit, _, more_is_better = METRICS[key]
    better = {True: "higher is better", False: "lower is better", None: ""}[more_is_better]
    notes = ", ".join(filter(None, (unit, better)))
    return f"{title} ({notes})" if notes else title
