"""Every case under the conditions of `_conditions`: other positions, crops, slices and contrasts, and a wrong header.

    python dev.py benchmark stress --cases FOLDER                                # every case, every condition
    python dev.py benchmark stress --cases FOLDER --case brain --only turned90 mirrored
    python dev.py benchmark stress --cases FOLDER --linear                       # the start and linear stages only

A condition holds when its error is at most 1.5 times that of the untouched pair's transform at the same points plus
0.5 mm, or its Dice at most 0.05 lower. ``mirrored`` swaps left and right in the header and holds when that is reported.
Rows that stress.csv already holds are kept unless --again is given.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from _common import RESULTS, read_rows, today, write_rows


def main() -> int:
    args = arguments()
    from _conditions import CONDITIONS, read_case

    path = args.output / ("stress-linear.csv" if args.linear else "stress.csv")
    rows = {(row["case"], row["condition"]): row for row in read_rows(path)}
    folders = sorted(file.parent for file in args.cases.glob("*/fixed.nii.gz"))
    folders = [folder for folder in folders if not args.case or folder.name in args.case]
    if not folders:
        print(f"There is no case in {args.cases}: folders with fixed.nii.gz and moving.nii.gz are needed.")
        return 2
    for folder in folders:
        case, untouched = read_case(folder), None
        for name in [*CONDITIONS, "mirrored"]:
            if name != "untouched" and args.only and name not in args.only:
                continue
            if name != "untouched" and not args.again and (case.name, name) in rows:
                continue
            row, transform = tried(case, name, untouched, args)
            untouched = untouched or transform
            rows[case.name, name] = {"case": case.name, "condition": name, "date": today(), **row}
            print(" ".join(f"{value}" for value in rows[case.name, name].values()), flush=True)
            write_rows(path, list(rows.values()))
    failed = [row for row in rows.values() if row["holds"] != "yes"]
    print(f"{len(rows) - len(failed)} of {len(rows)} hold; written to {path}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python dev.py benchmark stress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of case folders")
    parser.add_argument("--case", nargs="+", default=[], metavar="NAME", help="only these cases")
    parser.add_argument("--only", nargs="+", default=[], metavar="CONDITION", help="only these conditions")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--linear", action="store_true", help="only the start and the linear stages")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="repeat what the table already holds")
    return parser.parse_args()


def tried(case, name: str, untouched, args: argparse.Namespace):
    """The row of one condition, and the transform that was found."""
    import SimpleITK as sitk
    from _conditions import CONDITIONS, header_mirrored, holds

    changed = header_mirrored(case) if name == "mirrored" else CONDITIONS[name](case)
    began = time.perf_counter()
    try:
        transform, warnings, score = registered(changed, args)
    except Exception as error:  # a benchmark tells of every failure and goes on
        return {"holds": "no", "failed": str(error)[:200]}, None
    row = {"seconds": round(time.perf_counter() - began, 1), "failure_score": round(score, 3)}
    if name == "mirrored":
        return row | {"holds": "yes" if any("mirrored" in text for text in warnings) else "no"}, transform
    found = changed.scores(transform)
    before = sitk.CompositeTransform([changed.carried, untouched]) if changed.carried else untouched
    reference = found if untouched is None else changed.scores(before)
    row |= {key: round(value, 3) for key, value in found.items()}
    row |= {f"untouched_{key}": round(value, 3) for key, value in reference.items()}
    return row | {"holds": "yes" if holds(found, reference) else "no"}, transform


def registered(case, args: argparse.Namespace):
    """Transform, warnings and failure score of one pair."""
    from FoundationRegLib.core.progress import Progress
    from FoundationRegLib.registration import linear, trust
    from FoundationRegLib.registration.pipeline import register
    from FoundationRegLib.settings import Settings

    if not args.linear:
        result = register(case.fixed, case.moving, Settings.from_preset(args.preset))
        return result.transform, result.warnings, result.trust.score
    sides = linear.prepare(case.fixed), linear.prepare(case.moving)
    start = linear.start_transform(*sides)
    found, facts = trust.keep_supported(*sides, *linear.align_linearly(*sides, start), None, Progress())
    return found, facts["warnings"], trust.failure_score(facts["witness"].evidence(found))


if __name__ == "__main__":
    sys.exit(main())
