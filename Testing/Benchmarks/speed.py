"""Seconds and peak memory of every stage, over sizes of the images, encoders and devices.

    python dev.py benchmark speed                                    # MIND and MedSAM-Lite, 96 to 256 cubed
    python dev.py benchmark speed --sizes 96 128 192 256 320 384 --encoders mind medsam-lite --device cuda
    python Testing/Benchmarks/speed.py --numerics                    # where SimpleITK is absent: torch and numpy only

Synthetic pairs (1 mm voxels, a smooth warp), a process for each size and method with three runs: ``cold`` is the first
of the process and loads the models; ``warm`` is a second one, on fresh images, with the models at hand; ``again`` is a
third with another smoothness and all else from the cache. Beside the encoders run ``default`` and ``study`` (the
presets of these names) and ``convexAdam`` (the public package with its defaults, where installed). Stages: load, align,
prepare, encode (of which pca), search, refine, output; without SimpleITK there is no load, no align and no output.
Memory is the peak of the process, or of the GPU's allocations, by stage.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import sys
import threading
import time
from importlib import util
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
    run_fresh,
    shown,
    start_memory,
    synchronize,
    today,
    versions,
    write_rows,
    write_text,
)

STAGES = ("load", "align", "prepare", "encode", "pca", "search", "refine", "output")
# Parts of another stage, which do not count twice.
PARTS = {"pca"}
# The pipeline's own cap on the working grid: `preprocess.default_spacing`.
WORKING_VOXELS = 4_000_000


def main() -> int:
    args = arguments()
    if args.run:
        print(json.dumps(measured(args.run, args.sizes[0], args.device, args.numerics)))
        return 0
    numerics = args.numerics or util.find_spec("SimpleITK") is None
    methods = args.encoders + ([] if args.skip_presets else presets())
    methods += ["convexAdam"] * (util.find_spec("convexAdam") is not None)
    print(f"{machine(args.device)}\n{versions()}\n")
    rows = []
    for size in args.sizes:
        for method in methods:
            rows += run_one(method, size, args, numerics)
    write_report(rows, args.output, args.device)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python dev.py benchmark speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128, 192, 256], help="voxels along each axis")
    parser.add_argument("--encoders", nargs="+", default=["mind", "medsam-lite"], metavar="ID", help="each runs alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for csv, html and png")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="SECONDS", help="end a run that takes longer")
    parser.add_argument("--numerics", action="store_true", help="torch and numpy only, as where SimpleITK is absent")
    parser.add_argument("--skip-presets", action="store_true", help="leave out the presets default and study")
    parser.add_argument("--run", metavar="METHOD", help=argparse.SUPPRESS)
    return parser.parse_args()


def presets() -> list[str]:
    from FoundationRegLib.settings import preset_names

    return [name for name in ("default", "study") if name in preset_names()]


def run_one(method: str, size: int, args: argparse.Namespace, numerics: bool) -> list[dict]:
    """Rows of the runs of one process, printed as well."""
    more = ["--numerics"] if numerics else []
    found = run_fresh(
        __file__, "--run", method, "--sizes", str(size), "--device", args.device, *more, limit_s=args.limit
    )
    facts = {"size": size, "method": method, "device": args.device, "date": today(), "machine": machine(args.device)}
    if "failed" in found:
        print(f"{size:4} {method:14} {found['failed']}")
        return [{**facts, "failed": found["failed"]}]
    for row in found["runs"]:
        stages = ", ".join(f"{s} {row[s]:.2f}" for s in STAGES if s in row)
        print(f"{size:4} {method:14} {row['run']:6} {row['seconds']:8.2f} s {row['peak_gb']:6.2f} GB   {stages}")
    return [{**facts, **row} for row in found["runs"]]


# In the process of one method and size


class Watch:
    """Peak memory by stage. Main memory is read every few milliseconds (on Linux); a GPU counts for itself."""

    def __init__(self, device: str):
        self.device, self.stage = device, ""
        self.peak: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        start_memory(self.device)
        if not self.device.startswith("cuda"):
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self.note()

    def on_event(self, event) -> None:
        """For `Progress`: the stage that runs now."""
        name = event.stage.split(" ")[0]
        if name in STAGES and name != self.stage:
            self.note()
            self.stage = name
            if self.device.startswith("cuda"):
                start_memory(self.device)

    def note(self) -> None:
        memory = peak_memory(self.device) if self.device.startswith("cuda") else resident()
        self.peak[self.stage] = max(self.peak.get(self.stage, 0.0), memory / 1e9)

    def _sample(self) -> None:
        while not self._done.wait(0.01):
            self.note()


def resident() -> int:
    """Bytes of this process in main memory now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()


