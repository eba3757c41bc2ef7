"""Which encoders can run, and the folder with their weights; nothing here needs the network or the libraries."""

from __future__ import annotations

import enum
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from ...weights import store, trust
from ...weights.catalogue import catalogue, entry

FOLDER_SETTING = "FoundationReg/ModelsFolder"


class Availability(enum.Enum):
    """What an encoder needs before it can run; ``DOWNLOAD`` and ``FILE`` as in `weights.status`."""

    READY = "ready"
    DOWNLOAD = "download"
    FILE = "file"
    CONSENT = "consent"  # a program of the user's own that is not trusted
    GONE = "gone"  # a model of the user's own that is not there any more
    UNKNOWN = "unknown"  # the packages that know the folder of the weights are not installed yet


@dataclass(frozen=True)
class Encoder:
    """An encoder as the panel shows it.

    ``bytes``: of its weights, 0 when not known. ``file``: the name under which its weights are published, empty when
    it has none. ``page``: tells how to get those that no download brings. ``own``: the place of a model of the user's
    own. ``family``: as in the catalogue, or "folder" for a transformers folder of the user's own.
    """

    id: str
    title: str
    availability: Availability
    bytes: int = 0
    licence: str = ""
    suits: str = ""
    file: str = ""
    page: str = ""
    own: Path | None = None
    family: str = ""


def folder() -> Path | None:
    """The folder with the weights; None as long as the packages that know the standard place are not installed."""
    try:
        return store.models_folder()
    except ImportError:
        return None


def encoder(name: str) -> Encoder:
    """The encoder ``name``, of the catalogue or the path of the user's own, and whether it can run.

    Raises `InputError` for what is neither.
    """
    if is_path(name):
        family = "folder" if Path(name).is_dir() else ""
        return Encoder(name, Path(name).name, _availability_of_own(Path(name)), own=Path(name), family=family)
    item = entry(name)
    if item.weights is None:
        return Encoder(name, item.title, Availability.READY, suits=item.suits)
    if folder() is None:
        availability = Availability.FILE if store.by_hand(item) else Availability.UNKNOWN
    else:
        state = store.status(item)
        availability = Availability.READY if state["ready"] else Availability(state["needs"])
    source = item.weights
    return Encoder(
        name,
        item.title,
        availability,
        source.bytes,
        item.licence,
        item.suits,
        source.file,
        source.page,
        family=item.family,
    )


def encoders() -> list[Encoder]:
    """All encoders of the catalogue, in its order; anatomy networks are none."""
    return [encoder(name) for name, item in catalogue().items() if not item.names_anatomy]


def networks() -> list[Encoder]:
    """All anatomy networks of the catalogue, in its order."""
    return [encoder(name) for name, item in catalogue().items() if item.names_anatomy]


def network(name: str) -> Encoder:
    """The anatomy network ``name``: of the catalogue, or the JSON file that describes the user's own, which is a
    program that needs a yes. What is wrong with the description, the registration says."""
    if name in catalogue():
        return encoder(name)
    path = Path(name)
    try:
        file = path.parent / str(json.loads(path.read_text(encoding="utf-8"))["file"])
    except (OSError, ValueError, TypeError, KeyError):
        return Encoder(name, path.name, Availability.READY if path.is_file() else Availability.GONE, own=path)
    return Encoder(name, path.name, _availability_of_own(file), own=file)


def is_path(name: str) -> bool:
    """Whether ``name`` is the place of a model of the user's own, there or not."""
    return bool(name) and name not in catalogue() and Path(name).is_absolute()


def _availability_of_own(path: Path) -> Availability:
    if not path.exists():
        return Availability.GONE
    trusted = path.is_dir() or (folder() is not None and trust.is_trusted(path))
    return Availability.READY if trusted else Availability.CONSENT


def installed_bytes() -> int:
    """Size of all that lies in the folder of weights."""
    place = folder()
    if place is None or not place.is_dir():
        return 0
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


def clear() -> None:
    """Remove the weights of all encoders of the catalogue; other files in the folder stay."""
    place = folder()
    if place is not None:
        for name in catalogue():
            shutil.rmtree(place / name, ignore_errors=True)


def megabytes(count: int) -> str:
    """A size for people: "39 MB", "1.3 GB"; a question mark when it is not known."""
    if not count:
        return "? MB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
