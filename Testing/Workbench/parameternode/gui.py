"""Which widgets can show which types, and how values pass between them."""

import enum
import pathlib
import typing

import ctk
import qt
import slicer

from . import annotations as notes
from .annotations import Choice, Decimals, Default, FloatRangeBounds, Maximum, Minimum, SingleStep, WithinRange
from .pack import FloatRange
from .serializers import PathSerializer

_registered: list[type] = []


class GuiConnector:
    """Adapts a widget to a (possibly annotated) type."""

    @staticmethod
    def canRepresent(widget, datatype) -> bool:
        raise NotImplementedError

    @classmethod
    def create(cls, widget, datatype):
        return cls(widget, datatype) if cls.canRepresent(widget, datatype) else None

    def __init__(self, widget=None, datatype=None):
        self._widget, self._callback = widget, None

    def onChanged(self, callback):
        if self._callback is not None:
            self._disconnect()
        self._callback = callback
        if callback is not None:
            self._connect()

    def changed(self, *_):
        if self._callback:
            self._callback()

    def widget(self):
        return self._widget

    signal = ""

    def _connect(self):
        if self.signal:
            getattr(self._widget, self.signal).connect(self.changed)

    def _disconnect(self):
        if self.signal:
            getattr(self._widget, self.signal).disconnect(self.changed)

    def read(self):
        raise NotImplementedError

    def write(self, value) -> None:
        raise NotImplementedError


def parameterNodeGuiConnector(classtype=None):
    """Class decorator: offer another connector."""

    def register(cls):
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def createGuiConnector(widget, datatype) -> GuiConnector:
    for connector in _registered:
        if connector.canRepresent(widget, datatype):
            return connector.create(widget, datatype)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{datatype}' to widget type '{type(widget)}'")


def _actual(datatype):
    return notes.split(datatype)[0]


class _Attribute(GuiConnector):
    """A value that is a property of the widget."""

    attribute = ""

    def read(self):
        return getattr(self._widget, self.attribute)

    def write(self, value):
        setattr(self._widget, self.attribute, value)


@parameterNodeGuiConnector
class CheckBoxConnector(_Attribute):
    signal, attribute = "stateChanged", "checked"

    @staticmethod
    def canRepresent(widget, datatype):
        return _actual(datatype) is bool and type(widget) in (qt.QCheckBox, ctk.ctkCheckBox)


@parameterNodeGuiConnector
class PushButtonConnector(_Attribute):
    signal, attribute = "toggled", "checked"

    @staticmethod
    def canRepresent(widget, datatype):
        return _actual(datatype) is bool and type(widget) is qt.QPushButton

    def __init__(self, widget, datatype):
        super().__init__(widget)
        widget.checkable = True


@parameterNodeGuiConnector
class IntegerConnector(_Attribute):
    signal, attribute = "valueChanged", "value"

    @staticmethod
    def canRepresent(widget, datatype):
        return _actual(datatype) is int and type(widget) in (qt.QSlider, qt.QSpinBox)

    def __init__(self, widget, datatype):
        super().__init__(widget)
        low, high = _bounds(datatype)
        if isinstance(widget, qt.QSlider) and (low is None or high is None):
            raise RuntimeError("Cannot have a connection to QSlider where the int type is unbounded.")
        _apply_steps(widget, datatype, integer=False)
        widget.setRange(-(2**31) if low is None else low, 2**31 - 1 if high is None else high)


@parameterNodeGuiConnector
class RealConnector(_Attribute):
    signal, attribute = "valueChanged", "value"

    @staticmethod
    def canRepresent(widget, datatype):
        return _actual(datatype) in (float, int) and type(widget) in (
            qt.QDoubleSpinBox,
            ctk.ctkSliderWidget,
            slicer.qMRMLSliderWidget,
            ctk.ctkDoubleSpinBox,
            slicer.qMRMLSpinBox,
        )

    def __init__(self, widget, datatype):
        super().__init__(widget)
        self._integer = _actual(datatype) is int
        low, high = _bounds(datatype)
        if type(widget) in (ctk.ctkSliderWidget, slicer.qMRMLSliderWidget) and (low is None or high is None):
            raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float types is unbounded.")
        _apply_steps(widget, datatype, self._integer)
        widget.minimum = float("-inf") if low is None else low
        widget.maximum = float("inf") if high is None else high

    def read(self):
        return int(self._widget.value) if self._integer else self._widget.value


def _bounds(datatype):
    annotations = notes.split(datatype)[1]
    within = notes.first(annotations, WithinRange)
    if within:
        return within.minimum, within.maximum
    low, high = notes.first(annotations, Minimum), notes.first(annotations, Maximum)
    return low.minimum if low else None, high.maximum if high else None


def _apply_steps(widget, datatype, integer):
    annotations = notes.split(datatype)[1]
    decimals, step = notes.first(annotations, Decimals), notes.first(annotations, SingleStep)
    if integer:
        widget.decimals = 0
    elif decimals:
        widget.decimals = decimals.value
    if step:
        widget.singleStep = step.value


