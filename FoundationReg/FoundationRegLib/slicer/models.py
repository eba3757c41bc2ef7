"""Which encoders can run, and the folder with their weights; nothing here needs the network or the libraries."""

from __future__ import annotations

import enum
import shutil
from dataclasses import dataclass
from pathlib import Path

from .. import weights
from ..encoders.catalogue import Entry, catalogue, entry

FOLDER_SETTING = "FoundationReg/ModelsFolder"


class Availability(enum.Enum):
    """What an encoder needs before it can run."""

    READY = "ready"
    DOWNLOAD = "download"
    FILE = "file"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Encoder:
    """An encoder as the panel shows it."""

    id: str
    title: str
    entry: Entry
    availability: Availability

    @property
    def bytes(self) -> int:
        """Size of the download; 0 when the catalogue does not know it."""
        return (self.entry.weights.bytes or 0) if self.entry.weights else 0

    @property
    def licence(self) -> str:
        return self.entry.licence or ""


def folder() -> Path | None:
    """The folder with the weights; None as long as the packages that know the standard place are not installed."""
    try:
        return weights.models_folder()
    except ImportError:
        return None


def encoder(name: str) -> Encoder:
    """The encoder ``name`` and whether it can run. Raises `InputError` when the catalogue does not have it."""
    item = entry(name)
    return Encoder(item.id, item.title, item, _availability(item))


def encoders() -> list[Encoder]:
    """All encoders of the catalogue, in its order."""
    return [encoder(name) for name in catalogue()]


def _availability(item: Entry) -> Availability:
    if item.weights is None:
        return Availability.READY
    place = folder()
    if place is not None and weights.installed(item) is not None:
        return Availability.READY
    if item.gated or item.weights.source == "manual":
        return Availability.FILE
    return Availability.UNKNOWN if place is None else Availability.DOWNLOAD


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
