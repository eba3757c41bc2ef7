"""How values of each type lie in the text parameters and node references of a vtkMRMLScriptedModuleNode."""

import collections.abc
import enum
import typing

import slicer

from .annotations import IsInstance, NotNone, Validator, is_union, split

_registered: list[type] = []


class Serializer:
    """Writes and reads one type; ``name`` is the parameter's name in the node."""

    def isIn(self, node, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node, name: str, value) -> None:
        node.SetParameter(name, str(value))

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


def parameterNodeSerializer(classtype):
    """Class decorator: offer another serializer."""
    _registered.append(classtype)
    return classtype


def create_serializer(annotated) -> tuple[ValidatedSerializer, list]:
    """The serializer of a possibly annotated type, and the annotations that it did not use."""
    actual, annotations = split(annotated)
    validators = [a for a in annotations if isinstance(a, Validator)]
    for factory in _registered:
        if factory.canSerialize(actual):
            unused = [a for a in annotations if a not in validators]
            return ValidatedSerializer(factory.create(actual), validators), unused
    raise Exception(f"Unable to create serializer for type: {actual}")


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
class BoolSerializer(_Plain):
    types = (bool,)

    def write(self, node, name, value):
        node.SetParameter(name, "True" if value else "False")

    def read(self, node, name):
        return node.GetParameter(name) == "True"


def _is_class(item, base: type) -> bool:
    return isinstance(item, type) and issubclass(item, base)


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


class ObservedList(collections.abc.Sequence):
    """A list as it was read; Slicer's also writes changes back, here a new list is assigned instead."""

    def __init__(self, values):
        self._list = values

    def __len__(self):
        return len(self._list)

    def __getitem__(self, index):
        return self._list[index]

    def __eq__(self, other):
        return self._list == (other._list if isinstance(other, ObservedList) else other)

    __hash__ = None


@parameterNodeSerializer
class ListSerializer(Serializer):
    """``name.len`` and ``name.0``, ``name.1``..."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return typing.get_origin(type_) is list

    @staticmethod
    def create(type_):
        return ListSerializer(create_serializer(*typing.get_args(type_))[0])

    def __init__(self, element):
        self._element = element

    def default(self):
        return []

    def _length(self, node, name):
        return int(node.GetParameter(f"{name}.len")) if self.isIn(node, name) else 0

    def isIn(self, node, name):
        return bool(node.HasParameter(f"{name}.len"))

    def write(self, node, name, values):
        old_length = self._length(node, name)
        with slicer.util.NodeModify(node):
            for index, value in enumerate(values):
                self._element.write(node, f"{name}.{index}", value)
            node.SetParameter(f"{name}.len", str(len(values)))
            for index in range(len(values), old_length):
                self._element.remove(node, f"{name}.{index}")

    def read(self, node, name):
        return ObservedList([self._element.read(node, f"{name}.{i}") for i in range(self._length(node, name))])

    def remove(self, node, name):
        for index in range(self._length(node, name)):
            self._element.remove(node, f"{name}.{index}")
        node.UnsetParameter(f"{name}.len")

    def supportsCaching(self):
        return self._element.supportsCaching()


@parameterNodeSerializer
class _NoneSerializer(Serializer):
    """The None of a union."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return type_ is type(None)

    @staticmethod
    def create(type_):
        return _NoneSerializer()

    def default(self):
        return None

    def read(self, node, name):
        return None

    def write(self, node, name, value):
        node.SetParameter(name, "True")

    def supportsCaching(self):
        return True


@parameterNodeSerializer
class UnionSerializer(Serializer):
    """``name.<index of the type>``."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return is_union(type_)

    @staticmethod
    def create(type_):
        return UnionSerializer([create_serializer(argument)[0] for argument in typing.get_args(type_)])

    def __init__(self, serializers):
        self._serializers = serializers

    def default(self):
        last = self._serializers[-1].serializer
        optional = len(self._serializers) == 2 and isinstance(last, _NoneSerializer)
        return None if optional else self._serializers[0].default()

    def isIn(self, node, name):
        return any(serializer.isIn(node, f"{name}.{i}") for i, serializer in enumerate(self._serializers))

    def _index(self, value):
        problem = TypeError(f"Unable to write value {value!r} of type {type(value)}")
        for index, serializer in enumerate(self._serializers):
            if serializer.serializer.canSerialize(type(value)):
                try:
                    serializer.validate(value)
                    return index
                except (TypeError, ValueError) as error:
                    problem = error
        raise problem

    def write(self, node, name, value):
        index = self._index(value)
        with slicer.util.NodeModify(node):
            self.remove(node, name)
            self._serializers[index].write(node, f"{name}.{index}", value)

    def read(self, node, name):
        for index, serializer in enumerate(self._serializers):
            if serializer.isIn(node, f"{name}.{index}"):
                return serializer.read(node, f"{name}.{index}")
        raise KeyError(f"Unable to find value for name: {name}")

    def remove(self, node, name):
        for index, serializer in enumerate(self._serializers):
            serializer.remove(node, f"{name}.{index}")

    def supportsCaching(self):
        return all(serializer.supportsCaching() for serializer in self._serializers)
