"""Stand-ins for the widgets of the Common Toolkit that Slicer modules use in their panels.

Properties, slots, signals and defaults follow commontk/CTK, Libs/Widgets (each class in the file of its name). What
is neither property, slot nor Q_INVOKABLE there cannot be reached from Slicer's Python, and is missing here too.
"""

import math
import pathlib

from PySide6.QtCore import Property, QEvent, QSettings, QSize, Qt, Signal, Slot
from PySide6.QtWidgets import (
    QAbstractButton,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QGroupBox,
    QHBoxLayout,
    QMessageBox,
    QPushButton,
    QSizePolicy,
    QSlider,
    QStyle,
    QStyleOption,
    QStyleOptionButton,
    QStyleOptionComboBox,
    QStylePainter,
    QToolButton,
    QWidget,
)

from .qtproperty import forwarded, stored


class ctkDoubleSpinBox(QWidget):
    """A spin box for real numbers."""

    valueChanged = Signal(float)
    editingFinished = Signal()
    decimalsChanged = Signal(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._spinBox = QDoubleSpinBox(self)
        self._spinBox.setKeyboardTracking(False)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._spinBox)
        self.setFocusProxy(self._spinBox)
        self.setSizePolicy(QSizePolicy(QSizePolicy.Minimum, QSizePolicy.Fixed, QSizePolicy.SpinBox))
        self._spinBox.valueChanged.connect(self.valueChanged)
        self._spinBox.editingFinished.connect(self.editingFinished)

    def _set_decimals(self, value):
        if value != self._spinBox.decimals:
            self._spinBox.decimals = value
            self.decimalsChanged.emit(value)

    alignment = forwarded("int", "_spinBox", "alignment")
    frame = forwarded(bool, "_spinBox", "frame")
    readOnly = forwarded(bool, "_spinBox", "readOnly")
    prefix = forwarded(str, "_spinBox", "prefix")
    suffix = forwarded(str, "_spinBox", "suffix")
    minimum = forwarded(float, "_spinBox", "minimum")
    maximum = forwarded(float, "_spinBox", "maximum")
    singleStep = forwarded(float, "_spinBox", "singleStep")
    value = forwarded(float, "_spinBox", "value")
    cleanText = Property(str, lambda self: self._spinBox.cleanText)
    decimals = Property(int, lambda self: self._spinBox.decimals, _set_decimals)

    @Slot(float)
    def setValue(self, value):
        self._spinBox.value = value

    @Slot(float)
    def setValueIfDifferent(self, value):
        self._spinBox.value = value

    @Slot(float)
    def setValueAlways(self, value):
        before = self._spinBox.value
        self._spinBox.value = value
        if self._spinBox.value == before:
            self.valueChanged.emit(before)

    @Slot(int)
    def setDecimals(self, decimals):
        self._set_decimals(decimals)

    @Slot(bool)
    def setReadOnly(self, readOnly):
        self._spinBox.readOnly = readOnly

    @Slot()
    def stepUp(self):
        self._spinBox.stepUp()

    @Slot()
    def stepDown(self):
        self._spinBox.stepDown()


class _RealSlider(QSlider):
    """A QSlider whose integer positions stand for steps of a real range."""

    def __init__(self, orientation, parent=None):
        super().__init__(orientation, parent)
        self._minimum, self._step = 0.0, 1.0

    def setScale(self, minimum: float, maximum: float, step: float) -> None:
        self._minimum, self._step = minimum, step
        blocked = self.blockSignals(True)
        finite = math.isfinite(maximum - minimum)
        self.setRange(0, min(round((maximum - minimum) / step), 2**31 - 1) if finite else 0)
        self.blockSignals(blocked)

    def realValue(self) -> float:
        return self._minimum + self.value * self._step

    def setRealValue(self, value: float) -> None:
        blocked = self.blockSignals(True)
        self.value = round((value - self._minimum) / self._step) if math.isfinite(self._minimum) else 0
        self.blockSignals(blocked)


