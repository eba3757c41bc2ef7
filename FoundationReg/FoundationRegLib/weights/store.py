"""Finds and checks the files with the encoders' weights; `acquisition` brings them here.

Every encoder has a folder of its own in `models_folder`, with the file and a small record: its hash, where it came
from, and that its licence was accepted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..core.files import replacing
from ..core.resources import cache_path
from ..errors import InputError, WeightsError
from .catalogue import Entry, catalogue, entry
from .wheels import sha256

RECORD = "record.json"
# Licences that allow any use and ask for no consent.
OPEN_LICENCES = ("Apache-2.0", "MIT", "BSD-3-Clause")
_folder: Path | None = None

__all__ = [
    "catalogue", "ensure", "installed", "licence_accepted", "models_folder", "offline", "remove", "set_models_folder",
    "status", "verify",
]  # fmt: skip


def models_folder() -> Path:
    """Where weights lie: what `set_models_folder` chose, else the environment variable FOUNDATIONREG_MODELS, else
    `cache_path`."""
    if _folder is not None:
        return _folder
    if chosen := os.environ.get("FOUNDATIONREG_MODELS"):
        return Path(chosen).expanduser()
    return cache_path("models")


def set_models_folder(path: str | Path | None) -> None:
    """Keep weights in ``path`` in this process; None goes back to the environment's or the standard place."""
    global _folder
    _folder = Path(path).expanduser() if path else None


def offline() -> bool:
    """Whether the user forbids the network: FOUNDATIONREG_OFFLINE or HF_HUB_OFFLINE is set to other than 0."""
    return any(
        os.environ.get(name, "0").lower() not in ("", "0", "false", "no")
        for name in ("FOUNDATIONREG_OFFLINE", "HF_HUB_OFFLINE")
    )


def installed(item: Entry) -> Path | None:
    """The encoder's file: in `models_folder`, else in the cache of Hugging Face's hub. None when it is in neither."""
    if item.weights is None:
        return None
    path = models_folder() / item.id / item.weights.file
    return path if path.is_file() else _in_hub_cache(item)


def status(item: Entry | str) -> dict[str, Any]:
    """What a list of encoders shows of one: plain values that JSON can hold.

    ``ready``: it can run now. ``needs``: a ``download``, a ``file`` that the user gets by hand, or nothing (empty).
    ``source``: ``none`` needed, else as in `Weights`. ``hash``: ``published``, ``recorded`` (first seen here) or empty.
    ``bytes``: of the file here, or of the download. ``seconds_cpu``: as of `Entry`.
    """
    item = entry(item) if isinstance(item, str) else item
    path, record = installed(item), read_record(item)
    known = item.weights is not None and record.get("sha256") and record["sha256"] == item.weights.sha256
    return {
        "id": item.id,
        "title": item.title,
        "family": item.family,
        "suits": item.suits,
        "ready": item.weights is None or path is not None,
        "needs": "" if item.weights is None or path is not None else "file" if by_hand(item) else "download",
        "source": item.weights.source if item.weights else "none",
        "page": item.weights.page if item.weights else "",
        "file": str(path) if path else "",
        "bytes": path.stat().st_size if path else item.weights.bytes if item.weights else 0,
        "sha256": record.get("sha256", ""),
        "hash": "published" if known else "recorded" if record.get("sha256") else "",
        "licence": item.licence,
        "licence_url": item.licence_url,
        "licence_accepted": licence_accepted(item),
        "gated": item.gated,
        "seconds_cpu": item.seconds_cpu,
    }


def licence_accepted(item: Entry) -> bool:
    """Whether the user said yes to this licence of this encoder before."""
    return read_record(item).get("licence_accepted", {}).get("licence") == item.licence


def ensure(item: Entry) -> tuple[Path, str]:
    """The path and SHA256 of the encoder's checked weights. Nothing is fetched.

    Raises `WeightsError` when they are absent, damaged or not the published ones.
    """
    require(item)
    path = installed(item)
    return path, check(item, path)


