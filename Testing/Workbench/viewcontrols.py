"""The pop-up with the layers of a slice view."""

import slicer
from PySide6.QtCore import Qt
from PySide6.QtWidgets import QCheckBox, QFormLayout, QFrame

from .ctkwidgets import ctkSliderWidget
from .mrmlwidgets import qMRMLNodeComboBox


class SliceLayersPopup(QFrame):
    """Background, foreground with opacity, label map and linking of one slice view, on its composite node."""

    def __init__(self, slice_widget):
        super().__init__(slice_widget, Qt.Popup)
        self._sliceWidget, self._updating = slice_widget, False
        self.setFrameShape(QFrame.StyledPanel)
        self.setMinimumWidth(320)
        form = QFormLayout(self)
        self.background = self._selector("vtkMRMLVolumeNode", "SetBackgroundVolumeID")
        self.foreground = self._selector("vtkMRMLVolumeNode", "SetForegroundVolumeID")
        self.label = self._selector("vtkMRMLLabelMapVolumeNode", "SetLabelVolumeID")
        self.opacity = ctkSliderWidget(self)
        self.opacity.maximum, self.opacity.singleStep = 1.0, 0.05
        self.opacity.valueChanged.connect(lambda value: self._apply("SetForegroundOpacity", value))
        self.linked = QCheckBox("Link views")
        self.linked.toggled.connect(self._link)
        form.addRow("Foreground", self.foreground)
        form.addRow("Opacity", self.opacity)
        form.addRow("Background", self.background)
        form.addRow("Label map", self.label)
        form.addRow(self.linked)

    def _selector(self, node_type, setter):
        selector = qMRMLNodeComboBox(self)
        selector.nodeTypes = [node_type]
        selector.noneEnabled = True
        selector.addEnabled = selector.removeEnabled = False
        selector.setMRMLScene(slicer.mrmlScene)
        selector.currentNodeIDChanged.connect(lambda node_id: self._apply(setter, node_id or None))
        return selector

    def _composites(self):
        own = self._sliceWidget.mrmlSliceCompositeNode()
        return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode") if own.GetLinkedControl() else [own]

    def _apply(self, setter, value):
        if not self._updating:
            for composite in self._composites():
                getattr(composite, setter)(value)

    def _link(self, linked):
        if not self._updating:
            for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
                composite.SetLinkedControl(linked)
                composite.SetHotLinkedControl(linked)

    def refresh(self) -> None:
        """Show what the composite node says."""
        self._updating = True
        composite = self._sliceWidget.mrmlSliceCompositeNode()
        self.background.setCurrentNodeID(composite.GetBackgroundVolumeID() or "")
        self.foreground.setCurrentNodeID(composite.GetForegroundVolumeID() or "")
        self.label.setCurrentNodeID(composite.GetLabelVolumeID() or "")
        self.opacity.value = composite.GetForegroundOpacity()
        self.linked.checked = bool(composite.GetLinkedControl())
        self._updating = False
