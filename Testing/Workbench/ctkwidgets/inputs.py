"""Combo boxes, buttons, paths and message boxes."""

import pathlib

from PySide6.QtCore import Property, QSettings, Qt, Signal, Slot
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QHBoxLayout,
    QMessageBox,
    QPushButton,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStylePainter,
    QToolButton,
    QWidget,
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
    currentUserDataAsString = Property(
        str,
        lambda self: "" if self.currentData is None else str(self.currentData),
        lambda self, value: self.setCurrentIndex(self.findData(value)),
    )

    def paintEvent(self, _event):
        hint = self.currentIndex == -1 or self.forceDefault
        paint_combo_box(self, self.defaultText if hint else self.currentText)


class ctkCheckBox(QCheckBox):
    """A check box (the indicator icon of CTK's is not drawn)."""


class ctkMenuButton(QPushButton):
    """A push button with a menu."""

    def __init__(self, text="", parent=None):
        super().__init__(text, parent) if isinstance(text, str) else super().__init__(text)


class ctkPathLineEdit(QWidget):
    """An editable path with a browse button and a history."""

    Dirs, Drives, NoSymLinks, Files, Readable, Writable, Executable = 0x1, 0x4, 0x8, 0x2, 0x10, 0x20, 0x40
    validInputChanged = Signal(bool)
    currentPathChanged = Signal(str)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._comboBox = QComboBox(self)
        self._comboBox.setEditable(True)
        self._comboBox.setSizeAdjustPolicy(QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self._browseButton = QToolButton(self)
        self._browseButton.text = "..."
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._comboBox, 1)
        layout.addWidget(self._browseButton)
        self.setFocusProxy(self._comboBox)
        self.setSizePolicy(QSizePolicy(QSizePolicy.Expanding, QSizePolicy.Fixed, QSizePolicy.LineEdit))
        self._comboBox.editTextChanged.connect(self.currentPathChanged)
        self._browseButton.clicked.connect(self.browse)

    currentPath = Property(
        str, lambda self: self._comboBox.currentText, lambda self, value: self._comboBox.setEditText(value)
    )
    filters = stored("int", "_filters", Dirs | Files)
    nameFilters = stored("QStringList", "_nameFilters", [])
    options = stored("int", "_options", 0)
    label = stored(str, "_label", "")
    showHistoryButton = stored(bool, "_showHistoryButton", True)
    showBrowseButton = Property(
        bool, lambda self: not self._browseButton.isHidden(), lambda self, value: self._browseButton.setVisible(value)
    )
    minimumContentsLength = forwarded(int, "_comboBox", "minimumContentsLength")
    sizeAdjustPolicy = forwarded("int", "_comboBox", "sizeAdjustPolicy")
    settingKey = stored(str, "_settingKey", "", lambda self: self.retrieveHistory())

    @Slot(str)
    def setCurrentPath(self, path):
        self.currentPath = path

    @Slot()
    def browse(self):
        title, start, names = self.label or "Select", self.currentPath, ";;".join(self.nameFilters)
        filters = int(self.filters)
        if filters & self.Dirs and not filters & self.Files:
            path = QFileDialog.getExistingDirectory(self, title, start)
        elif filters & self.Writable:
            path, _ = QFileDialog.getSaveFileName(self, title, start, names)
        else:
            path, _ = QFileDialog.getOpenFileName(self, title, start, names)
        if path:
            self.currentPath = path
            self.addCurrentPathToHistory()

    @Slot()
    def retrieveHistory(self):
        history = QSettings().value(self.settingKey) if self.settingKey else None
        text, blocked = self.currentPath, self._comboBox.blockSignals(True)
        self._comboBox.clear()
        self._comboBox.addItems([history] if isinstance(history, str) else list(history or []))
        self._comboBox.blockSignals(blocked)
        self.currentPath = text or self._comboBox.itemText(0)

    @Slot()
    def addCurrentPathToHistory(self):
        if self.settingKey and self.currentPath:
            known = [self._comboBox.itemText(i) for i in range(self._comboBox.count)]
            history = [self.currentPath, *(path for path in known if path != self.currentPath)][:5]
            QSettings().setValue(self.settingKey, history)
            self.retrieveHistory()


