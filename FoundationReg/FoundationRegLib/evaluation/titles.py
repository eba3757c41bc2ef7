"""Names, units and directions of the metrics, for every place that shows them."""

from __future__ import annotations

import math
from typing import Any

# Key of a metric: title, unit, decimals, whether more is better (None: neither).
METRICS: dict[str, tuple[str, str, int, bool | None]] = {
    "tre_mm": ("Target registration error, mean", "mm", 2, False),
    "tre_p95_mm": ("Target registration error, 95th percentile", "mm", 2, False),
    "dice": ("Dice overlap, mean over labels", "", 3, True),
    "hd95_mm": ("Hausdorff distance, 95th percentile", "mm", 2, False),
    "nmi": ("Normalised mutual information", "", 3, True),
    "folded_percent": ("Folded voxels", "%", 3, None),
    "sd_log_jacobian": ("Spread of the log Jacobian", "", 3, None),
}


def metric_text(key: str, value: Any) -> str:
    """``value`` of the metric ``key`` with its unit, or a dash when it was not measured."""
    _, unit, decimals, _ = METRICS[key]
    known = value is not None and math.isfinite(value)
    return f"{value:.{decimals}f} {unit}".strip() if known else "–"
