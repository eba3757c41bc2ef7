"""The process that registers for Slicer: requests come in on stdin, events go out on stdout, one JSON object per line.

Started as ``python -m FoundationRegLib.worker --folder FOLDER``, where FOLDER is private to the two processes. It ends
when stdin closes, because then its parent is gone, and removes the folder. It stays warm between requests: loaded
encoders and the features of the last images are kept, so that a changed smoothness costs only the refinement.

Requests ``{"id": 1, "command": ...}``:
    register: ``fixed``, ``moving`` and optionally ``fixed_mask``, ``moving_mask``, ``exclude_fixed``,
        ``exclude_moving``, ``fixed_labels``, ``moving_labels``, ``fixed_box_mask``, ``moving_box_mask`` (each
        ``{"array": FILE.npy, "affine": 4x4}`` with the affine of `grid.Grid`, or a path), ``fixed_points``,
        ``moving_points`` (lists of LPS points), ``fixed_box``, ``moving_box`` (as of `boxes.BoxLike`),
        ``initial_transform`` (``{"matrix": 4x4}`` or ``{"array": ..., "affine": ...}``, LPS), ``settings``,
        ``preview`` (send coarse fields), ``volume`` (to get the moving image on the fixed grid: ``interpolation``,
        ``background``, ``type``), ``folder`` (where the result's arrays go).
    segment: ``fixed``, ``moving``, ``fixed_box``, ``moving_box``, ``settings``, ``folder``: what the boxes hold.
    probe: ``run`` (the id of the last register request), ``point`` (LPS), ``side``, ``encoder``: what it sees there.
        encode: ``run``, ``encoder``: the features of one that took no part, which can be probed from then on.
        correct: ``run`` and ``pairs`` (``{"fixed", "moving", "active"}``, LPS): the transform that obeys them.
        refine: ``run`` and ``corners`` (n, 3): the box around them on a finer grid.
        measure: ``run``: the metrics of the transform as it is now. They need what the run left in memory.
    finish, cancel: ``target``, the id of a request. They act at once, between two steps of the work.
    encoders: what the catalogue holds and what is installed. download, import, verify, remove: ``encoder``,
        ``file``.
    warm: describe the device, and load all libraries. shutdown: end.
Events ``{"id": 1, "event": ...}``: progress, preview, found, log, result, error. Each request ends with one result or
error; ``found`` comes before it and brings the transform as soon as there is one, which the result does not repeat.
Files named in events belong to the parent, which deletes them after reading.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..core.memory import is_out_of_memory
from ..core.progress import Event, Preview, Progress
from ..core.threads import calm_threads
from ..errors import Cancelled, Forgotten, FoundationRegError, InputError
from ..settings import Settings
from .device import describe_device
from .exchange import (
    load_image,
    load_transform,
    save_array,
    save_correction,
    save_found,
    save_measured,
    save_pair,
)
from .failure import write_log
from .loading import load_libraries
from .session import Session

IMAGE_KEYS = (
    *("fixed_mask", "moving_mask", "exclude_fixed", "exclude_moving", "fixed_labels", "moving_labels"),
    *("fixed_box_mask", "moving_box_mask"),
)
ARRAY_KEYS = ("fixed_points", "moving_points", "fixed_box", "moving_box")
PREVIEWS_WAITING = 2
IDLE_SECONDS = 1800


class Worker:
    """Answers requests one after the other; ``register`` may be replaced by a function of the same signature."""

    def __init__(self, output: TextIO, folder: Path, register=None):
        self.folder = folder
        self._output, self._register = output, register
        self._lock = threading.Lock()
        self._requests: queue.Queue[dict | None] = queue.Queue()
        self._current: int | None = None
        self._cancelled: set[int] = set()
        self._finished: set[int] = set()
        self._cache = None
        self._session: Session | None = None

    def emit(self, request: int | None, event: str, **values: Any) -> None:
        """Write one event. A parent that is gone is no error here; the reading thread notices it."""
        line = json.dumps({"id": request, "event": event, **values}, default=_plain)
        with self._lock:
            try:
                self._output.write(line + "\n")
                self._output.flush()
            except (OSError, ValueError):
                pass

    def read(self, lines) -> None:
        """Take requests from the lines (bytes or text) of ``lines`` until they end.

        Runs in a thread of its own, so that cancel is heard at once. A line that is no request is answered with an
        error and changes nothing.
        """
        for line in lines:
            request = _request(line)
            if request is None:
                self.emit(None, "error", kind="internal", message="The worker got a request that it cannot read.")
                continue
            command = request["command"]
            if command in ("cancel", "finish"):
                (self._cancelled if command == "cancel" else self._finished).add(request["target"])
            elif command == "shutdown":
                break
            else:
                self._requests.put(request)
        if self._current is not None:
            # Whoever wanted the result is gone. Numerical kernels cannot be interrupted, so leave without them.
            self.abandon(1)
        self._requests.put(None)

    def abandon(self, code: int) -> None:
        """End at once, whatever is being computed, and leave no file."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(code)

    def serve(self) -> None:
        """Answer requests until they end or none came for half an hour (a warm worker holds much memory)."""
        while True:
            try:
                request = self._requests.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                return
            if request is None:
                return
            self._answer(request)
            if request["command"] == "warm" and self._requests.empty():
                load_libraries()

    def _answer(self, request: dict) -> None:
        number = self._current = request.get("id")
        try:
            method = getattr(self, f"_do_{request['command']}", None)
            if method is None:
                raise InputError(f"The worker does not know the command {request['command'][:40]!r}.")
            answer = method(request)
            self.emit(number, "result", **answer)
        except FoundationRegError as error:
            self.emit(number, "error", kind=type(error).__name__, message=str(error))
        except Exception as error:
            self._report(number, error)
        finally:
            self._current = None
            self._cancelled.discard(number)
            self._finished.discard(number)

    def _report(self, number: int | str | None, error: Exception) -> None:
        """Answer with an error that nobody expected."""
        if is_out_of_memory(error):
            sentence = "The computer ran out of memory; choose a faster preset or crop the volumes."
            self.emit(number, "error", kind="OutOfMemory", message=sentence)
            return
        place = write_log(error)
        kept = f"; the details are in {place}" if place else ""
        sentence = f"The registration stopped on an unexpected error ({type(error).__name__}){kept}."
        self.emit(number, "error", kind="internal", message=sentence, details=traceback.format_exc())

    def _progress(self, number: int, previews: Path | None = None) -> Progress:
        def on_event(event: Event) -> None:
            self.emit(
                number,
                "progress",
                stage=event.stage,
                fraction=event.fraction,
                message=event.message,
                seconds_left=event.seconds_left,
            )

        def on_preview(preview: Preview) -> None:
            if len(list(previews.glob("preview-*.npy"))) >= PREVIEWS_WAITING:
                return  # the parent is busy; it will get a newer one
            path = previews / f"preview-{time.monotonic_ns()}.npy"
            array = save_array(path, preview.displacement, preview.grid)
            self.emit(number, "preview", stage=preview.stage, **array)

        return Progress(
            on_event,
            on_preview if previews is not None else None,
            should_cancel=lambda: number in self._cancelled,
            should_finish=lambda: number in self._finished,
        )

    def _do_register(self, request: dict) -> dict:
        from ..registration import pipeline

        register = self._register or pipeline.register
        number = request.get("id")
        folder, progress, inputs = self._taken(request)
        progress.check()
        sent: dict = {}

        def on_found(result) -> None:
            self._session = Session(number, result) if result.workspace is not None else None
            sent.update(save_found(result, folder, request.get("volume")))
            self.emit(number, "found", **sent)

        result = register(**inputs, progress=progress, cache=self._kept_cache(), on_found=on_found)
        progress.check()
        if sent:
            return save_measured(result)
        return {**save_found(result, folder, request.get("volume")), **save_measured(result)}

    def _do_segment(self, request: dict) -> dict:
        from ..registration import boxes

        folder, progress, inputs = self._taken(request)
        names = ("fixed", "moving", "fixed_box", "moving_box", "settings")
        given = {name: inputs.get(name) for name in names}
        masks = boxes.segment_in_boxes(**given, progress=progress, cache=self._kept_cache())
        progress.check()
        return {"box_masks": save_pair(folder, "box-mask", masks)}

    def _taken(self, request: dict) -> tuple[Path, Progress, dict[str, Any]]:
        """Where the answer's files of a ``request`` go, its progress, and what it brings."""
        try:
            folder = Path(request.get("folder") or self.folder)
            progress = self._progress(request.get("id"), folder if request.get("preview") else None)
            return folder, progress, _inputs(request)
        except (KeyError, TypeError, ValueError, OSError, AttributeError, RuntimeError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(f"The worker got a request that it cannot use ({type(error).__name__}).") from None

    def _kept_cache(self):
        from ..core.cache import Cache

        if self._cache is None:
            self._cache = Cache()
        return self._cache

    def _do_probe(self, request: dict) -> dict:
        path = Path(request.get("folder") or self.folder) / f"similarity-{time.monotonic_ns()}.npy"
        return self._kept(request).probe(request, path)

    def _do_encode(self, request: dict) -> dict:
        folder, encoder = Path(request.get("folder") or self.folder), _text(request, "encoder")
        pictures, grid = self._kept(request).encode(encoder, self._progress(request["id"]))
        name = f"features-{time.monotonic_ns()}"
        arrays = {side: save_array(folder / f"{name}-{side}.npy", values, grid) for side, values in pictures.items()}
        return {"encoder": encoder, "features": arrays}

    def _do_correct(self, request: dict) -> dict:
        folder, number = Path(request.get("folder") or self.folder), request["id"]

        def on_preview(correction) -> None:
            self.emit(number, "preview", **save_correction(correction, folder))

        regions = int(request.get("regions") or 0)
        made = self._kept(request).correct(request["pairs"], self._progress(number), on_preview, regions)
        return save_correction(made, folder)

    def _do_refine(self, request: dict) -> dict:
        folder = Path(request.get("folder") or self.folder)
        made = self._kept(request).refine(np.asarray(request["corners"], float), self._progress(request["id"]))
        return save_correction(made, folder)

    def _do_measure(self, request: dict) -> dict:
        return save_measured(self._kept(request).measured(self._progress(request["id"])))

    def _kept(self, request: dict) -> Session:
        """What the run left. Raises `Forgotten` when another one has taken its place."""
        if self._session is None or self._session.run != request.get("run"):
            raise Forgotten("The features of this result are no longer in memory; encode again to go on.")
        return self._session

    def _do_warm(self, request: dict) -> dict:
        settings = request.get("settings")
        return describe_device(str(settings.get("device", "auto")) if isinstance(settings, dict) else "auto")

    def _do_encoders(self, request: dict) -> dict:
        from ..weights import store
        from ..weights.catalogue import catalogue

        return {"encoders": [store.status(name) for name in catalogue()]}

    def _do_download(self, request: dict) -> dict:
        from ..weights import acquisition
        from .loading import build_network

        accepted, progress = request.get("accept_licence") is True, self._progress(request.get("id"))
        acquisition.download(_text(request, "encoder"), build_network, accepted, progress)
        return {"encoder": request["encoder"]}

    def _do_import(self, request: dict) -> dict:
        from ..weights import acquisition
        from .loading import build_network

        acquisition.import_file(_text(request, "encoder"), _text(request, "file"), build_network)
        return {"encoder": request["encoder"]}

    def _do_verify(self, request: dict) -> dict:
        from ..weights import store

        return {"encoder": request["encoder"], "sha256": store.verify(_text(request, "encoder"))}

    def _do_remove(self, request: dict) -> dict:
        from ..weights import store

        store.remove(_text(request, "encoder"))
        return {"encoder": request["encoder"]}


def _request(line: bytes | str) -> dict | None:
    """The request in a ``line``; None when it is none: an object with a command, and an id and target that are numbers
    or texts."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        return None
    request.setdefault("target", None)
    if any(not isinstance(request.get(name), int | str | None) for name in ("id", "target")):
        return None
    return request


def _text(request: dict, name: str) -> str:
    if not isinstance(request.get(name), str):
        raise InputError(f"The worker got a request without {name}.")
    return request[name]


def _inputs(request: dict) -> dict[str, Any]:
    """The arguments of `register` in a ``request``. Raises KeyError, TypeError, ValueError or OSError."""
    arrays = {key: np.asarray(request[key], float) for key in ARRAY_KEYS if request.get(key)}
    return {
        "fixed": load_image(request["fixed"]),
        "moving": load_image(request["moving"]),
        "settings": Settings.from_dict(request.get("settings") or {}),
        "initial_transform": load_transform(request.get("initial_transform")),
        "guide_with_labels": bool(request.get("guide_with_labels")),
        "guide_with_points": bool(request.get("guide_with_points")),
        **{key: load_image(request[key]) for key in IMAGE_KEYS if request.get(key)},
        **arrays,
    }


def _plain(value):
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)


def main(arguments: list[str] | None = None, register=None) -> int:
    """Serve requests from stdin until it closes. ``register`` replaces `registration.register` in tests."""
    parser = argparse.ArgumentParser(prog="python -m FoundationRegLib.worker", description="Registration worker.")
    parser.add_argument("--folder", required=True, type=Path, help="private folder for arrays, removed at the end")
    folder = parser.parse_args(arguments).folder
    calm_threads()
    # Whatever a library prints, even from C, must not fall between the events: keep the real stdout to ourselves.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    worker = Worker(output, folder, register)
    # Bytes: a line that is no UTF-8 is answered like any other that is no request.
    lines = os.fdopen(os.dup(0), "rb")
    signal.signal(signal.SIGTERM, lambda *_: worker.abandon(128 + signal.SIGTERM))
    threading.Thread(target=worker.read, args=(lines,), daemon=True).start()
    try:
        worker.serve()
    except (KeyboardInterrupt, Cancelled):
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
