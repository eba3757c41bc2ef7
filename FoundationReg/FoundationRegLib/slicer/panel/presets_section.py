"""The preset: what there is to choose, what it is for, and what was changed since."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from ... import settings
from ...errors import FoundationRegError
from . import own_presets, parameters


class PresetPanel:
    """Connects the list of presets in ``ui`` with the parameters."""

    def __init__(self, ui):
        self._ui, self._parameters = ui, None
        self._fill()
        ui.presetComboBox.connect("currentIndexChanged(int)", self._onChosen)
        ui.restorePresetButton.connect("clicked(bool)", self._onRestore)
        ui.savePresetButton.connect("clicked(bool)", self._onSave)
        ui.deletePresetButton.connect("clicked(bool)", self._onDelete)
        ui.importPresetButton.connect("clicked(bool)", self._onImport)
        ui.sharePresetButton.connect("clicked(bool)", self._onShare)

    def setParameters(self, node) -> None:
        """Follow another parameter node; None when the scene closes."""
        self._parameters = node
        if node is not None:
            parameters.repair(node)

    def update(self) -> None:
        """Show the preset of the parameters, its sentence, and which fields differ from it."""
        node, combo = self._parameters, self._ui.presetComboBox
        index = combo.findData(node.preset)
        if index >= 0 and combo.currentIndex != index:
            blocked = combo.blockSignals(True)
            combo.currentIndex = index
            combo.blockSignals(blocked)
        try:
            text = settings.read_preset(node.preset).get("summary", "")
            changed = parameters.changed_fields(node)
        except FoundationRegError as error:
            text, changed = str(error), []
        if changed:
            names = ", ".join(name.replace("_mm", "").replace("_", " ") for name in changed)
            text = _("{summary} Changed: {names}.").format(summary=text, names=names)
        self._ui.presetLabel.text = text
        self._ui.deletePresetButton.enabled = own_presets.is_own(node.preset)

    def _fill(self) -> None:
        combo = self._ui.presetComboBox
        combo.clear()
        for name in [*settings.preset_names(), *own_presets.names()]:
            preset = settings.read_preset(name)
            combo.addItem(preset.get("title", name), name)
            combo.setItemData(combo.count - 1, preset.get("summary", ""), qt.Qt.ToolTipRole)

    def _onChosen(self, index: int) -> None:
        if self._parameters is not None and index >= 0:
            self._apply(self._ui.presetComboBox.itemData(index))

    def _onRestore(self, _clicked=False) -> None:
        if self._parameters is not None:
            self._apply(self._parameters.preset)

    def _onSave(self, _clicked=False) -> None:
        if self._parameters is None:
            return
        title = qt.QInputDialog.getText(None, _("Save preset"), _("Name of the preset:"))
        title = title[0] if isinstance(title, tuple) else title
        if title:
            self._try(lambda: own_presets.save(title, parameters.settings_of(self._parameters)))

    def _onImport(self, _clicked=False) -> None:
        path = qt.QFileDialog.getOpenFileName(None, _("Import preset"), "", _("Presets (*.json)"))
        path = path[0] if isinstance(path, tuple) else path
        if path and self._parameters is not None:
            self._try(lambda: own_presets.take_in(path))

    def _onShare(self, _clicked=False) -> None:
        path = qt.QFileDialog.getSaveFileName(None, _("Share preset"), "preset.json", _("Presets (*.json)"))
        path = path[0] if isinstance(path, tuple) else path
        if path and self._parameters is not None:
            self._try(lambda: own_presets.share(self._parameters.preset, path))

    def _onDelete(self, _clicked=False) -> None:
        name = self._parameters.preset
        title = settings.read_preset(name).get("title", name)
        if slicer.util.confirmOkCancelDisplay(_("Delete the preset {title}?").format(title=title)):
            own_presets.delete(name)
            # The values stay; they are those of no preset any more.
            self._parameters.preset = settings.preset_names()[0]
            self._refill()

    def _try(self, action) -> None:
        """Do something with presets, and choose the one that came of it."""
        try:
            made = action()
        except FoundationRegError as error:
            slicer.util.errorDisplay(str(error))
            return
        self._refill()
        if made:
            self._apply(made)

    def _refill(self) -> None:
        blocked = self._ui.presetComboBox.blockSignals(True)
        self._fill()
        self._ui.presetComboBox.blockSignals(blocked)
        self.update()

    def _apply(self, name: str) -> None:
        modified = self._parameters.StartModify()
        parameters.apply_preset(self._parameters, name)
        self._parameters.EndModify(modified)
