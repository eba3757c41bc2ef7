"""One registration of nodes: send the inputs to the worker, follow it, and put the result into the scene.

Until the transform is there the scene is left alone, save for the live preview, which is undone. What was measured
follows it. No Qt is needed; someone calls `Channel.pump` regularly, usually a timer.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from ...core.grid import Grid
from ...errors import Cancelled, FoundationRegError, InputError
from ...evaluation.titles import FOLDED_LIMIT_PERCENT
from ..scene import extras, nodes, results
from ..scene.preview import LivePreview
from . import outputs
from .answers import as_exception
from .channel import Channel
from .inputs import InputFiles
from .request import RegistrationRequest, RegistrationResult

RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"


class RegistrationJob:
    """A registration that runs. ``state`` is one of running, done, failed, cancelled; ``result`` or ``error`` follows.

    ``on_event`` gets the worker's events as dictionaries and, last, ``{"event": "done" | "failed" | "cancelled"}``.
    With ``{"event": "found"}`` the transform is in the scene and ``result`` is there, but not measured; from then on
    the job can only be done: cancelling spares the measures.
    ``allow_folded`` is asked, with the share of folded voxels in percent, before landmarks or models are placed under a
    transform that folds; without it they are, with a warning.
    """

    def __init__(
        self,
        channel: Channel,
        request: RegistrationRequest,
        on_event: Callable[[dict], None] | None = None,
        allow_folded: Callable[[float], bool] | None = None,
    ):
        if channel.job is not None and channel.job.running:
            raise InputError(_("A registration is already running; wait for it or cancel it first."))
        request.check()
        self.request, self._channel, self._on_event = request, channel, on_event
        self._allow_folded = allow_folded
        self.state, self.result, self.error = RUNNING, None, None
        self._started = time.monotonic()
        self._observed: list[tuple[Any, int]] = []
        self._preview: LivePreview | None = None
        self._folder: Path | None = None
        self.kept: Path | None = None  # the folder with the files of the run, when they are kept for a bug report
        self._number: int | None = None
        try:
            self._folder = channel.process.run_folder()
            self._files = InputFiles(request, self._folder)
            self._files.write_rest()
            payload = self._files.payload
            if channel.process.keep_files:
                (self._folder / "request.json").write_text(json.dumps(payload, indent=1), encoding="utf-8")
            self._number = channel.ask(self._handle, "register", **payload)
        except OSError as error:
            self._remove_folder()
            text = _("The volumes could not be handed to the registration process: {error}.")
            raise InputError(text.format(error=error)) from error
        except BaseException:
            self._remove_folder()
            raise
        channel.job = self
        scene = slicer.mrmlScene
        self._observe(scene, scene.StartCloseEvent, lambda *_event: self.cancel())
        self._observe(scene, scene.NodeRemovedEvent, lambda *_event: self._check_inputs())
        if request.preview:
            self._preview = LivePreview(request.fixed, request.moving)

    @property
    def running(self) -> bool:
        return self.state == RUNNING

    @property
    def number(self) -> int | None:
        """What the worker knows this run by; see `Session`."""
        return self._number

    def cancel(self) -> None:
        """End the worker and everything that it started; every node is as it was."""
        if self.running and self.result is not None:
            self._channel.process.send("cancel", target=self._number)
            self._leave_unmeasured(_("The result was not measured."))
        elif self.running:
            self._channel.kill()
            self._end(CANCELLED, Cancelled(_("The registration was cancelled; nothing was changed.")))

    def stop_softly(self) -> None:
        """Ask the worker to give up but to keep its models and features; the job is cancelled when it answers."""
        if self.running:
            self._channel.process.send("cancel", target=self._number)

    def finish(self) -> None:
        """Accept the transform found so far: the worker ends the refinement and answers with it."""
        if self.running:
            self._channel.process.send("finish", target=self._number)

    def wait(self, idle: Callable[[], None] | None = None) -> RegistrationResult:
        """Block until the end, calling ``idle`` in between. Raises the error of a job that failed."""
        while self.running:
            self._channel.pump()
            if idle is not None:
                idle()
            if self.running:
                time.sleep(0.02)
        if self.error is not None:
            raise self.error
        return self.result

    def _observe(self, target, event, callback) -> None:
        self._observed.append((target, target.AddObserver(event, callback)))

    def _check_inputs(self) -> None:
        if not self.running:
            return
        for node in self.request.inputs():
            if node.GetScene() is None:
                self._channel.kill()
                name = node.GetName()
                text = _("{name!r} was removed from the scene, so the registration was stopped.")
                self._end(FAILED, InputError(text.format(name=name)))
                return

    def _handle(self, event: dict) -> None:
        """Take one event of the worker."""
        if not self.running:
            return
        kind = event["event"]
        if kind == "preview":
            self._show_preview(event)
        elif kind == "found":
            self._take_found(event)
        elif kind == "error" and self.result is not None:
            text = _("The result could not be measured: {message}")
            self._leave_unmeasured(text.format(message=event.get("message", "")))
        elif kind == "error":
            error = as_exception(event)
            self._end(CANCELLED if isinstance(error, Cancelled) else FAILED, error, details=event.get("details", ""))
        elif kind == "result":
            self._take_result(event)
        else:
            self._tell(event)

    def _show_preview(self, event: dict) -> None:
        try:
            path = Path(event["array"])
            displacement = np.load(path, allow_pickle=False)
            path.unlink()
        except (OSError, ValueError, KeyError, TypeError):
            return
        if self._preview is not None:
            self._preview.show(displacement, Grid(displacement.shape[:3], event["affine"]))
            self._tell({"event": "preview", "stage": event.get("stage", "")})

    def set_preview(self, wanted: bool) -> None:
        """Show or hide the live preview of a running job that was started with previews."""
        if not self.running or not self.request.preview:
            return
        if wanted and self._preview is None:
            self._preview = LivePreview(self.request.fixed, self.request.moving)
        elif not wanted and self._preview is not None:
            self._preview.restore()
            self._preview = None

    def _take_found(self, event: dict) -> None:
        self._drop_preview()
        undo = nodes.remember_scene()
        try:
            self.result = self._fill_scene(event, outputs.take_arrays(event, self._channel.process.keep_files))
        except Exception as error:  # of any kind: a job that goes on for ever would block the panel
            undo()
            text = _("The result could not be taken into the scene: {error}.")
            details = traceback.format_exc()
            self._end(FAILED, FoundationRegError(text.format(error=error or type(error).__name__)), details)
            return
        self._tell({"event": "found"})

    def _take_result(self, event: dict) -> None:
        if event.get("transform"):
            self._take_found(event)
        if not self.running:
            return
        try:
            self._fill_measured(event)
        except Exception as error:
            text = _("What was measured could not be taken into the scene: {error}.")
            self.result.warnings.append(text.format(error=error or type(error).__name__))
        self._end(DONE)

    def _leave_unmeasured(self, sentence: str) -> None:
        """End with what was found."""
        self.result.warnings.append(sentence)
        self._end(DONE)

    def _fill_scene(self, event: dict, arrays: dict) -> RegistrationResult:
        """Put the transform, and what comes with it, into the scene."""
        request, scene = self.request, slicer.mrmlScene
        name = f"{request.moving.GetName()} to {request.fixed.GetName()}"
        transform, volume = request.output_transform, request.output_volume
        if transform is None and (request.create_transform or (volume is None and not request.create_volume)):
            kind = "vtkMRMLLinearTransformNode" if event.get("matrix") else "vtkMRMLTransformNode"
            transform = scene.AddNewNodeByClass(kind, scene.GenerateUniqueName(name))
        if volume is None and request.create_volume:
            volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", scene.GenerateUniqueName(f"{name}, warped"))
        answer = RegistrationResult(transform, volume, run=self._number if event.get("kept") else None)
        answer.record, answer.warnings = event.get("record") or {}, [*event.get("warnings", []), *self._files.notes]
        answer.metrics = event.get("metrics") or {"after": {"folded_percent": event.get("folded_percent", 0.0)}}
        if transform is not None:
            initial, before = request.initial_node(), request.moving.GetParentTransformNode()
            if event.get("matrix"):
                results.set_linear_transform(transform, np.array(event["matrix"]), request.fixed, request.moving)
            else:
                results.set_transform(transform, *arrays["transform"], request.fixed, request.moving)
            initial = None if initial is transform else initial
            transform.SetNodeReferenceID(results.INITIAL_ROLE, initial.GetID() if initial else None)
            if request.apply_transform:
                answer.warnings += self._carry(transform, before, answer.folded_percent)
        owner = transform if transform is not None else volume
        owner.SetAttribute(extras.RESULT, event.get("quality", ""))
        owner.SetAttribute("FoundationReg.verdict", (answer.record.get("trust") or {}).get("verdict", ""))
        owner.SetAttribute("FoundationReg.folded", str(answer.folded_percent))
        owner.SetAttribute("FoundationReg.record", json.dumps(answer.record))
        owner.SetNodeReferenceID(results.ROLE + "fixed", request.fixed.GetID())
        owner.SetNodeReferenceID(results.ROLE + "moving", request.moving.GetID())
        if volume is not None:
            results.set_warped_volume(
                volume, *arrays["warped"], request.fixed, request.moving, request.volume.get("type")
            )
        if transform is not None and volume is not None:
            transform.SetNodeReferenceID(results.ROLE + "warped", volume.GetID())
        outputs.fill_extras(answer, owner, name, request, arrays, event.get("loss") or {})
        answer.boxMaskNodes = outputs.set_box_masks(request, arrays.get("box_masks", {}), self._files.boxed)
        answer.seconds = time.monotonic() - self._started
        return answer

    def _fill_measured(self, event: dict) -> None:
        """Put what was measured into the scene."""
        request, answer = self.request, self.result
        answer.metrics, answer.record = event.get("metrics") or {}, event.get("record") or {}
        answer.quality = event.get("quality", "")
        owner = answer.transformNode if answer.transformNode is not None else answer.volumeNode
        if owner is None or owner.GetScene() is None:
            return
        owner.SetAttribute(extras.RESULT, answer.quality)
        owner.SetAttribute("FoundationReg.folded", str(answer.folded_percent))
        owner.SetAttribute("FoundationReg.record", json.dumps(answer.record))
        name = f"{request.moving.GetName()} to {request.fixed.GetName()}"
        answer.tableNode = results.set_metrics(owner, answer.metrics, self._files.names, name)

    def _carry(self, transform, before, folded: float) -> list[str]:
        """Place the moving volume and what belongs to it under ``transform``; say what cannot follow."""
        request, warnings = self.request, []
        request.moving.SetAndObserveTransformNodeID(transform.GetID())
        chosen = [request.moving_labels, request.moving_points, request.moving_mask, request.exclude_moving]
        chosen += [request.moving_box, request.moving_box_mask, *request.carry]
        followers = list(dict.fromkeys(n for n in chosen if n is not None and n.GetScene() is not None))
        # Points and surfaces need the inverse, which does not exist where the field folds.
        inverted = [node for node in followers if node.IsA("vtkMRMLMarkupsNode") or node.IsA("vtkMRMLModelNode")]
        inverted = [node for node in inverted if node is not request.moving_box]
        if folded >= FOLDED_LIMIT_PERCENT and inverted:
            names = ", ".join(repr(node.GetName()) for node in inverted)
            if self._allow_folded is not None and not self._allow_folded(folded):
                followers = [node for node in followers if node not in inverted]
                warnings.append(_("The deformation folds, so {names} did not follow.").format(names=names))
            else:
                text = _("The deformation folds in places; there {names} may be misplaced.")
                warnings.append(text.format(names=names))
        for node in followers:
            if node.GetParentTransformNode() in (before, transform):
                node.SetAndObserveTransformNodeID(transform.GetID())
            else:
                text = _(
                    "{name!r} does not lie under the same transform as the moving volume, so it stays where it is; put "
                    "both under one transform and run again."
                )
                warnings.append(text.format(name=node.GetName()))
        return warnings

    def _drop_preview(self) -> None:
        if self._preview is not None:
            self._preview.restore()
            self._preview = None

    def _end(self, state: str, error: FoundationRegError | None = None, details: str = "") -> None:
        self.state, self.error = state, error
        for target, tag in self._observed:
            target.RemoveObserver(tag)
        self._observed = []
        self._drop_preview()
        self._remove_folder()
        message = str(error) if error else self.result.quality
        self._tell({"event": state, "message": message, "kind": type(error).__name__, "details": details})

    def _remove_folder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is None:
            return
        if self._channel.process.keep_files and folder.exists():
            # The worker removes its folder when it ends: what is kept must lie beside it.
            self.kept = Path(tempfile.mkdtemp(prefix="foundationreg-report-", dir=folder.parent.parent)) / folder.name
            folder.rename(self.kept)
            if self._channel.process.folder != folder.parent:  # that worker was ended, and left it for this
                shutil.rmtree(folder.parent, ignore_errors=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    def _tell(self, event: dict) -> None:
        if self._on_event is not None:
            self._on_event(event)
