"""What each command of the command line does. Functions are named after their command and take its arguments."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..core.formats import WRITABLE_IMAGE_SUFFIXES, WRITABLE_TRANSFORM_SUFFIXES
from ..errors import InputError
from .cli import FILE_ROLES, IMAGE_ROLES
from .encoder_commands import require_encoders
from .loading import uncollected
from .result_files import RESULT_FILES, plain, write_results

TRANSFORM_OUTPUTS = (*WRITABLE_TRANSFORM_SUFFIXES, *WRITABLE_IMAGE_SUFFIXES)


POINT_FILES = (".csv", ".fcsv", ".json")


READ = (
    *("initial_transform", "fixed_mask", "moving_mask", "exclude_fixed", "exclude_moving"),
    *("fixed_labels", "moving_labels", "fixed_points", "moving_points", "fixed_box_mask", "moving_box_mask"),
)
GUIDES = ("guide_with_labels", "guide_with_points", "fixed_box", "moving_box")


def register(args: argparse.Namespace) -> None:
    single_files = {
        "transform": args.transform,
        "inverse transform": args.inverse_transform,
        "warped image": args.warped,
    }
    if not (args.output or any(single_files.values())):
        raise InputError("Say where the result goes: --output DIR, --transform FILE or --warped FILE.")
    for what, file in single_files.items():
        require_suffix(what, file, WRITABLE_IMAGE_SUFFIXES if what == "warped image" else TRANSFORM_OUTPUTS)
    for what in ("labels", "points"):
        if getattr(args, f"guide_with_{what}") and not getattr(args, f"fixed_{what}"):
            raise InputError(f"To guide with {what}, give --fixed-{what} and --moving-{what}.")
    if has_box(args, "fixed") != has_box(args, "moving"):
        raise InputError(
            "Give --fixed-box and --moving-box around the same organ, or none of the two; in place of either, "
            "--fixed-box-mask or --moving-box-mask."
        )
    require_separate_files(args, single_files, args.output)
    settings = chosen_settings(args)
    require_encoders(settings, args.download, args.trust_model, args.quiet, needed_besides(args, settings))
    folders = [Path(args.output)] if args.output else []
    folders += [parent_of(file) for file in single_files.values() if file]

    from ..core.files import Outputs
    from .console import print_result, progress_bar

    with Outputs(*folders) as outputs:
        with progress_bar(args.quiet) as progress:
            from ..images import reading, writing
            from ..registration import ahead

            given = {name: getattr(args, name) for name in ("fixed", "moving", *READ)}
            all_read = ahead.begin(settings, **given)
            try:
                with uncollected():
                    from ..registration import pipeline  # loads torch
            finally:
                begun = all_read()
            with progress.stage("register", 0.95):
                guides = {name: getattr(args, name) for name in GUIDES}
                result = pipeline.register(**given, **guides, settings=settings, progress=progress, begun=begun)
            if args.features:
                with progress.stage("show features", 0.3):
                    show_features(result, args.features, progress)
            with progress.stage("write the results", 0.05):
                if args.transform:
                    writing.write_transform(result.transform, outputs.path(args.transform))
                if args.inverse_transform:
                    writing.write_transform(result.inverse(), outputs.path(args.inverse_transform))
                if args.warped:
                    writing.write_image(result.warped, outputs.path(args.warped))
                if args.output:
                    initial = reading.read_transform(args.initial_transform) if args.initial_transform else None
                    write_results(result, args.fixed, args.moving, Path(args.output), outputs, progress, initial)
        places = outputs.places
    if not args.quiet:
        print_result(result, places)


def needed_besides(args: argparse.Namespace, settings) -> list[str]:
    """Encoders that only boxes or ``--features`` need. Raises `InputError` where features cannot be shown."""
    if args.features and not settings.deformable:
        raise InputError("--features needs the deformable stage; leave out deformable=false.")
    segmented = any(getattr(args, f"{side}_box") and not getattr(args, f"{side}_box_mask") for side in IMAGE_ROLES)
    return [*args.features, *(["medsam-lite"] if segmented else [])]


def has_box(args: argparse.Namespace, side: str) -> bool:
    """Whether it is said what of the image ``side`` guides, by a box or by the mask of what one holds."""
    return bool(getattr(args, f"{side}_box") or getattr(args, f"{side}_box_mask"))


def show_features(result, encoders: list[str], progress) -> None:
    """Encode with each of ``encoders`` that took no part; say so where that cannot be."""
    for name in encoders:
        if name in result.features:
            continue
        if result.workspace is None:
            result.warnings.append(f"The features of {name} are not shown, because the result is the untouched start.")
            continue
        with progress.stage(f"encode {name}", 1 / len(encoders)):
            result.show_features(name, progress)


def require_separate_files(args: argparse.Namespace, files: dict[str, str | None], folder: str | None = None) -> None:
    """Raise `InputError` where two results, ``files`` and those in ``folder``, would be one file, or a result would
    replace an input or a folder."""
    from ..core.files import absolute, require_place

    places = {what: absolute(file) for what, file in files.items() if file}
    if folder:
        places |= {name: absolute(Path(folder) / name) for name in RESULT_FILES}
    seen: dict[Path, str] = {}
    for what, place in places.items():
        if place in seen:
            raise InputError(f"The {seen[place]} and the {what} cannot both be written to {place}.")
        require_place(place)
        seen[place] = what
    for name, role in FILE_ROLES.items():
        given = getattr(args, name, None)
        if given and absolute(given) in seen:
            raise InputError(f"The {seen[absolute(given)]} would replace the {role} {given}; choose another name.")


def chosen_settings(args: argparse.Namespace):
    """The preset with the changes of the command line. Raises `InputError`."""
    from ..settings import Settings

    changes: dict[str, Any] = {}
    if args.encoder:
        changes["encoders"] = args.encoder
    for name in ("device", "seed", "rigid", "affine", "anatomy"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    for item in args.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set wants KEY=VALUE, not {item!r}.")
        changes[key.strip()] = value.strip()
    return Settings.from_preset(args.preset, **changes)


def require_suffix(what: str, file: str | None, suffixes: tuple[str, ...]) -> None:
    if file and not file.lower().endswith(suffixes):
        raise InputError(f"The {what} cannot be written as {file}; use one of {' '.join(suffixes)}.")


def parent_of(file: str) -> Path:
    return Path(file).expanduser().absolute().parent


def apply(args: argparse.Namespace) -> None:
    points = args.input.lower().endswith(POINT_FILES)
    require_suffix("result", args.output, POINT_FILES if points else WRITABLE_IMAGE_SUFFIXES)
    require_separate_files(args, {"result": args.output})
    if points and args.labels:
        raise InputError("--labels is for images, and the input holds points.")
    if not points and not args.reference:
        raise InputError("An image needs --reference, the image whose grid the result gets.")

    from ..core.files import Outputs
    from ..images.reading import read_image, read_transform
    from ..images.resampling import warp
    from ..images.writing import write_image

    with Outputs(parent_of(args.output)) as outputs:
        transform = read_transform(args.transform_file)
        if points:
            apply_to_points(args, transform, outputs)
            return
        if args.inverse:
            raise InputError(
                "--inverse is for points; to carry images to the moving side, apply the file that "
                "`foundationreg register --inverse-transform FILE` writes."
            )
        image = read_image(args.input, "image")
        reference = read_image(args.reference, "reference image")
        kind = "nearest" if args.labels else "linear"
        write_image(warp(image, transform, reference, kind), outputs.path(args.output))


def apply_to_points(args: argparse.Namespace, transform, outputs) -> None:
    """Points of the moving side go to the fixed side through the inverse: a transform maps fixed to moving points."""
    from ..images.inversion import inverse_points
    from ..images.landmarks import Points, read_points, transform_points, write_points

    points = read_points(args.input)
    if args.inverse:
        moved = transform_points(points, transform)
    else:
        places, found = inverse_points(transform, points.array)
        moved = Points(places, points.labels)
        if not found.all():
            missing = f"{(~found).sum()} of {len(found)} points lie where the transform has no inverse."
            print(f"Warning: {missing}", file=sys.stderr)
    write_points(moved, outputs.path(args.output))


def evaluate(args: argparse.Namespace) -> None:
    for what in ("labels", "points"):
        sides = [getattr(args, f"{side}_{what}") for side in ("fixed", "moving")]
        if bool(sides[0]) != bool(sides[1]):
            raise InputError(f"To measure with {what}, give --fixed-{what} and --moving-{what}.")

    import SimpleITK as sitk

    from ..evaluation import metrics
    from ..images.landmarks import read_points
    from ..images.reading import read_image, read_transform
    from .console import metrics_table, output

    given: dict[str, Any] = {"fixed": read_image(args.fixed, "fixed image")}
    given["moving"] = read_image(args.moving, "moving image")
    for side in ("fixed", "moving"):
        if file := getattr(args, f"{side}_labels"):
            given[f"{side}_labels"] = read_image(file, f"labels of the {side} image")
        if file := getattr(args, f"{side}_points"):
            given[f"{side}_points"] = read_points(file).array
    scores = {"before": metrics.evaluate(transform=sitk.Transform(3, sitk.sitkIdentity), **given)}
    if args.transform_file:
        scores["after"] = metrics.evaluate(transform=read_transform(args.transform_file), **given)
    if args.json:
        print(json.dumps(plain(scores), indent=2, allow_nan=False))
    else:
        output().print(metrics_table(**scores))


def presets(args: argparse.Namespace) -> None:
    from ..settings import Settings, preset_names, read_preset

    if args.name:
        print(json.dumps(Settings.from_preset(args.name).to_dict(), indent=2))
        return
    from .console import print_presets

    print_presets({name: read_preset(name) for name in preset_names()})


def demo(args: argparse.Namespace) -> None:
    from .demo import run

    run(Path(args.output))
