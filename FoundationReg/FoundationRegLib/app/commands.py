"""What each command of the command line does. Functions are named after their command and take its arguments."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.formats import WRITABLE_IMAGE_SUFFIXES, WRITABLE_TRANSFORM_SUFFIXES
from ..errors import InputError, WeightsError
from .cli import FILE_ROLES

TRANSFORM_OUTPUTS = (*WRITABLE_TRANSFORM_SUFFIXES, *WRITABLE_IMAGE_SUFFIXES)
POINT_FILES = (".csv", ".fcsv", ".json")
RESULT_FILES = ("transform.h5", "warped.nii.gz", "jacobian.nii.gz", "warped_labels.nii.gz", "report.html",
                "result.json")  # fmt: skip
GUIDES = (
    *("initial_transform", "fixed_mask", "moving_mask", "exclude_fixed", "exclude_moving"),
    *("fixed_labels", "moving_labels", "fixed_points", "moving_points", "guide_with_labels", "guide_with_points"),
    *("fixed_box", "moving_box"),
)


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
    if bool(args.fixed_box) != bool(args.moving_box):
        raise InputError("Give --fixed-box and --moving-box around the same organ, or none of the two.")
    require_separate_files(args, single_files)
    settings = chosen_settings(args)
    require_encoders(settings, args.download, args.trust_model, args.quiet)
    folders = [Path(args.output)] if args.output else []
    folders += [parent_of(file) for file in single_files.values() if file]

    from ..core.files import Outputs
    from .console import print_result, progress_bar

    with Outputs(*folders) as outputs:
        with progress_bar(args.quiet) as progress:
            from ..images import reading, writing
            from ..registration import pipeline

            with progress.stage("register", 0.95):
                guides = {name: getattr(args, name) for name in GUIDES}
                result = pipeline.register(args.fixed, args.moving, settings, progress=progress, **guides)
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


def require_separate_files(args: argparse.Namespace, single_files: dict[str, str | None]) -> None:
    """Raise `InputError` where two results would be one file, or a result would replace an input."""
    from ..core.files import absolute

    places = {what: absolute(file) for what, file in single_files.items() if file}
    if args.output:
        places |= {name: absolute(Path(args.output) / name) for name in RESULT_FILES}
    seen: dict[Path, str] = {}
    for what, place in places.items():
        if place in seen:
            raise InputError(f"The {seen[place]} and the {what} cannot both be written to {place}.")
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


def require_encoders(settings, download: bool, trust_model: bool, quiet: bool = False) -> None:
    """Raise for an unknown encoder, for missing weights, unless ``download`` allows to fetch them now, and for a
    program of the user's own that is not trusted."""
    from ..encoders.anatomy_loading import own_description
    from ..weights import store
    from ..weights.catalogue import entry, own_model

    names = [name for name, _ in settings.encoders]
    if settings.anatomy:
        if own := own_description(settings.anatomy):
            agree_to_run(own.file, trust_model)
        else:
            names.append(settings.anatomy)
    for name in names:
        if path := own_model(name):
            agree_to_run(path, trust_model)
            continue
        item = entry(name)
        state = store.status(item)
        if state["ready"]:
            continue
        by_hand = state["needs"] == "file"
        if by_hand or not download:
            hint = "" if by_hand else f"{facts_of(item)}, or add --download"
            raise WeightsError(f"The weights of {item.title} are not on this computer: {store.how_to_get(item)}{hint}")
        agree_to_licence(item, False)
        fetch(item.id, quiet)


def agree_to_run(path: Path, trusted: bool) -> None:
    """Ask before a TorchScript file runs, unless its content was trusted before. Raises `InputError` without a yes."""
    from ..weights import trust

    path = trust.checked(path)
    if trust.is_trusted(path):
        return
    shown = trust.digest(path)
    question = trust.question(path, shown)
    if not trusted:
        if not sys.stdin.isatty():
            raise InputError(f"{question} If you trust where it comes from, add --trust-model.")
        if not said_yes(f"{question}\nDo you trust where it comes from, and may it run? [y/N] "):
            raise InputError(f"{path} was not run.")
    trust.trust(path, shown)


def said_yes(question: str) -> bool:
    return input(question).strip().lower() in ("y", "yes")


def facts_of(item) -> str:
    """Size and licence of an entry's weights in brackets, as far as they are known."""
    facts = [f"{item.weights.bytes / 1e6:,.0f} MB"] * bool(item.weights.bytes) + [item.licence] * bool(item.licence)
    return f" ({', '.join(facts)})" if facts else ""


def require_suffix(what: str, file: str | None, suffixes: tuple[str, ...]) -> None:
    if file and not file.lower().endswith(suffixes):
        raise InputError(f"The {what} cannot be written as {file}; use one of {' '.join(suffixes)}.")


def parent_of(file: str) -> Path:
    return Path(file).expanduser().absolute().parent


