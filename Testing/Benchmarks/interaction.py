"""Seconds until a user sees something: first preview, time left, probe, corrections, other settings; and a full run.

    python dev.py benchmark interaction                       # 256 x 256 x 160 voxels of 1 mm, MIND, two threads
    python dev.py benchmark interaction --shape 64 96 96      # smaller

A synthetic pair (a textured ellipsoid, and the same seen through a smooth warp) goes through the worker's own code in
this process. Each time is given as wall-clock and as processor seconds; on a computer that does other things as well,
the latter over the number of threads is what a quiet one would take at least.

first preview   from the request to the first field that the views can show, with a warm process
full run        until the transform is there; measuring follows
time left       what was said after a quarter of the run, over what it then took
probe           one question; the first one prepares what the others share
correction      preview and full result, mean of five at random places, 5 mm wrong
region          registered once more on a finer grid
settings        preview and full result after another smoothness, after another weight of the encoder beside MIND (with
                encoders besides MIND only), and after a mask; each from the features that are still there
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from _common import RESULTS, html_page, html_table, machine, shown, today, versions, write_rows, write_text
from FoundationRegLib.core.threads import calm_threads


def main() -> int:
    args = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    calm_threads()
    rows = measured(tuple(args.shape), args.encoders, args.threads)
    for row in rows:
        print(f"{row['what']:34} {row['seconds']:8.2f} s {row['cpu_seconds']:8.2f} s CPU   {row['note']}")
    write_report(rows, args)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python dev.py benchmark interaction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 256, 256], metavar=("Z", "Y", "X"))
    parser.add_argument("--encoders", default="mind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def synthetic_pair(shape: tuple[int, int, int]):
    """Fixed and moving image, and the displacement (n, 3) -> (n, 3) in mm that is true, all in LPS."""
    import numpy as np
    from FoundationRegLib.core.grid import Grid
    from FoundationRegLib.images.conversion import image_from_array
    from scipy import ndimage

    random = np.random.default_rng(0)
    texture = sum(
        ndimage.zoom(random.normal(size=[max(4, n // size) for n in shape]), [n / max(4, n // size) for n in shape],
                     order=1)[: shape[0], : shape[1], : shape[2]] * weight
        for size, weight in ((40, 1.0), (16, 0.6), (7, 0.35))
    )  # fmt: skip
    grid = Grid.from_axes(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)[:, ::-1])
    half = np.array(shape) / 2

    def image(places):
        radius = np.sqrt(sum(((p - h) / (0.9 * h)) ** 2 for p, h in zip(places, half, strict=True)))
        grey = ndimage.map_coordinates(texture.astype(np.float32), places, order=1, mode="nearest")
        return (np.clip((1 - radius) * 12, 0, 1) * (300 + 80 * grey)).astype(np.float32)

    z, y, x = np.indices(shape, dtype=np.float32)
    moved = [p + 5 * np.sin(q / 32 + k) for k, (p, q) in enumerate(((z, x), (y, z), (x, y)))]
    fixed = image_from_array(image([z, y, x]), grid)
    return fixed, image_from_array(image(moved), grid)


def measured(shape: tuple[int, int, int], encoders: str, threads: int) -> list[dict]:
    """Rows of everything, in the order in which a user comes across it."""
    import numpy as np
    import SimpleITK as sitk
    import torch
    from FoundationRegLib.core.cache import Cache
    from FoundationRegLib.core.progress import Progress
    from FoundationRegLib.registration.pipeline import register
    from FoundationRegLib.settings import Settings

    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    settings = Settings.from_preset(encoders=encoders, threads=threads)
    fixed, moving = synthetic_pair(shape)
    rows, cache, full = [], Cache(), []

    def note(what: str, began: tuple[float, float], text: str = "") -> None:
        now = clocks()
        rows.append({"what": what, "seconds": round(now[0] - began[0], 3), "cpu_seconds": round(now[1] - began[1], 3),
                     "note": text})  # fmt: skip

    def run(title: str, chosen: Settings, **options):
        events, seen, began = [], [], clocks()

        def preview(_preview) -> None:
            if not seen:
                seen.append(clocks())
                note(f"{title}: first preview", began)

        progress = Progress(lambda event: events.append((time.perf_counter(), event)), preview)
        found = []
        result = register(
            fixed, moving, chosen, progress=progress, cache=cache,
            on_found=lambda _: (found.append(time.perf_counter()), note(f"{title}: transform", began)), **options,
        )  # fmt: skip
        note(f"{title}: measured too", began)
        if title != "full run":
            rows[-1]["note"] = f"{rows[-1]['seconds'] / full[0]:.2f} of the full run" if full else ""
        full.append(rows[-1]["seconds"])
        return result, [(at - began[0], event.seconds_left) for at, event in events], time.perf_counter() - began[0]

    small = synthetic_pair((32, 40, 40))
    register(*small, settings)
    result, said, whole = run("full run", settings)
    quarter = next(((at, left) for at, left in said if at >= whole / 4 and left is not None), None)
    if quarter:
        ratio = quarter[1] / (whole - quarter[0])
        rows.append({"what": "time left after a quarter", "seconds": round(quarter[1], 1), "cpu_seconds": 0.0,
                     "note": f"{ratio:.2f} of what it took"})  # fmt: skip
    random, half = np.random.default_rng(1), np.array(shape)[::-1] / 2
    places = half + random.uniform(-0.5, 0.5, (6, 3)) * half
    for n, place in enumerate(places):
        began = clocks()
        result.correspondence(place)
        note("probe, first" if n == 0 else "probe", began)
    corrections = result.corrections()
    for place in places[:5]:
        goal = np.array(result.transform.TransformPoint(place.tolist())) + random.normal(size=3) * 2.9
        began = clocks()
        made = corrections.add(place, goal, on_preview=lambda _, began=began: note("correction: preview", began))
        note("correction: full", began, f"misses by {made.residuals[-1]:.2f} mm")
    began = clocks()
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = half + signs * np.maximum(0.25 * half, 12.0)
    corrections.refine_here(corners)
    note("region of a quarter of each side", began)
    run("other smoothness", settings.replace(smoothness=2.0))
    if any(name != "mind" for name, _ in settings.encoders):
        heavier = [(name, weight if name == "mind" else 2 * weight) for name, weight in settings.encoders]
        run("other weight", settings.replace(encoders=heavier))
    mask = sitk.GetImageFromArray((sitk.GetArrayFromImage(fixed) > 150).astype(np.uint8))
    mask.CopyInformation(fixed)
    run("mask", settings, fixed_mask=mask)
    return averaged(rows)


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def averaged(rows: list[dict]) -> list[dict]:
    """One row for each thing that was done several times."""
    merged: dict[str, list[dict]] = {}
    for row in rows:
        merged.setdefault(row["what"], []).append(row)
    return [
        {**many[-1], "seconds": sum(r["seconds"] for r in many) / len(many),
         "cpu_seconds": sum(r["cpu_seconds"] for r in many) / len(many)}
        for many in merged.values()
    ]  # fmt: skip


def write_report(rows: list[dict], args: argparse.Namespace) -> None:
    facts = {"shape": " x ".join(map(str, args.shape)), "threads": args.threads, "encoders": args.encoders,
             "date": today(), "machine": machine()}  # fmt: skip
    write_rows(args.output / "interaction.csv", [{**facts, **row} for row in rows])
    table = html_table(
        ["", "seconds", "processor seconds", ""],
        [[row["what"], shown(row["seconds"]), shown(row["cpu_seconds"]), row["note"]] for row in rows],
    )
    head = (
        f"<p>{facts['shape']} voxels, {args.encoders}, {args.threads} threads. {machine()}. {versions()}. {today()}</p>"
    )
    write_text(args.output / "interaction.html", html_page("Seconds until a user sees something", [head, table]))


if __name__ == "__main__":
    sys.exit(main())
