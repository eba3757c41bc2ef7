"""Loads .ui files that name Slicer's widgets, as ``qt.QUiLoader`` in Slicer does."""

import xml.etree.ElementTree as ElementTree

from PySide6.QtCore import QBuffer, QByteArray, QIODevice, QObject
from PySide6.QtUiTools import QUiLoader

_widget_classes: dict[str, type] = {}


def register(*classes: type) -> None:
    """Let .ui files use these classes, by their names."""
    _widget_classes.update({cls.__name__: cls for cls in classes})


class UiLoader(QUiLoader):
    """A QUiLoader that creates the stand-ins, and connects signals and slots that carry MRML objects."""

    def createWidget(self, class_name, parent=None, name=""):
        cls = _widget_classes.get(class_name)
        if cls is None:
            return super().createWidget(class_name, parent, name)
        widget = cls(parent) if parent else cls()
        widget.setObjectName(name)
        return widget

    def load(self, device, parentWidget=None):
        if isinstance(device, str):
            with open(device, "rb") as file:
                content = file.read()
        else:
            content = bytes(device.readAll().data())
        root = ElementTree.fromstring(content)
        connections = _take_mrml_connections(root)
        buffer = QBuffer()
        buffer.setData(QByteArray(ElementTree.tostring(root)))
        buffer.open(QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(buffer, parentWidget)
        if widget is None:
            return None
        for sender, signal, receiver, slot in connections:
            method = getattr(_find(widget, receiver), slot.partition("(")[0])
            _find(widget, sender).connect(signal, method)
        return widget


def _find(root: QObject, name: str) -> QObject:
    found = root if root.objectName == name else root.findChild(QObject, name)
    if found is None:
        raise RuntimeError(f"The .ui file connects {name}, but has no such widget")
    return found


def _take_mrml_connections(root: ElementTree.Element) -> list[tuple[str, str, str, str]]:
    taken = []
    for connections in root.iter("connections"):
        for connection in list(connections):
            parts = tuple(connection.findtext(tag, "") for tag in ("sender", "signal", "receiver", "slot"))
            if "vtkMRML" in parts[1] or "vtkMRML" in parts[3]:
                taken.append(parts)
                connections.remove(connection)
    return taken
