"""The settings that a run compares: presets, encoders, or everything that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..settings import Settings, preset_names
from .job import Variant
from .pairs import folder_name

MIND = "mind"
# Among lists of encoders: that of the preset.
PRESETS_OWN = "preset"
# Of a foundation encoder beside MIND, as in the default preset.
_BESIDE_MIND = 0.15


def chosen_variants(
    presets: Sequence[str] = (), encoders: Sequence[str] = (), changes: dict[str, Any] | None = None
) -> list[Variant]:
    """Each of ``presets`` with each of ``encoders``, and ``changes`` of settings to all of them.

    ``encoders`` are lists such as ``mind`` or ``medsam-lite=0.15,mind``; ``preset`` stands for the preset's own.
    Raises `InputError` for what is not known or given twice.
    """
    presets, changes = list(presets) or ["default"], changes or {}
    made = []
    for preset in presets:
        for encoder in encoders or [PRESETS_OWN]:
            own = {} if encoder == PRESETS_OWN else {"encoders": encoder}
            name = _name(preset, encoder, len(presets))
            made.append(variant(name, Settings.from_preset(preset, **{**changes, **own})))
    for n, one in enumerate(made):
        same = [other.name for other in made[:n] if other.name == one.name]
        if same:
            raise InputError(f"{one.name} was given twice.")
    return made


def _name(preset: str, encoder: str, presets: int) -> str:
    preset = Path(preset).stem if preset.endswith(".json") else preset
    if encoder == PRESETS_OWN:
        return preset
    return encoder if presets == 1 and preset == "default" else f"{preset} with {encoder}"


def variant(name: str, settings: Settings) -> Variant:
    return Variant(name, folder_name(name.replace("/", "_")), settings.to_dict())


def every_variant(changes: dict[str, Any] | None = None, without: Sequence[str] = ()) -> list[Variant]:
    """MIND alone first, every installed encoder alone and beside MIND, and every preset that differs from these.

    ``without``: names to leave out, such as ``preset study``. Raises `InputError` for one that there is not.
    """
    from ..weights import store
    from ..weights.catalogue import catalogue

    changes = changes or {}
    ready = [item.id for item in catalogue().values() if item.family != "mind" and store.status(item)["ready"]]
    lists = [MIND, *(text for id in ready for text in (id, f"{id}={_BESIDE_MIND},{MIND}"))]
    candidates = [(text, Settings.from_preset("default", **{**changes, "encoders": text})) for text in lists]
    candidates += [(f"preset {name}", Settings.from_preset(name, **changes)) for name in preset_names()]
    made: list[Variant] = []
    seen: dict[str, int] = {}
    for name, settings in candidates:
        essence = str({**settings.to_dict(), "preset": ""})
        if essence in seen:
            before = made[seen[essence]]
            made[seen[essence]] = variant(f"{before.name} ({name})", Settings.from_dict(before.settings))
            continue
        if any(encoder not in ready and encoder != MIND for encoder, _ in settings.encoders):
            continue
        seen[essence] = len(made)
        made.append(variant(name, settings))
    names = [one.name for one in made]
    for name in without:
        if name not in names:
            raise InputError(f"There is no {name!r} to leave out; there are: {', '.join(names)}.")
    return [one for one in made if one.name not in without]


def require_encoders(variants: Sequence[Variant]) -> None:
    """Raise, before any long work, for an encoder that is not known, not installed or not trusted."""
    from ..encoders.loading import require

    for one in variants:
        settings = Settings.from_dict(one.settings)
        for name, _ in settings.encoders:
            require(name, settings.encoder_layers)
