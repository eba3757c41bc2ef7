"""Faulty inputs, kills, cancels, full disks and garbage messages, and how each of them ended.

    python dev.py benchmark faults [--share 0.1] [--only headers kills]

Every input runs in a forked child with a time limit, so that a crash or a hang of one is counted and stops nothing.
All are made with fixed seeds. A row that is not clean names its first troubles below the table. Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# Threads of a forked parent do not live on in its children.
os.environ["OMP_NUM_THREADS"] = "1"

import _common  # noqa: F401  (finds the library)
import _fault_endings as endings
import _fault_inputs as inputs
from _fault_runs import BAD, OUTCOMES, Tally, run

ENDINGS = {
    "kills": (lambda n, folder, tally: endings.command_line(n, "killed", folder, tally), 60),
    "stops": (lambda n, folder, tally: endings.command_line(n, "stopped", folder, tally), 60),
    "worker-kills": (endings.worker_killed, 45),
    "worker-cancels": (endings.worker_cancelled, 60),
    "messages": (endings.messages, 220),
    "disks": (endings.full_disks, 30),
    "geometries": (endings.geometries, 30),
}


def warm_up() -> None:
    """Load what every child would have to load, but start no threads."""
    from FoundationRegLib.app import cli, commands, console, failure  # noqa: F401
    from FoundationRegLib.encoders import mind  # noqa: F401
    from FoundationRegLib.evaluation import metrics  # noqa: F401
    from FoundationRegLib.registration import pipeline  # noqa: F401
    from FoundationRegLib.reporting import report  # noqa: F401


def measure(share: float = 1.0, only: tuple[str, ...] = (), say=lambda text: None) -> Tally:
    """How everything ended, or a ``share`` of it, or what ``only`` names."""
    if not hasattr(os, "fork"):
        raise SystemExit("The faults need an operating system that can fork: Linux or macOS.")
    warm_up()
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="foundationreg-faults-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "run"
        folder.mkdir()
        for family, size in inputs.SIZES.items():
            if not only or family in only:
                began = time.monotonic()
                run(list(getattr(inputs, family)(max(3, round(size * share)))), folder, tally)
                say(f"{family}: {time.monotonic() - began:.0f} s, {tally.total} inputs so far, {tally.bad} bad")
        for family, (work, size) in ENDINGS.items():
            if not only or family in only:
                began = time.monotonic()
                work(max(2, round(size * share)), folder, tally)
                say(f"{family}: {time.monotonic() - began:.0f} s, {tally.total} so far, {tally.bad} bad")
    return tally


def table(tally: Tally) -> str:
    """The counts as Markdown."""
    columns = ["accepted", "refused", *BAD]
    lines = [f"| | inputs | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for family, counter in tally.counts.items():
        cells = [str(counter[outcome]) for outcome in OUTCOMES]
        lines.append(f"| {family} | {sum(counter.values())} | {' | '.join(cells)} |")
    sums = [str(sum(counter[outcome] for counter in tally.counts.values())) for outcome in OUTCOMES]
    return "\n".join([*lines, f"| **all** | {tally.total} | {' | '.join(sums)} |"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*inputs.SIZES, *ENDINGS]
    parser.add_argument("--share", type=float, default=1.0, help="of every family (default: all)")
    parser.add_argument("--only", nargs="+", default=(), choices=names, metavar="NAME", help=", ".join(names))
    args = parser.parse_args()
    tally = measure(args.share, tuple(args.only), lambda text: print(text, file=sys.stderr, flush=True))
    print(table(tally))
    for trouble in tally.troubles[:40]:
        print(trouble)
    return int(tally.bad > 0)


if __name__ == "__main__":
    sys.exit(main())
