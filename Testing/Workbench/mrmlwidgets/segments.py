"""The segment selector."""

from typing import ClassVar

import slicer
from PySide6.QtCore import Property, Qt, Signal, Slot
from PySide6.QtWidgets import QComboBox, QVBoxLayout

from ..ctkwidgets import ctkCheckableComboBox
from ..qtproperty import stored
from .base import Observations, qMRMLWidget
from .nodes import qMRMLNodeComboBox


class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """Selects a segmentation and one or several of its segments."""

    currentNodeChanged = Signal(object)
    currentSegmentChanged = Signal(str)
    segmentSelectionChanged = Signal("QStringList")
    nodeAboutToBeEdited = Signal(object)
    _currentNodeValid = Signal(bool)
    cppSignals: ClassVar[dict] = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "_currentNodeValid",
        "currentSegmentChanged(QString)": "currentSegmentChanged",
        "segmentSelectionChanged(QStringList)": "segmentSelectionChanged",
    }

    def __init__(self, parent=None):
        super().__init__(parent)
        self._selector = qMRMLNodeComboBox(self)
        self._selector.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._selector.noneEnabled = True
        self._selector.addEnabled = self._selector.removeEnabled = False
        self._segmentBox, self._checkableBox = QComboBox(self), ctkCheckableComboBox(self)
        self._checkableBox.hide()
        self._segmentObservations = Observations(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self._selector, self._segmentBox, self._checkableBox):
            layout.addWidget(widget)
        self.mrmlSceneChanged.connect(self._selector.setMRMLScene)
        self._selector.currentNodeChanged.connect(self._onNodeChanged)
        self._segmentBox.currentIndexChanged.connect(lambda _: self._onSegmentChanged())
        self._checkableBox.checkedIndexesChanged.connect(
            lambda: self.segmentSelectionChanged.emit(self.selectedSegmentIDs())
        )

    noneEnabled = stored(bool, "_noneEnabled", False, lambda self: self._populate())
    editEnabled = stored(bool, "_editEnabled", False)
    selectNodeUponCreation = stored(bool, "_selectUponCreation", True)
    horizontalLayout = stored(bool, "_horizontalLayout", False)
    multiSelection = stored(bool, "_multiSelection", False, lambda self: self._showBoxes())
    segmentationNodeSelectorVisible = Property(
        bool, lambda self: not self._selector.isHidden(), lambda self, value: self._selector.setVisible(value)
    )

    def _showBoxes(self):
        self._segmentBox.setVisible(not self.multiSelection)
        self._checkableBox.setVisible(self.multiSelection)

    def _onNodeChanged(self, node):
        self._segmentObservations.clear()
        if node:
            for event in (slicer.vtkSegmentation.SegmentAdded, slicer.vtkSegmentation.SegmentRemoved):
                self._segmentObservations.add(node.GetSegmentation(), event, "_onSegmentsChanged")
        self._populate()
        self.currentNodeChanged.emit(node)
        self._currentNodeValid.emit(node is not None)

    def _onSegmentsChanged(self, *_):
        self._populate()

    def _populate(self):
        current = self.currentSegmentID()
        for box in (self._segmentBox, self._checkableBox):
            blocked = box.blockSignals(True)
            box.clear()
            if box is self._segmentBox and self.noneEnabled:
                box.addItem("None", "")
            for segment_id in self.segmentIDs():
                box.addItem(self.currentNode().GetSegmentation().GetSegment(segment_id).GetName(), segment_id)
            box.blockSignals(blocked)
        self.setCurrentSegmentID(current)

    def _onSegmentChanged(self):
        self.currentSegmentChanged.emit(self.currentSegmentID())
        self.segmentSelectionChanged.emit(self.selectedSegmentIDs())

    def currentNode(self):
        return self._selector.currentNode()

    def currentNodeID(self):
        return self._selector.currentNodeID

    def currentSegmentID(self):
        return self._segmentBox.currentData or "" if self._segmentBox.count else ""

    def segmentIDs(self):
        return list(self.currentNode().GetSegmentation().GetSegmentIDs()) if self.currentNode() else []

    def selectedSegmentIDs(self):
        if self.multiSelection:
            return [index.data(Qt.UserRole) for index in self._checkableBox.checkedIndexes()]
        return [self.currentSegmentID()] if self.currentSegmentID() else []

    @Slot(object)
    def setCurrentNode(self, node):
        self._selector.setCurrentNode(node)

    @Slot(str)
    def setCurrentNodeID(self, node_id):
        self._selector.setCurrentNodeID(node_id)

    @Slot(str)
    def setCurrentSegmentID(self, segment_id):
        index = self._segmentBox.findData(segment_id)
        self._segmentBox.setCurrentIndex(index if index >= 0 else 0 if self._segmentBox.count else -1)

    @Slot("QStringList")
    def setSelectedSegmentIDs(self, segment_ids):
        if not self.multiSelection:
            self.setCurrentSegmentID(segment_ids[0] if segment_ids else "")
            return
        for row in range(self._checkableBox.count):
            index = self._checkableBox.model().index(row, 0)
            self._checkableBox.setCheckState(
                index, Qt.Checked if index.data(Qt.UserRole) in segment_ids else Qt.Unchecked
            )
