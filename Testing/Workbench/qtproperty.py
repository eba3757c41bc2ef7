"""Short ways to declare the Qt properties of the stand-in widgets."""

from PySide6 import QtCore


def forwarded(kind: type | str, child: str, name: str, after=None) -> QtCore.Property:
    """A property of a stand-in that is the property ``name`` of its child widget ``self.<child>``."""

    def read(self):
        return getattr(getattr(self, child), name)

    def write(self, value):
        setattr(getattr(self, child), name, value)
        if after:
            after(self)

    return QtCore.Property(kind, read, write)


def stored(kind: type | str, name: str, default, after=None) -> QtCore.Property:
    """A property kept in ``self.<name>``; ``after(self)`` runs when its value changed."""

    def read(self):
        value = getattr(self, name, default)
        return tuple(value) if kind == "QStringList" else value  # PythonQt gives string lists as tuples

    def write(self, value):
        if getattr(self, name, default) == value:
            return
        setattr(self, name, value)
        if after:
            after(self)

    return QtCore.Property(kind, read, write)
