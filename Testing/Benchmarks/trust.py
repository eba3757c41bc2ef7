"""Calibration of the failure score: registrations that succeeded and failed, their evidence, and a regression on it.

    python dev.py benchmark trust --cases FOLDER [--cohort FOLDER ...]    # register what is missing, then calibrate
    python dev.py benchmark trust --only-fit                              # calibrate on trust.csv as it is
    python dev.py benchmark trust --only-fit --write                      # and replace Resources/Trust.json
    python dev.py benchmark trust --cases FOLDER --transforms FOLDER --again    # new evidence on transforms kept there

Pairs: every case untouched and under five conditions of the stress benchmark, every case swapped, every pair of the
cohorts, and pairs of different anatomy. Of each, the candidates ``before``, ``geometry`` (centres met), ``linear`` and
``after`` (preset fast), and the result carried off by 4, 8 and 20 mm, by 10 mm on one side only, turned by 15 degrees,
and mirrored.

A candidate failed when its error is above 1.5 times the least of its pair, untouched or not, plus 0.5 mm, or its Dice
(cohorts: always Dice) more than 0.1 below the best; the best includes the alignment of label centroids, which is no
candidate itself.
Every candidate of a pair of different anatomy failed. The area under the curve is that of scores by regressions that
saw neither the case nor, in the stricter figure, its kind of anatomy.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from _common import RESULTS, read_rows, today, write_rows, write_text
from scipy.optimize import minimize

CONDITIONS = ("untouched", "turned90", "upper40", "lower60", "recoloured", "all")
# Evidence that the regression sees, and whether more of it speaks for a failure: only weights of that sign are found,
# so that no chance in these pairs makes more agreement a bad sign. The rest of the evidence added nothing to these
# four on anatomy that the regression had not seen.
EVIDENCE = {"covered": -1, "clarity": -1, "held": -1, "miss": 1, "pull": 1}
RIDGE = 2.0
# Mean Dice below which the best of a pair is poor: two people's abdomens in MR and CT, 0.5.
LEAST_DICE = 0.6
MODEL = Path(__file__).parents[2] / "FoundationReg" / "Resources" / "Trust.json"


def main() -> int:
    args = arguments()
    path = args.output / "trust.csv"
    rows = read_rows(path)
    if not args.only_fit:
        collect(rows, args, path)
    if not rows:
        print(f"There is nothing to calibrate on in {path}; give --cases.")
        return 2
    table = Table(labelled(rows))
    for name, groups in (("case", table.cases), ("anatomy", table.anatomies)):
        scores = table.held_out_scores(groups)
        told = ~table.by_luck
        print(
            f"leave one {name} out: AUC {area(scores, table.failed):.3f} over {len(scores)} candidates, "
            f"{area(scores[told], table.failed[told]):.3f} without {table.by_luck.sum()} that are right by luck or poor"
        )
        for anatomy in sorted(set(table.anatomies)):
            part = table.anatomies == anatomy
            if 0 < table.failed[part].sum() < part.sum():
                print(f"  {anatomy:14} AUC {area(scores[part], table.failed[part]):.3f} over {part.sum()}")
    held_out = table.held_out_scores(table.cases)
    told = (table.anatomies != "cohort") & ~table.by_luck
    model = table.model(thresholds(held_out[told & ~table.partial], table.failed[told & ~table.partial]))
    print(json.dumps(model, indent=2))
    held_out = table.cautious(held_out, model["thresholds"][0])
    print(f"where less than half of the body looks right never: AUC {area(held_out, table.failed):.3f}")
    print("\n".join(verdicts(table, held_out, model["thresholds"])))
    if args.write:
        write_text(MODEL, json.dumps(model, indent=2) + "\n")
    return 0


def verdicts(table: Table, scores: np.ndarray, limits: list[float]) -> list[str]:
    """Lines of a table: by kind of pair, how many candidates look right and wrong, and how many of them do not."""
    failed = table.failed > 0.5
    looks = {"right": scores < limits[0], "wrong": scores >= limits[1]}
    lines = [f"  {'':14} {'all':>5} {'look right':>11} {'are wrong':>10} {'look wrong':>11} {'are right':>10}"]
    for kind in (*dict.fromkeys(table.kinds), "together"):
        part = (table.kinds == kind) | (kind == "together")
        right, wrong = (looks[name] & part for name in ("right", "wrong"))
        numbers = (right.sum(), (right & failed).sum(), wrong.sum(), (wrong & ~failed).sum())
        lines.append(f"  {kind:14} {part.sum():5} {numbers[0]:11} {numbers[1]:10} {numbers[2]:11} {numbers[3]:10}")
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python dev.py benchmark trust", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, help="folder of case folders")
    parser.add_argument("--cohort", type=Path, nargs="+", default=[], help="folders with pairs.csv")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--only-fit", action="store_true", help="register nothing")
    parser.add_argument("--transforms", type=Path, help="folder to keep transforms in and to take them from")
    parser.add_argument("--again", action="store_true", help="gather evidence anew for pairs that the table holds")
    parser.add_argument("--write", action="store_true", help="replace Resources/Trust.json")
    args = parser.parse_args()
    if not args.only_fit and args.cases is None:
        parser.error("--cases is needed, or --only-fit")
    return args


def collect(rows: list[dict], args: argparse.Namespace, path: Path) -> None:
    """Add the candidates of every pair that ``rows`` does not hold yet; the table is on disk after each pair."""
    known = set() if args.again else {(row["case"], row["condition"]) for row in rows}
    for case, condition in pairs(args.cases, args.cohort):
        if (case.name, condition) in known:
            continue
        try:
            found = measured(case, condition, args.transforms)
            rows[:] = [row for row in rows if (row["case"], row["condition"]) != (case.name, condition)] + found
        except Exception as error:  # a benchmark tells of every failure and goes on
            print(f"{case.name} {condition}: {error}", flush=True)
            continue
        print(f"{case.name} {condition}", flush=True)
        write_rows(path, rows)


def pairs(cases: Path, cohorts: list[Path]):
    """Every pair to be registered, with what was done to it."""
    from _conditions import CONDITIONS as MADE
    from _conditions import Case, read_case

    folders = sorted(path.parent for path in cases.glob("*/fixed.nii.gz"))
    for folder in folders:
        case = read_case(folder)
        for name in CONDITIONS:
            yield MADE[name](case), name
        yield case.swapped(), "swapped"
    for cohort in cohorts:
        for row in read_rows(cohort / "pairs.csv"):
            yield read_case(cohort, f"{row['id']}_"), "untouched"
    # Neighbours in the alphabet that are of another anatomy.
    for n, folder in enumerate(folders):
        other = next((f for f in folders[n + 1 :] + folders[:n] if anatomy(f.name) != anatomy(folder.name)), None)
        if other is not None:
            yield Case(folder.name, read_case(folder).fixed, read_case(other).moving), f"onto {other.name}"


def anatomy(case: str) -> str:
    """The first word of a case's name; cohorts number their pairs."""
    first = case.split("_")[0]
    return "cohort" if re.fullmatch(r"case\d+", first) else first


