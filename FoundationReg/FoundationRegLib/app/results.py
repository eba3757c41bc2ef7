"""Files that appear all together when the work is done, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from ..errors import InputError


class Outputs:
    """Gathers output files in hidden folders beside their places, and moves them there at the end of a ``with`` block.

    Entering makes the missing folders and so finds out, before any long work, whether they can be written. When the
    block raises, everything that was made is removed and the user's older files stay as they were.
    """

    def __init__(self, *folders: Path):
        self._folders = list(dict.fromkeys(Path(folder).expanduser().absolute() for folder in folders))
        self._made: list[Path] = []
        self._staging: dict[Path, Path] = {}
        self._files: dict[Path, Path] = {}
        self._outdated: list[Path] = []

    def __enter__(self) -> Outputs:
        try:
            for folder in self._folders:
                self._prepare(folder)
        except BaseException:
            self._clear()
            raise
        return self

    def _prepare(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"The output folder {folder} is a file; choose another name.")
        try:
            missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
            for parent in reversed(missing):
                parent.mkdir()
                self._made.append(parent)
            self._staging[folder] = Path(tempfile.mkdtemp(prefix=".foundationreg-", dir=folder))
        except OSError as error:
            raise InputError(f"The output folder {folder} cannot be written: {_reason(error)}.") from None

    def path(self, place: str | Path) -> Path:
        """Where to write now what shall lie at ``place``, a file in one of the folders."""
        place = Path(place).expanduser().absolute()
        self._files[place] = self._staging[place.parent] / place.name
        return self._files[place]

    def drop(self, place: str | Path) -> None:
        """Delete an older file at ``place`` together with writing the new ones."""
        self._outdated.append(Path(place).expanduser().absolute())

    @property
    def places(self) -> list[Path]:
        """Where the files lie after the block."""
        return list(self._files)

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            try:
                for place, written in self._files.items():
                    os.replace(written, place)
                for place in self._outdated:
                    place.unlink(missing_ok=True)
                self._made.clear()
            except OSError as failure:
                raise InputError(f"The result cannot be written to {place}: {_reason(failure)}.") from None
            finally:
                self._clear()
            return
        self._clear()
        if isinstance(error, OSError):
            raise InputError(f"The result cannot be written: {_reason(error)}.") from None

    def _clear(self) -> None:
        for folder in self._staging.values():
            shutil.rmtree(folder, ignore_errors=True)
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:
                break


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None)):
        return "the disk is full; free some space or choose another folder"
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return "you are not allowed to write there; choose another folder"
    return (error.strerror or str(error)).lower()
