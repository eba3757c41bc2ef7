"""Whole processes beside convexAdam: wall clock, CPU seconds and memory, in turn in one run.

    python dev.py benchmark ratio --case FIXED MOVING                # two image files
    python dev.py benchmark ratio --size 256 --methods mind default  # a synthetic pair, as in `speed`

Each method runs ``--runs`` times, one after the other in every round, so that what else the computer does meets all
alike; the table shows medians. FoundationReg is its command line with ``--transform``. convexAdam is its own package
(optional: pip install convexAdam) from FoundationReg's affine stage, which is shown by itself; ratios are to its whole
process, and in the last two columns to that without the affine stage. ``busy`` is CPU seconds over wall clock of
`register`, of which reading the files is a hundredth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib import util
from pathlib import Path

from _common import RESULTS, machine, run_fresh, versions, write_rows

PEER = "convexAdam"


def main() -> int:
    args = arguments()
    if args.run:
        print(json.dumps(measured(args.run, *args.case, args.device, args.threads)), flush=True)
        if args.run != PEER:
            os._exit(0)  # as the command line ends
        return 0
    methods = args.methods + [PEER] * (util.find_spec(PEER) is not None)
    if PEER not in methods:
        print(f"{PEER} is not installed: there will be no ratios (pip install {PEER}).")
    print(f"{machine(args.device)}\n{versions()}\n")
    with tempfile.TemporaryDirectory() as folder:
        case = [str(path) for path in args.case or synthetic_case(args.size, Path(folder))]
        rows = [one_run(method, turn, case, args) for turn in range(args.runs) for method in methods]
    found = medians(rows, methods)
    print("\n" + "\n".join(line(row) for row in found))
    name = f"ratio-{args.case[0].resolve().parent.name if args.case else args.size}-{args.device.split(':')[0]}.csv"
    write_rows(args.output / name, [*rows, *found])
    print(f"\nWritten to {args.output / name}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python dev.py benchmark ratio", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    pair = parser.add_mutually_exclusive_group()
    pair.add_argument("--case", type=Path, nargs=2, metavar=("FIXED", "MOVING"), help="image files")
    pair.add_argument("--size", type=int, default=128, help="voxels along each axis of a synthetic pair")
    parser.add_argument("--methods", nargs="+", default=["mind", "default"], metavar="ID", help="encoders or presets")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="for FoundationReg and convexAdam; 0: as they come")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the csv")
    parser.add_argument("--run", metavar="METHOD", help=argparse.SUPPRESS)
    return parser.parse_args()


def synthetic_case(size: int, folder: Path) -> list[Path]:
    """Two files in ``folder``, made in a process of its own: what this one holds would count in its children."""
    paths = [folder / f"{side}.nii.gz" for side in ("fixed", "moving")]
    program = (
        "import sys, SimpleITK as sitk\nfrom speed import synthetic_arrays\n"
        "for array, path in zip(synthetic_arrays(int(sys.argv[1]), 0), sys.argv[2:]):\n"
        "    sitk.WriteImage(sitk.GetImageFromArray(1000 * array), path)\n"
    )
    command = [sys.executable, "-c", program, str(size), *map(str, paths)]
    subprocess.run(command, check=True, cwd=Path(__file__).parent)
    return paths


def one_run(method: str, turn: int, case: list[str], args: argparse.Namespace) -> dict:
    """One process from its start to its end."""
    more = ["--device", args.device, "--threads", str(args.threads)]
    before, began = children(), time.perf_counter()
    found = run_fresh(__file__, "--run", method, "--case", *case, *more)
    wall, after = time.perf_counter() - began, children()
    row = {"method": method, "run": turn, "wall_s": round(wall, 2), "cpu_s": round(after - before, 2), **found}
    print(line(row), flush=True)
    return row


def children() -> float:
    """CPU seconds of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def measured(method: str, fixed: Path, moving: Path, device: str, threads: int) -> dict:
    """In the process of one run: the registration, its file, and what only this process knows."""
    with tempfile.TemporaryDirectory() as folder:
        transform = Path(folder) / "transform.h5"
        if method == PEER:
            facts = run_peer(fixed, moving, device, threads, transform)
        else:
            facts = run_own(method, fixed, moving, device, threads, transform)
    from _common import peak_memory

    return {**facts, "peak_gb": round(peak_memory(device) / 1e9, 2)}


def run_own(method: str, fixed: Path, moving: Path, device: str, threads: int, transform: Path) -> dict:
    """The command line of FoundationReg, and how busy the cores were."""
    from FoundationRegLib.app import cli
    from FoundationRegLib.core.progress import Progress
    from FoundationRegLib.settings import preset_names

    what = ["--preset", method] if method in preset_names() else ["--set", f"encoders={method}"]
    counted, stage = {}, Progress.stage

    @contextmanager
    def timed(self, name, *arguments, **options):
        began, used = time.perf_counter(), time.process_time()
        with stage(self, name, *arguments, **options) as progress:
            yield progress
        if name == "register":
            counted["busy"] = round((time.process_time() - used) / (time.perf_counter() - began), 2)

    Progress.stage = timed
    common = ["--device", device, "--set", f"threads={threads}", "--transform", str(transform), "--quiet"]
    status = cli.main(["register", str(fixed), str(moving), *what, *common])
    if status:
        sys.exit(status)
    return counted


def run_peer(fixed: Path, moving: Path, device: str, threads: int, transform: Path) -> dict:
    """convexAdam, and how long our affine stage took before it."""
    import _peers
    import SimpleITK as sitk
    import torch

    if threads:
        torch.set_num_threads(threads)
    spent = []
    affine = _peers.affine

    def timed(*images):
        began, used = time.perf_counter(), time.process_time()
        found = affine(*images)
        spent.extend([time.perf_counter() - began, time.process_time() - used])
        return found

    _peers.affine = timed
    sitk.WriteTransform(_peers.register_with("convexadam", fixed, moving, device), str(transform))
    return {"affine_wall_s": round(spent[0], 2), "affine_cpu_s": round(spent[1], 2)}


def medians(rows: list[dict], methods: list[str]) -> list[dict]:
    """One row by method, with the ratios to convexAdam without the affine stage."""
    found = []
    for method in methods:
        own = [row for row in rows if row["method"] == method and "failed" not in row]
        if own:
            names = [name for name in own[0] if name not in ("method", "run")]
            middle = {name: round(statistics.median(row[name] for row in own), 2) for name in names}
            found.append({"method": method, "run": "median", **middle})
    peer = next((row for row in found if row["method"] == PEER), None)
    for row in found if peer else []:
        for kind in ("wall", "cpu"):
            whole, affine = peer[f"{kind}_s"], peer[f"affine_{kind}_s"]
            row[f"{kind}_ratio"] = round(row[f"{kind}_s"] / whole, 3)
            row[f"{kind}_ratio_without_affine"] = round(row[f"{kind}_s"] / (whole - affine), 3)
    return found


def line(row: dict) -> str:
    """One row as text."""
    numbers = (f"{name} {value}" for name, value in row.items() if name not in ("method", "run"))
    return f"{row['method']:14} {row['run']!s:7} " + "  ".join(numbers)


if __name__ == "__main__":
    sys.exit(main())
