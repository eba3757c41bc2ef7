"""Presets of the user's own: files as those that ship, in a folder of the user's."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import qt
from slicer.i18n import tr as _

from ...core.files import replacing
from ...errors import InputError
from ...settings import Settings, read_preset


def folder() -> Path:
    """Where they lie: the environment variable FOUNDATIONREG_PRESETS, else the user's place for application data."""
    chosen = os.environ.get("FOUNDATIONREG_PRESETS")
    if chosen:
        return Path(chosen).expanduser()
    place = qt.QStandardPaths.writableLocation(qt.QStandardPaths.GenericDataLocation)
    return Path(place) / "foundationreg" / "presets"


def names() -> list[str]:
    """Their paths, which stand for them wherever a preset is named, by title."""
    found = []
    for path in folder().glob("*.json"):
        try:
            found.append((str(read_preset(str(path)).get("title", path.stem)).lower(), str(path)))
        except InputError:
            continue  # damaged by somebody else; it is neither offered nor touched
    return [path for _title, path in sorted(found)]


def is_own(name: str) -> bool:
    """Whether ``name`` stands for one of them."""
    return name.endswith(".json") and Path(name).parent == folder()


def save(title: str, settings: Settings) -> str:
    """Keep ``settings`` as a preset called ``title``, in the place of one of that name, and return its path."""
    title = " ".join(title.split())
    slug = re.sub(r"[^\w-]+", "-", title.lower()).strip("-")
    if not slug:
        raise InputError(_("A preset needs a name with letters or digits."))
    values = {name: value for name, value in settings.to_dict().items() if name != "preset"}
    return str(
        _write(folder() / f"{slug}.json", {"title": title, "summary": _("A preset of your own."), "settings": values})
    )


def take_in(path: str) -> str:
    """Take in the preset file ``path`` that somebody shared. Raises `InputError` when it cannot be used."""
    preset = read_preset(path)
    Settings.from_preset(path)
    title = str(preset.get("title") or Path(path).stem)
    slug = re.sub(r"[^\w-]+", "-", title.lower()).strip("-") or "preset"
    return str(_write(folder() / f"{slug}.json", preset))


def share(name: str, path: str) -> None:
    """Write the preset ``name``, one's own or one that ships, to the file ``path``."""
    _write(Path(path), read_preset(name))


def delete(name: str) -> None:
    """Delete one of one's own."""
    if is_own(name):
        Path(name).unlink(missing_ok=True)


def _write(path: Path, preset: dict) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(preset, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(_("The preset cannot be written to {path}: {error}.").format(path=path, error=error)) from None
    return path
