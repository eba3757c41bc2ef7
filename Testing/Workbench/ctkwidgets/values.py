"""Spin boxes and sliders for real numbers."""

import math

from PySide6.QtCore import Property, Qt, Signal, Slot
from PySide6.QtWidgets import (
    QDoubleSpinBox,
    QHBoxLayout,
    QSizePolicy,
    QSlider,
    QWidget,
)

from ..qtproperty import forwarded, stored


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
