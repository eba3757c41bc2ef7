"""What a run of many pairs costs beside the registrations: 10 000 synthetic pairs on many worker processes.

    python dev.py benchmark cohort_scale                                  # 10 000 pairs, 64 workers
    python dev.py benchmark cohort_scale --pairs 2000 --workers 16 --measured RUN/results.csv --faster 50

Everything but the registration is real: table, hashes of the inputs, Dask workers, folders, records, tables. The
stand-in sleeps as long as a registration, drawn from the measured run and divided by ``--faster``, and holds its
memory, divided by the same. Halfway the whole run is killed (SIGKILL) and started again. Reported: memory of the
process that holds scheduler and client, its CPU time and the time lost for each pair, results, and the time to resume.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from _common import RESULTS

# Seconds and GB of the default preset (prostate MR to ultrasound, one CPU thread), where no run is given.
USUAL = [(30.0, 0.75), (36.0, 0.8), (33.0, 0.72), (41.0, 0.85)]


def simulate(files, settings, options, folder, progress, cache):
    """The stand-in: sleeps and holds memory as the pair's file says, and makes up scores that follow from it."""
    seconds, gb, seed = json.loads(Path(files["fixed"]).read_text(encoding="utf-8"))
    held = bytearray(int(gb * 1e9))
    held[::4096] = b"\1" * len(held[::4096])
    with progress.stage("refine", 1.0):
        for step in range(4):
            time.sleep(seconds / 4)
            progress.update(step / 4)
    dice = random.Random(seed).gauss(0.8, 0.05)
    after = {"dice": dice, "dice_per_label": {"1": dice}, "nmi": 1.2, "folded_percent": 0.0, "sd_log_jacobian": 0.2}
    (folder / "preview.jpg").write_bytes(bytes(held[:40_000]))
    metrics = {"before": {"dice": 0.5}, "linear": {"dice": 0.7}, "after": after}
    return {"metrics": metrics, "quality": "", "warnings": []}


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def run(args) -> None:
    """One run, in a process of its own; what was seen goes to ``args.log`` as it happens."""
    from FoundationRegLib.cohort.cluster import Where
    from FoundationRegLib.cohort.job import Options, Variant
    from FoundationRegLib.cohort.pairs import read_pairs
    from FoundationRegLib.cohort.runner import run_batch

    began, seen = time.monotonic(), {"memory_mb": [], "first_s": None, "made": 0}
    pairs = read_pairs(args.folder / "pairs.csv")
    seen["read_s"] = time.monotonic() - began

    def watch(state) -> None:
        if state.done and seen["first_s"] is None:
            seen["first_s"] = time.monotonic() - began
            seen["cpu_first"] = time.process_time()
        seen["made"], seen["found"] = state.done, state.found

    def sample() -> None:
        while True:
            seen["memory_mb"].append((round(time.monotonic() - began, 1), seen["made"], round(resident_mb(), 1)))
            Path(args.log).write_text(json.dumps(seen))
            time.sleep(2)

    threading.Thread(target=sample, daemon=True).start()
    options = Options(produce="cohort_scale:simulate", keep="scores")
    where = Where(workers=args.workers, memory_gb=args.memory, device="cpu")
    outcome = run_batch(pairs, [Variant("simulated", "simulated", {})], args.folder / "out", options, where, watch)
    seen |= {"total_s": time.monotonic() - began, "cpu_s": time.process_time(), "failed": outcome.failed}
    seen["rows"] = len(outcome.rows)
    Path(args.log).write_text(json.dumps(seen))


def start(args, log: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", str(args.folder), str(log), "--workers", str(args.workers)]
    # Forked workers: on few cores, 64 processes that each import Dask take longer to start than the whole run.
    forked = {"DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "forkserver"} if sys.platform == "linux" else {}
    return subprocess.Popen([*command, "--memory", str(args.memory)], env=os.environ | forked)


def write_pairs(args) -> float:
    """The table with its files; returns the mean of the seconds that the stand-in sleeps."""
    measured = USUAL
    if args.measured:
        with open(args.measured, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["status"] == "done"]
        measured = [(float(row["cpu_seconds"]), float(row["memory_gb"])) for row in rows]
    generator, total = random.Random(0), 0.0
    (args.folder / "moving.txt").write_text("moving")
    lines = ["id,task,fixed,moving"]
    for n in range(args.pairs):
        seconds, gb = generator.choice(measured)
        total += seconds / args.faster
        name = f"fixed{n:05d}.txt"
        (args.folder / name).write_text(json.dumps([seconds / args.faster, gb / args.faster, n]))
        lines.append(f"pair{n:05d},task{n % 4},{name},moving.txt")
    (args.folder / "pairs.csv").write_text("\n".join(lines))
    return total / args.pairs


def results_on_disk(folder: Path) -> int:
    pairs = folder / "out" / "pairs"
    return sum(1 for pair in os.scandir(pairs) if (Path(pair.path) / "simulated").is_dir()) if pairs.is_dir() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--memory", type=float, default=1.0, help="GB that each worker may use")
    parser.add_argument("--measured", help="results.csv of a real run to draw seconds and memory from")
    parser.add_argument("--faster", type=float, default=20.0, help="divide both by this")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "LOG"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.folder, args.log = Path(args.child[0]), args.child[1]
        run(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        facts = measure(args)
    print(json.dumps(facts, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cohort_scale.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def measure(args) -> dict:
    mean = write_pairs(args)
    first, second, third = (args.folder / f"log{n}.json" for n in range(3))
    process = start(args, first)
    while process.poll() is None and results_on_disk(args.folder) < args.pairs // 2:
        time.sleep(2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = results_on_disk(args.folder)
    time.sleep(5)
    start(args, second).wait()
    start(args, third).wait()
    one, two, three = (json.loads(log.read_text()) for log in (first, second, third))
    lasted = one["memory_mb"][-1][0] - one["first_s"]
    return {
        "pairs": args.pairs,
        "workers": args.workers,
        "mean_seconds_of_stand_in": round(mean, 4),
        "half": {
            "results": half,
            "pairs_per_second": round(one["made"] / lasted, 2),
            "memory_mb_start_end": [one["memory_mb"][0][2], one["memory_mb"][-1][2]],
        },
        "resumed": {
            "found": two["found"],
            "made": two["made"],
            "rows": two["rows"],
            "failed": two["failed"],
            "seconds_to_first_new_result": round(two["first_s"], 1),
            "memory_mb_start_end": [two["memory_mb"][0][2], two["memory_mb"][-1][2]],
            "cpu_ms_per_pair": round(1000 * (two["cpu_s"] - two["cpu_first"]) / max(1, two["made"]), 2),
            "pairs_per_second": round(two["made"] / max(1e-9, two["total_s"] - two["first_s"]), 2),
            "ideal_pairs_per_second": round(args.workers / mean, 2),
        },
        "nothing_to_do": {"found": three["found"], "seconds": round(three["total_s"], 1)},
    }


if __name__ == "__main__":
    main()
