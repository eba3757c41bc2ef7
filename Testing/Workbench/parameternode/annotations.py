"""What can stand beside a type in ``Annotated``: defaults and validators."""

import types
import typing


class Default:
    """The initial value of a parameter, fixed or generated anew each time."""

    def __init__(self, value=None, *, generator=None):
        self._value, self._generator = value, generator

    @property
    def value(self):
        return self._generator() if self._generator else self._value


class Validator:
    """Base of validators; a validator raises when it does not accept a value."""

    def validate(self, value) -> None:
        raise NotImplementedError


class NotNone(Validator):
    def validate(self, value) -> None:
        if value is None:
            raise ValueError("Value must not be None")


class IsInstance(Validator):
    def __init__(self, classtype):
        self.classtype = classtype

    def validate(self, value) -> None:
        if value is not None and not isinstance(value, self.classtype):
            raise TypeError(f"Value must be of type {self.classtype}, not {type(value)}: {value!r}")


class WithinRange(Validator):
    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within [{self.minimum}, {self.maximum}], is {value}")


class Choice(Validator):
    def __init__(self, choices):
        self.choices = choices

    def validate(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"Value must be one of {self.choices}, is {value!r}")


def split(annotated) -> tuple[object, list]:
    """``Annotated[T, a, b]`` to ``(T, [a, b])``; any other type to ``(type, [])``."""
    if typing.get_origin(annotated) is typing.Annotated:
        actual, *annotations = typing.get_args(annotated)
        return actual, annotations
    return annotated, []


def first(annotations: list, kind: type):
    return next((annotation for annotation in annotations if isinstance(annotation, kind)), None)


def is_union(kind) -> bool:
    return typing.get_origin(kind) is typing.Union or isinstance(kind, types.UnionType)
