"""Where the files that come with the package lie, and those that it keeps for the user."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def resource_path(*parts: str) -> Path:
    """Path of a file or folder of ``Resources``: beside the package in the extension, inside it as pip installs it."""
    beside = _PACKAGE.parent / "Resources"
    return (beside if (beside / "Presets").is_dir() else _PACKAGE / "Resources").joinpath(*parts)


def cache_path(*parts: str) -> Path:
    """Path of a file or folder that this package keeps between runs: weights, compiled kernels, the pace of this
    computer and logs of errors.

    In the folder that the environment variable FOUNDATIONREG_CACHE names, else in the system's place for caches.
    """
    if chosen := os.environ.get("FOUNDATIONREG_CACHE"):
        return Path(chosen).expanduser().joinpath(*parts)
    import pooch

    return Path(pooch.os_cache("foundationreg"), *parts)
