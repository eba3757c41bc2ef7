"""Serializers of lists, tuples, dictionaries, unions and Any."""

import collections.abc
import importlib
import typing

import slicer

from . import annotations as notes
from .annotations import IsNone
from .serializers import Serializer, ValidatedSerializer, create_serializer, parameterNodeSerializer


class ObservedList(collections.abc.MutableSequence):
    """A list that writes itself back to the parameter node when it changes."""

    def __init__(self, node, serializer, name, values):
        self._node, self._serializer, self._name, self._list = node, serializer, name, values

    def _save(self):
        try:
            self._serializer.write(self._node, self._name, self._list)
        finally:
            self._list = self._serializer.read(self._node, self._name)._list

    def __len__(self):
        return len(self._list)

    def __getitem__(self, index):
        return self._list[index]

    def __setitem__(self, index, value):
        self._list[index] = value
        self._save()

    def __delitem__(self, index):
        del self._list[index]
        self._save()

    def insert(self, index, value):
        self._list.insert(index, value)
        self._save()

    def extend(self, values):
        self._list.extend(values)
        self._save()

    def __iadd__(self, values):
        self.extend(values)
        return self

    def __imul__(self, count):
        self._list *= count
        self._save()
        return self

    def _unsupported(self, _other):
        raise NotImplementedError("An ObservedList can only be changed in place (+=, *=)")

    __add__ = __radd__ = __mul__ = __rmul__ = _unsupported

    def clear(self):
        self._list.clear()
        self._save()

    def reverse(self):
        self._list.reverse()
        self._save()

    def sort(self, **arguments):
        self._list.sort(**arguments)
        self._save()

    def __eq__(self, other):
        return self._list == (other._list if isinstance(other, ObservedList) else other)

    __hash__ = None

    def __repr__(self):
        return f"ObservedList({self._list})"


@parameterNodeSerializer
class ListSerializer(Serializer):
    """``name.len`` and ``name.0``, ``name.1``..."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return type_ is list or typing.get_origin(type_) is list

    @staticmethod
    def create(type_):
        return ListSerializer(create_serializer(*(typing.get_args(type_) or [typing.Any]))[0])

    def __init__(self, element):
        self._element = element

    def default(self):
        return []

    def _length(self, node, name):
        return int(node.GetParameter(f"{name}.len")) if self.isIn(node, name) else 0

    def isIn(self, node, name):
        return bool(node.HasParameter(f"{name}.len"))

    def write(self, node, name, values):
        with slicer.util.NodeModify(node):
            before = list(self.read(node, name)) if self.isIn(node, name) else None
            old_length = self._length(node, name)
            try:
                for index, value in enumerate(values):
                    self._element.write(node, f"{name}.{index}", value)
            except Exception:
                if before is None:
                    self.remove(node, name)
                else:
                    self.write(node, name, before)
                raise
            node.SetParameter(f"{name}.len", str(len(values)))
            for index in range(len(values), old_length):
                self._element.remove(node, f"{name}.{index}")

    def read(self, node, name):
        values = [self._element.read(node, f"{name}.{index}") for index in range(self._length(node, name))]
        return ObservedList(node, self, name, values)

    def remove(self, node, name):
        for index in range(self._length(node, name)):
            self._element.remove(node, f"{name}.{index}")
        node.UnsetParameter(f"{name}.len")

    def supportsCaching(self):
        return self._element.supportsCaching()


@parameterNodeSerializer
class TupleSerializer(Serializer):
    """``name.0``, ``name.1``..."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return typing.get_origin(type_) is tuple

    @staticmethod
    def create(type_):
        return TupleSerializer([create_serializer(argument)[0] for argument in typing.get_args(type_)])

    def __init__(self, serializers):
        self._serializers = serializers

    def default(self):
        return tuple(serializer.default() for serializer in self._serializers)

    def isIn(self, node, name):
        return self._serializers[0].isIn(node, f"{name}.0")

    def write(self, node, name, values):
        values = tuple(values)
        if len(values) != len(self._serializers):
            raise ValueError("Unexpected number of tuple values")
        with slicer.util.NodeModify(node):
            for index, (serializer, value) in enumerate(zip(self._serializers, values, strict=True)):
                serializer.write(node, f"{name}.{index}", value)

    def read(self, node, name):
        return tuple(serializer.read(node, f"{name}.{i}") for i, serializer in enumerate(self._serializers))

    def remove(self, node, name):
        for index, serializer in enumerate(self._serializers):
            serializer.remove(node, f"{name}.{index}")

    def supportsCaching(self):
        return all(serializer.supportsCaching() for serializer in self._serializers)


