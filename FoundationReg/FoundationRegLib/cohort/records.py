"""Where the results of a run lie, and how a finished one is known again: by the hash of its inputs and settings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__

RESULT_FILE = "result.json"
_STAGING = ".unfinished-"
_REPLACED = ".replaced-"
# They change how fast a result comes, not what it is.
_WITHOUT_EFFECT = ("threads",)


@dataclass(frozen=True)
class Layout:
    """The folders of a run below ``root``; everything of a pair and a variant lies in one folder."""

    root: Path

    def result(self, pair: str, variant: str) -> Path:
        return self.root / "pairs" / pair / variant

    @property
    def attempts(self) -> Path:
        """Files that say which pairs are being worked on now."""
        return self.root / ".attempts"

    @property
    def features(self) -> Path:
        return self.root / "features"


def file_state(path: str) -> list:
    """Size and time of change of a file, or of every file of a folder. Raises `OSError` when it is not there."""
    place = Path(path)
    if place.is_dir():
        return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(place.iterdir()) if p.is_file()]
    facts = place.stat()
    return [facts.st_size, facts.st_mtime_ns]


def file_digest(path: str) -> str:
    """SHA256 of a file's content, or of the files in a folder."""
    place = Path(path)
    if not place.is_dir():
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for part in sorted(place.iterdir()):
        if part.is_file():
            whole.update(f"{part.name}\0{file_digest(str(part))}\n".encode())
    return whole.hexdigest()


def described(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What is remembered of each input: path, state and SHA256. Reads every file. Raises `OSError`."""
    return {
        role: {"path": path, "state": file_state(path), "sha256": file_digest(path)} for role, path in files.items()
    }


def result_key(inputs: dict[str, dict[str, Any]], settings: dict[str, Any], produce: str) -> str:
    """Hash of what a result depends on: content of the inputs, settings, and the version that made it."""
    chosen = {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}
    content = {role: facts["sha256"] for role, facts in sorted(inputs.items())}
    text = json.dumps([__version__, produce, content, chosen], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def own_models(settings: dict[str, Any]) -> dict[str, str]:
    """Files of the user's own networks among the encoders: they are inputs too."""
    names = [name for name, _ in settings.get("encoders", ())]
    return {f"encoder {n}": name for n, name in enumerate(names) if os.path.exists(name)}


def read_finished(folder: Path, files: dict[str, str], settings: dict[str, Any], produce: str) -> dict[str, Any] | None:
    """The record in ``folder`` if it is that of these inputs and settings, else None.

    Files whose size and time have not changed are not read again. Only whole results have a record, since a result's
    folder gets its name when everything is in it.
    """
    try:
        record = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        cohort = record["cohort"]
        known = cohort["inputs"]
        files = {**files, **own_models(settings)}
        if set(known) != set(files):
            return None
        inputs = {}
        for role, path in files.items():
            same = known[role]["path"] == path and known[role]["state"] == file_state(path)
            inputs[role] = {"sha256": known[role]["sha256"] if same else file_digest(path)}
        return record if cohort["key"] == result_key(inputs, settings, produce) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class StagedFolder:
    """A folder that gets its name, in place of an older one, when the ``with`` block ends well; else it is removed."""

    def __init__(self, place: Path):
        self.place = place
        self.path = place.with_name(f"{_STAGING}{place.name}-{uuid.uuid4().hex[:8]}")

    def __enter__(self) -> Path:
        self.path.mkdir(parents=True)
        return self.path

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if error is None:
                self._put_in_place()
        finally:
            shutil.rmtree(self.path, ignore_errors=True)

    def _put_in_place(self) -> None:
        _flush(self.path)
        old = self.place.with_name(f"{_REPLACED}{self.place.name}-{uuid.uuid4().hex[:8]}")
        if self.place.exists():
            os.rename(self.place, old)
        os.rename(self.path, self.place)
        shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Bring the record to the disk before its folder gets a name: after a power cut it would be an empty file."""
    record = folder / RESULT_FILE
    if record.exists() and hasattr(os, "fsync"):
        with record.open("rb+") as file:
            os.fsync(file.fileno())


def remove_leftovers(layout: Layout) -> None:
    """Delete what an interrupted run left half done. No other run may be at work in the folder."""
    shutil.rmtree(layout.attempts, ignore_errors=True)
    pairs = layout.root / "pairs"
    if not pairs.is_dir():
        return
    for pair in os.scandir(pairs):
        if pair.is_dir(follow_symlinks=False):
            for entry in os.scandir(pair.path):
                if entry.name.startswith((_STAGING, _REPLACED)):
                    shutil.rmtree(entry.path, ignore_errors=True)


class Attempts:
    """Who works on a result now. A note that stays behind tells of a worker that died over it.

    Notes are files beside the results, so they count the same on every kind of cluster.
    """

    def __init__(self, layout: Layout, pair: str, variant: str):
        self._folder = layout.attempts
        self._prefix = hashlib.sha256(f"{pair}\0{variant}".encode()).hexdigest()[:24] + "-"
        self._own: Path | None = None

    def deaths(self) -> int:
        """Workers that ended while they worked on this. Counts those at work too: ask when nobody is."""
        try:
            return sum(entry.name.startswith(self._prefix) for entry in os.scandir(self._folder))
        except FileNotFoundError:
            return 0

    def __enter__(self) -> Attempts:
        self._folder.mkdir(exist_ok=True)
        self._own = self._folder / f"{self._prefix}{uuid.uuid4().hex[:8]}"
        self._own.touch()
        return self

    def __exit__(self, *_) -> None:
        self._own.unlink(missing_ok=True)
