"""How values of each type lie in the text parameters and node references of a vtkMRMLScriptedModuleNode."""

import enum
import pathlib

import slicer

from . import annotations as notes
from .annotations import IsInstance, NotNone, Validator

_registered: list[type] = []


class Serializer:
    """Writes and reads one type; ``name`` is the parameter's name in the node."""

    @staticmethod
    def canSerialize(type_) -> bool:
        raise NotImplementedError

    @staticmethod
    def create(type_):
        raise NotImplementedError

    def default(self):
        raise NotImplementedError

    def isIn(self, node, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node, name: str, value) -> None:
        node.SetParameter(name, str(value))

    def read(self, node, name: str):
        raise NotImplementedError

    def remove(self, node, name: str) -> None:
        node.UnsetParameter(name)

    def supportsCaching(self) -> bool:
        return False


class ValidatedSerializer(Serializer):
    """A serializer with validators in front."""

    def __init__(self, serializer, validators):
        inner = isinstance(serializer, ValidatedSerializer)
        self.serializer = serializer.serializer if inner else serializer
        self.validators = (serializer.validators if inner else []) + list(validators)

    def validate(self, value) -> None:
        for validator in self.validators:
            validator.validate(value)

    def default(self):
        return self.serializer.default()

    def isIn(self, node, name):
        return self.serializer.isIn(node, name)

    def write(self, node, name, value):
        self.validate(value)
        self.serializer.write(node, name, value)

    def read(self, node, name):
        return self.serializer.read(node, name)

    def remove(self, node, name):
        self.serializer.remove(node, name)

    def supportsCaching(self):
        return self.serializer.supportsCaching()


def parameterNodeSerializer(classtype=None):
    """Class decorator: offer another serializer."""

    def register(cls):
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def create_serializer(annotated) -> tuple[ValidatedSerializer, list]:
    """The serializer of a possibly annotated type, and the annotations that it did not use."""
    actual, annotations = notes.split(annotated)
    validators = [a for a in annotations if isinstance(a, Validator) or _is_class(a, Validator)]
    explicit = [a for a in annotations if isinstance(a, Serializer)]
    unused = [a for a in annotations if a not in validators and a not in explicit]
    if explicit:
        return ValidatedSerializer(explicit[0], validators), unused
    for factory in _registered:
        if factory.canSerialize(actual):
            return ValidatedSerializer(factory.create(actual), validators), unused
    raise Exception(f"Unable to create serializer for type: {actual}")


def _is_class(item, base: type) -> bool:
    return isinstance(item, type) and issubclass(item, base)


class _Plain(Serializer):
    """One value in one parameter."""

    types: tuple = ()

    def __init__(self, kind=None):
        self.kind = kind or self.types[0]

    @classmethod
    def canSerialize(cls, type_) -> bool:
        return type_ in cls.types

    @classmethod
    def create(cls, type_):
        return ValidatedSerializer(cls(type_), [NotNone(), IsInstance((int, float) if type_ is float else type_)])

    def default(self):
        return self.kind()

    def read(self, node, name):
        return self.kind(node.GetParameter(name))

    def supportsCaching(self):
        return True


@parameterNodeSerializer
class NumberSerializer(_Plain):
    types = (int, float)


@parameterNodeSerializer
class StringSerializer(_Plain):
    types = (str,)


@parameterNodeSerializer
class PathSerializer(_Plain):
    types = (
        pathlib.Path,
        pathlib.PosixPath,
        pathlib.WindowsPath,
        pathlib.PurePath,
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
    )


@parameterNodeSerializer
class BoolSerializer(_Plain):
    types = (bool,)

    def write(self, node, name, value):
        node.SetParameter(name, "True" if value else "False")

    def read(self, node, name):
        return node.GetParameter(name) == "True"


@parameterNodeSerializer
class EnumSerializer(_Plain):
    """By member name."""

    @classmethod
    def canSerialize(cls, type_) -> bool:
        return _is_class(type_, enum.Enum)

    @classmethod
    def create(cls, type_):
        return ValidatedSerializer(cls(type_), [IsInstance(type_)])

    def default(self):
        return next(iter(self.kind))

    def write(self, node, name, value):
        node.SetParameter(name, value.name)

    def read(self, node, name):
        key = node.GetParameter(name)
        if key not in self.kind.__members__:
            raise ValueError(f"Found {key!r} in parameter node but it is not a name in {self.kind!r}")
        return self.kind[key]


@parameterNodeSerializer
class NodeSerializer(Serializer):
    """As a node reference; the parameter of the same name only tells that a value, perhaps None, was set."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return _is_class(type_, slicer.vtkMRMLNode)

    @staticmethod
    def create(type_):
        return ValidatedSerializer(NodeSerializer(), [IsInstance(type_)])

    def default(self):
        return None

    def write(self, node, name, value):
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node, name):
        return node.GetNodeReference(name)

    def remove(self, node, name):
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)

    def supportsCaching(self):
        return True