class ctkDirectoryButton(QWidget):
    """A button that shows a directory and lets choose another."""

    directoryChanged = Signal(str)
    directorySelected = Signal(str)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._button = QPushButton(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._button)
        self._button.clicked.connect(self.browse)
        self._directory = "."
        self._update()

    def _update(self):
        self._button.text = self.text or str(pathlib.Path(self._directory).absolute())

    def _setDirectory(self, path):
        absolute = str(pathlib.Path(path).absolute())
        self.directorySelected.emit(absolute)
        if absolute != str(pathlib.Path(self._directory).absolute()):
            self._directory = absolute
            self._update()
            self.directoryChanged.emit(absolute)

    directory = Property(str, lambda self: self._directory, _setDirectory)
    caption = stored(str, "_caption", "")
    text = stored(str, "_text", "", lambda self: self._update())
    icon = forwarded("QIcon", "_button", "icon")

    @Slot()
    def browse(self):
        path = QFileDialog.getExistingDirectory(self, self.caption, self.directory)
        if path:
            self._setDirectory(path)


class ctkCheckableComboBox(QComboBox):
    """A combo box whose items can be ticked."""

    checkedIndexesChanged = Signal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self.model().dataChanged.connect(lambda *_: self.checkedIndexesChanged.emit())
        self.model().rowsInserted.connect(self._makeCheckable)
        self.view().pressed.connect(self._toggle)

    def _makeCheckable(self, _parent, first, last):
        for row in range(first, last + 1):
            item = self.model().item(row)
            item.setCheckable(True)
            item.setCheckState(Qt.Unchecked)

    def _toggle(self, index):
        self.setCheckState(index, Qt.Unchecked if self.checkState(index) == Qt.Checked else Qt.Checked)

    def checkableModel(self):
        return self.model()

    def checkState(self, index):
        return self.model().itemFromIndex(index).checkState()

    def setCheckState(self, index, state):
        self.model().itemFromIndex(index).setCheckState(state)

    def checkedIndexes(self):
        rows = (self.model().index(row, 0) for row in range(self.count))
        return [index for index in rows if self.checkState(index) == Qt.Checked]

    def allChecked(self):
        return len(self.checkedIndexes()) == self.count

    def noneChecked(self):
        return not self.checkedIndexes()

    def paintEvent(self, _event):
        paint_combo_box(self, ticked_text(self))


class ctkMessageBox(QMessageBox):
    """A message box that can remember its answer ("Don't show this message again")."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box = QCheckBox("Don't show this message again", self)
        self._box.hide()

    def _visible(self):
        return self.checkBox() is self._box

    def _setVisible(self, visible):
        self.setCheckBox(self._box if visible else None)

    dontShowAgainVisible = Property(bool, _visible, _setVisible)
    dontShowAgain = forwarded(bool, "_box", "checked")
    dontShowAgainSettingsKey = stored(str, "_settingsKey", "", lambda self: self._restore())

    def _restore(self):
        self._setVisible(True)
        answer = QSettings().value(self.dontShowAgainSettingsKey)
        self._box.checked = answer is not None and int(answer) != int(QMessageBox.InvalidRole.value)

    @Slot(bool)
    def setDontShowAgain(self, dontShow):
        self._box.checked = dontShow

    def exec(self):
        key = self.dontShowAgainSettingsKey
        if key and self.dontShowAgain:
            return int(QSettings().value(key))
        answer = super().exec()
        if key and self.dontShowAgain:
            QSettings().setValue(key, int(answer))
        return answer

    exec_ = exec


class ctkFileDialog(QFileDialog):
    """A file dialog."""