def measured(method: str, size: int, device: str, numerics: bool) -> dict:
    """Cold, warm and again, as in the module's description."""
    if method == "convexAdam":
        return {"runs": [timed_peer(name, size, seed, device) for name, seed in (("cold", 0), ("warm", 1))]}
    from FoundationRegLib.core.cache import Cache

    settings = settings_of(method, device)
    with pca_seconds() as pca:
        # The models stay, as in a worker that runs on; everything else is new.
        cache = Cache()
        runs = [timed("cold", 0, settings, cache, size, device, numerics, pca)]
        cache = with_models_only(cache)
        runs.append(timed("warm", 1, settings, cache, size, device, numerics, pca))
        smoother = settings.replace(smoothness=2 * settings.smoothness)
        runs.append(timed("again", 1, smoother, cache, size, device, numerics, pca))
    return {"runs": runs}


def settings_of(method: str, device: str):
    from FoundationRegLib.settings import Settings, preset_names

    if method in preset_names():
        return Settings.from_preset(method, device=device)
    return Settings.from_preset(encoders=method, device=device)


def with_models_only(cache):
    """A cache that holds the loaded encoders of ``cache`` and nothing else."""
    from FoundationRegLib.core.cache import Cache

    fresh = Cache()
    for key, value in cache._entries.items():
        if key[0] == "encoder":
            fresh.get(key, lambda value=value: value)
    return fresh


class pca_seconds:
    """Adds up the time inside of the shared PCA while the block runs."""

    def __enter__(self):
        from FoundationRegLib.features.extraction import SharedPCA

        self.total, self._fit, self._project = 0.0, SharedPCA.fit, SharedPCA.project
        SharedPCA.fit = staticmethod(self._timed(self._fit))
        SharedPCA.project = self._timed(self._project)
        return self

    def __exit__(self, *_) -> None:
        from FoundationRegLib.features.extraction import SharedPCA

        SharedPCA.fit, SharedPCA.project = self._fit, self._project

    def _timed(self, function):
        def wrapped(*arguments, **options):
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.total += time.perf_counter() - began

        return wrapped


def timed(run: str, seed: int, settings, cache, size: int, device: str, numerics: bool, pca: pca_seconds) -> dict:
    """One run of the pipeline: seconds by stage and in total, peak memory by stage and over all."""
    from FoundationRegLib.core.progress import Progress

    work = (numerics_run if numerics else whole_run)(seed, size, settings, cache)
    before = pca.total
    with Watch(device) as watch:
        progress = Progress(on_event=watch.on_event)
        began = time.perf_counter()
        voxels = work(progress)
        synchronize(device)
        seconds = time.perf_counter() - began
    row = {"run": run, "seconds": round(seconds, 3), "working_voxels": voxels}
    stages = {**progress.seconds, "pca": pca.total - before}
    row |= {name: round(stages[name], 3) for name in STAGES if name in stages}
    row["peak_gb"] = round(max(watch.peak.values()) or peak_memory(device) / 1e9, 3)
    return row | {f"{name}_gb": round(gb, 3) for name, gb in watch.peak.items() if name}


def synthetic_arrays(size: int, seed: int):
    """Fixed and moving (size, size, size) in 0..1: a textured ball, and the same seen through a smooth warp of 6 %."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)
    texture = sum(
        F.interpolate(torch.randn(1, 1, n, n, n, generator=generator), (size,) * 3, mode="trilinear") / 2**k
        for k, n in enumerate((6, 14, min(32, size)))
    )[0, 0]
    steps = torch.linspace(-1, 1, size)
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    ball = ((0.9 - (z**2 + y**2 + x**2).sqrt()) * 10).clamp(0, 1)
    moving = (0.5 + 0.15 * texture).clamp(0.05, 1) * ball
    warp = 0.06 * torch.stack([torch.sin(3 * y), torch.cos(3 * z), torch.sin(3 * x + y)], -1)
    places = torch.stack([x, y, z], -1) + warp
    fixed = F.grid_sample(moving[None, None], places[None], align_corners=True)[0, 0]
    return fixed.numpy(), moving.numpy()


def whole_run(seed: int, size: int, settings, cache):
    """`register` on SimpleITK images; a function of the progress that returns the working grid's number of voxels."""
    import SimpleITK as sitk
    from FoundationRegLib.registration.pipeline import register

    images = [sitk.GetImageFromArray(1000 * array) for array in synthetic_arrays(size, seed)]

    def work(progress) -> int:
        return math.prod(register(*images, settings, progress=progress, cache=cache).record["working_grid"]["shape"])

    return work


