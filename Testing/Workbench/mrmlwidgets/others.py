"""ctk widgets that know the scene."""

from typing import ClassVar

from PySide6.QtCore import Signal, Slot

from ..ctkwidgets import (
    ctkCollapsibleButton,
    ctkDoubleSpinBox,
    ctkRangeWidget,
    ctkSliderWidget,
)
from ..qtproperty import stored


class _SceneMixin:
    """setMRMLScene of the unit-aware widgets: a length shows millimetres."""

    _scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._scene = scene
        self._applyUnit()

    def _applyUnit(self):
        if self._scene is not None and self.quantity == "length":
            self.suffix = "mm"


class qMRMLSliderWidget(ctkSliderWidget, _SceneMixin):
    quantity = stored(str, "_quantity", "", lambda self: self._applyUnit())


class qMRMLSpinBox(ctkDoubleSpinBox, _SceneMixin):
    quantity = stored(str, "_quantity", "", lambda self: self._applyUnit())


class qMRMLRangeWidget(ctkRangeWidget, _SceneMixin):
    quantity = stored(str, "_quantity", "", lambda self: self._applyUnit())


class qMRMLCollapsibleButton(ctkCollapsibleButton):
    """A collapsible section that knows the scene."""

    mrmlSceneChanged = Signal(object)
    cppSignals: ClassVar[dict] = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}
    _scene = None

    @Slot(object)
    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)