def write_results(result, fixed: str, moving: str, folder: Path, outputs, progress, initial=None) -> None:
    """Every file of a registration for ``folder``, into the places that ``outputs`` gives.

    ``fixed`` and ``moving`` are the images' paths, ``initial`` the initial transform, for the report.
    """
    from ..images.writing import write_image, write_transform
    from ..reporting.report import write_report

    write_transform(result.transform, outputs.path(folder / "transform.h5"))
    progress.update(0.2)
    write_image(result.warped, outputs.path(folder / "warped.nii.gz"))
    write_image(result.jacobian(), outputs.path(folder / "jacobian.nii.gz"))
    if result.warped_labels is not None:
        write_image(result.warped_labels, outputs.path(folder / "warped_labels.nii.gz"))
    elif (folder / "result.json").exists():  # an earlier run's labels would be taken for this one's
        outputs.drop(folder / "warped_labels.nii.gz")
    write_segmentations(result, folder, outputs)
    progress.update(0.5)
    write_report(result, outputs.path(folder / "report.html"), Path(fixed).name, Path(moving).name, initial)
    record = {
        "foundationreg": __version__,
        "fixed": str(fixed),
        "moving": str(moving),
        "quality": result.quality,
        "warnings": result.warnings,
        "metrics": result.metrics,
        "record": result.record,
        "files": [place.name for place in outputs.places],
    }
    text = json.dumps(plain(record), indent=2, allow_nan=False)
    outputs.path(folder / "result.json").write_text(text + "\n", encoding="utf-8")


def write_segmentations(result, folder: Path, outputs) -> None:
    """Predicted regions and the boxes' masks of both images; an earlier run's are deleted where there are none now."""
    from ..images.writing import write_image

    regions, masks = result.regions, result.box_masks
    found: dict[str, Any] = {}
    for n, side in enumerate(("fixed", "moving")):
        found[f"{side}_predicted.nii.gz"] = getattr(regions, side).labels if regions else None
        found[f"{side}_box_mask.nii.gz"] = masks[n] if masks else None
    for name, image in found.items():
        if image is not None:
            write_image(image, outputs.path(folder / name))
        elif (folder / "result.json").exists():
            outputs.drop(folder / name)
    names = folder / "predicted_names.json"
    if regions:
        content = {
            "network": regions.network,
            "note": "Predicted by a network, not drawn by a person.",
            "believed": regions.believed,
            "names": {str(number): name for number, name in enumerate(regions.fixed.names, 1)},
        }
        outputs.path(names).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    elif (folder / "result.json").exists():
        outputs.drop(names)


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it; what is not a finite number becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def apply(args: argparse.Namespace) -> None:
    points = args.input.lower().endswith(POINT_FILES)
    require_suffix("result", args.output, POINT_FILES if points else WRITABLE_IMAGE_SUFFIXES)
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


def encoders(args: argparse.Namespace) -> None:
    from ..weights import store, trust
    from ..weights.catalogue import catalogue, entry

    if args.action == "list":
        from .console import print_encoders

        states = [store.status(item) for item in catalogue().values()]
        print_encoders(states, store.models_folder(), [facts["file"] for facts in trust.trusted().values()])
        return
    if args.action in ("trust", "distrust"):
        trust_or_not(args.model, args.action == "trust")
        return
    if args.action == "verify":
        verify([entry(args.id)] if args.id else [item for item in catalogue().values() if store.installed(item)])
        return
    item = entry(args.id)
    if args.action == "download":
        if not store.status(item)["ready"]:
            agree_to_licence(item, args.accept_licence)
            fetch(item.id)
        print(f"{item.title} is ready.")
    elif args.action == "import":
        print(f"{item.title} is ready: {store.import_file(item.id, args.input)}")
    else:
        store.remove(item.id)
        print(f"The weights of {item.title} were removed.")


def verify(items: list) -> None:
    """Read the weights of ``items`` again. Raises `WeightsError` at the end when some are not what they were."""
    from ..weights import store

    wrong = []
    for item in items:
        try:
            digest = store.verify(item.id)
            print(f"{item.title}: SHA256 {digest}, as {store.status(item)['hash'] or 'recorded'}.")
        except WeightsError as error:
            wrong.append(str(error))
    if wrong:
        raise WeightsError(" ".join(wrong))


def trust_or_not(model: str, yes: bool) -> None:
    """Remember or forget that the user trusts a TorchScript file, for every later run with this folder of weights."""
    from ..weights import trust

    if not yes:
        trust.distrust(model)
        print(f"{model} will not be run any more.")
        return
    path = trust.checked(model)
    if path.is_dir():
        raise InputError(f"{path} is a folder; it is only read, never run, and needs no trust.")
    print(f"{path} (SHA256 {trust.keep(path)}) may run: --encoder {path}")


def agree_to_licence(item, accepted: bool) -> None:
    """Ask once before weights with a licence beyond the usual open ones are fetched. Raises `WeightsError`."""
    from ..weights import store

    if accepted or item.weights is None or item.licence in store.OPEN_LICENCES or store.licence_accepted(item):
        return
    about = f"{item.title}{facts_of(item)} has the licence {item.licence or 'unknown'}"
    about += f", see {item.licence_url}" if item.licence_url else ""
    if not sys.stdin.isatty():
        raise WeightsError(f"{about}; to agree: foundationreg encoders download {item.id} --accept-licence")
    if not said_yes(f"{about}.\nDo you agree, and shall it be downloaded? [y/N] "):
        raise WeightsError(f"The weights of {item.title} were not downloaded.")


def fetch(id: str, quiet: bool = False) -> None:
    """Download the weights of one encoder, whose licence the user agreed to where it asks for that, with a progress
    bar."""
    from ..weights import store
    from ..weights.catalogue import entry
    from .console import progress_bar

    with progress_bar(quiet) as progress:
        store.download(id, accept_licence=entry(id).licence not in store.OPEN_LICENCES, progress=progress)


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


def batch(args: argparse.Namespace) -> None:
    from .batch_commands import batch

    batch(args)


def compare(args: argparse.Namespace) -> None:
    from .batch_commands import compare

    compare(args)


def sequence(args: argparse.Namespace) -> None:
    from .batch_commands import sequence

    sequence(args)
