"""Which widgets can show which types, and how values pass between them."""

import enum
import typing

import ctk
import qt
import slicer

from .annotations import Choice, WithinRange, first, is_union, split

_registered: list[type] = []


class GuiConnector:
    """Adapts a widget to a (possibly annotated) type."""

    signal = ""

    def __init__(self, widget=None, datatype=None):
        self._widget, self._callback = widget, None

    def onChanged(self, callback):
        signal = getattr(self._widget, self.signal)
        if self._callback is not None:
            signal.disconnect(self.changed)
        self._callback = callback
        if callback is not None:
            signal.connect(self.changed)

    def changed(self, *_):
        if self._callback:
            self._callback()


def parameterNodeGuiConnector(classtype):
    """Class decorator: offer another connector."""
    _registered.append(classtype)
    return classtype


def createGuiConnector(widget, datatype) -> GuiConnector:
    for connector in _registered:
        if connector.canRepresent(widget, datatype):
            return connector(widget, datatype)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{datatype}' to widget type '{type(widget)}'")


def _actual(datatype):
    return split(datatype)[0]


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
        return _actual(datatype) is bool and type(widget) is qt.QCheckBox


@parameterNodeGuiConnector
class PushButtonConnector(_Attribute):
    signal, attribute = "toggled", "checked"

    @staticmethod
    def canRepresent(widget, datatype):
        return _actual(datatype) is bool and type(widget) is qt.QPushButton

    def __init__(self, widget, datatype):
        super().__init__(widget)
        widget.checkable = True


def _bounds(datatype):
    within = first(split(datatype)[1], WithinRange)
    return (within.minimum, within.maximum) if within else (None, None)


@parameterNodeGuiConnector
class IntegerConnector(_Attribute):
    signal, attribute = "valueChanged", "value"

    @staticmethod
    def canRepresent(widget, datatype):
        return _actual(datatype) is int and type(widget) is qt.QSpinBox

    def __init__(self, widget, datatype):
        super().__init__(widget)
        low, high = _bounds(datatype)
        widget.setRange(-(2**31) if low is None else low, 2**31 - 1 if high is None else high)


@parameterNodeGuiConnector
class RealConnector(_Attribute):
    signal, attribute = "valueChanged", "value"
    _sliders = (ctk.ctkSliderWidget, slicer.qMRMLSliderWidget)

    @classmethod
    def canRepresent(cls, widget, datatype):
        return _actual(datatype) in (float, int) and type(widget) in (qt.QDoubleSpinBox, *cls._sliders)

    def __init__(self, widget, datatype):
        super().__init__(widget)
        self._kind = _actual(datatype)
        low, high = _bounds(datatype)
        if type(widget) in self._sliders and low is None:
            raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float types is unbounded.")
        if self._kind is int:
            widget.decimals = 0
        widget.minimum = float("-inf") if low is None else low
        widget.maximum = float("inf") if high is None else high

    def read(self):
        return self._kind(self._widget.value)


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
        choice = first(split(datatype)[1], Choice)
        if choice is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        self._offer(choice.choices, map(str, choice.choices))


@parameterNodeGuiConnector
class EnumConnector(_ComboBoxConnector):
    @staticmethod
    def canRepresent(widget, datatype):
        kind = _actual(datatype)
        is_enum = isinstance(kind, type) and issubclass(kind, enum.Enum)
        return is_enum and type(widget) in (qt.QComboBox, ctk.ctkComboBox)

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
    kinds = [_actual(k) for k in typing.get_args(kind)] if is_union(kind) else [kind]
    kinds = [k for k in kinds if k is not type(None)]
    nodes = [k for k in kinds if isinstance(k, type) and issubclass(k, slicer.vtkMRMLNode)]
    return nodes if len(nodes) == len(kinds) else []
