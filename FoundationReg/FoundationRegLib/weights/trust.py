"""Which TorchScript files the user trusts.

TorchScript is a program. It runs only after the user said yes to exactly this content: a yes is kept by SHA256 beside
the weights, so the command line, Slicer's worker and batch jobs that share the folder honour it, and a file that
changed since is asked about anew.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from pathlib import Path

from ..core.files import replacing
from ..errors import InputError, WeightsError
from . import store
from .wheels import sha256

FILE = "trusted.json"
SUFFIXES = (".pt", ".pth", ".ts", ".torchscript", ".jit")
# Holds in this process also where the folder of weights cannot be written to.
_given: dict[str, dict[str, str]] = {}


def trusted() -> dict[str, dict[str, str]]:
    """The files that are trusted, by SHA256: ``file``, where it was when the yes was given, and ``date``."""
    return {**kept(), **_given}


def kept() -> dict[str, dict[str, str]]:
    """Those of `trusted` that other processes know too."""
    try:
        entries = json.loads((store.models_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {
        name: {"file": facts["file"], "date": str(facts.get("date", ""))}
        for name, facts in entries.items()
        if isinstance(facts, dict) and isinstance(facts.get("file"), str)
    }


def is_trusted(path: str | Path) -> bool:
    """Whether the model at ``path`` may run: the content of a file is trusted; a transformers folder holds no code."""
    path = Path(path).expanduser()
    return path.is_dir() or digest(path) in trusted()


def trust(path: str | Path, shown: str = "") -> str:
    """Remember, at least in this process, that the user trusts this file with the content whose SHA256 was ``shown``
    to them; without it, as it is now. Returns the SHA256.

    The file is not read again, so that one that was exchanged while the user read the question is not trusted.
    """
    path = checked(path)
    name = shown or digest(path)
    _given[name] = {"file": str(path.absolute()), "date": time.strftime("%Y-%m-%d")}
    _write(trusted())
    return name


def keep(path: str | Path, shown: str = "") -> str:
    """As `trust`, for other processes too. Raises `WeightsError` when that cannot be written down."""
    name = trust(path, shown)
    if name not in kept():
        _given.pop(name)
        raise WeightsError(f"This cannot be remembered: the folder {store.models_folder()} cannot be written to.")
    return name


def distrust(path: str | Path) -> None:
    """Take back what `trust` remembered of this file's content, or of its place when it has changed or is gone."""
    path = Path(path).expanduser().absolute()
    try:
        name = digest(path) if path.is_file() else ""
    except (OSError, ValueError):
        name = ""
    gone = [known for known, facts in trusted().items() if known == name or facts.get("file") == str(path)]
    if not gone:
        raise InputError(f"{path} is not among the trusted models.")
    left = {known: facts for known, facts in trusted().items() if known not in gone}
    for known in gone:
        _given.pop(known, None)
    _write(left)


def require(path: str | Path) -> None:
    """Raise `InputError` when the model at ``path`` is of no known kind or may not run."""
    path = checked(path)
    if not is_trusted(path):
        raise InputError(
            f"{question(path)} If you trust where it comes from, say so: foundationreg encoders trust {path}"
        )


def question(path: str | Path, shown: str = "") -> str:
    """What the user is to decide about the content with the SHA256 ``shown``, by default that of now."""
    shown = shown or digest(Path(path))
    return f"{path} is TorchScript: a program that would run on this computer (SHA256 {shown[:12]}...)."


def checked(path: str | Path) -> Path:
    """The path of one's own model. Raises `InputError` when it is neither a folder nor named like TorchScript."""
    try:
        path = Path(path).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):
        raise InputError("The model cannot be opened: its name is too long or not possible.") from None
    if not path.is_dir() and not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path} is no TorchScript file ({', '.join(SUFFIXES)}) and no transformers folder.")
    if not path.exists():
        raise InputError(f"The model {path} does not exist.")
    return path


def digest(path: Path) -> str:
    """The SHA256 of a file. It is read once as long as its size and time stay."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _digest(path: Path, _size: int, _time: int) -> str:
    return sha256(path)


def _write(entries: dict[str, dict[str, str]]) -> None:
    """Replace the file as a whole. A folder that cannot be written to is no error."""
    path = store.models_folder() / FILE
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(entries, indent=2), encoding="utf-8")
