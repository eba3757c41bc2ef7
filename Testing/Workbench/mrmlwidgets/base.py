"""What the qMRML widgets share: the scene, and observations that end with the widget."""

import weakref
from typing import ClassVar

import shiboken6
import slicer
import vtk
from PySide6.QtCore import Signal, Slot
from PySide6.QtWidgets import QWidget

from ..ctkwidgets import ctkSliderWidget


class Observations:
    """VTK observations of a Qt object that end with it."""

    def __init__(self, owner):
        self._owner = weakref.ref(owner)
        self._tags = []

    def add(self, subject, event, method_name: str) -> None:
        """Call ``owner.<method_name>(subject, event, call data)`` on ``event``; without call data it is None."""
        owner_reference = self._owner

        def callback(caller, name, data=None):
            owner = owner_reference()
            if owner is not None and shiboken6.isValid(owner):
                getattr(owner, method_name)(caller, name, data)

        if event in (slicer.vtkMRMLScene.NodeAddedEvent, slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent):
            callback.CallDataType = vtk.VTK_OBJECT
        self._tags.append((subject, subject.AddObserver(event, callback)))

    def clear(self) -> None:
        for subject, tag in self._tags:
            subject.RemoveObserver(tag)
        self._tags = []

    # Must not be left to chance: VTK would call functions that Python's garbage collector has taken apart.
    __del__ = clear


class _SceneWidget(QWidget):
    mrmlSceneChanged = Signal(object)
    cppSignals: ClassVar[dict] = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    @Slot(object)
    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qMRMLWidget(_SceneWidget):
    """A widget that knows the scene; panels connect their selectors to its signal in the .ui file."""

    def mrmlScene(self):
        return self._scene


class qMRMLSliderWidget(ctkSliderWidget):
    """A slider that knows the scene; Slicer's takes its unit from there."""

    def setMRMLScene(self, scene):
        self._scene = scene

    def mrmlScene(self):
        return self._scene


class qSlicerWidget(_SceneWidget):
    """The base of module panels (Base/QTGUI/qSlicerWidget.h)."""
