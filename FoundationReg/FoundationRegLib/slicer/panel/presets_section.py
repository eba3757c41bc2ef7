"""The preset: what there is to choose, what it is for, and what was changed since."""

from __future__ import annotations

import qt
from slicer.i18n import tr as _

from ... import settings
from ...errors import FoundationRegError
from . import parameters


class PresetPanel:
    """Connects the list of presets in ``ui`` with the parameters."""

    def __init__(self, ui):
        self._ui, self._parameters = ui, None
        self._fill()
        ui.presetComboBox.connect("currentIndexChanged(int)", self._onChosen)
        ui.restorePresetButton.connect("clicked(bool)", self._onRestore)

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

    def _fill(self) -> None:
        combo = self._ui.presetComboBox
        combo.clear()
        for name in settings.preset_names():
            preset = settings.read_preset(name)
            combo.addItem(preset.get("title", name), name)
            combo.setItemData(combo.count - 1, preset.get("summary", ""), qt.Qt.ToolTipRole)

    def _onChosen(self, index: int) -> None:
        if self._parameters is not None and index >= 0:
            self._apply(self._ui.presetComboBox.itemData(index))

    def _onRestore(self, _clicked=False) -> None:
        if self._parameters is not None:
            self._apply(self._parameters.preset)

    def _apply(self, name: str) -> None:
        modified = self._parameters.StartModify()
        parameters.apply_preset(self._parameters, name)
        self._parameters.EndModify(modified)
