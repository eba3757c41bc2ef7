"""The section *Many pairs*: a batch on a table or on pairs of loaded volumes, started, watched, cancelled, loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import FoundationRegError, InputError
from ..client.cohort import CohortProcess, finished_results
from ..scene import cohorts
from . import dependencies, parameters
from .wording import stage_title, time_left

POLL_MS = 250
# Widgets that wait while a run goes on.
_CHOICES = (
    *("cohortTableEdit", "cohortTableButton", "cohortFolderEdit", "cohortFolderButton"),
    *("cohortAddButton", "cohortClearButton", "cohortVariantsComboBox"),
)
PRESET, PRESET_AND_MIND, EVERYTHING = range(3)


def settings_arguments(node, folder: Path) -> list[str]:
    """Arguments of the command line for the settings of the parameter node ``node``, written into ``folder``."""
    settings = parameters.settings_of(node).to_dict()
    threads = settings.pop("threads", 0)
    preset = folder / f"{node.preset}.json"
    preset.write_text(json.dumps({"title": node.preset, "settings": settings}, indent=2), encoding="utf-8")
    return ["--preset", str(preset), *(["--threads", str(threads)] if threads else [])]


class CohortSection:
    """Connects the widgets ``ui`` of the section. ``chosen`` returns the module's parameter node, or None."""

    def __init__(self, ui, chosen: Callable[[], object]):
        self._ui, self._chosen = ui, chosen
        self._pairs: list[tuple] = []
        self._results: list[dict] = []
        self.process: CohortProcess | None = None
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._onTimer)
        self._fillVariants()
        ui.cohortTableButton.connect("clicked(bool)", self._onChooseTable)
        ui.cohortFolderButton.connect("clicked(bool)", self._onChooseFolder)
        ui.cohortAddButton.connect("clicked(bool)", self._onAdd)
        ui.cohortClearButton.connect("clicked(bool)", self._onClear)
        ui.cohortStartButton.connect("clicked(bool)", self._onStart)
        ui.cohortLoadButton.connect("clicked(bool)", self._onLoad)
        ui.cohortReportButton.connect("clicked(bool)", self._onReport)
        ui.cohortFolderEdit.connect("editingFinished()", self.showResults)
        self.update()

    def _fillVariants(self) -> None:
        combo = self._ui.cohortVariantsComboBox
        combo.addItem(_("The settings chosen above"), PRESET)
        combo.addItem(_("The settings chosen above, and MIND alone"), PRESET_AND_MIND)
        combo.addItem(_("Every installed encoder and preset"), EVERYTHING)

    def update(self) -> None:
        """Show what can be done now."""
        ui, running = self._ui, self.process is not None
        ui.cohortStartButton.text = _("Cancel") if running else _("Start")
        ui.cohortProgressBar.visible = running
        for name in _CHOICES:
            getattr(ui, name).enabled = not running
        self._pairs = [pair for pair in self._pairs if all(slicer.mrmlScene.IsNodePresent(node) for node in pair)]
        names = ", ".join(f"{moving.GetName()} → {fixed.GetName()}" for fixed, moving in self._pairs)
        ui.cohortPairsLabel.text = names or _("No pairs added.")
        ui.cohortLoadButton.enabled = bool(self._results)
        ui.cohortReportButton.enabled = self._report() is not None

    #
    # What to run
    #

    def _onChooseTable(self, _clicked=False) -> None:
        title = _("Table of pairs")
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, "", "CSV (*.csv *.tsv *.txt)")
        if path:
            self._ui.cohortTableEdit.text = path

    def _onChooseFolder(self, _clicked=False) -> None:
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Output folder"))
        if path:
            self._ui.cohortFolderEdit.text = path
            self.showResults()

    def _onAdd(self, _clicked=False) -> None:
        node = self._chosen()
        if node is None or not node.fixedVolume or not node.movingVolume:
            self.say(_("Choose a fixed and a moving volume above first."))
            return
        pair = (node.fixedVolume, node.movingVolume)
        if pair in self._pairs:
            self.say(_("This pair is in the list already."))
            return
        self._pairs.append(pair)
        self.say("")
        self.update()

    def _onClear(self, _clicked=False) -> None:
        self._pairs = []
        self.update()

    def arguments(self) -> list[str]:
        """The command line's arguments for what is chosen; writes the volumes and settings that it needs.

        Raises `InputError` for what cannot be used.
        """
        folder = self._folder()
        if folder is None:
            raise InputError(_("Choose an output folder."))
        table = self._ui.cohortTableEdit.text.strip()
        if not table and not self._pairs:
            raise InputError(_("Choose a table of pairs, or add pairs of loaded volumes."))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = Path(table).expanduser() if table else cohorts.write_pairs(self._pairs, folder)
            return [str(path), "--output", str(folder), *self._variants(folder)]
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            text = _("The output folder {folder} cannot be written: {reason}.")
            raise InputError(text.format(folder=folder, reason=reason)) from None

    def _variants(self, folder: Path) -> list[str]:
        wanted = self._ui.cohortVariantsComboBox.currentData
        node = self._chosen()
        if wanted == EVERYTHING or node is None:
            return ["--all-encoders"]
        chosen = settings_arguments(node, folder)
        return [*chosen, "--encoder", "preset", *(["--encoder", "mind"] if wanted == PRESET_AND_MIND else [])]

    #
    # Running
    #

    def _onStart(self, _clicked=False) -> None:
        if self.process is not None:
            self.cancel()
            return
        try:
            dependencies.ensure()
            process = self.makeProcess(self.arguments())
            process.start()
        except (FoundationRegError, OSError) as error:
            self.say(str(error))
            slicer.util.errorDisplay(str(error))
            return
        self.process = process
        self._ui.cohortProgressBar.value = 0
        self.say(_("Starting..."))
        self._timer.start()
        self.update()

    def makeProcess(self, arguments: list[str]) -> CohortProcess:
        return CohortProcess(arguments)

    def cancel(self) -> None:
        """Stop after the present steps; what is finished stays."""
        if self.process is not None:
            self.process.cancel()
            self.say(_("Stopping..."))

    def _onTimer(self) -> None:
        for event in self.process.poll() if self.process is not None else ():
            if event["event"] == "progress":
                self._showProgress(event)
            elif event["event"] == "result":
                self.say(event["advice"])
            elif event["event"] == "ended":
                self._ended(event)

    def _showProgress(self, event: dict) -> None:
        self._ui.cohortProgressBar.value = round(1000 * event["fraction"])
        text = _("{done} of {total} results").format(done=event["found"] + event["done"], total=event["total"])
        if event["failed"]:
            text += _(", {count} failed").format(count=event["failed"])
        running = ", ".join(f"{id} ({stage_title(state['stage'])})" for id, state in list(event["running"].items())[:2])
        self.say(" · ".join(part for part in (text, time_left(event["seconds_left"]), running) if part))

    def _ended(self, event: dict) -> None:
        self._timer.stop()
        self.process = None
        if event["code"] == 1:
            self.say("\n".join([self._ui.cohortStatusLabel.text, event["message"]]))
        elif event["code"]:
            self.say(event["message"] or _("The run ended with code {code}.").format(code=event["code"]))
        self.showResults()

    #
    # Results
    #

    def showResults(self) -> None:
        """List the finished results of the output folder."""
        folder, combo = self._folder(), self._ui.cohortResultsComboBox
        self._results = finished_results(folder) if folder is not None else []
        combo.clear()
        for result in self._results:
            combo.addItem(f"{result['id']}: {result['variant']}")
        self.update()

    def _onLoad(self, _clicked=False) -> None:
        index = self._ui.cohortResultsComboBox.currentIndex
        if not 0 <= index < len(self._results):
            return
        try:
            cohorts.load_result(self._results[index])
        except FoundationRegError as error:
            self.say(str(error))
            slicer.util.errorDisplay(str(error))

    def _onReport(self, _clicked=False) -> None:
        if (report := self._report()) is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(report)))

    def _folder(self) -> Path | None:
        text = self._ui.cohortFolderEdit.text.strip()
        return Path(text).expanduser() if text else None

    def _report(self) -> Path | None:
        folder = self._folder()
        report = folder / "report.html" if folder is not None else None
        return report if report is not None and report.is_file() else None

    def say(self, text: str) -> None:
        self._ui.cohortStatusLabel.text = text

    def close(self) -> None:
        """The module goes away: end the run. It can be continued from its folder."""
        self._timer.stop()
        if self.process is not None:
            self.process.kill()
            self.process = None
