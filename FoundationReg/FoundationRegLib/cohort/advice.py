"""One sentence of advice that follows from the numbers."""

from __future__ import annotations

import math

import numpy as np

from ..evaluation.titles import FOLDED_LIMIT_PERCENT
from .statistics import LEAST_FOR_TEST, Comparison, Metric, Numbers

_SIGNIFICANT = 0.05


def is_mind_alone(settings: dict) -> bool:
    return [name for name, _ in settings.get("encoders", ())] == ["mind"]


def advice(numbers: Numbers, settings: dict[str, dict]) -> str:
    """What to use on data like these, with the numbers that say so. ``settings``: by variant.

    The best variant is measured against the images as they lie, the linear part, and MIND alone, which needs no
    weights; a gain that the numbers do not bear out is not called one.
    """
    metric, pairs = numbers.primary(), numbers.common()
    if metric is None or not pairs:
        return "There is nothing to advise: no pair was registered with every variant."
    order = numbers.ranking()
    best = order[0]
    value = _text(metric, float(np.nanmean(numbers.values(best, metric.key, pairs))))
    if sentence := _no_better_than_start(numbers, metric, best, pairs):
        return sentence
    start = _from_start(numbers, metric, best, pairs)
    parts = [f"Use {best}: {metric.title} {value}{start} on {_count(pairs)}"]
    baselines = [name for name in order if is_mind_alone(settings.get(name, {}))]
    if len(order) == 1:
        parts.append("no other variant was compared")
    elif best in baselines:
        parts.append(_ahead_of_all(numbers, metric, order))
    elif baselines:
        against = numbers.compared(metric, best, baselines[0])
        if not _is_gain(metric, against):
            lead = f"its lead of {_difference(metric, against)} is {_why_no_gain(metric, against)}"
            return (
                f"Use {baselines[0]}, MIND alone: {best} ranks first with {metric.title} {value}{start} on "
                f"{_count(pairs)}, but {lead}{_seconds(numbers, baselines[0], best, pairs)}."
            )
        parts.append(f"{_difference(metric, against)} better than {baselines[0]}, MIND alone{_evidence(against)}")
    else:
        parts.append("MIND alone was not among the variants, so whether an encoder is needed at all is open")
    if metric.key == "nmi":
        parts.append("without labels or points only the images' similarity speaks, which is no proof of right anatomy")
    folded = numbers.values(best, "folded_percent", pairs)
    if np.isfinite(folded).any() and np.nanmean(folded) > FOLDED_LIMIT_PERCENT:
        parts.append(f"{np.nanmean(folded):.2f} % of its voxels fold, so volumes there cannot be trusted")
    return "; ".join(parts) + "."


def _no_better_than_start(numbers: Numbers, metric: Metric, best: str, pairs: list[str]) -> str:
    """What to do instead, where the best variant is behind the linear part alone or the images as they lie."""
    after = _mean(numbers.values(best, metric.key, pairs))
    before, linear = (_mean(numbers.values(best, metric.key + end, pairs)) for end in ("_before", "_linear"))
    starts = {"the images as they lie": before, "the linear part alone": linear}
    known = {name: metric.better * value for name, value in starts.items() if math.isfinite(value)}
    if not known or metric.better * after > max(known.values()):
        return ""
    name = max(known, key=known.get)
    sentence = (
        f"No variant is better than {name}: {metric.title} {_text(metric, starts[name])} there, "
        f"{_text(metric, after)} with the best, {best}"
    )
    if name == "the linear part alone":
        return f"{sentence}. Look at the worst cases, give masks, or use the linear part alone."
    if metric.better * linear < metric.better * before:
        sentence += f", and already the linear part goes wrong ({_text(metric, linear)})"
    return f"{sentence}. Look at the worst cases; give initial transforms or masks, or try --set start=none."


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _from_start(numbers: Numbers, metric: Metric, best: str, pairs: list[str]) -> str:
    before = _mean(numbers.values(best, metric.key + "_before", pairs))
    return f" (as the images lie {_text(metric, before)})" if math.isfinite(before) else ""


def _ahead_of_all(numbers: Numbers, metric: Metric, order: list[str]) -> str:
    if metric.margin:
        against = numbers.compared(metric, order[0], order[1])
        return f"no encoder was better than MIND alone; next is {order[1]}, {_difference(metric, against)} behind"
    return "no encoder was better than MIND alone"


def _is_gain(metric: Metric, against: Comparison) -> bool:
    large = metric.better * against.difference > metric.margin
    proven = math.isnan(against.p) or against.p < _SIGNIFICANT
    return large and proven


def _why_no_gain(metric: Metric, against: Comparison) -> str:
    if metric.better * against.difference <= metric.margin:
        return "too small to matter"
    return f"within chance (p = {against.p:.2g})"


def _evidence(against: Comparison) -> str:
    if against.count < LEAST_FOR_TEST:
        return f", seen on {against.count} pair{'s' * (against.count > 1)} only"
    return f" (p = {against.p:.2g})"


def _seconds(numbers: Numbers, one: str, other: str, pairs: list[str]) -> str:
    times = [float(np.nanmean(numbers.values(name, "seconds", pairs))) for name in (one, other)]
    if not all(map(math.isfinite, times)):
        return ""
    return f", and it takes {times[1]:.0f} s instead of {times[0]:.0f} s"


def _text(metric: Metric, value: float) -> str:
    return f"{value:.{metric.decimals}f} {metric.unit}".strip()


def _difference(metric: Metric, against: Comparison) -> str:
    return f"{abs(against.difference):.{metric.decimals}f} {metric.unit}".strip()


def _count(pairs: list[str]) -> str:
    return f"{len(pairs)} pair{'s' * (len(pairs) != 1)}"
