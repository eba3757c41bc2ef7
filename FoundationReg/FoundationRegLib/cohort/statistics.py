"""What the numbers of a run say: means, their confidence, and whether two variants differ on the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .results import is_done, value_of

CONFIDENCE = 0.95
_RESAMPLES = 5000
# With fewer pairs no rank test can reach p < 0.05, and an interval means little.
LEAST_FOR_TEST, LEAST_FOR_INTERVAL = 6, 3


@dataclass(frozen=True)
class Metric:
    """A number of a row: ``better`` is 1 where more is better, -1 where less is, 0 where neither. ``margin`` is the
    difference below which two variants count as equally good in practice."""

    key: str
    title: str
    unit: str
    decimals: int
    better: int
    margin: float = 0.0


# In this order the first that was measured on every pair decides the ranking.
METRICS = (
    Metric("dice", "Dice", "", 3, 1, 0.005),
    Metric("tre_mm", "TRE", "mm", 2, -1, 0.05),
    Metric("hd95_mm", "HD95", "mm", 2, -1, 0.1),
    Metric("nmi", "NMI", "", 3, 1, 0.002),
    Metric("inverse_consistency_mm", "Inverse consistency", "mm", 2, -1, 0.1),
    Metric("uncertainty_mm", "Estimated error (relative)", "mm", 2, -1, 0.1),
    Metric("folded_percent", "Folded", "%", 3, 0),
    Metric("sd_log_jacobian", "SD log Jacobian", "", 3, 0),
    Metric("seconds", "Time", "s", 1, 0),
    Metric("memory_gb", "Memory", "GB", 1, 0),
)
BY_KEY = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True)
class Spread:
    """Of one metric over pairs. ``low`` and ``high``: confidence interval of the mean, nan for too few pairs."""

    count: int
    mean: float
    sd: float
    median: float
    quartiles: tuple[float, float]
    low: float
    high: float
    worst: float


@dataclass(frozen=True)
class Comparison:
    """Two variants on the pairs that both finished. ``difference``: mean of ``variant`` minus ``reference``, with its
    confidence interval. ``p``: Wilcoxon signed-rank test, two-sided; ``p_holm``: corrected for all tests of the metric
    (Holm, Scand. J. Stat. 6, 1979). nan for too few pairs."""

    metric: str
    variant: str
    reference: str
    count: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan


def spread(values: Sequence[float], better: int = 0, seed: int = 0) -> Spread:
    """What describes ``values``; those that are nan do not count."""
    array = np.asarray([v for v in values if not math.isnan(v)], float)
    if not len(array):
        return Spread(0, *[math.nan] * 3, (math.nan, math.nan), *[math.nan] * 3)
    low, high = interval(array, seed)
    worst = array.min() if better > 0 else array.max()
    quartiles = tuple(float(q) for q in np.percentile(array, [25, 75]))
    sd = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return Spread(len(array), float(array.mean()), sd, float(np.median(array)), quartiles, low, high, float(worst))


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bootstrap confidence interval of the mean: bias-corrected and accelerated (Efron, JASA 82, 1987)."""
    if len(values) < LEAST_FOR_INTERVAL:
        return math.nan, math.nan
    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return float(values[0]), float(values[0])
    generator = np.random.default_rng(seed)
    # Ten thousand pairs need no acceleration, which costs the square of their number.
    method = "BCa" if len(values) <= 1000 else "percentile"
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=_RESAMPLES, method=method, rng=generator,
        batch=max(1, 2_000_000 // len(values)),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def signed_rank(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs, nan for too few pairs."""
    if len(differences) < LEAST_FOR_TEST:
        return math.nan
    if not np.any(differences):
        return 1.0
    # Pratt's way lets pairs without a difference count as what they are.
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction; nan stays and does not count."""
    known = sorted((p, n) for n, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, n) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[n] = highest
    return corrected


class Numbers:
    """The rows of a run by variant, task and pair."""

    def __init__(self, rows: Sequence[dict[str, Any]]):
        self.rows = list(rows)
        self.variants = list(dict.fromkeys(row["variant"] for row in self.rows))
        self.tasks = list(dict.fromkeys(row["task"] or "" for row in self.rows))
        self._done = {(row["variant"], row["id"]): row for row in self.rows if is_done(row)}
        self.pairs = list(dict.fromkeys(row["id"] for row in self.rows))
        self._task_of = {row["id"]: row["task"] or "" for row in self.rows}

    def row(self, variant: str, pair: str) -> dict[str, Any] | None:
        """The row of a pair that ``variant`` finished, else None."""
        return self._done.get((variant, pair))

    def common(self, task: str | None = None) -> list[str]:
        """Pairs (of one task) that every variant finished: only on these can variants be compared."""
        return [
            pair
            for pair in self.pairs
            if (task is None or self._task_of[pair] == task) and all((v, pair) in self._done for v in self.variants)
        ]

    def values(self, variant: str, metric: str, pairs: Sequence[str]) -> np.ndarray:
        return np.array([value_of(self._done[variant, pair], metric) for pair in pairs], float)

    def measured(self, metric: str) -> bool:
        return any(row.get(metric) is not None for row in self._done.values())

    def metrics(self) -> list[Metric]:
        return [metric for metric in METRICS if self.measured(metric.key)]

    def primary(self) -> Metric | None:
        """The metric that decides: the first of `METRICS` that all common pairs have, else the first that any has."""
        candidates = [metric for metric in self.metrics() if metric.better]
        pairs = self.common()
        whole = (m for m in candidates if all(np.isfinite(self.values(v, m.key, pairs)).all() for v in self.variants))
        return next(whole, candidates[0] if candidates else None)

    def spreads(self, variant: str, metric: Metric, task: str | None = None, end: str = "") -> Spread:
        """Over the common pairs. ``end``: ``_before`` or ``_linear`` for the value before or after the linear part."""
        return spread(self.values(variant, metric.key + end, self.common(task)), metric.better)

    def ranking(self, task: str | None = None) -> list[str]:
        """Variants, the best mean of the primary metric first; in the run's order where there is none."""
        metric = self.primary()
        pairs = self.common(task)
        if metric is None or not pairs:
            return list(self.variants)
        means = {v: _mean(self.values(v, metric.key, pairs)) for v in self.variants}
        return sorted(self.variants, key=lambda v: (math.isnan(means[v]), -metric.better * means[v]))

    def comparisons(self, task: str | None = None) -> list[Comparison]:
        """Every pair of variants in every metric that can be better, the better-ranked variant first."""
        order = self.ranking(task)
        made = []
        for metric in (m for m in self.metrics() if m.better):
            found = [self.compared(metric, one, other, task) for n, one in enumerate(order) for other in order[n + 1 :]]
            corrected = holm([c.p for c in found])
            made += [Comparison(**{**vars(c), "p_holm": p}) for c, p in zip(found, corrected, strict=True) if c.count]
        return made

    def compared(self, metric: Metric, variant: str, reference: str, task: str | None = None) -> Comparison:
        pairs = [
            pair
            for pair in self.pairs
            if (task is None or self._task_of[pair] == task)
            and (variant, pair) in self._done
            and (reference, pair) in self._done
        ]
        differences = self.values(variant, metric.key, pairs) - self.values(reference, metric.key, pairs)
        differences = differences[np.isfinite(differences)]
        if not len(differences):
            return Comparison(metric.key, variant, reference, 0, *[math.nan] * 4)
        low, high = interval(differences)
        return Comparison(
            metric.key, variant, reference, len(differences), float(differences.mean()), low, high,
            signed_rank(differences),
        )  # fmt: skip

    def labels(self) -> list[str]:
        """Labels whose Dice was measured."""
        found = dict.fromkeys(
            name.removeprefix("dice_label_")
            for row in self._done.values()
            for name in row
            if name.startswith("dice_label_") and not name.endswith(("_before", "_linear"))
        )
        return sorted(found, key=lambda label: (not label.isdigit(), int(label) if label.isdigit() else 0, label))

    def worst(self, variant: str, count: int) -> list[str]:
        """Pairs of ``variant``, the worst of the primary metric first."""
        metric = self.primary()
        if metric is None:
            return []
        known = [
            (value_of(row, metric.key) * metric.better, pair) for (v, pair), row in self._done.items() if v == variant
        ]
        return [pair for value, pair in sorted(item for item in known if not math.isnan(item[0]))][:count]


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan
