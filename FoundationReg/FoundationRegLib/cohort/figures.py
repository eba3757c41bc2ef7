"""Distributions over pairs as figures: one box and every pair's point for each variant."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .statistics import Metric, Numbers

_COLOURS = ("#0b6fc7", "#c8700f", "#14804a", "#8b3fa8", "#b3261e", "#0e8c8c", "#7a6a00", "#5b6778")
_MOST_POINTS = 400


def distribution(numbers: Numbers, metric: Metric, task: str | None = None, column: str | None = None) -> bytes | None:
    """PNG of ``metric`` (or another ``column`` in its unit) by variant over the common pairs of ``task``, and as the
    images lie. None where nothing was measured."""
    column = column or metric.key
    pairs = numbers.common(task)
    names, values = [], []
    if metric.better:
        names.append("as the images lie")
        values.append(_finite(numbers.values(numbers.variants[0], column + "_before", pairs)))
    for variant in numbers.variants:
        names.append(variant)
        values.append(_finite(numbers.values(variant, column, pairs)))
    if not any(len(v) for v in values[bool(metric.better) :]):
        return None
    figure = Figure(figsize=(6.4, 0.55 + 0.42 * len(names)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ["#9aa4b2"] * bool(metric.better) + [_COLOURS[n % len(_COLOURS)] for n in range(len(numbers.variants))]
    generator = np.random.default_rng(0)
    for row, (some, colour) in enumerate(zip(values, colours, strict=True)):
        if not len(some):
            continue
        place = len(names) - 1 - row
        axes.boxplot(
            some, positions=[place], orientation="horizontal", widths=0.5, showfliers=False, patch_artist=True,
            boxprops={"facecolor": colour + "33", "edgecolor": colour}, medianprops={"color": colour, "lw": 2},
            whiskerprops={"color": colour}, capprops={"color": colour},
        )  # fmt: skip
        shown = some if len(some) <= _MOST_POINTS else generator.choice(some, _MOST_POINTS, replace=False)
        axes.plot(shown, place + generator.uniform(-0.17, 0.17, len(shown)), ".", color=colour, ms=4, alpha=0.7)
    axes.set_yticks(range(len(names)), [_shortened(name) for name in reversed(names)])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(metric.title + (f" [{metric.unit}]" if metric.unit else ""), color="#4a5568", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#e6e9ee", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color="#9aa4b2", labelcolor="#1b2533", labelsize=9, left=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _shortened(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"
