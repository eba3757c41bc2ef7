"""Accuracy, time and peak memory of FoundationReg and of public tools over a folder of cases.

    python dev.py benchmark accuracy --cases FOLDER                        # every method, every case
    python dev.py benchmark accuracy --cases FOLDER --case brain --method mind preset:default greedy
    python dev.py benchmark accuracy --cases FOLDER --list                 # the methods that this computer can run

A case is a folder with fixed.nii.gz and moving.nii.gz and, where they exist, fixed_labels.nii.gz and
moving_labels.nii.gz, fixed_points.csv and moving_points.csv (LPS mm; row n of both is the same anatomy).

Methods: ``identity``; ``affine``; ``mind`` (no foundation encoder); ``encoder:ID``, each installed foundation encoder
alone; ``preset:NAME``; and of the public tools those whose package is installed: ``convexadam`` (convexAdam), ``ants``
(antspyx), ``elastix`` (itk-elastix), ``greedy`` (picsl-greedy). Every run is a process of its own: seconds go from the
files to the transform, without imports and scoring; memory is the process's peak. Rows that results.csv already holds
are kept unless --again is given, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
import time
from pathlib import Path

from _common import (
    RESULTS,
    html_page,
    html_picture,
    html_table,
    machine,
    number,
    peak_memory,
    pyplot,
    read_rows,
    run_fresh,
    shown,
    start_memory,
    synchronize,
    today,
    versions,
    write_rows,
    write_text,
)
from _peers import PEERS, affine, installed_peers, register_with

# Column, title, digits, whether more is better.
SCORES = (
    ("tre_mm", "Target registration error in mm", 2, False),
    ("dice", "Dice, mean over labels", 3, True),
    ("hd95_mm", "95th percentile Hausdorff distance in mm", 2, False),
    ("folded_percent", "Folded voxels in percent", 3, False),
    ("seconds", "Seconds", 1, False),
    ("peak_gb", "Peak memory in GB", 2, False),
)
# Cells that say nothing about who is best, since doing nothing wins them.
UNRANKED = {"folded_percent", "seconds", "peak_gb"}


def main() -> int:
    args = arguments()
    if args.run:
        print(json.dumps(measured(args.run, args.cases / args.case[0], args.device)))
        return 0
    methods = available_methods()
    if args.list:
        print("\n".join(methods))
        return 0
    cases = found_cases(args.cases, args.case)
    chosen = args.method or methods
    if unknown := [name for name in chosen if name not in methods]:
        print(f"These methods cannot run here: {', '.join(unknown)}. There are: {', '.join(methods)}.")
        return 2
    if not cases:
        print(f"There is no case in {args.cases}: folders with fixed.nii.gz and moving.nii.gz are needed.")
        return 2
    rows = run_all(cases, chosen, args)
    write_report(rows, args.output, args.device)
    print(f"Written to {args.output / 'results.csv'} and results.html")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python dev.py benchmark accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=Path, required="--list" not in sys.argv, help="folder of case folders")
    parser.add_argument("--case", nargs="+", default=[], metavar="NAME", help="only these cases")
    parser.add_argument("--method", nargs="+", default=[], metavar="NAME", help="only these methods")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for results.csv, results.html and plots")
    parser.add_argument("--device", default="cpu", help="for the methods that can use a GPU")
    parser.add_argument("--limit", type=float, default=3600.0, metavar="SECONDS", help="end a run that takes longer")
    parser.add_argument("--again", action="store_true", help="repeat what results.csv already holds")
    parser.add_argument("--list", action="store_true", help="list the methods that can run here")
    parser.add_argument("--run", metavar="METHOD", help=argparse.SUPPRESS)
    return parser.parse_args()


def available_methods() -> list[str]:
    from FoundationRegLib.settings import preset_names
    from FoundationRegLib.weights import store
    from FoundationRegLib.weights.catalogue import catalogue

    ready = [item.id for item in catalogue().values() if item.family != "mind" and store.status(item)["ready"]]
    names = ["identity", "affine", "mind", *(f"encoder:{id}" for id in ready)]
    return names + [f"preset:{name}" for name in preset_names()] + installed_peers()


def found_cases(folder: Path, wanted: list[str]) -> list[str]:
    names = sorted(path.parent.name for path in folder.glob("*/fixed.nii.gz"))
    return [name for name in names if not wanted or name in wanted]


def run_all(cases: list[str], methods: list[str], args: argparse.Namespace) -> list[dict]:
    """Run what is missing, one process after the other; the table is on disk after each."""
    path = args.output / "results.csv"
    rows = {(row["case"], row["method"], row["device"]): row for row in read_rows(path)}
    for case in cases:
        for method in methods:
            key = (case, method, args.device)
            if not args.again and key in rows and not rows[key].get("failed"):
                continue
            print(f"{case:16} {method:24}", end=" ", flush=True)
            row = run_fresh(
                __file__, "--run", method, "--cases", str(args.cases), "--case", case, "--device", args.device,
                limit_s=args.limit,
            )  # fmt: skip
            rows[key] = {"case": case, "method": method, "device": args.device, "date": today(), **row}
            print(row.get("failed") or ", ".join(f"{name} {shown(row.get(name), digits)}"
                                                 for name, _, digits, _ in SCORES if name in row))  # fmt: skip
            write_rows(path, list(rows.values()))
    return list(rows.values())


def measured(method: str, case: Path, device: str) -> dict:
    """Run one method on one case in this process: seconds, peak memory and scores."""
    import FoundationRegLib.registration.pipeline  # noqa: F401
    import SimpleITK as sitk  # noqa: F401  imports are not part of anybody's time

    warm_import(method)
    start_memory(device)
    began = time.perf_counter()
    transform = transform_of(method, case / "fixed.nii.gz", case / "moving.nii.gz", device)
    synchronize(device)
    row = {"seconds": time.perf_counter() - began, "peak_gb": peak_memory() / 1e9}
    if device.startswith("cuda"):
        row["peak_gpu_gb"] = peak_memory(device) / 1e9
    return row | scored(case, transform)


def warm_import(method: str) -> None:
    if method in PEERS:
        __import__(PEERS[method])


def transform_of(method: str, fixed: Path, moving: Path, device: str):
    """What ``method`` finds for two image files, fixed to moving points."""
    import SimpleITK as sitk
    from FoundationRegLib.images.reading import read_image
    from FoundationRegLib.registration.pipeline import register
    from FoundationRegLib.settings import Settings

    if method == "identity":
        return sitk.Transform(3, sitk.sitkIdentity)
    if method == "affine":
        return affine(read_image(fixed, "fixed image"), read_image(moving, "moving image"))
    if method in PEERS:
        return register_with(method, fixed, moving, device)
    kind, _, name = method.partition(":")
    if kind == "preset":
        settings = Settings.from_preset(name, device=device)
    else:
        settings = Settings.from_preset(encoders=name or "mind", device=device)
    return register(fixed, moving, settings).transform


def scored(case: Path, transform) -> dict:
    """The scores of `metrics.evaluate` that are one number each."""
    from FoundationRegLib.evaluation import metrics
    from FoundationRegLib.images.landmarks import read_points
    from FoundationRegLib.images.reading import read_image

    truth = {}
    if (case / "fixed_labels.nii.gz").exists():
        truth |= {f"{s}_labels": read_image(case / f"{s}_labels.nii.gz", f"{s} labels") for s in ("fixed", "moving")}
    if (case / "fixed_points.csv").exists():
        truth |= {f"{s}_points": read_points(case / f"{s}_points.csv").array for s in ("fixed", "moving")}
    images = [read_image(case / f"{side}.nii.gz", f"{side} image") for side in ("fixed", "moving")]
    scores = metrics.evaluate(*images, transform, **truth)
    return {name: round(value, 5) for name, value in scores.items() if not isinstance(value, dict)}


def write_report(rows: list[dict], folder: Path, device: str) -> None:
    """results.html with one table and one plot per score, and the plots as PNG beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f'<p class="note">{html.escape(f"{machine(device)}. {versions()}. {today()}.")} Best in bold.</p>']
    for column, title, digits, more_is_better in SCORES:
        if any(number(row.get(column)) is not None for row in rows):
            parts.append(f"<h2>{title}</h2>")
            parts.append(score_table(rows, column, digits, more_is_better))
    for column, title, _, _ in SCORES[:2]:
        if any(number(row.get(column)) is not None for row in rows):
            picture = html_picture(bars(rows, column, title), folder / f"accuracy-{column}.png", title)
            parts.append(f"<h2>{title}</h2>{picture}")
    if failed := [row for row in rows if row.get("failed")]:
        items = (html.escape(f"{row['case']}, {row['method']}: {row['failed']}") for row in failed)
        parts.append("<h2>Failed</h2><ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")
    write_text(folder / "results.html", html_page("FoundationReg: accuracy", parts))


