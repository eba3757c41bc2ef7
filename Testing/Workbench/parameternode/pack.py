"""Groups of parameters: ``@parameterPack``."""

import dataclasses
import typing

import slicer

from . import annotations as notes
from .annotations import Default, IsInstance, NotNone
from .serializers import Serializer, ValidatedSerializer, create_serializer, parameterNodeSerializer


@dataclasses.dataclass
class Parameter:
    """A typed member of a pack or of a parameter node."""

    name: str
    serializer: ValidatedSerializer
    default: Default
    annotated: object


def parameters_of(cls: type) -> dict[str, Parameter]:
    """The annotated members of a class; a class attribute of the same name, or Default(...), is the default."""
    found = {}
    for name in ("allParameters", "_is_parameterPack", "_is_parameter_node_wrapper"):
        if name in cls.__annotations__:
            raise ValueError(f"Cannot use reserved name '{name}' in {cls.__name__}")
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        try:
            serializer, rest = create_serializer(annotated)
        except Exception as error:
            raise Exception(f"Unable to create serializer for {cls} member {name}") from error
        if hasattr(cls, name):
            default = Default(getattr(cls, name))
        else:
            default = notes.first(rest, Default) or Default(serializer.default())
        found[name] = Parameter(name, serializer, default, annotated)
    return found


def reserve(cls: type, **members) -> None:
    """Add members to a decorated class, unless it uses one of their names itself."""
    for name, value in members.items():
        if hasattr(cls, name):
            raise ValueError(f"Cannot use reserved name '{name}' in {cls.__name__}")
        setattr(cls, name, value)


def isParameterPack(obj) -> bool:
    return getattr(obj, "_is_parameterPack", False)


def nestedParameterNames(pack) -> list[str]:
    names = []
    for name, parameter in notes.split(pack)[0].allParameters.items():
        kind = notes.split(parameter.annotated)[0]
        names += [f"{name}.{nested}" for nested in nestedParameterNames(kind)] if isParameterPack(kind) else [name]
    return names


def _member(name: str, parameter: Parameter) -> property:
    def write(self, value):
        parameter.serializer.validate(value)
        self._values[name] = value
        self._changed()

    return property(lambda self: self._values[name], write)


def _changed(self) -> None:
    if self._owner is not None:
        serializer, node, name = self._owner
        with slicer.util.NodeModify(node):
            serializer.write(node, name, self)


def _initialize(self, *args, **kwargs) -> None:
    names = list(self.allParameters)
    given = dict(zip(names, args, strict=False)) | kwargs
    if len(args) > len(names) or set(given) - set(names) or set(names[: len(args)]) & set(kwargs):
        raise TypeError(f"__init__() of {type(self).__name__} takes {', '.join(names)}")
    for name, parameter in self.allParameters.items():
        setattr(self, name, given.get(name, parameter.default.value))


def _getValue(self, name):
    head, rest = notes.split_name(name)
    value = _member_value(self, head)
    return value if rest is None else _getValue(value, rest)


def _member_value(pack, name):
    if not hasattr(pack, name):
        raise ValueError(f"{pack} has no member '{name}'")
    return getattr(pack, name)


def _setValue(self, name, value):
    head, rest = notes.split_name(name)
    member = _member_value(self, head)
    if rest is None:
        setattr(self, head, value)
    else:
        _setValue(member, rest, value)


def data_type(cls, name):
    """The annotated type of a possibly dotted member name of a pack or parameter node class."""
    head, rest = notes.split_name(name)
    if head not in cls.allParameters:
        raise ValueError(f"{cls} has no member '{head}'")
    annotated = cls.allParameters[head].annotated
    if rest is None:
        return annotated
    kind = notes.split(annotated)[0]
    if not isParameterPack(kind):
        raise ValueError(f"{kind} is not a parameter pack but expects to have '{rest}'")
    return data_type(kind, rest)


