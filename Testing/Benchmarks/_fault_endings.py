"""Kills and cancels at random moments, full disks, garbage for the worker, and odd geometries."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from _fault_inputs import QUICK, good_folder, phantom
from _fault_runs import SECONDS_FOR_ONE, Tally, in_child, start_child, wait_until

RESULTS = {"transform.h5", "warped.nii.gz", "jacobian.nii.gz", "result.json", "report.html"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def registration(out: Path, seed: int = 0) -> int:
    """A quick registration into the folder ``out``, with a report that takes no time to draw."""
    from FoundationRegLib.app import cli
    from FoundationRegLib.reporting import report

    report.write_report = lambda result, path, *_: Path(path).write_text(f"<html>{seed}</html>", encoding="utf-8")
    images = [str(good_folder() / f"{name}.nii.gz") for name in ("fixed", "moving")]
    return cli.main(["register", *images, "-o", str(out), *QUICK, f"--seed={seed}"])


def command_line(count: int, how: str, folder: Path, tally: Tally, first: int = 0) -> None:
    """End the command line ``count`` times at a random moment, by kill or politely, every second time over older
    results. Afterwards only whole results may be there: the older ones, or all of the new ones."""
    family = f"command line {how}"
    log = folder / "stderr.txt"
    began = time.monotonic()
    in_child(lambda: registration(folder / "older", 1), log, SECONDS_FOR_ONE)
    usual = time.monotonic() - began
    older = contents(folder / "older")
    assert set(older) == RESULTS, sorted(older)
    for n in range(first, first + count):
        rng = random.Random(f"{family} {n}")
        here = folder / "killed"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        if n % 2:
            shutil.copytree(folder / "older", here / "out")
        process = start_child(lambda out=here / "out": registration(out, 2), log)
        time.sleep(rng.uniform(0, 1.1 * usual))
        number = signal.SIGKILL if how == "killed" else rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
        status = wait_until(process, time.monotonic() + SECONDS_FOR_ONE)
        if status is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            tally.add(family, "hang", f"{n} {number}")
            continue
        outcome, why = _judged(here, older if n % 2 else {}, log, how)
        tally.add(family, outcome, f"{n} after {number}: {why}")


def _judged(here: Path, older: dict[str, bytes], log: Path, how: str) -> tuple[str, str]:
    """How a run that was ended left the folder ``here``; after a kill the next run puts right what it left."""
    from FoundationRegLib.core.files import Outputs

    text = log.read_text(encoding="utf-8", errors="replace")
    if "Traceback" in text or "unexpected" in text:
        return "traceback", text
    if how == "killed":
        with Outputs(here / "out"):
            pass
    found = contents(here)
    out = {name.removeprefix("out/"): data for name, data in found.items() if name.startswith("out/")}
    hidden = [str(path) for path in here.rglob(".*")]
    whole_new = set(out) == RESULTS and b"<html>2</html>" in out["report.html"] and b'"seed": 2' in out["result.json"]
    if hidden or len(out) != len(found):
        return "left behind", f"{hidden} {sorted(found)}"
    if out == older or whole_new:
        return ("accepted", "") if whole_new else ("refused", "")
    return "left behind", f"mixed: {sorted(out)}"


@cache
def _array(name: str) -> np.ndarray:
    return np.roll(phantom(), 1, 2) if name == "moving" else phantom()


class Worker:
    """A real worker process, or one whose `register` is the tests' fake, and requests to it."""

    def __init__(self):
        from FoundationRegLib.slicer.client.process import WorkerProcess

        library = Path(__file__).parents[2] / "FoundationReg"
        os.environ["PYTHONPATH"] = os.pathsep.join([str(library), os.environ.get("PYTHONPATH", "")])
        self.process = WorkerProcess([sys.executable, "-P", "-m", "FoundationRegLib.worker"])

    def register(self, seed: int = 0) -> int:
        folder = self.process.run_folder()
        sides = {}
        for name in ("fixed", "moving"):
            np.save(folder / f"{name}.npy", _array(name))
            sides[name] = {"array": str(folder / f"{name}.npy"), "affine": np.eye(4)[[2, 1, 0, 3]].tolist()}
        values = [text.split("=") for text in QUICK if "=" in text]
        settings = {"encoders": "mind", "seed": seed, **dict(values)}
        return self.process.send("register", folder=str(folder), settings=settings, preview=True, **sides)

    def write(self, line: bytes) -> None:
        """Send bytes as they are."""
        stream = self.process._process.stdin.buffer
        with contextlib.suppress(OSError):
            stream.write(line)
            stream.flush()

    def wait(self, number, seconds: float = SECONDS_FOR_ONE, wanted=("result", "error")) -> dict | None:
        """The event that answers request ``number``; None when the worker dies or takes too long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for event in self.process.poll():
                if event.get("id") == number and event["event"] in wanted:
                    return event
            time.sleep(0.005)
        return None


def worker_cancelled(count: int, folder: Path, tally: Tally) -> None:
    """Cancel registrations of one warm worker at random moments."""
    worker = Worker()
    began = time.monotonic()
    worker.wait(worker.register(), 120)
    worker.wait(worker.register(1))
    usual = max(0.05, min(1.0, (time.monotonic() - began) / 4))
    for n in range(count):
        number = worker.register(n)
        time.sleep(random.Random(f"cancel {n}").uniform(0, usual))
        worker.process.send("cancel", target=number)
        event = worker.wait(number)
        if event is None:
            tally.add("worker cancelled", "hang", str(n))
            worker.process.kill()
            worker = Worker()
        elif event["event"] == "result" or event.get("kind") == "Cancelled":
            tally.add("worker cancelled", "accepted" if event["event"] == "result" else "refused")
        else:
            tally.add("worker cancelled", "traceback", str(event))
    private = worker.process.folder
    worker.process.kill()
    if Path(private).exists():
        tally.add("worker cancelled", "left behind", str(private))


def worker_killed(count: int, folder: Path, tally: Tally) -> None:
    """Kill workers at random moments; their folder is gone and no process stays."""
    for n in range(count):
        rng = random.Random(f"kill {n}")
        worker = Worker()
        worker.process.start()
        private, child = Path(worker.process.folder), worker.process.pid
        worker.register()
        time.sleep(rng.uniform(0, 1.5))
        os.kill(child, signal.SIGKILL if n % 3 else signal.SIGTERM)
        end = time.monotonic() + 20
        while _is_running(child) and time.monotonic() < end:
            worker.process.poll()
            time.sleep(0.01)
        worker.process.kill()
        left = private.exists() or _is_running(child)
        tally.add("worker killed", "left behind" if left else "refused", f"{n} {private.exists()}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return True


def garbage(count: int) -> list[bytes]:
    """Lines that are no requests, and requests that cannot be met."""
    whole = {"id": "seven", "command": "register", "fixed": {"array": "x.npy", "affine": np.eye(4).tolist()},
             "moving": "y", "settings": {"smoothness": 1}}  # fmt: skip
    lines = [b"", b"\xff\xfe", b"{", b"[]", b"null", b"3", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b'{"command": 3}',
             b'{"command": []}', b'{"id": [], "command": "warm"}', b'{"id": {}, "command": "encoders"}', b"\0\0",
             b'{"command": "cancel", "target": []}', b'{"command": "finish", "target": {}}', b'{"command": "cancel"}',
             b'{"id": 1, "command": "__init__"}', b'{"id": 1, "command": "verify", "encoder": []}',
             b'{"id": 1, "command": "import", "encoder": "mind"}', b'{"id": 1, "command": "download"}',
             b'{"id": 1, "command": "warm", "settings": []}',
             b'{"id": 1, "command": "warm", "settings": {"device": 3}}',
             b'{"id": 1, "command": "register"}', b'{"id": 1, "command": "register", "fixed": 3, "moving": []}',
             b'{"id": 1e999, "command": "warm"}', b'{"id": NaN, "command": "warm"}',
             "{'command': 'é'}".encode("latin-1"),
             b'{"id": 1, "command": "register", "folder": 3, "fixed": "/x", "moving": "/y"}', b"x" * 300_000,
             b'{"id": 1, "command": "register", "settings": 3, "fixed": "/x", "moving": "/y"}']  # fmt: skip
    odd = [None, [], {}, 3, -1, 1e300, "x", True, [[1]], "\udcff", {"array": 3}, {"array": "/dev/zero", "affine": 1}]
    for n in range(len(lines), count):
        rng = random.Random(f"message {n}")
        request = json.loads(json.dumps(whole))
        if n % 3 == 0:
            made = bytearray(json.dumps(request).encode())
            for _ in range(rng.choice((1, 3, 10))):
                made[rng.randrange(len(made))] = rng.choice([b for b in range(256) if b != 10])
            lines.append(bytes(made))
            continue
        request[
            rng.choice(("id", "command", "fixed", "moving", "settings", "folder", "fixed_points", "fixed_mask"))
        ] = rng.choice(odd)
        lines.append(json.dumps(request).encode())
    return lines[:count]


def messages(count: int, folder: Path, tally: Tally) -> None:
    """Send garbage to a worker; after each line it still answers."""
    worker = Worker()
    worker.wait(worker.process.send("encoders"), 120)
    for n, line in enumerate(garbage(count)):
        worker.write(line.replace(b"\n", b" ") + b"\n")
        event = worker.wait(worker.process.send("encoders"), 30)
        outcome = "refused" if event is not None and event["event"] == "result" else "crash"
        tally.add("messages to the worker", outcome, f"{n} {line[:80]!r} {event}")
        if outcome == "crash":
            worker.process.kill()
            worker = Worker()
    worker.process.kill()


def full_disks(count: int, folder: Path, tally: Tally) -> None:
    """Files may grow to a random size only, as on a disk that gets full."""
    for n in range(count):
        here = folder / "full"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        limit = random.Random(f"disk {n}").randrange(0, 60_000)

        def work(limit=limit, here=here) -> int:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return registration(here / "out", 2)

        status, text = in_child(work, folder.parent / "disk.txt", SECONDS_FOR_ONE)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        left = sorted(contents(here))
        if code is None or code < 0:
            tally.add("full disks", "hang" if code is None else "crash", f"{limit} {code} {text}")
        elif code == 0:
            tally.add("full disks", "accepted" if len(left) == len(RESULTS) else "left behind", f"{limit} {left}")
        elif code != 2:
            tally.add("full disks", "traceback", f"{limit} {code} {text}")
        else:
            tally.add("full disks", "left behind" if left else "refused", f"{limit} {left}")


def geometries(count: int, folder: Path, tally: Tally) -> None:
    """The same volumes turned, mirrored and moved in space together: the result must turn with them."""
    from FoundationRegLib.images.reading import read_transform

    plain = None
    for n in range(count):
        rng = np.random.default_rng(n)
        here = folder / "turned"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        matrix = np.linalg.qr(rng.normal(size=(3, 3)))[0] if n else np.eye(3)
        shift = rng.uniform(-500, 500, 3) if n else np.zeros(3)
        for name in ("fixed", "moving"):
            image = sitk.GetImageFromArray(_array(name))
            image.SetDirection(matrix.ravel().tolist())
            image.SetOrigin((matrix @ image.GetOrigin() + shift).tolist())
            sitk.WriteImage(image, str(here / f"{name}.nrrd"))

        def work(here=here) -> int:
            from FoundationRegLib.app import cli

            images = [str(here / f"{name}.nrrd") for name in ("fixed", "moving")]
            return cli.main(["register", *images, f"--transform={here / 't.h5'}", *QUICK])

        status, text = in_child(work, folder.parent / "turned.txt", SECONDS_FOR_ONE)
        if status != 0:
            tally.add("geometries", "crash", f"{n} {text}")
            continue
        transform, points = read_transform(here / "t.h5"), np.random.default_rng(0).uniform(3, 13, (20, 3))
        moved = [np.subtract(transform.TransformPoint((matrix @ p + shift).tolist()), shift) @ matrix for p in points]
        plain = moved if plain is None else plain
        error = float(np.abs(np.subtract(moved, plain)).max())
        tally.add("geometries", "accepted" if error < 0.05 else "traceback", f"{n}: {error:.3f} mm off")
