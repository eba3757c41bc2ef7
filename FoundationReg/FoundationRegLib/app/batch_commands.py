"""What the commands batch, compare and sequence do with their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cohort.cluster import Where
from ..cohort.job import Options, Variant
from ..cohort.pairs import EXTRAS, CohortPair, read_pairs
from ..cohort.runner import Outcome, SomeFailed, run_batch
from ..cohort.variants import chosen_variants, every_variant, require_encoders
from ..errors import Cancelled, InputError


def batch(args: argparse.Namespace) -> None:
    pairs = read_pairs(args.pairs, args.root, must_exist=not args.skip_missing)
    if args.all_encoders and (args.preset or args.encoder):
        raise InputError("--all-encoders takes all of them; leave --preset and --encoder out.")
    variants = every_variant(changes_of(args), args.without) if args.all_encoders else variants_of(args)
    outcome = run(args, pairs, variants, backwards=args.inverse_consistency)
    finish(args, outcome, variants, Path(args.pairs).stem)


def compare(args: argparse.Namespace) -> None:
    files = {"fixed": args.fixed, "moving": args.moving}
    files |= {name: getattr(args, name) for name in EXTRAS if getattr(args, name)}
    for what in ("labels", "points"):
        if (f"fixed_{what}" in files) != (f"moving_{what}" in files):
            raise InputError(f"To measure with {what}, give --fixed-{what} and --moving-{what}.")
    given = args.preset or args.encoder
    variants = variants_of(args) if given else every_variant(changes_of(args), args.without)
    backwards = args.inverse_consistency
    if backwards is None:
        backwards = "fixed_labels" not in files and "fixed_points" not in files
    pair = CohortPair("pair", {name: str(Path(path).expanduser().absolute()) for name, path in files.items()})
    # One pair is the work of one worker; with a process of its own, a variant that is too large ends only itself.
    outcome = run(args, [pair], variants, backwards=backwards)
    finish(args, outcome, variants, f"{Path(args.moving).name} to {Path(args.fixed).name}")


def sequence(args: argparse.Namespace) -> None:
    from ..cohort.sequence import Sequence4D, assemble

    frames = Sequence4D.read(args.input)
    frames.require_frame(args.frame)
    args.preset, args.encoder = [args.preset], [args.encoder] if args.encoder else None
    if args.keep == "scores":
        raise InputError("A sequence is put together from its results; --keep must not be scores.")
    variants = variants_of(args)
    pairs = frames.pairs(Path(args.output), args.frame, args.fixed_mask)
    outcome = run(args, pairs, variants)
    places = assemble(frames, args.frame, outcome.rows, Path(args.output)) if not outcome.cancelled else []
    finish(args, outcome, variants, Path(args.input).name, places)


def changes_of(args: argparse.Namespace) -> dict[str, Any]:
    """Settings for all variants. Raises `InputError`."""
    changes: dict[str, Any] = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set wants KEY=VALUE, not {item!r}.")
        changes[key.strip()] = value.strip()
    if args.device:
        changes["device"] = args.device
    if args.threads < 1:
        raise InputError(f"--threads must be a whole number above zero, not {args.threads}.")
    changes.setdefault("threads", args.threads)
    return changes


def variants_of(args: argparse.Namespace) -> list[Variant]:
    return chosen_variants(args.preset or (), args.encoder or (), changes_of(args))


def run(
    args: argparse.Namespace, pairs: Sequence[CohortPair], variants: Sequence[Variant], backwards: bool = False
) -> Outcome:
    """Check what is needed, then register all, with progress on the console."""
    from ..registration.pipeline import choose_device
    from ..settings import Settings
    from .batch_console import batch_progress
    from .encoder_commands import require_encoders as fetch_encoders

    if args.workers is not None and args.workers < 0:
        raise InputError(f"--workers must not be negative, not {args.workers}.")
    if args.memory < 0 or args.features < 0:
        raise InputError("--memory and --features must not be negative.")
    if args.download:
        for variant in variants:
            fetch_encoders(Settings.from_dict(variant.settings), True, False, args.quiet)
    away = args.scheduler or args.slurm
    if not away:
        require_encoders(variants)
        choose_device(args.device or "auto")
    options = Options(keep=args.keep, features_gb=args.features, backwards=bool(backwards))
    where = Where(args.workers, args.memory, args.threads, args.device or "auto", args.scheduler, args.slurm)
    with batch_progress(args.quiet, args.json) as (watch, stop):
        return run_batch(pairs, variants, args.output, options, where, watch, stop)


def finish(
    args: argparse.Namespace, outcome: Outcome, variants: Sequence[Variant], title: str, places: Sequence[Path] = ()
) -> None:
    """Write the summaries and the report, and say what came out.

    Raises `Cancelled` after a cancel and `SomeFailed` when results are missing.
    """
    from ..cohort.advice import advice
    from ..cohort.report import write_report
    from ..cohort.statistics import Numbers
    from ..cohort.tables import write_summaries
    from .batch_console import print_outcome

    root = Path(args.output).expanduser().absolute()
    if outcome.cancelled:
        raise Cancelled(
            f"Stopped: {len(outcome.rows) - outcome.failed} results are in {root}. Run the same command to go on."
        )
    numbers = Numbers(outcome.rows)
    write_summaries(numbers, root)
    report = write_report(outcome.rows, variants, root, title, outcome.seconds)
    sentence = advice(numbers, {variant.name: variant.settings for variant in variants})
    if not args.quiet:
        print_outcome(numbers, sentence, outcome.found, [root, report, *places], args.json)
    if outcome.failed:
        raise SomeFailed(
            f"{outcome.failed} of {len(outcome.rows)} results are missing; {root / 'failures.csv'} says why. "
            "Run the same command to try them again."
        )
