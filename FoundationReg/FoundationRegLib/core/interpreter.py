"""The Python interpreter for processes of our own."""

from __future__ import annotations

import shutil
import sys


def python_executable() -> str:
    """The interpreter that has Slicer's packages: PythonSlicer, or the running one outside Slicer."""
    return shutil.which("PythonSlicer") or sys.executable
