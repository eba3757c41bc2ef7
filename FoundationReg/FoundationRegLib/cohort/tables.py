"""The summary of a run as tables: CSV for programs, LaTeX for a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .results import write_csv, write_text
from .statistics import Comparison, Metric, Numbers, Spread

ALL_TASKS = "all"
# Starts of every registration, beside which each variant is told.
BASELINES = {"_before": "as the images lie", "_linear": "linear part alone"}
_SUMMARY = (
    "task",
    "variant",
    "metric",
    "unit",
    "pairs",
    "mean",
    "sd",
    "ci_low",
    "ci_high",
    "median",
    "q1",
    "q3",
    "worst",
)
_TESTS = ("task", "metric", "variant", "reference", "pairs", "difference", "ci_low", "ci_high", "p", "p_holm")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def tasks_of(numbers: Numbers) -> list[str | None]:
    """None for all pairs together, then each task where there are several."""
    return [None, *(numbers.tasks if len(numbers.tasks) > 1 else [])]


def write_summaries(numbers: Numbers, folder: Path) -> list[Path]:
    """summary.csv, tests.csv and summary.tex."""
    summary, tests = [], []
    for task in tasks_of(numbers):
        name = ALL_TASKS if task is None else task
        for title, metric, found in spreads(numbers, task):
            summary.append(_summary_row(name, title, metric, found))
        tests += [_test_row(name, comparison) for comparison in numbers.comparisons(task)]
    return [
        write_csv(folder / "summary.csv", list(_SUMMARY), summary),
        write_csv(folder / "tests.csv", list(_TESTS), tests),
        write_text(folder / "summary.tex", latex(numbers)),
    ]


def spreads(numbers: Numbers, task: str | None):
    """Title, metric and spread of the starts (once, they are the same for alike variants) and of every variant."""
    for metric in numbers.metrics():
        for end, title in BASELINES.items():
            found = numbers.spreads(numbers.variants[0], metric, task, end)
            if metric.better and found.count:
                yield title, metric, found
        for variant in numbers.variants:
            found = numbers.spreads(variant, metric, task)
            if found.count:
                yield variant, metric, found


def _summary_row(task: str, title: str, metric: Metric, found: Spread) -> dict[str, Any]:
    values = {
        "pairs": found.count, "mean": found.mean, "sd": found.sd, "ci_low": found.low, "ci_high": found.high,
        "median": found.median, "q1": found.quartiles[0], "q3": found.quartiles[1], "worst": found.worst,
    }  # fmt: skip
    return {"task": task, "variant": title, "metric": metric.key, "unit": metric.unit, **_known(values)}


def _test_row(task: str, comparison: Comparison) -> dict[str, Any]:
    values = {
        "pairs": comparison.count, "difference": comparison.difference, "ci_low": comparison.low,
        "ci_high": comparison.high, "p": comparison.p, "p_holm": comparison.p_holm,
    }  # fmt: skip
    names = {"metric": comparison.metric, "variant": comparison.variant, "reference": comparison.reference}
    return {"task": task, **names, **_known(values)}


def _known(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def number(metric: Metric, value: float) -> str:
    """``value`` with the metric's decimals, or a dash."""
    return f"{value:.{metric.decimals}f}" if math.isfinite(value) else "–"


def latex(numbers: Numbers) -> str:
    """A table for `booktabs`: mean and standard deviation of each metric by variant, the best mean in bold."""
    metrics = numbers.metrics()
    heads = [f"{_arrow(m)}{escaped(m.title)}" + (f" [{escaped(m.unit)}]" if m.unit else "") for m in metrics]
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * len(metrics)}}}",
        "\\toprule",
        " & ".join(["", *heads]) + r" \\",
    ]
    for task in tasks_of(numbers):
        pairs = len(numbers.common(task))
        title = "All pairs" if task is None else escaped(task or "without a task")
        lines += ["\\midrule", f"\\multicolumn{{{len(metrics) + 1}}}{{l}}{{{title} ($n = {pairs}$)}} \\\\"]
        for end, name in BASELINES.items():
            found = [numbers.spreads(numbers.variants[0], m, task, end) if m.better else None for m in metrics]
            if any(f is not None and f.count for f in found):
                lines.append(_latex_row(name, metrics, found, [False] * len(metrics)))
        columns = [[numbers.spreads(v, m, task) for v in numbers.variants] for m in metrics]
        best = [_best_of(metric, column) for metric, column in zip(metrics, columns, strict=True)]
        for n, variant in enumerate(numbers.variants):
            bold = [n in winners for winners in best]
            lines.append(_latex_row(variant, metrics, [column[n] for column in columns], bold))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _best_of(metric: Metric, column: Sequence[Spread]) -> set[int]:
    known = {n: round(s.mean, metric.decimals) * metric.better for n, s in enumerate(column) if s.count}
    if not metric.better or len(known) < 2:
        return set()
    return {n for n, value in known.items() if value == max(known.values())}


def _latex_row(name: str, metrics: list[Metric], found: list[Spread | None], bold: list[bool]) -> str:
    cells = [escaped(name)]
    for metric, one, strong in zip(metrics, found, bold, strict=True):
        if one is None or not one.count:
            cells.append("--")
            continue
        mean = number(metric, one.mean)
        mean = f"\\mathbf{{{mean}}}" if strong else mean
        cells.append(f"${mean} \\pm {number(metric, one.sd)}$" if math.isfinite(one.sd) else f"${mean}$")
    return " & ".join(cells) + r" \\"


def _arrow(metric: Metric) -> str:
    return {1: r"$\uparrow$ ", -1: r"$\downarrow$ ", 0: ""}[metric.better]


def escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
