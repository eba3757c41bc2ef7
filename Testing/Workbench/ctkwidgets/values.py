"""A slider for real numbers."""

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

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider = _RealSlider(Qt.Horizontal, self)
        self._spinBox = QDoubleSpinBox(self)
        self._spinBox.setKeyboardTracking(False)
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
    value = Property(float, _value, _setValue)
    tracking = stored(bool, "_tracking", True)
    pageStep = stored(float, "_pageStep", 10.0)

    @Slot(float)
    def setValue(self, value):
        self._setValue(value)
