"""Segmenting what boxes hold, before a registration: to look at, and to correct."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from ...errors import FoundationRegError, InputError
from . import outputs
from .answers import as_exception
from .channel import Channel
from .inputs import InputFiles
from .request import RegistrationRequest


def segment_boxes(
    channel: Channel,
    request: RegistrationRequest,
    answer: Callable[[int, dict | Exception], None],
    on_progress: Callable[[dict], None] | None = None,
    wanted: Callable[[int], bool] = lambda _number: True,
) -> int:
    """Ask the worker what both boxes of ``request`` hold. Returns the number that it knows the question by.

    ``answer`` gets that number and ``{"nodes": segmentations by side, "notes": sentences}``, or the error.
    Segmentations that the request names are filled, others made, once the worker has answered and while the answer is
    ``wanted``. Raises `InputError`.
    """
    request.check()
    if request.fixed_box is None or request.moving_box is None:
        raise InputError(_("Draw a box around the same organ in the fixed and the moving volume first."))
    given = {"fixed_box_mask": None, "moving_box_mask": None}
    files = InputFiles(RegistrationRequest(**{**vars(request), **given}), channel.process.run_folder())

    def handle(event: dict) -> None:
        if event["event"] == "progress" and on_progress is not None:
            on_progress(event)
        if event["event"] not in ("result", "error"):
            return
        number = event["id"]
        try:
            if wanted(number):
                answer(number, as_exception(event) if event["event"] == "error" else _nodes(request, event, files))
        finally:
            shutil.rmtree(files.folder, ignore_errors=True)

    try:
        return channel.ask(handle, "segment", **files.payload)
    except BaseException:
        shutil.rmtree(files.folder, ignore_errors=True)
        raise


def _nodes(request: RegistrationRequest, event: dict, files: InputFiles) -> dict | Exception:
    for node in (request.fixed, request.moving, request.fixed_box, request.moving_box):
        if node.GetScene() is not slicer.mrmlScene:
            text = _("{name!r} was removed from the scene, so its box was not segmented.")
            return FoundationRegError(text.format(name=node.GetName()))
    masks = outputs.take_arrays(event, keep=False)["box_masks"]
    return {"nodes": outputs.set_box_masks(request, masks, files.boxed), "notes": files.notes}