def _set_attribute(self, name, value):
    """A pack that lives on a parameter node takes no new attributes: they would be lost."""
    if self.__dict__.get("_owner") is not None and not hasattr(self, name):
        raise AttributeError(f"{type(self).__name__} has no attribute '{name}' and none can be added")
    object.__setattr__(self, name, value)


def _text(self) -> str:
    return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


def _decorate(cls: type) -> type:
    parameters = parameters_of(cls)
    if not parameters:
        raise ValueError("Unable to find any members in parameterPack")
    for name, parameter in parameters.items():
        try:
            parameter.serializer.validate(parameter.default.value)
        except Exception as error:
            raise ValueError(f"The default of {name} fails its validation: {error}") from error
        setattr(cls, name, _member(name, parameter))
    own_init = cls.__dict__.get("__init__")

    def __init__(self, *args, **kwargs):
        self.__dict__.update(_values={}, _owner=None)
        _initialize(self, **({} if own_init else kwargs)) if own_init else _initialize(self, *args, **kwargs)
        if own_init:
            own_init(self, *args, **kwargs)

    cls.__init__ = __init__
    cls.__setattr__ = _set_attribute
    if "__eq__" not in cls.__dict__:
        cls.__eq__ = lambda self, other: type(self) is type(other) and self._values == other._values
        cls.__hash__ = None
    for method in ("__str__", "__repr__"):
        if method not in cls.__dict__:
            setattr(cls, method, _text)
    reserve(
        cls,
        allParameters=parameters,
        _is_parameterPack=True,
        _changed=_changed,
        getValue=_getValue,
        setValue=_setValue,
        dataType=staticmethod(lambda name: data_type(cls, name)),
    )
    return cls


def parameterPack(classtype=None):
    """Class decorator: the annotated members of the class become validated, storable parameters."""
    return _decorate if classtype is None else _decorate(classtype)


@parameterNodeSerializer
class ParameterPackSerializer(Serializer):
    """Each member as ``name.<member>``; a pack that was read writes its changes back."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return isinstance(type_, type) and isParameterPack(type_)

    @staticmethod
    def create(type_):
        return ValidatedSerializer(ParameterPackSerializer(type_), [NotNone(), IsInstance(type_)])

    def __init__(self, kind):
        self.kind = kind

    def default(self):
        return self.kind()

    def isIn(self, node, name):
        parameter = next(iter(self.kind.allParameters.values()))
        return parameter.serializer.isIn(node, f"{name}.{parameter.name}")

    def write(self, node, name, value):
        with slicer.util.NodeModify(node):
            for parameter in self.kind.allParameters.values():
                parameter.serializer.write(node, f"{name}.{parameter.name}", value._values[parameter.name])

    def read(self, node, name):
        pack = self.kind.__new__(self.kind)
        values = {p.name: p.serializer.read(node, f"{name}.{p.name}") for p in self.kind.allParameters.values()}
        pack.__dict__.update(_values=values, _owner=(self, node, name))
        return pack

    def remove(self, node, name):
        for parameter in self.kind.allParameters.values():
            parameter.serializer.remove(node, f"{name}.{parameter.name}")

    def supportsCaching(self):
        return all(parameter.serializer.supportsCaching() for parameter in self.kind.allParameters.values())


@parameterPack
class FloatRange:
    """An interval of real numbers."""

    _minimum: float
    _maximum: float

    def __init__(self, minimum=0.0, maximum=0.0):
        self.setRange(minimum, maximum)

    @property
    def minimum(self):
        return self._minimum

    @minimum.setter
    def minimum(self, value):
        self.checkRange(value, self.maximum)
        self._minimum = value

    @property
    def maximum(self):
        return self._maximum

    @maximum.setter
    def maximum(self, value):
        self.checkRange(self.minimum, value)
        self._maximum = value

    def setRange(self, minimum, maximum):
        self.checkRange(minimum, maximum)
        self._minimum, self._maximum = minimum, maximum

    @staticmethod
    def checkRange(minimum, maximum):
        if minimum > maximum:
            raise ValueError(f"FloatRange must have minimum <= maximum: {minimum} <= {maximum}")
