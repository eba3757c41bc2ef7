"""The command `encoders`, and what other commands ask about encoders: weights, licences, consent to run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError, WeightsError


def require_encoders(
    settings, download: bool, trust_model: bool, quiet: bool = False, also: Iterable[str] = ()
) -> None:
    """Raise for an unknown encoder, for missing weights, unless ``download`` allows to fetch them now, and for a
    program of the user's own that is not trusted. ``also``: encoders that are needed besides those of ``settings``."""
    from ..encoders.anatomy_loading import own_description
    from ..weights import store
    from ..weights.catalogue import entry, own_model

    names = list(dict.fromkeys([*(name for name, _ in settings.encoders), *also]))
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
        print(f"{item.title} is ready: {take_in(item.id, args.input)}")
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
    from ..weights import acquisition, store
    from ..weights.catalogue import entry
    from .console import progress_bar
    from .loading import build_network

    with progress_bar(quiet) as progress:
        acquisition.download(id, build_network, entry(id).licence not in store.OPEN_LICENCES, progress)


def take_in(id: str, path: Path) -> Path:
    """Import the weights of one encoder from a file or folder; returns their new path."""
    from ..weights import acquisition
    from .loading import build_network

    return acquisition.import_file(id, path, build_network)
