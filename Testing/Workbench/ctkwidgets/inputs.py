"""Combo boxes and message boxes."""

from PySide6.QtCore import QSettings, Qt
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QMessageBox,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
)

from ..qtproperty import forwarded, stored


def paint_combo_box(box: QComboBox, text: str) -> None:
    """Paint ``box`` with another text than that of its current item."""
    painter = QStylePainter(box)
    option = QStyleOptionComboBox()
    box.initStyleOption(option)
    option.currentText = text
    painter.drawComplexControl(QStyle.CC_ComboBox, option)
    painter.drawControl(QStyle.CE_ComboBoxLabel, option)


def ticked_text(box: QComboBox) -> str:
    """Which items of ``box`` are ticked, as CTK shows it."""
    items = [box.model().item(row) for row in range(box.count)]
    items = [item for item in items if item.isCheckable()]
    ticked = [item.text() for item in items if item.checkState() == Qt.Checked]
    if items and len(ticked) == len(items):
        return "All"
    return ", ".join(ticked) or "None"


class ctkComboBox(QComboBox):
    """A combo box with a hint that is shown while nothing is selected."""

    # Not QComboBox's placeholderText: that would keep the box from selecting its first item by itself.
    defaultText = stored(str, "_defaultText", "", QComboBox.update)
    forceDefault = stored(bool, "_forceDefault", False, QComboBox.update)

    def paintEvent(self, _event):
        hint = self.currentIndex == -1 or self.forceDefault
        paint_combo_box(self, self.defaultText if hint else self.currentText)


class ctkMessageBox(QMessageBox):
    """A message box that can remember its answer ("Don't show this message again")."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box = QCheckBox("Don't show this message again", self)
        self._box.hide()

    dontShowAgain = forwarded(bool, "_box", "checked")
    dontShowAgainSettingsKey = stored(str, "_settingsKey", "", lambda self: self._restore())

    def _restore(self):
        self.setCheckBox(self._box)
        answer = QSettings().value(self.dontShowAgainSettingsKey)
        self._box.checked = answer is not None and int(answer) != int(QMessageBox.InvalidRole.value)

    def exec(self):
        key = self.dontShowAgainSettingsKey
        if key and self.dontShowAgain:
            return int(QSettings().value(key))
        answer = super().exec()
        if key and self.dontShowAgain:
            QSettings().setValue(key, int(answer))
        return answer

    exec_ = exec
