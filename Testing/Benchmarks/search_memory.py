"""Peak memory and time of the discrete search for ranges of 20 to 200 mm, beside what the memory model says.

    python dev.py benchmark search_memory [--limits 1 4] [--side 160]

Each row is a process of its own on two random volumes of ``side`` voxels of 1 mm along each axis, searched on nodes
6 mm apart. ``limit``: GB that the search may take. ``model``: GB that the lattice chosen for it should take at most.
"""

from __future__ import annotations

import argparse
import json
import sys

from _common import peak_memory, run_fresh

RANGES_MM = (20, 35, 50, 80, 120, 200)
SPACING_MM, CHANNELS = 6.0, 12


def one(range_mm: float, limit_gb: float, side: int) -> dict:
    """Figures of one search."""
    import time

    import torch
    from FoundationRegLib.numerics import search
    from FoundationRegLib.numerics.filters import smooth

    count, radius = round(side / SPACING_MM), round(range_mm / SPACING_MM)
    generator = torch.Generator().manual_seed(0)
    fixed = smooth(smooth(torch.randn(CHANNELS, count, count, count, generator=generator)))
    moving, weight = fixed.roll((3, -2), (1, 3)), torch.ones(count, count, count)
    step = search.coarsening(weight, radius, limit_gb * 1e9)
    coarse = search._pooled(weight[None], step)[0] if step > 1 else weight
    before, began = peak_memory(), time.perf_counter()
    search.search(fixed, moving, weight, radius, limit_gb * 1e9)
    return {
        "nodes": count**3,
        "step": step,
        "model": search.search_bytes(coarse, -(-radius // step)) / 1e9,
        "unbounded": search.search_bytes(weight, radius) / 1e9,
        "peak": (peak_memory() - before) / 1e9,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limits", type=float, nargs="+", default=[1.0, 4.0], help="GB")
    parser.add_argument("--side", type=int, default=160, help="voxels of 1 mm")
    parser.add_argument("--one", type=float, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one, args.side)))
        return
    print("| range mm | limit GB | without limit GB | lattice | model GB | peak GB | seconds |")
    print("|---|---|---|---|---|---|---|")
    for limit in args.limits:
        for range_mm in RANGES_MM:
            row = run_fresh(__file__, "--one", str(range_mm), str(limit), "--side", str(args.side))
            if "failed" in row:
                print(f"| {range_mm} | {limit:g} | {row['failed']} |")
                continue
            lattice = "6 mm" if row["step"] == 1 else f"{6 * row['step']} mm, then 6 mm"
            print(f"| {range_mm} | {limit:g} | {row['unbounded']:.2f} | {lattice} | {row['model']:.2f} | "
                  f"{row['peak']:.2f} | {row['seconds']:.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
