"""The section *Sequence*: every frame of a sequence of volumes registered to one of them, watched and cancelled."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import Cancelled, FoundationRegError
from ..client.cohort import CohortProcess, failed_results, finished_results
from ..scene import sequences
from . import dependencies
from .cohort_section import POLL_MS, settings_arguments
from .wording import stage_title, time_left

# Of the bar: what writing the frames, and loading the results, takes.
_WRITING, _LOADING = 0.05, 0.05
# Widgets that wait while a run goes on.
_CHOICES = ("sequenceSelector", "sequenceFrameSpinBox")


class SequenceSection:
    """Connects the widgets ``ui`` of the section. ``chosen`` returns the module's parameter node, or None."""

    def __init__(self, ui, chosen: Callable[[], object]):
        self._ui, self._chosen = ui, chosen
        self._work: Iterator[None] | None = None
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self._onTimer)
        ui.sequenceStartButton.connect("clicked(bool)", self._onStart)
        ui.sequenceSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onSequence)
        ui.sequenceFrameSpinBox.connect("valueChanged(int)", self._onFrame)
        ui.sequenceCollapsibleButton.connect("contentsCollapsed(bool)", self._onCollapsed)
        self.update()

    @property
    def running(self) -> bool:
        return self._work is not None

    def update(self) -> None:
        """Show what can be done now."""
        ui = self._ui
        ui.sequenceStartButton.text = _("Cancel") if self.running else _("Register all frames")
        ui.sequenceProgressBar.visible = self.running
        for name in _CHOICES:
            getattr(ui, name).enabled = not self.running
        sequence = ui.sequenceSelector.currentNode()
        ui.sequenceFrameSpinBox.maximum = max(1, sequence.GetNumberOfDataNodes() if sequence is not None else 1)
        self._onFrame()

    def _onSequence(self, _node=None) -> None:
        if not self.running:
            self.update()

    def _onFrame(self, _value=None) -> None:
        sequence, frame = self._ui.sequenceSelector.currentNode(), self._ui.sequenceFrameSpinBox.value - 1
        known = sequence is not None and frame < sequence.GetNumberOfDataNodes()
        self._ui.sequenceFrameLabel.text = sequences.frame_title(sequence, frame) if known else ""

    def _onCollapsed(self, collapsed: bool) -> None:
        """Opened: take the sequence to which the moving or the fixed volume chosen above belongs."""
        node = self._chosen()
        if collapsed or node is None:
            return
        if self._ui.sequenceSelector.currentNode() is None:
            found = [sequences.sequence_of(volume) for volume in (node.movingVolume, node.fixedVolume)]
            self._ui.sequenceSelector.setCurrentNode(next((one for one in found if one is not None), None))
        self._onSequence()

    #
    # Running
    #

    def _onStart(self, _clicked=False) -> None:
        if self.running:
            self.cancel()
            return
        sequence, fixed = self._ui.sequenceSelector.currentNode(), self._ui.sequenceFrameSpinBox.value - 1
        try:
            sequences.check_sequence(sequence, fixed)
            dependencies.ensure()
        except FoundationRegError as error:
            self._fail(error)
            return
        self._work = self._registered(sequence, fixed)
        self._ui.sequenceProgressBar.value = 0
        self.say(_("Starting..."))
        self._timer.start(0)
        self.update()

    def makeProcess(self, arguments: list[str]) -> CohortProcess:
        return CohortProcess(arguments)

    def cancel(self) -> None:
        """Stop; the scene stays as it was."""
        if self.running:
            self._end()
            self.say(_("Cancelled; nothing was changed."))

    def close(self) -> None:
        """The module goes away, or the scene is closed: end the run."""
        self._end()

    def _end(self) -> None:
        self._timer.stop()
        work, self._work = self._work, None
        if work is not None:
            work.close()
        self.update()

    def _onTimer(self) -> None:
        try:
            next(self._work)
        except StopIteration:
            self._end()
        except (FoundationRegError, OSError) as error:
            self._end()
            self._fail(error)
        except Exception:
            self._end()
            self.say(_("The frames could not be registered; the log has the details."))
            raise

    def _fail(self, error: Exception) -> None:
        self.say(str(error))
        if not isinstance(error, Cancelled):
            slicer.util.errorDisplay(str(error))

    def _registered(self, sequence, fixed: int) -> Iterator[None]:
        """Do the whole of it, and pause often. Closed before its end it leaves nothing behind."""
        made = sequences.RegisteredFrames(sequence, fixed)
        folder = Path(tempfile.mkdtemp(prefix="foundationreg-sequence-", dir=slicer.app.temporaryPath))
        process = None
        try:
            table = sequences.FrameTable(sequence, fixed, folder)
            count = sequence.GetNumberOfDataNodes()
            for written in table.write():
                self._show(_WRITING * written / count, _("Handing over frame {n} of {count}"), n=written, count=count)
                yield
            output = folder / "results"
            arguments = [str(table.path), "--output", str(output), "--keep", "images"]
            process = self.makeProcess([*arguments, *settings_arguments(self._chosen(), folder)])
            process.start()
            self._timer.start(POLL_MS)
            yield from self._watched(process)
            self._timer.start(0)
            results = {found["id"]: found["folder"] for found in finished_results(output)}
            failed = yield from self._taken(made, results, failed_results(output), count)
            if sequence.GetScene() is None:
                raise Cancelled(_("The sequence is no longer in the scene; nothing was made of it."))
            reasons = {**table.unusable, **failed}
            for frame in reasons:
                made.leave_out(frame)
            made.place()
            self._say_what_came(sequence, made.count, count, reasons)
        finally:
            if process is not None:
                process.kill()
            # Processes that were just killed may still be letting go of their files.
            with contextlib.suppress(OSError):
                shutil.rmtree(folder, ignore_errors=True)

    def _watched(self, process: CohortProcess) -> Iterator[None]:
        """Show how far ``process`` is until it has ended. Raises for a run without results."""
        while True:
            for event in process.poll():
                if event["event"] == "progress":
                    self._showProgress(event)
                elif event["event"] == "ended":
                    if event["code"] not in (0, 1):  # 1: some frames failed, which is told with the results
                        text = _("The run ended with code {code}.").format(code=event["code"])
                        raise FoundationRegError(event["message"] or text)
                    return
            yield

    def _taken(
        self, made, results: dict[str, Path], reasons: dict[str, str], count: int
    ) -> Generator[None, None, dict[int, str]]:
        """Load the results into ``made``, one at a time; returns why frames have none."""
        missing = {}
        for frame in range(count):
            name = sequences.frame_id(frame)
            if name in reasons:
                missing[frame] = reasons[name]
            elif name in results:
                share = 1 - _LOADING * (1 - (frame + 1) / count)
                self._show(share, _("Loading frame {n} of {count}"), n=frame + 1, count=count)
                made.add(frame, results[name])
                yield
        if not made.count:
            reason = next(iter(missing.values()), _("no frame was registered"))
            raise FoundationRegError(_("No frame could be registered: {reason}").format(reason=reason))
        return missing

    def _show(self, share: float, text: str, **values) -> None:
        self._ui.sequenceProgressBar.value = round(1000 * share)
        self.say(text.format(**values))

    def _showProgress(self, event: dict) -> None:
        under_way = sum(state["fraction"] for state in event["running"].values())
        done = (event["done"] + event["failed"] + under_way) / event["total"] if event["total"] else 1.0
        share = _WRITING + (1 - _WRITING - _LOADING) * min(1.0, done)
        self._ui.sequenceProgressBar.value = round(1000 * share)
        text = _("{done} of {total} frames").format(done=event["done"], total=event["total"])
        if event["failed"]:
            text += _(", {count} failed").format(count=event["failed"])
        stages = ", ".join(stage_title(state["stage"]) for state in list(event["running"].values())[:2])
        self.say(" · ".join(part for part in (text, time_left(event["seconds_left"]), stages) if part))

    def _say_what_came(self, sequence, done: int, count: int, reasons: dict[int, str]) -> None:
        text = _("{done} of {total} frames are registered; move the sequence browser to see them.")
        lines = [text.format(done=done, total=count - 1)]
        for frame, reason in sorted(reasons.items()):
            line = _("Frame {n} ({title}) has no result: {reason}")
            lines.append(line.format(n=frame + 1, title=sequences.frame_title(sequence, frame), reason=reason))
        self.say("\n".join(lines))

    def say(self, text: str) -> None:
        self._ui.sequenceStatusLabel.text = text
