"""The encoder's state in the panel, and the section that keeps the weights."""

from __future__ import annotations

from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import FoundationRegError
from ...settings import Settings
from ...weights import store, trust
from ..client.channel import Channel
from . import availability
from .availability import Availability
from .parameters import PRESET_ENCODERS

BOX_ENCODER = "medsam-lite"  # whose checkpoint also segments boxes
CHOOSE_FILE, CHOOSE_FOLDER = "choose file", "choose folder"  # entries of the list of encoders that open a dialog


class ModelsPanel:
    """Shows what the chosen encoder needs and gets it, only after a yes.

    ``say`` shows a status text; ``changed`` is called when an encoder became ready or went away.
    """

    def __init__(self, ui, channel, say, changed):
        self._ui, self._parameters = ui, None
        self._channel, self._say, self._changed = channel, say, changed
        self.downloading = False
        self._followed: tuple = ()
        chosen = slicer.util.settingsValue(availability.FOLDER_SETTING, "", settings=slicer.app.userSettings())
        if chosen:
            store.set_models_folder(chosen)
            channel().process.environment["FOUNDATIONREG_MODELS"] = chosen
        ui.encoderActionButton.connect("clicked(bool)", self._onAction)
        for button, call in (
            (ui.showFolderButton, self._onShowFolder),
            (ui.changeFolderButton, self._onChangeFolder),
            (ui.clearFolderButton, self._onClearFolder),
            (ui.importButton, self._onImport),
            (ui.verifyButton, self._onVerify),
            (ui.removeButton, self._onRemove),
        ):
            button.connect("clicked(bool)", call)
        self._fillEncoders()

    def setParameters(self, parameters) -> None:
        self._parameters = parameters
        self.update()

    def chosen(self) -> list[availability.Encoder]:
        """The encoders and networks that a run would use. Empty as long as there is no parameter node."""
        from . import parameters

        node = self._parameters
        if node is None:
            return []
        names = parameters.encoders_of(node) or Settings.from_preset(node.preset).encoders
        found = [] if node.linearOnly else [availability.encoder(name) for name, _weight in names]
        if parameters.has_boxes(node) and BOX_ENCODER not in [encoder.id for encoder in found]:
            found.append(availability.encoder(BOX_ENCODER))
        return [*found, availability.network(node.anatomy)] if node.anatomy else found

    def families(self) -> set[str]:
        """The families of the encoders that a run would use, which need packages of their own."""
        return {encoder.family for encoder in self.chosen()}

    def missing(self) -> list[availability.Encoder]:
        """Those of `chosen` whose weights are not there."""
        return [encoder for encoder in self.chosen() if encoder.availability != Availability.READY]

    def choose(self, name: str) -> None:
        """The user picked an entry of the list of encoders."""
        path = ""
        if name == CHOOSE_FILE:
            patterns = " ".join(f"*{suffix}" for suffix in trust.SUFFIXES)
            title = _("TorchScript file for slices or volumes")
            path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, "", f"TorchScript ({patterns})")
        elif name == CHOOSE_FOLDER:
            title = _("Folder of a vision transformer that transformers saved")
            path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title)
        else:
            self._parameters.encoder = name
        if path:
            self.chooseOwn(path)
        self.update()

    def chooseOwn(self, path: str) -> None:
        """Take a model of the user's own, a program only after a yes. Before the packages are installed, where a yes
        cannot be kept, the question comes with the run."""
        try:
            encoder = availability.encoder(str(trust.checked(path).absolute()))
            if (
                encoder.availability != Availability.CONSENT
                or availability.folder() is None
                or self.confirmRun(encoder)
            ):
                self._parameters.encoder = encoder.id
        except FoundationRegError as error:
            slicer.util.errorDisplay(str(error))

    def confirmRun(self, encoder: availability.Encoder) -> bool:
        """Ask whether a program of the user's own may run; a yes is remembered for exactly its content."""
        shown = trust.digest(encoder.own)
        text = _(
            "{question}\n\nLike any program it could read, change or send your files. Do you trust where it comes "
            "from, and may it run?"
        ).format(question=trust.question(encoder.own, shown))
        if not slicer.util.confirmYesNoDisplay(text, _("Run your own model")):
            return False
        trust.keep(encoder.own, shown)
        return True

    def settle(self) -> list[availability.Encoder] | None:
        """What is still to be downloaded before a run. Asks whether programs of the user's own may run; None when not.

        Raises `FoundationRegError` when something is missing that only the user can bring.
        """
        for encoder in self.missing():
            if encoder.availability == Availability.GONE:
                raise FoundationRegError(_("The model {path} does not exist any more.").format(path=encoder.own))
            if encoder.availability == Availability.FILE:
                text = _("{title} needs a file with its weights: import it under Encoder weights, or choose another.")
                raise FoundationRegError(text.format(title=encoder.title))
        for encoder in self.missing():
            if encoder.availability == Availability.CONSENT and not self.confirmRun(encoder):
                return None
        self.update()
        return self.missing()

    def followParameters(self) -> None:
        """The parameters changed: look at the weights only if that concerns them, not at each tick of a slider."""
        if self._parameters is not None and self._followed != self._concerned():
            self.update()

    def _concerned(self) -> tuple:
        node = self._parameters
        boxed = node.fixedBox is not None or node.movingBox is not None
        return node.encoder, node.preset, node.combineMind, node.linearOnly, node.anatomy, boxed

    def update(self) -> None:
        """Show the state of the chosen encoders."""
        ui = self._ui
        if self._parameters is None:
            return
        self._followed = self._concerned()
        self._listOwn(self._parameters.encoder)
        index = ui.encoderComboBox.findData(self._parameters.encoder)
        if index >= 0 and ui.encoderComboBox.currentIndex != index:
            ui.encoderComboBox.currentIndex = index
        missing = self.missing()
        ui.encoderStateLabel.text = self._stateText(missing)
        actions = {
            Availability.DOWNLOAD: _("Download..."),
            Availability.FILE: _("Import..."),
            Availability.CONSENT: _("Allow..."),
        }
        action = actions.get(missing[0].availability) if missing else None
        ui.encoderActionButton.visible = action is not None and not self.downloading
        if action is not None:
            ui.encoderActionButton.text = action
        place = availability.folder()
        if place is None:
            ui.modelsFolderLabel.text = _("The standard place; it is shown once the Python packages are installed.")
        else:
            size = (
                availability.megabytes(availability.installed_bytes()) if availability.installed_bytes() else _("empty")
            )
            ui.modelsFolderLabel.text = _("{folder} ({size})").format(folder=place, size=size)
        for button in (ui.showFolderButton, ui.clearFolderButton):
            button.enabled = place is not None
        ui.importButton.enabled = self._target(ready=False) is not None
        there = [encoder for encoder in self._withFile() if encoder.availability == Availability.READY]
        ui.removeButton.enabled, ui.verifyButton.enabled = bool(there), any(encoder.file for encoder in there)

    def confirmDownload(self, encoders: list[availability.Encoder]) -> bool:
        """Ask, with size and licence, whether the weights may be fetched."""
        lines = [
            _("{title}: {size}, licence {licence}").format(
                title=encoder.title, size=availability.megabytes(encoder.bytes), licence=encoder.licence or _("unknown")
            )
            for encoder in encoders
        ]
        text = _("The weights of the encoder are not on this computer. Download them now?")
        return slicer.util.confirmOkCancelDisplay("\n".join([text, "", *lines]), _("Download weights"))

    def download(self, encoders: list[availability.Encoder], done) -> None:
        """Fetch the weights in the worker, one encoder after the other; ``done(error or None)`` follows."""
        self.downloading = bool(encoders)
        if not encoders:
            self._changed()
            self.update()
            done(None)
            return
        first, *rest = encoders

        def handle(event: dict) -> None:
            if event["event"] == "progress":
                percent = round(100 * event.get("fraction", 0))
                self._say(_("Downloading {title}: {percent} %").format(title=first.title, percent=percent))
            elif event["event"] == "result":
                self.download(rest, done)
            elif event["event"] == "error":
                self.downloading = False
                self._changed()
                done(FoundationRegError(event["message"]))

        self._channel().ask(handle, "download", encoder=first.id, accept_licence=True)

    def _stateText(self, missing: list[availability.Encoder]) -> str:
        if not missing:
            return _("Ready.")
        texts = []
        for encoder in missing:
            values = {"title": encoder.title, "size": availability.megabytes(encoder.bytes), "licence": encoder.licence}
            if encoder.availability == Availability.FILE:
                text = _("{title} needs a file that you get from its owner (licence {licence}; {page}).")
                texts.append(text.format(page=encoder.page, **values))
            elif encoder.availability == Availability.CONSENT:
                texts.append(_("{title} is a program; you are asked before it runs.").format(**values))
            elif encoder.availability == Availability.GONE:
                texts.append(_("{title} does not exist any more.").format(**values))
            elif encoder.availability == Availability.DOWNLOAD:
                texts.append(_("{title}: download of {size}, licence {licence}.").format(**values))
            else:
                texts.append(_("{title}: {size}, licence {licence}; asked for at the first run.").format(**values))
        return " ".join(texts)

    def _fillEncoders(self) -> None:
        combo = self._ui.encoderComboBox
        blocked = combo.blockSignals(True)
        combo.clear()
        combo.addItem(_("As in the preset"), PRESET_ENCODERS)
        for encoder in availability.encoders():
            combo.addItem(encoder.title, encoder.id)
            if encoder.suits:
                combo.setItemData(combo.count - 1, encoder.suits, qt.Qt.ToolTipRole)
        combo.addItem(_("Your own TorchScript file..."), CHOOSE_FILE)
        combo.addItem(_("Your own transformers folder..."), CHOOSE_FOLDER)
        combo.blockSignals(blocked)

    def _listOwn(self, name: str) -> None:
        """Give a model of the user's own, which the parameters name, an entry of the list."""
        combo = self._ui.encoderComboBox
        if availability.is_path(name) and combo.findData(name) < 0:
            blocked = combo.blockSignals(True)
            combo.insertItem(combo.findData(CHOOSE_FILE), Path(name).name, name)
            combo.setItemData(combo.findData(name), name, qt.Qt.ToolTipRole)
            combo.blockSignals(blocked)

    def _onAction(self, _clicked=False) -> None:
        missing = self.missing()
        if not missing:
            return
        if missing[0].availability == Availability.FILE:
            self._onImport()
        elif missing[0].availability == Availability.CONSENT:
            self._allow(missing[0])
        elif self.confirmDownload(missing):
            self.download(missing, self._finished)
            self.update()

    def _allow(self, encoder: availability.Encoder) -> None:
        try:
            self.confirmRun(encoder)
        except FoundationRegError as error:
            slicer.util.errorDisplay(str(error))
        self._changed()
        self.update()

    def _finished(self, error: Exception | None) -> None:
        self._say(str(error) if error is not None else _("The weights are ready."))
        if error is not None:
            slicer.util.errorDisplay(str(error))
        self.update()

    def _onShowFolder(self, _clicked=False) -> None:
        place = availability.folder()
        place.mkdir(parents=True, exist_ok=True)
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(place)))

    def _onChangeFolder(self, _clicked=False) -> None:
        start = str(availability.folder() or Path.home())
        chosen = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder for encoder weights"), start)
        if chosen:
            self.setFolder(chosen)

    def setFolder(self, path: str) -> None:
        """Keep weights in another folder from now on, also after a restart."""
        slicer.app.userSettings().setValue(availability.FOLDER_SETTING, path)
        store.set_models_folder(path)
        channel: Channel = self._channel()
        if not channel.waiting:
            channel.close()  # a warm worker still has the old folder
        channel.process.environment["FOUNDATIONREG_MODELS"] = path
        self._changed()
        self.update()

    def _onClearFolder(self, _clicked=False) -> None:
        text = _("Remove the downloaded weights of all encoders ({size}) from {folder}?")
        text = text.format(size=availability.megabytes(availability.installed_bytes()), folder=availability.folder())
        if slicer.util.confirmOkCancelDisplay(text, _("Clear weights")):
            availability.clear()
            self._changed()
            self.update()

    def _withFile(self) -> list[availability.Encoder]:
        """The chosen encoders that have weights to import or remove, or a yes to take back."""
        return [encoder for encoder in self.chosen() if encoder.file or (encoder.own and not encoder.own.is_dir())]

    def _target(self, ready: bool) -> availability.Encoder | None:
        """The first of the chosen encoders to import (not ready) or to remove (ready), else any other of them."""
        candidates = [encoder for encoder in self._withFile() if ready or not encoder.own]
        candidates.sort(key=lambda encoder: (encoder.availability == Availability.READY) != ready)
        return candidates[0] if candidates else None

    def _onImport(self, _clicked=False) -> None:
        encoder = self._target(ready=False)
        if encoder is None:
            return
        title = _("Weights of {title} ({file})").format(title=encoder.title, file=encoder.file)
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title)
        if path:
            self.importFile(encoder, path)

    def importFile(self, encoder: availability.Encoder, path: str) -> None:
        """Take the weights from a file; its hash is checked in the worker, because that can take long."""
        self._ask("import", _("Checking the file..."), encoder=encoder.id, file=path)

    def _onRemove(self, _clicked=False) -> None:
        encoder = self._target(ready=True)
        if encoder is not None and encoder.own:
            if slicer.util.confirmOkCancelDisplay(_("Let {path} not run any more?").format(path=encoder.own)):
                trust.distrust(encoder.own)
                self._changed()
                self.update()
            return
        text = _("Remove the weights of {title} from this computer?")
        if encoder is not None and slicer.util.confirmOkCancelDisplay(text.format(title=encoder.title)):
            self._ask("remove", _("Removing..."), encoder=encoder.id)

    def _onVerify(self, _clicked=False) -> None:
        ready = [encoder for encoder in self._withFile() if encoder.availability == Availability.READY]
        encoder = next(encoder for encoder in ready if encoder.file)
        self._ask("verify", _("Reading {title} again...").format(title=encoder.title), encoder=encoder.id)

    def _ask(self, command: str, doing: str, **values) -> None:
        def handle(event: dict) -> None:
            if event["event"] in ("result", "error"):
                self._changed()
                self._finished(FoundationRegError(event["message"]) if event["event"] == "error" else None)
                if event.get("sha256"):
                    self._say(_("The weights are unchanged (SHA256 {sha256}).").format(sha256=event["sha256"]))

        self._say(doing)
        self._channel().ask(handle, command, **values)
