"""The command ``foundationreg``: register, apply, evaluate, encoders, presets, demo, batch, compare, sequence.

Nothing heavy is imported until a command really needs it, so that help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

from .. import __version__
from ..core.files import printable
from ..core.memory import is_out_of_memory
from ..core.threads import calm_threads
from ..errors import FoundationRegError, InputError, OutOfMemory
from .batch_arguments import add_commands as add_batch_commands
from .subcommands import add_subcommand

CANCELLED, UNEXPECTED = 130, 70
MEMORY_HINT = "try --preset fast, a larger --set finest_spacing_mm=3 or --device cpu, or crop the images"
IMAGE_ROLES = ("fixed", "moving")
FILE_ROLES = {
    "fixed": "fixed image",
    "moving": "moving image",
    "fixed_mask": "mask of the fixed image",
    "moving_mask": "mask of the moving image",
    "exclude_fixed": "exclusion mask of the fixed image",
    "exclude_moving": "exclusion mask of the moving image",
    "fixed_labels": "labels of the fixed image",
    "moving_labels": "labels of the moving image",
    "fixed_points": "points of the fixed image",
    "moving_points": "points of the moving image",
    "fixed_box_mask": "box mask of the fixed image",
    "moving_box_mask": "box mask of the moving image",
    "initial_transform": "initial transform",
    "transform_file": "transform",
    "input": "input",
    "reference": "reference image",
    "pairs": "table of pairs",
}


# Where the function of a command is, if not in `commands`.
_MODULES = {
    "encoders": "encoder_commands",
    "batch": "batch_commands",
    "compare": "batch_commands",
    "sequence": "batch_commands",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code.

    0, 1 when some pairs of a batch failed, 2 for input that cannot be used, 130 after Ctrl-C or a polite kill, 70 for
    an error that nobody expected.
    """
    try:
        args = build_parser().parse_args(arguments)
    except SystemExit as stop:
        return stop.code or 0
    with terminable():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    calm_threads()
    try:
        require_files(args)
        module = importlib.import_module(f".{_MODULES.get(args.command, 'commands')}", __package__)
        getattr(module, args.command)(args)
        return 0
    except FoundationRegError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        complain("Stopped.")
        return CANCELLED
    except BrokenPipeError:
        sys.stdout = None  # the reader of our output is gone, and with it the place to say so
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            return _unexpected(error)
        complain(f"The computer ran out of memory; {MEMORY_HINT}.")
        return OutOfMemory.exit_code


def _unexpected(error: Exception) -> int:
    """Say in one sentence that something went wrong that nobody foresaw, and where its description lies."""
    from .failure import write_log

    place = write_log(error)
    kept = f"the details are in {place}" if place else f"it says: {' '.join(str(error).split())[:300]}"
    report = "Please report it on the project's page of issues."
    complain(f"An unexpected error ({type(error).__name__}) stopped the work; {kept}. {report}")
    return UNEXPECTED


@contextmanager
def terminable():
    """A polite kill (SIGTERM) or a closed terminal (SIGHUP) within the block is like Ctrl-C: what was begun is
    removed."""

    def stop(number, frame):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def complain(sentence: str) -> None:
    print(f"foundationreg: {sentence}", file=sys.stderr, flush=True)


def require_files(args: argparse.Namespace) -> None:
    """Raise `InputError` for the first input that does not exist, before anything heavy is loaded."""
    for name, role in FILE_ROLES.items():
        given = getattr(args, name, None)
        try:
            missing = given is not None and not Path(given).expanduser().exists()
        except (OSError, ValueError, RuntimeError):
            raise InputError(f"The {role} {printable(given)} cannot be opened; its name is not possible.") from None
        if missing:
            raise InputError(f"The {role} {printable(given)} does not exist.")


