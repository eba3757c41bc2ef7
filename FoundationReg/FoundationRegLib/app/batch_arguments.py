"""The arguments of the commands batch, compare and sequence. Imports nothing heavy."""

from __future__ import annotations

import argparse

from .subcommands import add_subcommand

KEEP = ("all", "images", "transform", "scores")
_SIDES = ("fixed", "moving")


def add_commands(commands) -> None:
    """Add the three commands to ``commands``, what `argparse.ArgumentParser.add_subparsers` returned."""
    _add_batch(commands)
    _add_compare(commands)
    _add_sequence(commands)


def _add_batch(commands) -> None:
    parser = add_subcommand(commands, "batch", "Register every pair of a table, also with several presets or encoders.")
    parser.add_argument(
        "pairs",
        metavar="PAIRS.csv",
        help="columns fixed and moving, and if you like id, task, fixed_labels, moving_labels, fixed_points, "
        "moving_points, fixed_mask, moving_mask, exclude_fixed, exclude_moving, initial_transform",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="folder for everything; run again to resume"
    )
    parser.add_argument("--root", metavar="DIR", help="where relative paths start (default: the table's folder)")
    parser.add_argument(
        "--skip-missing", action="store_true", help="list pairs with missing files as failed and register the others"
    )
    _add_variants(parser)
    parser.add_argument(
        "--all-encoders", action="store_true", help="compare every installed encoder and preset instead"
    )
    parser.add_argument(
        "--inverse-consistency", action="store_true", help="register backwards too, to measure it; twice the time"
    )
    _add_running(parser)


def _add_compare(commands) -> None:
    parser = add_subcommand(
        commands, "compare", "Compare all installed encoders and presets, or those given, on one pair of images."
    )
    parser.add_argument("fixed", metavar="FIXED", help="image that stays")
    parser.add_argument("moving", metavar="MOVING", help="image that is brought onto it")
    parser.add_argument("-o", "--output", default="comparison", metavar="DIR", help="default: %(default)s")
    _add_variants(parser)
    guides = parser.add_argument_group("more input")
    for side in _SIDES:
        guides.add_argument(f"--{side}-labels", metavar="FILE", help="label map, to measure with")
        guides.add_argument(f"--{side}-points", metavar="FILE", help="points, to measure with")
        guides.add_argument(f"--{side}-mask", metavar="FILE", help=f"where to match the {side} image (not 0)")
        guides.add_argument(f"--exclude-{side}", metavar="FILE", help=f"mask of a lesion in the {side} image")
    guides.add_argument("--initial-transform", metavar="FILE", help="transform to start from")
    parser.add_argument(
        "--inverse-consistency",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="register backwards too; done without labels and points, when little else can be measured",
    )
    _add_running(parser)


def _add_sequence(commands) -> None:
    parser = add_subcommand(commands, "sequence", "Register every frame of a 4-D image to one of its frames.")
    parser.add_argument("input", metavar="IMAGE", help="a 4-D image: .nii.gz, .nrrd (also .seq.nrrd) or .mha")
    parser.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="folder for everything; run again to resume"
    )
    parser.add_argument("--frame", type=int, default=0, metavar="N", help="the frame that stays, counted from 0")
    parser.add_argument("--fixed-mask", metavar="FILE", help="where to match that frame (not 0)")
    parser.add_argument("--preset", default="default", help="see `foundationreg presets` (default: %(default)s)")
    parser.add_argument("-e", "--encoder", metavar="LIST", help="such as mind or medsam-lite=0.15,mind")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; repeatable")
    _add_running(parser)


def _add_variants(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is compared: each preset with each list of encoders")
    group.add_argument("--preset", action="append", metavar="NAME", help="repeat for several (default: default)")
    group.add_argument(
        "-e",
        "--encoder",
        action="append",
        metavar="LIST",
        help="such as mind or medsam-lite=0.15,mind; preset means the preset's own; repeat for several",
    )
    group.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all; repeatable")
    group.add_argument(
        "--without", action="append", default=[], metavar="NAME", help="leave this one out when all are compared"
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument("--workers", type=int, metavar="N", help="worker processes; 0: none but this one")
    group.add_argument("--memory", type=float, default=0.0, metavar="GB", help="memory that each worker may use")
    group.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of each pair (default: 1)")
    group.add_argument("--device", help="auto, cpu, cuda or mps; with auto, one worker for each graphics card")
    group.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask scheduler, or its scheduler file")
    group.add_argument("--slurm", metavar="FILE", help="start workers as Slurm jobs with the options in this file")
    group.add_argument(
        "--keep",
        choices=KEEP,
        default="all",
        help="files of each result: all, the transform and the warped image, the transform, or scores alone",
    )
    group.add_argument(
        "--features", type=float, default=10.0, metavar="GB", help="disk for features that pairs share; 0: none"
    )
    group.add_argument("--download", action="store_true", help="fetch weights that are missing without asking")
    group.add_argument("--json", action="store_true", help="say what happens as lines of JSON, for programs")
    group.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