class ctkSliderWidget(QWidget):
    """A slider with a spin box beside it."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider = _RealSlider(Qt.Horizontal, self)
        self._spinBox = ctkDoubleSpinBox(self)
        self._tracking, self._changing, self._valueBeforeChange = True, False, 0.0
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spinBox)
        self.setFocusProxy(self._spinBox)
        self.setSizePolicy(QSizePolicy(QSizePolicy.Expanding, QSizePolicy.Fixed, QSizePolicy.Slider))
        self._spinBox.maximum = 99.0
        self._rescale()
        self._slider.valueChanged.connect(self._onSliderMoved)
        self._slider.sliderPressed.connect(self._startChanging)
        self._slider.sliderReleased.connect(self._stopChanging)
        self._spinBox.valueChanged.connect(self._onSpinBoxChanged)
        self._spinBox.decimalsChanged.connect(self.decimalsChanged)

    def _rescale(self):
        spin = self._spinBox
        self._slider.setScale(spin.minimum, spin.maximum, max(spin.singleStep, 10.0**-spin.decimals))
        self._slider.setRealValue(spin.value)

    def _onSliderMoved(self, _position):
        self._spinBox.value = self._slider.realValue()

    def _onSpinBoxChanged(self, value):
        self._slider.setRealValue(value)
        if not self._tracking:
            self.valueIsChanging.emit(value)
        if not self._changing:
            self.valueChanged.emit(value)

    def _startChanging(self):
        if not self._tracking:
            self._valueBeforeChange, self._changing = self._spinBox.value, True

    def _stopChanging(self):
        if self._changing:
            self._changing = False
            if self._spinBox.value != self._valueBeforeChange:
                self.valueChanged.emit(self._spinBox.value)

    def _value(self):
        return self._valueBeforeChange if self._changing else self._spinBox.value

    def _setValue(self, value):
        changing, self._changing = self._changing, False
        self._spinBox.value = value
        self._changing = changing

    decimals = forwarded(int, "_spinBox", "decimals", _rescale)
    singleStep = forwarded(float, "_spinBox", "singleStep", _rescale)
    minimum = forwarded(float, "_spinBox", "minimum", _rescale)
    maximum = forwarded(float, "_spinBox", "maximum", _rescale)
    prefix = forwarded(str, "_spinBox", "prefix")
    suffix = forwarded(str, "_spinBox", "suffix")
    spinBoxAlignment = forwarded("int", "_spinBox", "alignment")
    invertedAppearance = forwarded(bool, "_slider", "invertedAppearance")
    invertedControls = forwarded(bool, "_slider", "invertedControls")
    tickPosition = forwarded("int", "_slider", "tickPosition")
    value = Property(float, _value, _setValue)
    tracking = stored(bool, "_tracking", True)
    pageStep = stored(float, "_pageStep", 10.0)
    tickInterval = stored(float, "_tickInterval", 0.0)
    spinBoxVisible = Property(
        bool, lambda self: not self._spinBox.isHidden(), lambda self, value: self._spinBox.setVisible(value)
    )
    popupSlider = stored(bool, "_popupSlider", False)

    @Slot(float)
    def setValue(self, value):
        self._setValue(value)

    @Slot(int)
    def setDecimals(self, decimals):
        self.decimals = decimals

    @Slot(bool)
    def setSpinBoxVisible(self, visible):
        self._spinBox.setVisible(visible)

    @Slot()
    def reset(self):
        self._setValue(0.0)


class ctkRangeWidget(QWidget):
    """Two spin boxes that bound an interval."""

    minimumValueChanged = Signal(float)
    maximumValueChanged = Signal(float)
    valuesChanged = Signal(float, float)
    rangeChanged = Signal(float, float)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._low, self._high = ctkDoubleSpinBox(self), ctkDoubleSpinBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for box in (self._low, self._high):
            box.maximum = 99.0
            layout.addWidget(box, 1)
        self._high.value = 99.0
        self._low.valueChanged.connect(self._onLow)
        self._high.valueChanged.connect(self._onHigh)

    def _onLow(self, value):
        self.minimumValueChanged.emit(value)
        self._high.value = max(self._high.value, value)
        self.valuesChanged.emit(value, self._high.value)

    def _onHigh(self, value):
        self.maximumValueChanged.emit(value)
        self._low.value = min(self._low.value, value)
        self.valuesChanged.emit(self._low.value, value)

    def _both(kind, name):
        def write(self, value):
            for box in (self._low, self._high):
                setattr(box, name, value)
            if name in ("minimum", "maximum"):
                self.rangeChanged.emit(self._low.minimum, self._low.maximum)

        return Property(kind, lambda self: getattr(self._low, name), write)

    decimals = _both(int, "decimals")
    singleStep = _both(float, "singleStep")
    minimum = _both(float, "minimum")
    maximum = _both(float, "maximum")
    prefix = _both(str, "prefix")
    suffix = _both(str, "suffix")
    minimumValue = forwarded(float, "_low", "value")
    maximumValue = forwarded(float, "_high", "value")
    tracking = stored(bool, "_tracking", True)

    def setRange(self, low, high):
        self.minimum, self.maximum = low, high

    @Slot(float)
    def setMinimumValue(self, value):
        self._low.value = value

    @Slot(float)
    def setMaximumValue(self, value):
        self._high.value = value

    @Slot(float, float)
    def setValues(self, low, high):
        self._low.value, self._high.value = min(low, high), max(low, high)

    @Slot()
    def reset(self):
        self.setValues(self._low.minimum, self._high.maximum)


class ctkCollapsibleButton(QAbstractButton):
    """A titled section of a panel; a click on the title folds it."""

    contentsCollapsed = Signal(bool)

    def __init__(self, text="", parent=None):
        if isinstance(text, QWidget):
            text, parent = "", text
        super().__init__(parent)
        self._collapsed, self._maximumHeight, self._forcing = False, self.maximumHeight, False
        self.text = text
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QSizePolicy(QSizePolicy.Minimum, QSizePolicy.Preferred))
        self.setContentsMargins(0, self._titleSize().height(), 0, 0)
        self.setBackgroundRole(self.palette.ColorRole.Window)
        self.toggled.connect(self._onToggled)

    collapsed = Property(bool, lambda self: self._collapsed, lambda self, value: self._setCollapsed(value))
    collapsedHeight = stored(int, "_collapsedHeight", 14, QWidget.updateGeometry)
    flat = stored(bool, "_flat", False, QWidget.update)
    contentsFrameShape = stored("int", "_frameShape", 0)
    contentsFrameShadow = stored("int", "_frameShadow", 0)
    contentsLineWidth = stored(int, "_lineWidth", 1)
    contentsMidLineWidth = stored(int, "_midLineWidth", 0)
    buttonTextAlignment = stored("int", "_textAlignment", Qt.AlignLeft | Qt.AlignVCenter)
    indicatorAlignment = stored("int", "_indicatorAlignment", Qt.AlignLeft | Qt.AlignVCenter)

    def _setCollapsed(self, collapsed):
        if self.checkable:
            self.setChecked(not collapsed)
        else:
            self._collapse(collapsed)

    def _onToggled(self, checked):
        self._collapse(not checked)

    def _collapse(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        if collapsed:
            self._maximumHeight = self.maximumHeight
            self.setMaximumHeight(self.sizeHint().height())
        else:
            self.setMaximumHeight(self._maximumHeight)
        for child in self.children():
            if isinstance(child, QWidget) and not child.isWindow():
                self._forceVisibility(child)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    def _forceVisibility(self, child):
        """Show a child only when unfolded and wanted; what the child itself wants stays known."""
        self._forcing = True
        wanted = child.property("visibilityToParent") is not False
        child.setVisible(wanted and not self._collapsed)
        if wanted:
            child.setAttribute(Qt.WA_WState_ExplicitShowHide, False)
        self._forcing = False

    def childEvent(self, event):
        if event.added() and isinstance(event.child(), QWidget):
            event.child().installEventFilter(self)

    def eventFilter(self, child, event):
        kind = event.type()
        if kind in (QEvent.ShowToParent, QEvent.HideToParent) and not self._forcing and child.parent() is self:
            child.setProperty("visibilityToParent", kind == QEvent.ShowToParent)
            if self._collapsed and kind == QEvent.ShowToParent:
                self._forceVisibility(child)
        return False

    def _titleSize(self):
        option = QStyleOptionButton()
        option.initFrom(self)
        text = self.fontMetrics().size(Qt.TextShowMnemonic, self.text or "XXXX")
        indicator = self.style().pixelMetric(QStyle.PM_IndicatorWidth, option, self)
        spacing = self.style().pixelMetric(QStyle.PM_CheckBoxLabelSpacing, option, self)
        content = QSize(text.width() + indicator + spacing, max(text.height(), indicator))
        return self.style().sizeFromContents(QStyle.CT_PushButton, option, content, self)

    def sizeHint(self):
        title = self._titleSize()
        folded = title + QSize(0, self.collapsedHeight)
        return folded if self._collapsed or not self.layout() else self.layout().totalSizeHint().expandedTo(folded)

    def minimumSizeHint(self):
        title = self._titleSize()
        if self._collapsed:
            return title + QSize(0, self.collapsedHeight)
        return self.layout().totalMinimumSize().expandedTo(title) if self.layout() else title

    def hitButton(self, position):
        return self.rect.contains(position) and position.y() < self._titleSize().height()

    def paintEvent(self, _event):
        painter = QStylePainter(self)
        option = QStyleOptionButton()
        option.initFrom(self)
        height = self._titleSize().height()
        option.rect.setHeight(height)
        option.state |= QStyle.State_Sunken if self.down else QStyle.State_Raised
        painter.drawControl(QStyle.CE_PushButtonBevel, option)
        indicator = self.style().pixelMetric(QStyle.PM_IndicatorWidth, option, self)
        arrow = QStyleOption()
        arrow.initFrom(self)
        arrow.rect = option.rect.adjusted(6, (height - indicator) // 2, 0, 0)
        arrow.rect.setSize(QSize(indicator, indicator))
        painter.drawPrimitive(QStyle.PE_IndicatorArrowRight if self._collapsed else QStyle.PE_IndicatorArrowDown, arrow)
        text = option.rect.adjusted(indicator + 12, 0, -4, 0)
        flags = int(Qt.AlignLeft | Qt.AlignVCenter | Qt.TextShowMnemonic)
        painter.drawItemText(text, flags, option.palette, self.enabled, self.text, option.palette.ColorRole.ButtonText)


class ctkCollapsibleGroupBox(QGroupBox):
    """A group box whose check box folds its contents."""

    def __init__(self, title="", parent=None):
        if isinstance(title, QWidget):
            title, parent = "", title
        super().__init__(title, parent)
        self.setCheckable(True)
        self.setChecked(True)
        self._contents = []
        self.toggled.connect(self._expand)

    collapsed = Property(bool, lambda self: not self.checked, lambda self, value: self.setChecked(not value))
    collapsedHeight = stored(int, "_collapsedHeight", 14)

    def _expand(self, expand):
        if expand:
            for widget in self._contents:
                widget.show()
            self.setMaximumHeight(16777215)
        else:
            self._contents = [w for w in self.children() if isinstance(w, QWidget) and not w.isHidden()]
            for widget in self._contents:
                widget.hide()
            self.setMaximumHeight(self.fontMetrics().height() + self.collapsedHeight)


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
        painter = QStylePainter(self)
        option = QStyleOptionComboBox()
        self.initStyleOption(option)
        if self.currentIndex == -1 or self.forceDefault:
            option.currentText = self.defaultText
        painter.drawComplexControl(QStyle.CC_ComboBox, option)
        painter.drawControl(QStyle.CE_ComboBoxLabel, option)


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
