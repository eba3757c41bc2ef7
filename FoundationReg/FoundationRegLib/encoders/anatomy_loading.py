"""Builds anatomy networks from the catalogue, or from your own TorchScript file and its class list.

Your own network is described by a JSON file::

    {"file": "network.pt",
     "classes": ["background", "liver", "spleen"],
     "frame": {"axes": "RAS", "spacing": 1.5, "window": [-1000, 1000], "multiple": 16}}

``file`` lies beside it; it takes (1, 1, D, H, W) and gives logits (1, classes, D, H, W). ``frame`` has the fields of
`anatomy.Frame`. TorchScript is code and runs only when you trust it.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.progress import Progress
from ..errors import InputError, WeightsError
from ..weights import store, trust
from ..weights.catalogue import Entry, catalogue, entry
from ..weights.checkpoints import first_line
from .anatomy import AnatomyNetwork, Frame

# Numbers that a network of unknown kind may hold per voxel at its peak.
_UNKNOWN_VALUES = 256


@dataclass(frozen=True)
class Description:
    """An anatomy network of your own, as its JSON file says."""

    path: Path
    file: Path
    classes: tuple[str, ...]
    frame: Frame


def anatomy_names() -> list[str]:
    """Ids of the catalogue's anatomy networks."""
    return [item.id for item in catalogue().values() if item.names_anatomy]


def own_description(id: str) -> Description | None:
    """What the JSON file ``id`` says of your own network; None when the catalogue has ``id``.

    Raises `InputError` for an unknown id, and for a file that is not there or says something else.
    """
    if id in anatomy_names():
        return None
    path = Path(id).expanduser()
    if path.suffix.lower() != ".json":
        near = f"use {', '.join(anatomy_names())}, or the JSON file that describes your own"
        raise InputError(f"There is no anatomy network {id!r}; {near}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"The description of the anatomy network {path} does not exist.") from None
    except ValueError as error:
        raise InputError(f"The description of the anatomy network {path} is not valid JSON: {error}.") from None
    return _checked(path, content)


def _checked(path: Path, content: Any) -> Description:
    if not isinstance(content, dict) or set(content) != {"file", "classes", "frame"}:
        raise InputError(f"The description of the anatomy network {path} needs file, classes and frame, nothing else.")
    classes, frame = content["classes"], content["frame"]
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise InputError(f"The classes in {path} must be a list of names, the background first.")
    if len(set(classes)) < len(classes):
        raise InputError(f"The classes in {path} must have different names.")
    if not isinstance(frame, dict):
        raise InputError(f"The frame in {path} must be a table of axes, spacing or size, and grey values.")
    file = path.parent / str(content["file"])
    if not file.is_file():
        raise InputError(f"The network {file}, which {path} names, does not exist.")
    return Description(path, file, tuple(classes), Frame.from_dict(frame))


def require_anatomy(id: str) -> None:
    """Raise, before any long work, what `load_anatomy` would: for an unknown network, for weights that are not here,
    for a network of your own that is not trusted."""
    if own := own_description(id):
        trust.require(own.file)
        return
    store.require(entry(id))


def anatomy_fingerprint(id: str) -> str:
    """Names the state of the network's files; it changes when one of them does. Nothing is read but a description."""
    own = own_description(id)
    files = [own.path, own.file] if own else [path for path in [store.installed(entry(id))] if path]
    return str([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def load_anatomy(id: str, device: str | torch.device = "cpu", progress: Progress | None = None) -> AnatomyNetwork:
    """The anatomy network ``id`` of the catalogue, or of the JSON file ``id``, with its weights checked.

    Raises `InputError` for an unknown network, `WeightsError` for absent, damaged or misfit weights.
    """
    target = torch.device(device)
    if own := own_description(id):
        network, digest = _trusted_network(own.file, target)
        return AnatomyNetwork(
            own.path.stem, network, own.frame, own.classes, digest, device=target, values_per_voxel=_UNKNOWN_VALUES
        )
    item = entry(id)
    path, digest = store.ensure(item)
    network = build_anatomy(item, path)
    return AnatomyNetwork(
        id, network, Frame.from_dict(item.options["frame"]), item.options["classes"], digest, device=target,
        reach=getattr(network, "reach", None), values_per_voxel=getattr(network, "values_per_voxel", _UNKNOWN_VALUES),
    )  # fmt: skip


def _trusted_network(file: Path, device: torch.device) -> tuple[nn.Module, str]:
    """The TorchScript network in the very bytes that the user trusts, and their SHA256."""
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in trust.trusted():
        trust.require(file)
        raise InputError(f"{file} changed while it was read; try again.")
    try:
        return torch.jit.load(io.BytesIO(content), map_location=device), digest
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read as TorchScript: {first_line(error)}") from None


def build_anatomy(item: Entry, path: Path) -> nn.Module:
    """The network of a catalogue entry with the weights in ``path``. Raises `WeightsError` for a file that misfits."""
    if item.family == "meshnet":
        from .meshnet import build_meshnet

        return build_meshnet(path, item.options["network"])
    from .obelisk import build_obelisk

    return build_obelisk(path, item.options["network"]["kind"])