# Arguments


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="foundationreg",
        description="Training-free registration of 3-D medical images with foundation-model features.",
        epilog="For research; not for clinical use.",
    )
    parser.add_argument("--version", action="version", version=f"foundationreg {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_register(commands)
    _add_apply(commands)
    _add_evaluate(commands)
    _add_encoders(commands)
    _add_presets(commands)
    _add_demo(commands)
    add_batch_commands(commands)
    return parser


def _add_register(commands) -> None:
    parser = add_subcommand(commands, "register", "Register a moving image to a fixed one.")
    parser.add_argument(
        "fixed", metavar="FIXED", help="image that stays: .nii .nii.gz .nrrd .mha .mhd or a DICOM folder"
    )
    parser.add_argument("moving", metavar="MOVING", help="image that is brought onto it")

    results = parser.add_argument_group("results (at least one)")
    results.add_argument("-o", "--output", metavar="DIR", help="folder for transform, images, result.json and report")
    results.add_argument("--transform", metavar="FILE", help="transform alone: .h5 .tfm, or a field as .nii.gz .nrrd")
    results.add_argument("--inverse-transform", metavar="FILE", help="its inverse, to carry images to the moving side")
    results.add_argument("--warped", metavar="FILE", help="moving image on the fixed image's grid")

    method = parser.add_argument_group("method")
    method.add_argument("--preset", default="default", help="see `foundationreg presets` (default: %(default)s)")
    method.add_argument(
        "-e",
        "--encoder",
        action="append",
        metavar="ID[=WEIGHT]",
        help="see `foundationreg encoders`, or the path of your own model; repeat to combine several",
    )
    method.add_argument(
        "--anatomy",
        metavar="ID",
        help="anatomy network that names regions in both images, see `foundationreg encoders`, or the JSON file that "
        "describes your own",
    )
    method.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="ID",
        help="encoder whose features the report shows although it takes no part; repeatable",
    )
    method.add_argument("--affine", action=argparse.BooleanOptionalAction, default=None, help="affine stage")
    method.add_argument("--rigid", action=argparse.BooleanOptionalAction, default=None, help="rigid stage")
    method.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting; repeatable")
    method.add_argument("--device", help="auto, cpu, cuda, cuda:1 or mps")
    method.add_argument("--seed", help="for the few places that draw random numbers")

    guides = parser.add_argument_group("more input")
    guides.add_argument(
        "--initial-transform", metavar="FILE", help="ITK transform from fixed to moving points to start from"
    )
    for side in IMAGE_ROLES:
        guides.add_argument(f"--{side}-mask", metavar="FILE", help=f"where to match the {side} image (not 0)")
        guides.add_argument(
            f"--exclude-{side}",
            metavar="FILE",
            help=f"mask of a lesion or implant in the {side} image that should neither shrink nor grow",
        )
    for side in IMAGE_ROLES:
        guides.add_argument(f"--{side}-labels", metavar="FILE", help="label map, to measure with")
        guides.add_argument(f"--{side}-points", metavar="FILE", help="points to measure with: .csv .fcsv .mrk.json")
    for side in IMAGE_ROLES:
        guides.add_argument(
            f"--{side}-box",
            nargs=6,
            type=float,
            metavar=("X", "Y", "Z", "X2", "Y2", "Z2"),
            help=f"two opposite corners, LPS mm, of a box around an organ in the {side} image; what both boxes hold "
            "is segmented and guides",
        )
        guides.add_argument(
            f"--{side}-box-mask",
            metavar="FILE",
            help=f"what the {side} box holds (not 0), such as the {side}_box_mask.nii.gz of an earlier run that you "
            "corrected; guides as it is, and that side needs no box",
        )
    for what in ("labels", "points"):
        guides.add_argument(f"--guide-with-{what}", action="store_true", help=f"search with the {what} too")
    parser.add_argument("--download", action="store_true", help="fetch weights that are missing without asking")
    parser.add_argument(
        "--trust-model", action="store_true", help="run your own TorchScript file, a program, without asking"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")


def _add_apply(commands) -> None:
    parser = add_subcommand(
        commands,
        "apply",
        "Carry another image, label map or point file of the moving side over to the fixed side.",
    )
    parser.add_argument(
        "transform_file", metavar="TRANSFORM", help="transform.h5 of a registration, or any ITK transform"
    )
    parser.add_argument("input", metavar="IMAGE_OR_POINTS", help="an image, or points as .csv .fcsv .mrk.json (mm)")
    parser.add_argument("-r", "--reference", metavar="FIXED", help="image whose grid the result gets (images only)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write")
    parser.add_argument("--labels", action="store_true", help="the image holds labels: no values in between")
    parser.add_argument("--inverse", action="store_true", help="carry from the fixed side to the moving side instead")


def _add_evaluate(commands) -> None:
    parser = add_subcommand(commands, "evaluate", "Measure how well a transform aligns two images.")
    parser.add_argument("fixed", metavar="FIXED")
    parser.add_argument("moving", metavar="MOVING")
    parser.add_argument("--transform", dest="transform_file", metavar="FILE", help="without it: as the images lie")
    for side in IMAGE_ROLES:
        parser.add_argument(f"--{side}-labels", metavar="FILE", help="label map")
        parser.add_argument(f"--{side}-points", metavar="FILE", help="points: .csv .fcsv .mrk.json")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_encoders(commands) -> None:
    parser = add_subcommand(commands, "encoders", "List the encoders, and fetch or remove their weights.")
    parser.set_defaults(action="list", id=None)
    actions = parser.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="every encoder and whether it is ready (the default)")
    listing.set_defaults(action="list")
    download = actions.add_parser("download", help="fetch weights")
    download.add_argument("id", metavar="ID")
    download.add_argument(
        "--accept-licence", action="store_true", help="agree to the weights' licence without a question"
    )
    download.set_defaults(action="download")
    imported = actions.add_parser("import", help="take weights from a file, for computers without a network")
    imported.add_argument("id", metavar="ID")
    imported.add_argument("input", metavar="FILE")
    imported.set_defaults(action="import")
    trust = {
        "trust": "let a TorchScript file of your own run, as it is now; it is a program",
        "distrust": "do not run it any more",
    }
    for action, summary in trust.items():
        sub = actions.add_parser(action, help=summary)
        sub.add_argument("model", metavar="FILE")
        sub.set_defaults(action=action)
    remove = actions.add_parser("remove", help="delete weights")
    remove.add_argument("id", metavar="ID")
    remove.set_defaults(action="remove")
    verify = actions.add_parser("verify", help="check weights against their published hash")
    verify.add_argument("id", metavar="ID", nargs="?", help="default: all that are on this computer")
    verify.set_defaults(action="verify")


def _add_presets(commands) -> None:
    parser = add_subcommand(commands, "presets", "List the presets, or show the settings of one.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this preset's settings as JSON")


def _add_demo(commands) -> None:
    parser = add_subcommand(commands, "demo", "Register two real volumes with a known deformation and show the result.")
    parser.add_argument("-o", "--output", default="demo-output", metavar="DIR", help="default: %(default)s")


def command() -> None:
    """`main` as a process of its own. After a registration it ends at once: to take torch's modules apart and to give
    all memory back piece by piece takes 0.2 s."""
    code = main()
    if code == 0 and sys.argv[1:2] == ["register"]:
        with suppress(OSError, ValueError, AttributeError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    sys.exit(code)


if __name__ == "__main__":
    command()