class _ComboBoxConnector(GuiConnector):
    """A combo box that offers given values."""

    signal = "currentIndexChanged"

    def _offer(self, values, texts) -> None:
        self._values = list(values)
        self._widget.clear()
        self._widget.addItems(list(texts))

    def read(self):
        return self._values[self._widget.currentIndex]

    def write(self, value):
        self._widget.currentIndex = self._values.index(value)


@parameterNodeGuiConnector
class ChoiceConnector(_ComboBoxConnector):
    @staticmethod
    def canRepresent(widget, datatype):
        return type(widget) in (qt.QComboBox, ctk.ctkComboBox) and _actual(datatype) in (int, float, str, bool)

    def __init__(self, widget, datatype):
        super().__init__(widget)
        choice = notes.first(notes.split(datatype)[1], Choice)
        if choice is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        self._offer(choice.choices, map(str, choice.choices))


@parameterNodeGuiConnector
class EnumConnector(_ComboBoxConnector):
    @staticmethod
    def canRepresent(widget, datatype):
        kind = _actual(datatype)
        return (
            type(widget) in (qt.QComboBox, ctk.ctkComboBox) and isinstance(kind, type) and issubclass(kind, enum.Enum)
        )

    def __init__(self, widget, datatype):
        super().__init__(widget)
        kind = _actual(datatype)
        selected = list(kind)[widget.currentIndex]
        self._offer(kind, map(getattr(kind, "label", lambda member: member.name), kind))
        self.write(selected)


@parameterNodeGuiConnector
class LineEditConnector(_Attribute):
    signal, attribute = "textChanged", "text"

    @staticmethod
    def canRepresent(widget, datatype):
        return type(widget) is qt.QLineEdit and _actual(datatype) is str

    def write(self, value):
        if value != self._widget.text:  # would move the cursor
            self._widget.text = value


@parameterNodeGuiConnector
class LabelConnector(_Attribute):
    attribute = "text"

    @staticmethod
    def canRepresent(widget, datatype):
        return type(widget) is qt.QLabel and _actual(datatype) is str


@parameterNodeGuiConnector
class TextEditConnector(GuiConnector):
    signal = "textChanged"

    @staticmethod
    def canRepresent(widget, datatype):
        return type(widget) is qt.QTextEdit and _actual(datatype) is str

    def read(self):
        return self._widget.toPlainText()

    def write(self, value):
        self._widget.setPlainText(value)


@parameterNodeGuiConnector
class RangeConnector(GuiConnector):
    signal = "valuesChanged"

    @staticmethod
    def canRepresent(widget, datatype):
        return type(widget) in (ctk.ctkRangeWidget, slicer.qMRMLRangeWidget) and _actual(datatype) is FloatRange

    def __init__(self, widget, datatype):
        super().__init__(widget)
        annotations = notes.split(datatype)[1]
        bounds = notes.first(annotations, FloatRangeBounds)
        if bounds is None:
            raise RuntimeError("Cannot have a connection to a range widget where the float is unbounded.")
        if notes.first(annotations, Default) is None and not bounds.minimum <= 0 <= bounds.maximum:
            raise RuntimeError("RangeBounds without 0 need a Default() value to initialize the GUI")
        _apply_steps(widget, datatype, integer=False)
        widget.minimum, widget.maximum = bounds.minimum, bounds.maximum

    def read(self):
        return FloatRange(self._widget.minimumValue, self._widget.maximumValue)

    def write(self, value):
        self._widget.setValues(value.minimum, value.maximum)


class _PathConnector(_Attribute):
    widget_class: type

    @classmethod
    def canRepresent(cls, widget, datatype):
        return type(widget) is cls.widget_class and _actual(datatype) in PathSerializer.types

    def __init__(self, widget, datatype):
        super().__init__(widget)
        self._kind: type[pathlib.PurePath] = _actual(datatype)

    def read(self):
        return self._kind(super().read())

    def write(self, value):
        super().write(str(value))


@parameterNodeGuiConnector
class PathLineEditConnector(_PathConnector):
    widget_class, signal, attribute = ctk.ctkPathLineEdit, "currentPathChanged", "currentPath"


@parameterNodeGuiConnector
class DirectoryButtonConnector(_PathConnector):
    widget_class, signal, attribute = ctk.ctkDirectoryButton, "directoryChanged", "directory"


@parameterNodeGuiConnector
class NodeConnector(GuiConnector):
    signal = "currentNodeChanged"

    @staticmethod
    def canRepresent(widget, datatype):
        return type(widget) is slicer.qMRMLNodeComboBox and bool(_node_classes(datatype))

    def __init__(self, widget, datatype):
        super().__init__(widget)
        widget.nodeTypes = [kind().GetClassName() for kind in _node_classes(datatype)]

    def read(self):
        return self._widget.currentNode()

    def write(self, value):
        self._widget.setCurrentNode(value)


def _node_classes(datatype) -> list[type]:
    """The node classes of ``vtkMRMLXNode`` or of a union of node classes and None; empty for any other type."""
    kind = _actual(datatype)
    kinds = [_actual(k) for k in typing.get_args(kind)] if notes.is_union(kind) else [kind]
    kinds = [k for k in kinds if k is not type(None)]
    nodes = [k for k in kinds if isinstance(k, type) and issubclass(k, slicer.vtkMRMLNode)]
    return nodes if len(nodes) == len(kinds) else []
