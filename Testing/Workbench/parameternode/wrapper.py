"""``@parameterNodeWrapper``: a class whose annotated members live on a vtkMRMLScriptedModuleNode."""

import weakref

import qt
import slicer
import vtk

from . import annotations as notes
from .gui import GuiConnector, createGuiConnector
from .pack import data_type, parameters_of, reserve

SlicerParameterNamePropertyName = "SlicerParameterName"


class _Binding:
    """One parameter of one wrapper."""

    cached = False

    def __init__(self, parameter, node, prefix):
        self.parameter, self.node, self.name = parameter, node, f"{prefix or ''}{parameter.name}"

    def isIn(self):
        return self.parameter.serializer.isIn(self.node, self.name)

    def write(self, value):
        self.parameter.serializer.write(self.node, self.name, value)

    def read(self):
        if not self.isIn():
            self.write(self.parameter.default.value)
        return self.parameter.serializer.read(self.node, self.name)


class _CachedBinding(_Binding):
    """Keeps the value until the node is modified."""

    cached = True

    def __init__(self, parameter, node, prefix):
        super().__init__(parameter, node, prefix)
        self._value, self._writing = super().read(), False
        reference = weakref.ref(self)  # the observer must not keep the binding alive
        self._observer = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: reference()._on_modified())

    def __del__(self):
        self.node.RemoveObserver(self._observer)

    def _on_modified(self):
        if not self._writing:
            self._value = super().read()

    def write(self, value):
        self._writing = True
        try:
            # Observers of the node that run at the end of the modification must find the new value.
            with slicer.util.NodeModify(self.node):
                super().write(value)
                self._value = super().read()
        finally:
            self._writing = False

    def read(self):
        return self._value


def _initialize(self, parameterNode, prefix=None):
    self.parameterNode = parameterNode
    self._bindings, self._guis, self._nextTag, self._updatingGui = {}, {}, 0, False
    for name, parameter in self.allParameters.items():
        plain = _Binding(parameter, parameterNode, prefix)
        if not plain.isIn():
            plain.write(parameter.default.value)
        cached = parameter.serializer.supportsCaching()
        self._bindings[name] = _CachedBinding(parameter, parameterNode, prefix) if cached else plain


def _check(self, name):
    head, _ = notes.split_name(name)
    if head not in self.allParameters:
        raise ValueError(f"Cannot find a param with the given name: {head}; there are {', '.join(self.allParameters)}")


def _isCached(self, name):
    _check(self, name)
    return self._bindings[name].cached


def _getValue(self, name):
    _check(self, name)
    head, rest = notes.split_name(name)
    value = self._bindings[head].read()
    return value if rest is None else value.getValue(rest)


def _setValue(self, name, value):
    _check(self, name)
    head, rest = notes.split_name(name)
    if rest is None:
        self._bindings[head].write(value)
    else:
        self._bindings[head].read().setValue(rest, value)


def _connectParametersToGui(self, mapping):
    for name in mapping:
        _check(self, name)
    connectors = {
        name: widget if isinstance(widget, GuiConnector) else createGuiConnector(widget, self.dataType(name))
        for name, widget in mapping.items()
    }
    for name, connector in connectors.items():
        connector.write(self.getValue(name))
        connector.onChanged(_widget_changed(self, name, connector))
    tag = self._nextTag
    self._nextTag += 1
    observer = self.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda _caller, _event: _update_guis(self))
    self._guis[tag] = (connectors, observer)
    return tag


def _widget_changed(self, name, connector):
    def callback():
        if not self._updatingGui:
            with slicer.util.NodeModify(self):
                self.setValue(name, connector.read())

    return callback


def _update_guis(self):
    if self._updatingGui:
        return
    self._updatingGui = True
    try:
        with slicer.util.NodeModify(self):
            for connectors, _ in self._guis.values():
                for name, connector in connectors.items():
                    connector.write(self.getValue(name))
    finally:
        self._updatingGui = False


def _connectGui(self, gui):
    if isinstance(gui, qt.QWidget):
        widgets = gui.findChildren(qt.QWidget)
    else:
        widgets = [item for item in vars(gui).values() if hasattr(item, "property")]
    named = {widget.property(SlicerParameterNamePropertyName): widget for widget in widgets}
    return _connectParametersToGui(self, {name: widget for name, widget in named.items() if name})


def _disconnectGui(self, tag):
    connectors, observer = self._guis.pop(tag, ({}, None))
    for connector in connectors.values():
        connector.onChanged(None)
    if observer is not None:
        self.RemoveObserver(observer)


def _release(self):
    """Take the observers along: VTK would call functions that Python's garbage collector has taken apart."""
    for _, observer in vars(self).get("_guis", {}).values():
        self.RemoveObserver(observer)


def _decorate(cls: type) -> type:
    parameters = parameters_of(cls)
    for name in parameters:
        setattr(cls, name, _attribute(name))
    cls.__init__ = _initialize
    cls.__del__ = _release
    reserve(
        cls,
        allParameters=parameters,
        _is_parameter_node_wrapper=True,
        default=lambda self, name: self.allParameters[name].default,
        isCached=_isCached,
        dataType=staticmethod(lambda name: data_type(cls, name)),
        getValue=_getValue,
        setValue=_setValue,
        connectGui=_connectGui,
        connectParametersToGui=_connectParametersToGui,
        disconnectGui=_disconnectGui,
        StartModify=lambda self: self.parameterNode.StartModify(),
        EndModify=lambda self, was: self.parameterNode.EndModify(was),
        AddObserver=lambda self, event, call, priority=0.0: self.parameterNode.AddObserver(event, call, priority),
        RemoveObserver=lambda self, tag: self.parameterNode.RemoveObserver(tag),
        Modified=lambda self: self.parameterNode.Modified(),
    )
    return cls


def _attribute(name):
    return property(lambda self: self._bindings[name].read(), lambda self, value: self._bindings[name].write(value))


def isParameterNodeWrapper(classOrObj) -> bool:
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def parameterNodeWrapper(classtype=None):
    """Class decorator: typed access to, and GUI binding of, the parameters of a vtkMRMLScriptedModuleNode."""
    return _decorate if classtype is None else _decorate(classtype)
