"""Files that appear whole, together, or not at all: the one way in which this package writes.

    with Outputs(folder) as outputs:          # finds out now whether the folder can be written
        write(outputs.path(folder / "a.txt"))  # into a hidden folder beside the place
        write(outputs.path(folder / "b.txt"))
    # here both have their names, or none has

Hidden names hold the computer and the process that they belong to. What a process that is gone left behind is put
right by the next one that writes to the same folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

_PREFIX = ".foundationreg-"
_JOURNAL = "journal.json"
_HOST = re.sub(r"[^A-Za-z0-9]+", "", platform.node())[:32] or "here"
_NAME = re.compile(re.escape(_PREFIX) + r"([A-Za-z0-9]+)-(\d+)-[0-9a-f]{8}")


class Outputs:
    """Gathers output files in hidden folders beside their places, and moves them there at the end of a ``with`` block.

    Entering makes the missing folders and so finds out, before any long work, whether they can be written. When the
    block raises, everything that was made is removed and the user's older files stay as they were; so they do when one
    place cannot be written at the end. A folder that was not there before appears with all its files at once; in one
    that was, older files step aside first, and a journal lets the next run finish what a killed one had begun.
    """

    def __init__(self, *folders: str | os.PathLike):
        self._folders = list(dict.fromkeys(_resolved(folder) for folder in folders))
        self._made: list[Path] = []
        self._fresh: list[Path] = []
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
        try:
            if folder.exists() and not folder.is_dir():
                raise InputError(f"The output folder {folder} is a file; choose another name.")
            fresh = not folder.exists()
            missing = [parent for parent in folder.parents if not parent.exists()]
            for parent in reversed(missing):
                parent.mkdir()
                self._made.append(parent)
            beside = folder.parent if fresh else folder
            put_right(beside)
            staging = beside / private_name()
            staging.mkdir()
            self._staging[folder] = staging
            if fresh:
                self._fresh.append(folder)
        except (OSError, ValueError) as error:
            raise InputError(f"The output folder {folder} cannot be written: {reason(error)}.") from None

    def path(self, place: str | os.PathLike) -> Path:
        """Where to write now what shall lie at ``place``, a file in one of the folders. Raises `InputError` when a
        folder has that name already, or another result is to lie there."""
        place = absolute(place)
        if place in self._files:
            raise InputError(f"Two results cannot both be written to {place}; choose different names.")
        require_place(place)
        self._files[place] = self._staging[place.parent] / place.name
        return self._files[place]

    def drop(self, place: str | os.PathLike) -> None:
        """Delete an older file at ``place`` together with writing the new ones."""
        self._outdated.append(absolute(place))

    @property
    def places(self) -> list[Path]:
        """Where the files lie after the block."""
        return list(self._files)

    def __exit__(self, kind, error, traceback) -> None:
        if error is None:
            try:
                self._move()
                self._made.clear()
            finally:
                self._clear()
            return
        self._clear()
        if isinstance(error, OSError):
            raise InputError(f"The result cannot be written: {reason(error)}.") from None

    def _move(self) -> None:
        """Give every file its name, or leave all older ones as they were. Raises `InputError`."""
        moves = []
        for number, place in enumerate([*self._files, *self._outdated]):
            staging = self._staging[place.parent]
            if place.parent not in self._fresh:
                moves.append((self._files.get(place), place, staging / f"older-{number}"))
        sync(*self._files.values())
        done: list[tuple[Path | None, Path, Path]] = []
        place = None
        try:
            for place in self._fresh:
                os.rename(self._staging[place], place)
                done.append((self._staging[place], place, self._staging[place].with_suffix(".older")))
            self._write_journals(moves)
            for new, place, older in moves:
                if place.exists() or place.is_symlink():
                    os.replace(place, older)
                done.append((new, place, older))
                if new is not None:
                    os.replace(new, place)
        except OSError as failure:
            for new, place_, older in reversed(done):
                if new is not None and place_.exists() and not new.exists():
                    os.replace(place_, new)
                if older.exists():
                    os.replace(older, place_)
            raise InputError(f"The result cannot be written to {place}: {reason(failure)}.") from None

    def _write_journals(self, moves) -> None:
        for folder, staging in self._staging.items():
            if folder in self._fresh:
                continue
            names = [[place.name, new is not None] for new, place, _ in moves if place.parent == folder]
            part = staging / f"{_JOURNAL}.part"
            part.write_text(json.dumps(names), encoding="utf-8")
            os.replace(part, staging / _JOURNAL)

    def _clear(self) -> None:
        for folder in self._staging.values():
            with contextlib.suppress(OSError):
                (folder / _JOURNAL).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()


def require_place(place: str | os.PathLike) -> None:
    """Raise `InputError` when no file can be written to ``place``: a folder has that name, or no file could."""
    try:
        if Path(place).is_dir():
            raise InputError(f"The result cannot be written to {place}: there is a folder of that name.")
    except (OSError, ValueError) as error:
        raise InputError(f"The result cannot be written to {place}: {reason(error)}.") from None


@contextlib.contextmanager
def replacing(place: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """A path to write to, with the extension ``suffix``, that gets the name ``place`` at the end of the block.

    When the block raises, nothing is left and an older file stays. Raises OSError when the name cannot be given.
    """
    place = absolute(place)
    temporary = place.with_name(private_name() + suffix)
    try:
        yield temporary
        os.replace(temporary, place)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def private_name() -> str:
    """A hidden name, not used before, that says whose it is: this computer's and process's."""
    return f"{_PREFIX}{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def put_right(folder: Path) -> None:
    """Finish or remove what processes of this computer that are gone left in ``folder``. Errors are no concern here."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            owner = _NAME.match(path.name)
            if not owner or owner[1] != _HOST or is_alive(int(owner[2])):
                continue
            if path.is_dir():
                with contextlib.suppress(OSError, ValueError, TypeError):
                    _finish(path)
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _finish(staging: Path) -> None:
    """Do the rest of the moves that the journal in ``staging`` names: all new files were whole when it was written."""
    for name, is_new in json.loads((staging / _JOURNAL).read_text(encoding="utf-8")):
        if Path(name).name != name:
            continue
        place = staging.parent / name
        if is_new and (staging / name).exists():
            os.replace(staging / name, place)
        elif not is_new:
            place.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this computer."""
    if os.name == "nt":
        handle = ctypes.windll.kernel32.OpenProcess(0x1000, False, process)  # may ask for little, and end nothing
        if handle:
            code = ctypes.c_ulong()
            ctypes.windll.kernel32.GetExitCodeProcess(handle, ctypes.byref(code))
            ctypes.windll.kernel32.CloseHandle(handle)
            return code.value == 259
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def sync(*files: Path) -> None:
    """Wait until ``files`` are on the disk, so that a power cut after their renaming does not leave them empty."""
    for file in files:
        with contextlib.suppress(OSError), open(file, "rb+") as stream:
            os.fsync(stream.fileno())


def absolute(path: str | os.PathLike) -> Path:
    """``path`` with its user's home filled in and from the root, its folder without links."""
    path = Path(path).expanduser()
    path = Path(os.path.abspath(path))
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        return path.parent.resolve() / path.name
    return path


def _resolved(folder: str | os.PathLike) -> Path:
    try:
        return Path(folder).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return Path(os.path.abspath(folder))


def printable(path: str | os.PathLike) -> str:
    """``path`` as text that can be shown and written in UTF-8, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


def reason(error: BaseException) -> str:
    """Why an OSError happened, as the end of a sentence, without the names of hidden files."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None)):
        return "the disk is full; free some space or choose another folder"
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return "you are not allowed to write there; choose another folder"
    if number == errno.ENAMETOOLONG:
        return "the name is too long"
    text = getattr(error, "strerror", None) or "the name is not possible"
    return text.lower()
