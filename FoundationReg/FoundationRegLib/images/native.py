"""Calls of ITK's readers: what they print is kept from the user, and names that they cannot open are replaced."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import SimpleITK as sitk

from ..core.interpreter import python_executable

_READ = "import sys, SimpleITK; SimpleITK.ReadTransform(sys.argv[1])"
_SECONDS = 120
_lock = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """ITK, GDCM and HDF5 print nothing within the block, not even from C, and ITK takes NIfTI axes that are slightly
    off perpendicular. What they have to say comes as an exception, or in our own words."""
    with _lock:
        shown, asked = sitk.ProcessObject.GetGlobalWarningDisplay(), os.environ.get("ITK_NIFTI_SFORM_PERMISSIVE")
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = "1"
        try:
            with _silent(1), _silent(2):
                yield
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)
            if asked is None:
                del os.environ["ITK_NIFTI_SFORM_PERMISSIVE"]
            else:
                os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = asked


@contextmanager
def _silent(number: int) -> Iterator[None]:
    """Nothing reaches the file descriptor ``number`` within the block."""
    try:
        kept = os.dup(number)
    except OSError:  # a program without a console has none
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), number)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


def survives_reading(path: Path) -> bool:
    """Whether a process of its own can read the transform file ``path``: damaged HDF5 files can end the one that reads
    them, and make it complain again when it ends. True where no such process can be started."""
    try:
        command = [python_executable(), "-P", "-c", _READ, str(path)]
        nowhere = subprocess.DEVNULL
        return subprocess.run(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, timeout=_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False
    except (OSError, ValueError):
        return True


@contextmanager
def readable(path: Path, suffixes: tuple[str, ...] = ()) -> Iterator[Path]:
    """``path``, or a link to it for the time of the block where ITK could not read it under its own name.

    That is so for names that are not UTF-8 (SimpleITK would end the process) and for those without one of
    ``suffixes``, the first of which the link gets.
    """
    known = not suffixes or path.name.lower().endswith(suffixes)
    with suppress(UnicodeEncodeError):
        str(path).encode("utf-8")
        if known:
            yield path
            return
    ending = next((s for s in suffixes if path.name.lower().endswith(s)), suffixes[0] if suffixes else path.suffix)
    with tempfile.TemporaryDirectory(prefix="foundationreg-", ignore_cleanup_errors=True) as folder:
        link = Path(folder) / f"image{ending}"
        _link(path.absolute(), link)
        yield link


def _link(path: Path, link: Path) -> None:
    for make in (os.symlink, os.link):
        with suppress(OSError, NotImplementedError):
            make(path, link)
            return
    (shutil.copytree if path.is_dir() else shutil.copyfile)(path, link)