def measured(case, condition: str, kept: Path | None = None) -> list[dict]:
    """Rows of one pair: candidate, evidence and error. Transforms are taken from the folder ``kept``, or put there."""
    from FoundationRegLib.images.reading import read_transform
    from FoundationRegLib.images.writing import write_transform
    from FoundationRegLib.registration.pipeline import register
    from FoundationRegLib.settings import Settings

    files = [kept / f"{case.name} {condition} {stage}.h5" for stage in ("linear", "after")] if kept else []
    if files and all(file.is_file() for file in files):
        return described(case, condition, *map(read_transform, files))
    with every_stage_kept():
        result = register(case.fixed, case.moving, Settings.from_preset("fast"))
    for file, transform in zip(files, (result.linear, result.transform), strict=False):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_transform(transform, file)
    return described(case, condition, result.linear, result.transform)


def described(case, condition: str, aligned, deformed) -> list[dict]:
    """Rows of one pair, of which ``aligned`` came out of the linear stage and ``deformed`` out of all."""
    from FoundationRegLib.registration import linear
    from FoundationRegLib.registration.trust import Witness

    sides = linear.prepare(case.fixed), linear.prepare(case.moving)
    witness, made = Witness(*sides), []
    for name, transform in candidates(case, aligned, deformed, *sides).items():
        row = {"case": case.name, "condition": condition, "candidate": name}
        if name != "centroids":
            row |= {key: round(value, 5) for key, value in witness.evidence(transform).items()}
        made.append(row | {key: round(value, 4) for key, value in case.scores(transform).items()})
    return made


@contextmanager
def every_stage_kept():
    """Within, the score replaces no stage's outcome: wrong ones are what it learns from."""
    from FoundationRegLib.registration import pipeline, result
    from FoundationRegLib.registration.trust import Trust

    kept = mock.patch.object(pipeline, "keep_supported", lambda fixed, moving, found, facts, *_: (found, facts))
    chosen = mock.patch.object(result, "choose", lambda *_: Trust(0.0))
    with kept, chosen:
        yield