def numerics_run(seed: int, size: int, settings, cache):
    """`deform` on arrays that were brought to a working grid with torch."""
    import torch
    from FoundationRegLib.registration.deformable import deform

    arrays = synthetic_arrays(size, seed)
    device = torch.device(settings.device)

    def work(progress) -> int:
        with progress.stage("prepare", 0.05):
            pair = cache.get(("pair", seed, size), lambda: synthetic_pair(*arrays, settings))
        deform(pair, settings, device, progress, cache)
        return math.prod(pair.grid.shape)

    return work


def synthetic_pair(fixed, moving, settings):
    """The arrays (1 mm voxels) on a working grid like the pipeline's: not too many voxels, whole search nodes."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from FoundationRegLib.core.grid import Grid
    from FoundationRegLib.registration.pair import Pair
    from FoundationRegLib.registration.pyramid import search_factor

    size = fixed.shape[0]
    spacing = settings.finest_spacing_mm or max(1.0, size / WORKING_VOXELS ** (1 / 3))
    factor = search_factor(settings, spacing)
    count = factor * math.ceil(size / spacing / factor)
    # What the last search node lacks is empty space.
    extra = round(count * spacing) - size
    images = []
    for array in (fixed, moving):
        padded = F.pad(torch.from_numpy(array), (0, max(0, extra)) * 3)
        images.append(F.interpolate(padded[None, None], (count,) * 3, mode="trilinear")[0, 0].numpy())
    bodies = [image > 0.02 for image in images]
    return Pair(Grid((count,) * 3, np.diag([spacing] * 3 + [1.0])), *images, *bodies, *bodies)


def timed_peer(run: str, size: int, seed: int, device: str) -> dict:
    from _peers import convexadam_displacement

    arrays = synthetic_arrays(size, seed)
    with Watch(device) as watch:
        began = time.perf_counter()
        convexadam_displacement(*arrays, device)
        synchronize(device)
        seconds = time.perf_counter() - began
    peak = round(max(watch.peak.values()) or peak_memory(device) / 1e9, 3)
    return {"run": run, "seconds": round(seconds, 3), "working_voxels": size**3, "peak_gb": peak}


# Report


def write_report(rows: list[dict], folder: Path, device: str) -> None:
    """speed-DEVICE.csv, .html and the growth as .png."""
    name = f"speed-{device.split(':')[0]}"
    write_rows(folder / f"{name}.csv", rows)
    parts = [f'<p class="note">{html.escape(f"{machine(device)}. {versions()}. {today()}.")}</p>']
    done = [row for row in rows if number(row.get("seconds")) is not None]
    if done:
        parts.append(html_picture(growth(done), folder / f"{name}.png", "Time and memory by size"))
    columns = [stage for stage in STAGES if any(stage in row for row in done)]
    header = ["size, method, run", "total s", *(f"{c} s" for c in columns), "peak GB", *(f"{c} GB" for c in columns)]
    parts.append(html_table(header, [cells(row, columns) for row in done]))
    parts.append(f'<p class="note">{", ".join(sorted(PARTS))} is part of encode.</p>')
    if failed := [row for row in rows if row.get("failed")]:
        items = (html.escape(f"{row['size']}, {row['method']}: {row['failed']}") for row in failed)
        parts.append("<h2>Failed</h2><ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")
    write_text(folder / f"{name}.html", html_page("FoundationReg: speed and memory", parts))
    print(f"\nWritten to {folder / name}.csv, .html and .png")


def cells(row: dict, columns: list[str]) -> list[str]:
    name = f"{row['size']}, {row['method']}, {row['run']}"
    seconds = [shown(row.get(key)) for key in ("seconds", *columns)]
    return [name, *seconds, *(shown(row.get(key)) for key in ("peak_gb", *(f"{c}_gb" for c in columns)))]


def growth(rows: list[dict]):
    """Seconds of the warm runs, and their peak memory, over the edge length; both axes logarithmic."""
    plt = pyplot()
    figure, both = plt.subplots(1, 2, figsize=(10, 4))
    warm = [row for row in rows if row["run"] == "warm"]
    for axes, column, label in zip(both, ("seconds", "peak_gb"), ("Seconds, warm", "Peak memory in GB"), strict=True):
        for method in dict.fromkeys(row["method"] for row in warm):
            points = [(row["size"], row[column]) for row in warm if row["method"] == method]
            axes.plot(*zip(*points, strict=True), "o-", label=method)
        axes.set(xscale="log", yscale="log", xlabel="Voxels along each axis", ylabel=label)
        sizes = sorted({row["size"] for row in warm})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    both[0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(main())