def score_table(rows: list[dict], column: str, digits: int, more_is_better: bool) -> str:
    """Methods down, cases across, and the mean over the cases that every method has."""
    methods, cases, values = pivot(rows, column)
    shared = [case for case in cases if all((method, case) in values for method in methods)]
    means = {m: sum(values[m, c] for c in shared) / len(shared) for m in methods} if shared else {}
    table = [[m, *(shown(values.get((m, c)), digits) for c in cases), shown(means.get(m), digits)] for m in methods]
    bold = set()
    if column not in UNRANKED:
        best = max if more_is_better else min
        for j, case in enumerate(cases):
            found = {i: values[m, case] for i, m in enumerate(methods) if (m, case) in values}
            bold |= {(i, j + 1) for i, value in found.items() if value == best(found.values())}
        bold |= {(i, len(cases) + 1) for i, m in enumerate(methods) if means and means[m] == best(means.values())}
    return html_table(["", *cases, f"mean of {len(shared)}"], table, bold)


def pivot(rows: list[dict], column: str) -> tuple[list[str], list[str], dict[tuple[str, str], float]]:
    """Methods and cases that have the score, in order of appearance, and the score by both."""
    values = {(row["method"], row["case"]): number(row.get(column)) for row in rows}
    values = {key: value for key, value in values.items() if value is not None}
    return list(dict.fromkeys(m for m, _ in values)), list(dict.fromkeys(c for _, c in values)), values


def bars(rows: list[dict], column: str, title: str):
    """One group of bars per case, one colour per method."""
    plt = pyplot()
    methods, cases, values = pivot(rows, column)
    figure, axes = plt.subplots(figsize=(max(6, 1.6 * len(cases)), 4))
    width = 0.8 / len(methods)
    for n, method in enumerate(methods):
        places = [k + (n - (len(methods) - 1) / 2) * width for k in range(len(cases))]
        heights = [values.get((method, case), 0) for case in cases]
        axes.bar(places, heights, width, label=method, color=plt.get_cmap("tab20")(n % 20))
    axes.set_xticks(range(len(cases)), cases, rotation=20, ha="right")
    axes.set_ylabel(title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
