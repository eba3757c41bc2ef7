"""``@parameterNodeWrapper``: a class whose annotated members live on a vtkMRMLScriptedModuleNode."""

import dataclasses
import typing
import weakref

import qt
import slicer
import vtk

from .annotations import Default, first
from .gui import createGuiConnector
from .serializers import ValidatedSerializer, create_serializer

SlicerParameterNamePropertyName = "SlicerParameterName"


@dataclasses.dataclass
class _Parameter:
    """A typed member of a parameter node."""

    name: str
    serializer: ValidatedSerializer
    default: Default
    annotated: object


def _parameters_of(cls: type) -> dict[str, _Parameter]:
    """The annotated members of a class; a class attribute of the same name, or Default(...), is the default."""
    found = {}
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        try:
            serializer, rest = create_serializer(annotated)
        except Exception as error:
            raise Exception(f"Unable to create serializer for {cls} member {name}") from error
        if hasattr(cls, name):
            default = Default(getattr(cls, name))
        else:
            default = first(rest, Default) or Default(serializer.default())
        found[name] = _Parameter(name, serializer, default, annotated)
    return found


class _Binding:
    """One parameter of one wrapper."""

    def __init__(self, parameter, node):
        self.parameter, self.node, self.name = parameter, node, parameter.name

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

    def __init__(self, parameter, node):
        super().__init__(parameter, node)
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


def _initialize(self, parameterNode):
    self.parameterNode = parameterNode
    self._bindings, self._guis, self._nextTag, self._updatingGui = {}, {}, 0, False
    for name, parameter in self.allParameters.items():
        plain = _Binding(parameter, parameterNode)
        if not plain.isIn():
            plain.write(parameter.default.value)
        cached = parameter.serializer.supportsCaching()
        self._bindings[name] = _CachedBinding(parameter, parameterNode) if cached else plain


def _binding(self, name):
    if name not in self.allParameters:
        raise ValueError(f"Cannot find a param with the given name: {name}; there are {', '.join(self.allParameters)}")
    return self._bindings[name]


def _connectParametersToGui(self, mapping):
    for name in mapping:
        _binding(self, name)
    connectors = {
        name: createGuiConnector(widget, self.allParameters[name].annotated) for name, widget in mapping.items()
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
    is_widget = isinstance(gui, qt.QWidget)
    widgets = gui.findChildren(qt.QWidget) if is_widget else [w for w in vars(gui).values() if hasattr(w, "property")]
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
    parameters = _parameters_of(cls)
    for name in parameters:
        setattr(cls, name, _attribute(name))
    members = {
        "allParameters": parameters,
        "_is_parameter_node_wrapper": True,
        "getValue": lambda self, name: _binding(self, name).read(),
        "setValue": lambda self, name, value: _binding(self, name).write(value),
        "connectGui": _connectGui,
        "connectParametersToGui": _connectParametersToGui,
        "disconnectGui": _disconnectGui,
        "StartModify": lambda self: self.parameterNode.StartModify(),
        "EndModify": lambda self, was: self.parameterNode.EndModify(was),
        "AddObserver": lambda self, event, call, priority=0.0: self.parameterNode.AddObserver(event, call, priority),
        "RemoveObserver": lambda self, tag: self.parameterNode.RemoveObserver(tag),
        "Modified": lambda self: self.parameterNode.Modified(),
    }
    for name, value in members.items():
        setattr(cls, name, value)
    cls.__init__, cls.__del__ = _initialize, _release
    return cls


def _attribute(name):
    return property(lambda self: self._bindings[name].read(), lambda self, value: self._bindings[name].write(value))


def isParameterNodeWrapper(classOrObj) -> bool:
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def parameterNodeWrapper(classtype=None):
    """Class decorator: typed access to, and GUI binding of, the parameters of a vtkMRMLScriptedModuleNode."""
    return _decorate if classtype is None else _decorate(classtype)
