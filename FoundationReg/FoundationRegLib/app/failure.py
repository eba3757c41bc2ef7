"""What stays of an error that nobody expected: a log that a user can send."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from .. import __version__
from ..core.resources import cache_path

_MOST_LOGS = 20


def write_log(error: BaseException) -> Path | None:
    """Write what is known of ``error`` to a file of its own and return its path; None where no file can be written.

    Of the newest logs twenty are kept.
    """
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in _folders():
        with contextlib.suppress(Exception):
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / name
            path.write_text(_description(error), encoding="utf-8", errors="backslashreplace")
            for old in sorted(folder.glob("error-*.log"))[:-_MOST_LOGS]:
                old.unlink(missing_ok=True)
            return path
    return None


def _folders():
    """Where logs may go, the best place first."""
    with contextlib.suppress(Exception):
        yield cache_path("logs")
    with contextlib.suppress(Exception):
        yield Path(tempfile.gettempdir()) / "foundationreg-logs"


def _description(error: BaseException) -> str:
    lines = [
        f"FoundationReg {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"Command: {sys.argv!r}",
        "",
        *traceback.format_exception(error),
    ]
    return "\n".join(lines) + "\n"