def candidates(case, aligned, deformed, fixed, moving) -> dict:
    import SimpleITK as sitk

    found = {"before": sitk.Transform(3, sitk.sitkIdentity), "linear": aligned, "after": deformed}
    if np.linalg.norm(moving.center - fixed.center) > 1:  # else it is the same once more
        found["geometry"] = sitk.TranslationTransform(3, (moving.center - fixed.center).tolist())
    middle, random = fixed.center_of_mass.tolist(), np.random.default_rng(0)
    mirror = sitk.AffineTransform(3)
    mirror.SetMatrix((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    mirror.SetCenter(middle)
    wrong = {"mirrored": mirror}
    motions = (("off by 8 mm", 8, 0), ("off by 20 mm", 20, 0), ("turned by 15", 5, 15), ("off by 4 mm", 4, 0))
    for name, mm, degrees in motions:
        shift, axis = (vector / np.linalg.norm(vector) for vector in random.normal(size=(2, 3)))
        wrong[name] = sitk.VersorRigid3DTransform(
            axis.tolist(), float(np.deg2rad(degrees)), (mm * shift).tolist(), middle
        )
    shift, side = (vector / np.linalg.norm(vector) for vector in random.normal(size=(2, 3)))
    wrong["half off by 10 mm"] = half_moved(fixed, 10 * shift, side)
    found |= {name: sitk.CompositeTransform([deformed, motion]) for name, motion in wrong.items()}
    if case.fixed_labels is not None:
        found["centroids"] = sitk.TranslationTransform(3, centroids(case))
    return found


def half_moved(fixed, shift: np.ndarray, side: np.ndarray):
    """A smooth motion that carries what lies on one ``side`` (a unit vector) of the body's middle off by ``shift``."""
    import SimpleITK as sitk
    from FoundationRegLib.images.conversion import grid_of, image_from_array

    grid = grid_of(fixed.grey).padded(2, 2)
    places = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    share = 1 / (1 + np.exp(-((places - fixed.center_of_mass) @ side) / 6.0))
    field = image_from_array(share[..., None] * shift, grid)
    return sitk.DisplacementFieldTransform(field)


def centroids(case) -> list[float]:
    """From the centroid of all fixed labels to that of all moving ones."""
    import SimpleITK as sitk

    ends = []
    for labels in (case.fixed_labels, case.moving_labels):
        middle = np.argwhere(sitk.GetArrayViewFromImage(labels) > 0).mean(0)[::-1]
        ends.append(np.array(labels.TransformContinuousIndexToPhysicalPoint(middle.tolist())))
    return (ends[1] - ends[0]).tolist()


def labelled(rows: list[dict]) -> list[dict]:
    """The candidates whose outcome is known, with ``failed``."""
    by_pair: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        by_pair.setdefault((row["case"], row["condition"]), []).append(row)
    made = []
    for (case, condition), group in by_pair.items():
        score = "dice" if anatomy(case) == "cohort" or not any(row.get("tre_mm") for row in group) else "tre_mm"
        # Under a condition nothing may be right: what the untouched pair reached is known to be possible.
        reached = by_pair.get((case, "untouched"), []) if score == "tre_mm" else []
        values = [float(row[score]) for row in (*group, *reached) if row.get(score)]
        for row in group:
            if row["candidate"] == "centroids":
                continue
            if condition.startswith("onto "):
                failed = True
            elif not row.get(score):
                failed = row["candidate"] != "after"
            elif score == "dice":
                failed = float(row[score]) < max(values) - 0.1
            else:
                failed = float(row[score]) > 1.5 * min(values) + 0.5
            # Carried off by so little that it cannot be told from what was found: neither right nor wrong.
            if failed or not row["candidate"].startswith(("off by", "turned by", "half off")):
                made.append({**row, "failed": failed, "poor": score == "dice" and _dice(row) < LEAST_DICE})
    return made


def _dice(row: dict) -> float:
    return float(row.get("dice") or 0)


class Table:
    """Candidates as numbers, and the regression on them."""

    def __init__(self, rows: list[dict]):
        sys.path.insert(0, str(MODEL.parents[1]))
        from FoundationRegLib.registration.trust import PARTIAL, regressors

        values = [regressors({name: float(row[name]) for name in EVIDENCE}) for row in rows]
        self.values = np.array([[row[name] for name in EVIDENCE] for row in values])
        self.failed = np.array([row["failed"] for row in rows], float)
        self.cases = np.array([row["case"] for row in rows])
        self.anatomies = np.array([anatomy(row["case"]) for row in rows])
        # Where two modalities share no similarity, a start that is right by luck shows no sign of it, and a result that
        # is right only beside worse ones should look wrong.
        poor = np.array([row["poor"] for row in rows])
        self.by_luck = ((self.anatomies == "cohort") | poor) & (self.failed == 0)
        self.partial = np.array([float(row["covered"]) < PARTIAL for row in rows])
        cohort = self.anatomies == "cohort"
        conditions = [row["condition"].partition(" ")[0] for row in rows]
        self.kinds = np.where(cohort, "cohort", np.where(np.array(conditions) == "onto", "other anatomy", conditions))
        self.mean, self.deviation = self.values.mean(0), self.values.std(0) + 1e-9

    def fitted(self, part: np.ndarray) -> np.ndarray:
        """Weights of the evidence and the offset, from the candidates ``part``.

        Right and wrong ones count the same in sum. Those right `by_luck` count nothing.
        """
        part = part & ~self.by_luck
        failed = self.failed[part]
        share = np.where(failed > 0.5, 0.5 / max(failed.mean(), 1e-9), 0.5 / max(1 - failed.mean(), 1e-9))
        design = np.c_[(self.values[part] - self.mean) / self.deviation, np.ones(len(failed))]
        ridge = np.array([RIDGE] * len(EVIDENCE) + [1e-6])

        def cost(weights: np.ndarray) -> tuple[float, np.ndarray]:
            total = design @ weights
            value = (share * (np.logaddexp(0, total) - failed * total)).sum() + (ridge * weights**2).sum() / 2
            found = 1 / (1 + np.exp(-total))
            return value, design.T @ (share * (found - failed)) + ridge * weights

        bounds = [(0, None) if sign > 0 else (None, 0) for sign in EVIDENCE.values()] + [(None, None)]
        return minimize(cost, np.zeros(design.shape[1]), jac=True, bounds=bounds, method="L-BFGS-B").x

    def scores(self, part: np.ndarray, weights: np.ndarray) -> np.ndarray:
        design = np.c_[(self.values[part] - self.mean) / self.deviation, np.ones(part.sum())]
        return 1 / (1 + np.exp(-design @ weights))

    def cautious(self, scores: np.ndarray, limit: float) -> np.ndarray:
        """``scores`` as `failure_score` gives them: at least ``limit`` where the moving image shows too little."""
        return np.where(self.partial, np.maximum(scores, limit), scores)

    def held_out_scores(self, groups: np.ndarray) -> np.ndarray:
        """Each candidate's score by the regression that saw none of its group."""
        scores = np.zeros(len(groups))
        for group in np.unique(groups):
            part = groups == group
            scores[part] = self.scores(part, self.fitted(~part))
        return scores

    def model(self, thresholds: tuple[float, float]) -> dict:
        weights = self.fitted(np.ones(len(self.failed), bool))
        return {
            "about": "Logistic regression of the failure score; made by Testing/Benchmarks/trust.py.",
            "date": today(),
            "candidates": len(self.failed),
            "failed": int(self.failed.sum()),
            "cases": sorted(set(self.cases)),
            "evidence": {
                name: [round(float(number), 5) for number in numbers]
                for name, *numbers in zip(EVIDENCE, self.mean, self.deviation, weights[:-1], strict=True)
            },
            "offset": round(float(weights[-1]), 5),
            "thresholds": list(thresholds),
            "auc_case_out": round(area(self.held_out_scores(self.cases), self.failed), 3),
            "auc_anatomy_out": round(area(self.held_out_scores(self.anatomies), self.failed), 3),
        }


def area(scores: np.ndarray, failed: np.ndarray) -> float:
    """Share of pairs of a failed and a right candidate in which the failed one has the higher score."""
    bad, good = scores[failed > 0.5][:, None], scores[failed < 0.5]
    return float((bad > good).mean() + 0.5 * (bad == good).mean())


def thresholds(scores: np.ndarray, failed: np.ndarray) -> tuple[float, float]:
    """Up to the first a result looks right: nine of ten right candidates do. From the second it looks wrong: one in
    twenty right ones does, and at least where wrong is the likelier outcome."""
    right = scores[failed < 0.5]
    low = np.ceil(20 * np.quantile(right, 0.9)) / 20
    return round(float(low), 2), round(float(max(low + 0.05, 0.5, np.ceil(20 * np.quantile(right, 0.95)) / 20)), 2)


if __name__ == "__main__":
    sys.exit(main())