def require(item: Entry) -> None:
    """Raise `WeightsError` when the encoder's weights are not on this computer."""
    if item.weights is not None and installed(item) is None:
        raise WeightsError(f"The weights of {item.title} are not on this computer: {how_to_get(item)}")


def remove(id: str) -> None:
    """Delete the encoder's weights and record. What lies in the cache of Hugging Face's hub stays."""
    shutil.rmtree(models_folder() / entry(id).id, ignore_errors=True)


def verify(id: str) -> str:
    """Read the encoder's file again and compare its hash with the published or the recorded one. Returns the SHA256.

    Raises `WeightsError` when it is absent or has changed.
    """
    item = entry(id)
    if item.weights is None:
        raise InputError(f"{item.title} needs no weights.")
    path = installed(item)
    if path is None:
        raise WeightsError(f"The weights of {item.title} are not on this computer: {how_to_get(item)}")
    return check(item, path, again=True)


def check(item: Entry, path: Path, again: bool = False) -> str:
    """The SHA256 of ``path``, compared with the published or first recorded one. Raises `WeightsError`.

    A file that was checked before and has the same size and time since is not read again unless ``again``.
    """
    record = read_record(item)
    if not again and record.get("checked") == mark(path) and record.get("sha256"):
        return record["sha256"]
    digest = sha256(path)
    alternative = record.get("alternative", False) or models_folder() not in path.parents
    expected = record.get("sha256", "") if alternative or not item.weights.sha256 else item.weights.sha256
    if (expected and digest != expected) or not (alternative or digest.startswith(item.weights.sha256_prefix)):
        known = "published" if expected == item.weights.sha256 else "first seen"
        raise WeightsError(
            f"The weights of {item.title} in {path} are damaged or not the {known} ones (SHA256 {digest[:12]}..., "
            f"expected {(expected or item.weights.sha256_prefix)[:12]}...). To fetch them anew: foundationreg encoders "
            f"remove {item.id}"
        )
    write_record(item, sha256=digest, checked=mark(path))
    return digest


def how_to_get(item: Entry) -> str:
    """What the user can do to get the weights, as the end of a sentence."""
    by_hand = f"foundationreg encoders import {item.id} FILE"
    if item.gated:
        return f"ask its owner for access at {item.weights.page}, then {by_hand}, or set HF_TOKEN and download."
    if item.weights.source == "manual":
        return f"get {item.weights.file} as described at {item.weights.page}, then {by_hand}"
    return f"foundationreg encoders download {item.id}"


def by_hand(item: Entry) -> bool:
    """Whether the user gets the weights from their owner and imports them."""
    return item.gated or item.weights.source == "manual"


def read_record(item: Entry) -> dict[str, Any]:
    """What is written down of the encoder's file; values of another kind than `write_record` gives are left out."""
    try:
        record = json.loads((models_folder() / item.id / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    kinds = {"sha256": str, "checked": list, "origin": str, "alternative": bool, "licence_accepted": dict}
    if not isinstance(record, dict):
        return {}
    return {name: record[name] for name, kind in kinds.items() if isinstance(record.get(name), kind)}


def write_record(item: Entry, **changes: Any) -> None:
    """Change the named values of the encoder's record. A folder that cannot be written to is no error."""
    path = models_folder() / item.id / RECORD
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({**read_record(item), **changes}, indent=2), encoding="utf-8")


def _in_hub_cache(item: Entry) -> Path | None:
    """The model's file in the cache of Hugging Face's hub, which other programs fill."""
    if not item.weights.repository:
        return None
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    model = cache / f"models--{item.weights.repository.replace('/', '--')}"
    try:
        snapshot = model / "snapshots" / (model / "refs" / "main").read_text(encoding="utf-8").strip()
        return file_in_folder(snapshot, (item.weights.file, "model.safetensors", "pytorch_model.bin"))
    except (OSError, InputError):
        return None


def file_in_folder(folder: Path, names: tuple[str, ...]) -> Path:
    """The weights in a folder under the first of ``names`` that is there. Raises `InputError` when there is none."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"The folder {folder} holds none of {', '.join(names)}.")


def mark(path: Path) -> list[int]:
    """Size and time of a file, by which a changed one is recognised without reading it."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
