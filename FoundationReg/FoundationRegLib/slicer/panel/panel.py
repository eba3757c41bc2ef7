"""What the widgets of the panel do: choose, run, follow, finish. Life cycle and binding stay in FoundationReg.py."""

from __future__ import annotations

import time
from collections.abc import Callable

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import Cancelled, FoundationRegError
from ..client.session import Session
from ..scene import results
from ..scene.handles import hide_handles
from . import dependencies, parameters
from .device_line import DeviceLine
from .encoders_section import ModelsPanel
from .features_section import FeaturesSection
from .guidance_section import GuidanceSection
from .interaction_section import InteractionSection
from .presets_section import PresetPanel
from .review_section import ReviewPanel
from .tools import ToolButtons, allow_folded
from .wording import stage_title, time_left

REOPTIMIZE_DELAY_MS = 500


class Panel:
    """Drives the widgets ``ui`` of the module with ``logic`` (a FoundationRegLogic)."""

    def __init__(self, ui, interactionUi, logic):
        self.ui, self._logic = ui, logic
        self._parameters = None
        self._job = None
        self._busy = self._installing = False
        self._tuning: tuple | None = None  # that the last run began with
        self._again = False
        self._stage = ""
        self._updating = False
        self.review = ReviewPanel(ui)
        self.models = ModelsPanel(ui, lambda: logic.channel, self.say, self._onWeights)
        self.presets = PresetPanel(ui)
        self.interaction = InteractionSection(
            interactionUi, self.say, self.run, self.review.refresh, self._takeMeasures
        )
        self.guidance = GuidanceSection(
            ui, lambda: logic.channel, self._prepare, self._setBusy, self.say, self._fail, self.updateApply
        )
        self.features = FeaturesSection(
            ui, self.models, lambda: self.interaction.session, self._resultNode, self._setBusy, self.say, self._fail,
            self._showFeatures, lambda: self._prepare(self.run),
        )  # fmt: skip
        self.tools = ToolButtons(ui, self._resultNode, lambda: logic.channel, self.say, self.interaction.update)
        self._delay = qt.QTimer()
        self._delay.setSingleShot(True)
        self._delay.setInterval(REOPTIMIZE_DELAY_MS)
        self._delay.connect("timeout()", self._reoptimize)
        ui.encoderComboBox.connect("currentIndexChanged(int)", self._onEncoder)
        ui.applyButton.connect("clicked(bool)", self._onApply)
        ui.stopHereButton.connect("clicked(bool)", self._onStopHere)
        ui.keepFilesCheckBox.connect("toggled(bool)", self._onKeepFiles)
        ui.previewCheckBox.connect("toggled(bool)", self._onPreview)
        self.device = DeviceLine(ui, lambda: logic.channel, lambda: self._parameters)

    #
    # Parameters
    #

    def setParameters(self, node) -> None:
        """Follow another parameter node; None when the scene closes."""
        self._parameters = node
        self._delay.stop()
        if node is None:
            self._tuning = None
        self.presets.setParameters(node)
        self.review.setParameters(node)
        self.models.setParameters(node)
        self.interaction.setParameters(node)
        self.tools.setParameters(node)
        self.features.setParameters(node)
        self.guidance.setParameters(node)
        if node is not None:
            self.update()

    def chooseDefaults(self) -> None:
        """With two volumes in the scene and nothing chosen, the first is fixed and the second moves."""
        node = self._parameters
        if node is None or node.fixedVolume or node.movingVolume:
            return
        volumes = [
            volume
            for volume in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
            if volume.GetClassName() == "vtkMRMLScalarVolumeNode" and not volume.GetHideFromEditors()
        ]
        if len(volumes) == 2:
            node.fixedVolume, node.movingVolume = volumes

    def update(self) -> None:
        """The parameters changed: bring everything that depends on them up to date."""
        node = self._parameters
        if node is None or self._updating:
            return
        self._updating = True
        try:
            self.presets.update()
            self.ui.outputTransformSelector.enabled = node.makeTransform
            self.ui.applyTransformCheckBox.enabled = node.makeTransform
            self.ui.outputVolumeSelector.enabled = node.makeVolume
            self.ui.combineMindCheckBox.enabled = node.encoder not in (parameters.PRESET_ENCODERS, parameters.MIND)
            self.ui.encoderWeightSpinBox.enabled = parameters.has_weight(node)
            self.models.followParameters()
            self.guidance.update()
            self.updateApply()
            self.review.update()
            self.interaction.followParameters()
            self.tools.update()
            self.features.update()
        finally:
            self._updating = False
        if parameters.tuning_of(node) != self._tuning and node.reoptimize and self._canReoptimize():
            self._delay.start()

    def _onWeights(self) -> None:
        """Weights came or went."""
        self.updateApply()
        self.features.refresh()

    def missing(self) -> tuple[str, str]:
        """What hinders a start: the short text of the button and the sentence of its tooltip; empty when nothing."""
        node = self._parameters
        return parameters.missing_of(node, self.guidance.carried()) if node is not None else (_("Apply"), "")

    def updateApply(self) -> None:
        """The text and the state of the Apply button."""
        button = self.ui.applyButton
        self.ui.stopHereButton.visible = self._job is not None and self._job.running
        if self._installing:
            button.text, button.enabled = _("Installing..."), False
            button.toolTip = _("Waiting for the installation of Python packages.")
            return
        if self._busy:
            button.text, button.enabled = _("Cancel"), True
            button.toolTip = _("Stop at once; everything stays as it was.")
            return
        text, sentence = self.missing()
        button.enabled = not text
        button.text = text or _("Apply")
        button.toolTip = sentence or _("Start the registration.")

    #
    # Running
    #

    def _onApply(self, _clicked=False) -> None:
        if self._installing:
            return
        if self._busy:
            self.cancel()
            return
        self._prepare(self.run)

    def _prepare(self, then: Callable[[], None]) -> None:
        """Get what is missing, after asking, and do ``then``."""
        try:
            self._install()
            missing = self.models.settle()
        except FoundationRegError as error:
            self._fail(error)
            return
        if missing is None or self._parameters is None:
            return
        if not missing:
            then()
        elif self.models.confirmDownload(missing):
            self._setBusy(True)
            self.models.download(missing, lambda error: self._afterDownload(error, then))

    def _install(self) -> None:
        """Install what is missing. Slicer lets Qt work meanwhile (slicer/util.py, logProcessOutput), so that buttons
        could be clicked."""
        self._installing = True
        self.updateApply()
        try:
            dependencies.ensure(self.models.families())
        finally:
            self._installing = False
            self.updateApply()

    def _afterDownload(self, error: Exception | None, then: Callable[[], None]) -> None:
        self._setBusy(False)
        if error is not None:
            self._fail(error)
        elif self._parameters is not None:
            then()

    def run(self) -> None:
        """Start the registration that the parameters describe; tells the user when that cannot be."""
        node = self._parameters
        try:
            request = parameters.request_of(node, self.guidance.carried())
            self._setBusy(True)
            self.say(_("Sending the volumes..."))
            self._tuning = parameters.tuning_of(node)
            self.review.showAfter()
            self.device.ask(again=False)
            self._logic.channel.process.keep_files = node.keepFiles
            self._job = self._logic.start(request, self._onEvent, allow_folded)
        except FoundationRegError as error:
            self._setBusy(False)
            self._fail(error)
            return
        self.updateApply()

    def cancel(self) -> None:
        """Stop what runs, at once."""
        self._again = False
        if self._job is not None and self._job.running:
            self._job.cancel()
        elif self._busy and self.features.cancel():
            self.say(_("Stopping..."))
        elif self._busy:
            self._logic.channel.kill()
            self.guidance.forget()
            self.models.downloading = False
            self._setBusy(False)
            self.say(_("Cancelled."))

    def _onEvent(self, event: dict) -> None:
        kind = event["event"]
        if kind == "log":
            self.log(event.get("message", ""))
        elif kind == "progress":
            self._showProgress(event)
        elif kind == "found":
            self._takeFound(self._job.result)
        elif kind in ("done", "failed", "cancelled"):
            self._finished(event)

    def _showProgress(self, event: dict) -> None:
        self.ui.progressBar.value = round(1000 * event.get("fraction", 0))
        if event.get("stage", "") != self._stage:
            self._stage = event.get("stage", "")
            self.log(stage_title(self._stage))
        parts = [stage_title(event.get("stage", "")), event.get("message", ""), time_left(event.get("seconds_left"))]
        self.say(" · ".join(part for part in parts if part))
        self.log(event.get("message", ""))

    def _finished(self, event: dict) -> None:
        job, self._job = self._job, None
        self._setBusy(False)
        again, self._again = self._again, False
        if job is not None and job.kept is not None:
            self.log(_("The files of this run are in {folder}").format(folder=job.kept))
        if event["event"] == "done":
            self._takeResult(job.result)
        elif event["event"] == "cancelled":
            self.say(_("Cancelled; everything is as it was."))
        else:
            self.log(event.get("details", ""))
            self.interaction.update()
            self._fail(job.error if job is not None else FoundationRegError(event["message"]))
        if again and self._parameters is not None and event["event"] != "failed":
            qt.QTimer.singleShot(0, self.run)

    def _takeFound(self, result) -> None:
        """The transform is in the scene; what is measured follows."""
        node = self._parameters
        if node is None:
            return
        first = self.review.review is None
        if result.transformNode is not None:
            node.outputTransform = result.transformNode
        if result.volumeNode is not None:
            node.outputVolume = result.volumeNode
        self.guidance.takeMasks(result.boxMaskNodes)
        owner = result.transformNode or result.volumeNode
        self.ui.reviewCollapsibleButton.collapsed = False
        self.review.setOwner(owner, show=True, fit=first)
        session = None
        if result.run is not None and result.transformNode is not None:
            nodes = (node.fixedVolume, node.movingVolume, result.transformNode)
            session = Session(self._logic.channel, result.run, *nodes)
        self.interaction.setResult(session, owner)
        hide_handles(node.initialTransform)

    def _takeResult(self, result) -> None:
        for warning in result.warnings:
            self.log(_("Warning: {text}").format(text=warning))
        self.say(_("Done in {seconds:.0f} s.").format(seconds=result.seconds))
        if self._parameters is None:
            return
        self.review.showMeasures()
        self.interaction.update()
        self.features.update()
        self.tools.update()
        if result.warnings:
            self.say(" ".join([self.ui.statusLabel.text, *result.warnings]))

    def _showFeatures(self, encoder: str) -> None:
        self.review.showFeatures(encoder)
        self.interaction.update()

    def _resultNode(self):
        """The node with the result that is reviewed, or None."""
        review = self.review.review
        return review.owner if review is not None and review.valid else None

    def _takeMeasures(self, event: dict) -> None:
        """The transform was measured again after corrections."""
        review = self.review.review
        if review is None:
            return
        results.update_measures(review.owner, event.get("metrics") or {}, event.get("quality", ""))
        self.review.showMeasures()

    def _fail(self, error: Exception) -> None:
        self.say(str(error))
        self.log(str(error))
        if not isinstance(error, Cancelled):
            slicer.util.errorDisplay(str(error))  # writes it to Slicer's log, too (slicer/util.py, errorDisplay)

    def _setBusy(self, busy: bool) -> None:
        self._busy = busy
        self.ui.progressBar.visible = busy
        if busy:
            self.ui.progressBar.value = 0
        self.updateApply()

    def _onStopHere(self, _clicked=False) -> None:
        if self._job is not None:
            self._job.finish()
            self.say(_("Stopping here..."))

    def _onKeepFiles(self, wanted: bool) -> None:
        self._logic.channel.process.keep_files = wanted

    def _onPreview(self, wanted: bool) -> None:
        if self._job is not None:
            self._job.set_preview(wanted)

    #
    # Refining again
    #

    def _canReoptimize(self) -> bool:
        """Whether there is a result of this session whose features the worker still has."""
        known = self._tuning is not None and self.review.review is not None
        return known and self._logic.channel.process.alive

    def _reoptimize(self) -> None:
        """Smoothness, weight or masks were changed after a run: compute again from what the worker remembers."""
        node = self._parameters
        if node is None or parameters.tuning_of(node) == self._tuning:
            return
        if self._job is not None and self._job.running:
            self._again = True
            self._job.stop_softly()
        elif not self._busy and self._canReoptimize() and not self.missing()[0]:
            self.run()

    #
    # Encoder, and what follows
    #

    def _onEncoder(self, index: int) -> None:
        if self._parameters is not None and not self._updating and index >= 0:
            self.models.choose(self.ui.encoderComboBox.itemData(index))

    #
    # Texts
    #

    def say(self, text: str) -> None:
        """Show ``text`` below the progress bar."""
        self.ui.statusLabel.text = text

    def log(self, text: str) -> None:
        """Add ``text`` to the log."""
        if text:
            self.ui.logTextEdit.appendPlainText("{time}  {text}".format(time=time.strftime("%H:%M:%S"), text=text))

    def suspend(self) -> None:
        """The module is left."""
        self.review.suspend()
        self.interaction.leave()

    def close(self) -> None:
        """The widget goes away: end the worker and let go of the scene."""
        self._delay.stop()
        self._parameters = None
        self.guidance.setParameters(None)
        self.review.setParameters(None)
        self.interaction.setParameters(None)
        self._logic.channel.close()
