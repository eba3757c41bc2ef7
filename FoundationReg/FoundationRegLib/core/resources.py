"""Where the files that come with the package lie, and those that it keeps for the user."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def resource_path(*parts: str) -> Path:
    """Path of a file or folder of ``Resources``: beside the package in the extension, inside it as pip installs it."""
    beside = _PACKAGE.parent / "Resources"
    return (beside if (beside / "Presets").is_dir() else _PACKAGE / "Resources").joinpath(*parts)


def cache_path(*parts: str) -> Path:
    """Path of a file or folder in the system's place for what this package keeps between runs."""
    import pooch

    return Path(pooch.os_cache("foundationreg"), *parts)
