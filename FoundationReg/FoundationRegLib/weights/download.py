"""Fetches one large file over HTTP: resumes, follows redirects, retries, can be cancelled, leaves nothing half-done."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ..core.progress import Progress
from ..errors import WeightsError

_CHUNK = 1 << 18
_TIMEOUT = 30.0
_PAUSES = (0.5, 2.0, 5.0)
# Worth another try: the server is busy or broke off.
_PASSING = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Expected:
    """What is known of a file beforehand; empty or 0 is unknown. ``sha256_prefix``: the first digits of its SHA256."""

    sha256: str = ""
    sha256_prefix: str = ""
    md5: str = ""
    bytes: int = 0


def download(url: str, place: Path, expected: Expected, progress: Progress, token: str = "") -> str:
    """Bring ``url`` to ``place`` and return its SHA256.

    What arrived of a download that broke off stays beside ``place`` as ``.part``; the next one goes on from there.
    Proxies are those of the environment (HTTPS_PROXY, NO_PROXY). ``token`` is sent to that server only, never on to
    where it redirects. Raises `WeightsError` when the file cannot be had, is not the expected one or does not fit on
    the disk, `Cancelled` when ``progress`` says so.
    """
    if not _is_safe(url):
        raise WeightsError(f"Weights are downloaded over https only, not from {url}.")
    part = place.with_name(place.name + ".part")
    place.parent.mkdir(parents=True, exist_ok=True)
    failure = ""
    for pause in (0.0, *_PAUSES):
        _wait(pause, progress)
        try:
            _fetch(url, part, expected, progress, token)
            break
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise WeightsError(_refusal(error, url)) from None
            failure = f"the server answered {error.code}"
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise WeightsError(f"The disk with {place.parent} is full; free some space and try again.") from None
            failure = str(getattr(error, "reason", error)) or type(error).__name__
    else:
        raise WeightsError(f"{url} could not be downloaded ({failure}); try again to go on from where it broke off.")
    digest = _checked(part, expected, url)
    os.replace(part, place)
    _note(part).unlink(missing_ok=True)
    return digest


def _is_safe(url: str, origin: str = "") -> bool:
    """Whether nobody on the way can change what ``url`` gives: https, or a server on this computer itself, which may
    only be redirected to (from ``origin``) from this computer."""
    try:
        parts, host = urllib.parse.urlsplit(url), urllib.parse.urlsplit(origin or url).hostname
    except ValueError:
        return False
    local = ("localhost", "127.0.0.1", "::1")
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in local and host in local)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, new_url):
        if not _is_safe(new_url, request.full_url):
            raise WeightsError(f"{request.full_url} redirects to {new_url}, which is not https; it was not followed.")
        return super().redirect_request(request, file, code, message, headers, new_url)


def _fetch(url: str, part: Path, expected: Expected, progress: Progress, token: str) -> None:
    """One attempt: everything, or what is still missing, into ``part``. Raises OSError when it breaks off."""
    have = part.stat().st_size if part.exists() else 0
    same = _note(part).read_text(encoding="utf-8") if _note(part).exists() else ""
    request = urllib.request.Request(url, headers={"User-Agent": "FoundationReg", "Accept-Encoding": "identity"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if have and same:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", same)
    try:
        response = urllib.request.build_opener(_SafeRedirects).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # What is here is longer than the file: start anew.
        part.unlink(missing_ok=True)
        raise ConnectionError("the part that was here does not fit the file") from None
    with response:
        resumed = response.status == 206
        if not resumed:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else 0
        if "text/html" in response.headers.get("Content-Type", ""):
            raise WeightsError(f"{url} gave a web page instead of a file; the address may have moved or need a login.")
        if total and expected.bytes and total != expected.bytes:
            raise WeightsError(f"{url} has {total} bytes instead of {expected.bytes}; it is not the published file.")
        room = shutil.disk_usage(part.parent).free
        if total and total - have > room:
            raise OSError(errno.ENOSPC, "no space left")
        _note(part).write_text(response.headers.get("ETag") or response.headers.get("Last-Modified") or "", "utf-8")
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress.update(have / total if total else 0.0)
    if total and have != total:
        raise ConnectionError(f"only {have} of {total} bytes arrived")


def _checked(part: Path, expected: Expected, url: str) -> str:
    """The SHA256 of ``part``; a wrong file is removed and reported."""
    sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(part, "rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            md5.update(chunk)
    found = sha.hexdigest()
    if (
        (expected.sha256 and found != expected.sha256)
        or not found.startswith(expected.sha256_prefix)
        or (expected.md5 and md5.hexdigest() != expected.md5)
    ):
        part.unlink()
        _note(part).unlink(missing_ok=True)
        raise WeightsError(f"{url} is damaged or not the published file (SHA256 {found[:12]}...); it was removed.")
    return found


def _refusal(error: urllib.error.HTTPError, url: str) -> str:
    if error.code in (401, 403):
        return f"{url} needs a permission (answer {error.code}): ask its owner for access and set HF_TOKEN."
    return f"{url} could not be downloaded: the server answered {error.code} {error.reason}."


def _note(part: Path) -> Path:
    """Where the server's name for this state of the file is kept, so that only the same file is continued."""
    return part.with_name(part.name + ".etag")


def _wait(seconds: float, progress: Progress) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        progress.check()
        time.sleep(0.05)