class ObservedDict(collections.abc.MutableMapping):
    """A dictionary that writes itself back to the parameter node when it changes."""

    def __init__(self, node, serializer, name, values):
        self._node, self._serializer, self._name, self._dict = node, serializer, name, values

    def _save(self):
        self._serializer.write(self._node, self._name, self._dict)

    def __getitem__(self, key):
        return self._dict[key]

    def __setitem__(self, key, value):
        self._dict[key] = value
        self._save()

    def __delitem__(self, key):
        del self._dict[key]
        self._save()

    def popitem(self):
        item = self._dict.popitem()
        self._save()
        return item

    def __iter__(self):
        return iter(self._dict)

    def __len__(self):
        return len(self._dict)

    def __repr__(self):
        return f"ObservedDict({self._dict})"


@parameterNodeSerializer
class DictSerializer(ListSerializer):
    """As a list of pairs."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return type_ is dict or typing.get_origin(type_) is dict

    @staticmethod
    def create(type_):
        arguments = typing.get_args(type_) or (typing.Any, typing.Any)
        return DictSerializer(*(create_serializer(argument)[0] for argument in arguments))

    def __init__(self, keys, values):
        super().__init__(TupleSerializer([keys, values]))

    def default(self):
        return {}

    def write(self, node, name, values):
        super().write(node, name, list(values.items()) if isinstance(values, collections.abc.Mapping) else values)

    def read(self, node, name):
        pairs = [self._element.read(node, f"{name}.{index}") for index in range(self._length(node, name))]
        return ObservedDict(node, self, name, dict(pairs))


@parameterNodeSerializer
class NoneSerializer(Serializer):
    """The None of a union."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return type_ is type(None)

    @staticmethod
    def create(type_):
        return ValidatedSerializer(NoneSerializer(), [IsNone()])

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
        return notes.is_union(type_)

    @staticmethod
    def create(type_):
        return UnionSerializer([create_serializer(argument)[0] for argument in typing.get_args(type_)])

    def __init__(self, serializers):
        self._serializers = [ValidatedSerializer(serializer, []) for serializer in serializers]

    def default(self):
        last = self._serializers[-1].serializer
        optional = len(self._serializers) == 2 and isinstance(last, NoneSerializer)
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


@parameterNodeSerializer
class AnySerializer(Serializer):
    """The type as ``name.type.0`` (module) and ``name.type.1`` (class), the value as ``name.value``."""

    @staticmethod
    def canSerialize(type_) -> bool:
        return type_ is typing.Any

    @staticmethod
    def create(type_):
        return AnySerializer()

    def default(self):
        return None

    def isIn(self, node, name):
        return bool(node.HasParameter(f"{name}.type.0"))

    def _serializer(self, node, name):
        module, kind = node.GetParameter(f"{name}.type.0"), node.GetParameter(f"{name}.type.1")
        type_ = type(None) if kind == "NoneType" else getattr(importlib.import_module(module), kind)
        return create_serializer(type_)[0]

    def write(self, node, name, value):
        serializer = create_serializer(type(value))[0]
        self.remove(node, name)
        serializer.write(node, f"{name}.value", value)
        node.SetParameter(f"{name}.type.0", type(value).__module__)
        node.SetParameter(f"{name}.type.1", type(value).__name__)

    def read(self, node, name):
        return self._serializer(node, name).read(node, f"{name}.value")

    def remove(self, node, name):
        if self.isIn(node, name):
            self._serializer(node, name).remove(node, f"{name}.value")
            node.UnsetParameter(f"{name}.type.0")
            node.UnsetParameter(f"{name}.type.1")
