"""report.html of a run: ranking, tests, distributions, the worst cases with pictures, failures, links; one file."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from .. import __version__
from ..core.resources import resource_path
from .advice import advice
from .figures import distribution
from .job import Variant
from .records import Layout
from .results import DICE_OF_LABEL, is_done, value_of, write_text
from .statistics import BY_KEY, CONFIDENCE, LEAST_FOR_TEST, Comparison, Metric, Numbers, Spread
from .tables import BASELINES, number, tasks_of

PICTURE = "preview.jpg"
_WORST_CASES, _MOST_PICTURES = 8, 80
_MOST_LABELS = 24
_DISTRIBUTIONS = ("dice", "hd95_mm", "tre_mm", "nmi", "inverse_consistency_mm")


def write_report(
    rows: Sequence[dict[str, Any]], variants: Sequence[Variant], root: Path, title: str, seconds: float = 0.0
) -> Path:
    """Write the report of a run into its folder ``root``, whose pictures it takes in."""
    numbers = Numbers(rows)
    settings = {variant.name: variant.settings for variant in variants}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource_path("Report")), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    best = numbers.ranking()[0] if numbers.variants else ""
    metric = numbers.primary()
    page = environment.get_template("cohort.html.j2").render(
        version=__version__,
        date=datetime.datetime.now().strftime("%d %B %Y, %H:%M"),
        icon=data_url(resource_path("Icons", "FoundationReg.png").read_bytes(), "png"),
        title=title,
        counts=_counts(numbers, rows),
        seconds=f"{seconds:.0f}",
        advice=advice(numbers, settings),
        primary=metric,
        best=best,
        confidence=round(100 * CONFIDENCE),
        summaries=[_summary(numbers, task) for task in tasks_of(numbers)],
        tests=[_test(comparison) for comparison in numbers.comparisons()],
        least_for_test=LEAST_FOR_TEST,
        distributions=_distributions(numbers),
        worst=_worst(numbers, best, metric, Layout(root)),
        failures=[row for row in rows if not is_done(row)],
        pairs=_pairs(numbers, metric, Layout(root)),
        variants=[_described(variant) for variant in variants],
    )
    return write_text(root / "report.html", page)


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _counts(numbers: Numbers, rows) -> dict[str, int]:
    return {
        "pairs": len(numbers.pairs),
        "variants": len(numbers.variants),
        "tasks": len([task for task in numbers.tasks if task]),
        "failed": sum(not is_done(row) for row in rows),
        "common": len(numbers.common()),
    }


def _summary(numbers: Numbers, task: str | None) -> dict[str, Any]:
    """The table of one task: a row for each variant in the order of their ranks, below those of the starts."""
    metrics = numbers.metrics()
    rows = []
    for end, name in BASELINES.items():
        cells = [
            _cell(m, numbers.spreads(numbers.variants[0], m, task, end)) if m.better else {"text": ""} for m in metrics
        ]
        if any(cell["text"] not in ("", "–") for cell in cells):
            rows.append({"rank": "", "name": name, "cells": cells})
    spreads = {v: [numbers.spreads(v, m, task) for m in metrics] for v in numbers.variants}
    for rank, variant in enumerate(numbers.ranking(task), start=1):
        cells = [_cell(m, s) for m, s in zip(metrics, spreads[variant], strict=True)]
        for n, metric in enumerate(metrics):
            means = [round(s[n].mean, metric.decimals) * metric.better for s in spreads.values() if s[n].count]
            own = spreads[variant][n]
            cells[n]["best"] = bool(
                metric.better
                and own.count
                and len(means) > 1
                and round(own.mean, metric.decimals) * metric.better == max(means)
            )
        rows.append({"rank": rank, "name": variant, "cells": cells})
    return {"task": task, "pairs": len(numbers.common(task)), "metrics": metrics, "rows": rows}


def _cell(metric: Metric, found: Spread) -> dict[str, Any]:
    if not found.count:
        return {"text": "–"}
    text = number(metric, found.mean)
    if math.isfinite(found.sd):
        text += f" ± {number(metric, found.sd)}"
    interval = f"{number(metric, found.low)} to {number(metric, found.high)}" if math.isfinite(found.low) else ""
    return {"text": text, "interval": interval if metric.better else ""}


def _test(comparison: Comparison) -> dict[str, Any]:
    metric = BY_KEY[comparison.metric]
    known = math.isfinite(comparison.low)
    return {
        "metric": metric,
        "variant": comparison.variant,
        "reference": comparison.reference,
        "count": comparison.count,
        "difference": f"{comparison.difference:+.{metric.decimals}f}",
        "interval": f"{comparison.low:+.{metric.decimals}f} to {comparison.high:+.{metric.decimals}f}"
        if known
        else "–",
        "p": _p(comparison.p),
        "p_holm": _p(comparison.p_holm),
        "proven": comparison.p_holm < 0.05,
    }


def _p(p: float) -> str:
    if math.isnan(p):
        return "–"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _distributions(numbers: Numbers) -> list[dict[str, Any]]:
    made = []
    for task in tasks_of(numbers):
        figures = []
        for key in _DISTRIBUTIONS:
            if numbers.measured(key) and (picture := distribution(numbers, BY_KEY[key], task)):
                figures.append({"title": BY_KEY[key].title, "picture": data_url(picture, "png")})
        labels = numbers.labels()
        structures = []
        for label in labels[:_MOST_LABELS] if len(labels) > 1 else []:
            if picture := distribution(numbers, BY_KEY["dice"], task, f"{DICE_OF_LABEL}{label}"):
                structures.append({"title": f"Dice of label {label}", "picture": data_url(picture, "png")})
        if figures or structures:
            hidden = max(0, len(labels) - _MOST_LABELS)
            made.append({"task": task, "figures": figures, "structures": structures, "hidden": hidden})
    return made


def _worst(numbers: Numbers, best: str, metric: Metric | None, layout: Layout) -> list[dict[str, Any]]:
    """The worst pairs of the best variant, with the pictures of every variant."""
    cases, room = [], _MOST_PICTURES
    for pair in numbers.worst(best, _WORST_CASES):
        pictures = []
        for variant in [best, *(v for v in numbers.ranking() if v != best)]:
            row = numbers.row(variant, pair)
            place = layout.root / "pairs" / row["folder"] / PICTURE if row else None
            if room > 0 and place is not None and place.is_file():
                room -= 1
                text = number(metric, value_of(row, metric.key))
                pictures.append({"variant": variant, "value": text, "url": data_url(place.read_bytes(), "jpeg")})
        row = numbers.row(best, pair)
        cases.append({"id": pair, "task": row["task"], "quality": row.get("quality"), "pictures": pictures,
                      "link": _link(layout, row)})  # fmt: skip
    return cases


def _link(layout: Layout, row: dict[str, Any]) -> str:
    """Where the pair's own report lies, relative to ours; empty where it was not kept."""
    place = Path("pairs") / row["folder"] / "report.html"
    return place.as_posix() if (layout.root / place).is_file() else ""


def _pairs(numbers: Numbers, metric: Metric | None, layout: Layout) -> list[dict[str, Any]]:
    made = []
    for pair in numbers.pairs:
        cells = []
        for variant in numbers.variants:
            row = numbers.row(variant, pair)
            if row is None:
                cells.append({"text": "failed", "link": ""})
                continue
            text = number(metric, value_of(row, metric.key)) if metric else "done"
            cells.append({"text": text, "link": _link(layout, row)})
        made.append({"id": pair, "cells": cells})
    return made


def _described(variant: Variant) -> dict[str, str]:
    encoders = ", ".join(f"{name} ({weight:g})" for name, weight in variant.settings.get("encoders", ()))
    others = {name: value for name, value in variant.settings.items() if name not in ("encoders", "preset")}
    return {"name": variant.name, "encoders": encoders, "settings": ", ".join(f"{k}={v}" for k, v in others.items())}
