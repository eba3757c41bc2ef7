"""Stand-ins for the qMRML widgets of Slicer's module panels, on the real MRML scene.

Properties, slots, signals and defaults follow Slicer, Libs/MRML/Widgets (each class in the file of its name); the
list of a node selector behaves as qMRMLSceneModel with qMRMLSortFilterProxyModel in a QComboBox does.
"""

import weakref

import shiboken6
import slicer
import vtk
from PySide6.QtCore import Property, Qt, Signal, Slot
from PySide6.QtGui import QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QInputDialog, QSizePolicy, QVBoxLayout, QWidget

from .ctkwidgets import (
    ctkCheckableComboBox,
    ctkCollapsibleButton,
    ctkComboBox,
    ctkDoubleSpinBox,
    ctkRangeWidget,
    ctkSliderWidget,
)
from .qtproperty import stored

_NODE_ID = Qt.UserRole
_ACTION = Qt.UserRole + 1


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


class qMRMLWidget(QWidget):
    """A widget that knows the scene; panels connect their selectors to its signal in the .ui file."""

    mrmlSceneChanged = Signal(object)
    cppSignals = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    @Slot(object)
    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qSlicerWidget(qMRMLWidget):
    """The base of module panels (Base/QTGUI/qSlicerWidget.h)."""


class qMRMLNodeComboBox(QWidget):
    """Selects a node of given classes, and creates, renames and deletes nodes."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAddedByUserAction = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    nodeAboutToBeEdited = Signal(object)
    currentNodeRenamed = Signal(str)
    _currentNodeValid = Signal(bool)
    cppSignals = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "_currentNodeValid",
        "currentNodeIDChanged(QString)": "currentNodeIDChanged",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated",
        "nodeAdded(vtkMRMLNode*)": "nodeAdded",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
        "nodeAddedByUserAction(vtkMRMLNode*)": "nodeAddedByUserAction",
        "nodeAboutToBeRemoved(vtkMRMLNode*)": "nodeAboutToBeRemoved",
        "nodeAboutToBeEdited(vtkMRMLNode*)": "nodeAboutToBeEdited",
        "currentNodeRenamed(QString)": "currentNodeRenamed",
    }
    _comboBoxClass = ctkComboBox

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._requestedID, self._switchingScene = None, "", False
        self._attributes, self._newAttributes, self._baseNames, self._labels, self._menuActions = [], {}, {}, {}, []
        self._sceneObservations, self._nodeObservations = Observations(self), Observations(self)
        self._comboBox = self._comboBoxClass(self)
        self._comboBox.setModel(QStandardItemModel(self))
        self._comboBox.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        self._comboBox.setSizeAdjustPolicy(QComboBox.AdjustToMinimumContentsLengthWithIcon)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._comboBox)
        self.setFocusProxy(self._comboBox)
        self.setSizePolicy(QSizePolicy(QSizePolicy.Preferred, QSizePolicy.Fixed, QSizePolicy.ComboBox))
        self._comboBox.currentTextChanged.connect(self._emitCurrentNodeChanged)
        self._comboBox.activated.connect(self._onActivated)
        self._lastNodeIndex = -1
        self.setEnabled(False)

    # Properties

    def _refresh(self):
        self._updateList()
        self._updateActions()

    nodeTypes = Property(
        "QStringList", lambda self: tuple(getattr(self, "_nodeTypes", ())), lambda self, types: self._setNodeTypes(types)
    )
    showHidden = stored(bool, "_showHidden", False, _refresh)
    showChildNodeTypes = stored(bool, "_showChildNodeTypes", True, _refresh)
    hideChildNodeTypes = stored("QStringList", "_hideChildNodeTypes", [], _refresh)
    noneEnabled = stored(bool, "_noneEnabled", False, lambda self: self._updateNone())
    noneDisplay = stored(str, "_noneDisplay", "None", lambda self: self._updateNone())
    addEnabled = stored(bool, "_addEnabled", True, lambda self: self._updateActions())
    removeEnabled = stored(bool, "_removeEnabled", True, lambda self: self._updateActions())
    editEnabled = stored(bool, "_editEnabled", False, lambda self: self._updateActions())
    renameEnabled = stored(bool, "_renameEnabled", False, lambda self: self._updateActions())
    selectNodeUponCreation = stored(bool, "_selectNodeUponCreation", True)
    interactionNodeSingletonTag = stored(str, "_interactionNodeSingletonTag", "Singleton")
    baseName = Property(str, lambda self: self._baseName(), lambda self, name: self._setBaseName(name))
    currentNodeID = Property(str, lambda self: self._currentID(), lambda self, node_id: self.setCurrentNodeID(node_id))
    sizeAdjustPolicy = Property(
        "int", lambda self: self._comboBox.sizeAdjustPolicy, lambda self, v: self._comboBox.setSizeAdjustPolicy(v)
    )

    def _setNodeTypes(self, types):
        self._nodeTypes = [t for t in types if t]
        self._comboBox.defaultText = f"Select a {self.nodeTypeLabel(next(iter(self._nodeTypes), ''))}"
        self._refresh()

    def _baseName(self):
        return self._baseNames.get(self.nodeTypes[0], "") if self.nodeTypes else ""

    def _setBaseName(self, name):
        for node_type in self.nodeTypes:
            self._baseNames[node_type] = name

    # The list: [none] nodes... [separator, actions...]

    def _accepts(self, node) -> bool:
        if node is None or (node.GetHideFromEditors() and not self.showHidden):
            return False
        if any(node.IsA(hidden) for hidden in self.hideChildNodeTypes):
            return False
        for node_type in self.nodeTypes:
            if node.IsA(node_type) if self.showChildNodeTypes else node.GetClassName() == node_type:
                return all(
                    node.GetAttribute(name) is not None and value in (None, node.GetAttribute(name))
                    for kind, name, value in self._attributes
                    if kind == node_type
                )
        return False

    def _nodesOfScene(self):
        if self._scene is None:
            return []
        nodes = {}
        for node_type in self.nodeTypes:
            for node in slicer.util.getNodesByClass(node_type, self._scene):
                nodes[node.GetID()] = node
        order = {self._scene.GetNthNode(i).GetID(): i for i in range(self._scene.GetNumberOfNodes())}
        return sorted(nodes.values(), key=lambda node: order.get(node.GetID(), 0))

    def _updateList(self):
        """Add, remove and rename rows one at a time, so that QComboBox keeps or moves its selection by itself."""
        self._nodeObservations.clear()
        nodes = self._nodesOfScene()
        for node in nodes:
            self._nodeObservations.add(node, vtk.vtkCommand.ModifiedEvent, "_onNodeModified")
        wanted = [node for node in nodes if self._accepts(node)]
        model, first = self._comboBox.model(), int(self.noneEnabled)
        wanted_ids = [node.GetID() for node in wanted]
        for row in reversed(range(first, first + self.nodeCount())):
            if model.item(row).data(_NODE_ID) not in wanted_ids:
                self._count = self.nodeCount() - 1
                model.removeRow(row)
                if not self.currentNode():
                    self.setCurrentNode(None)
        for row, node in enumerate(wanted, first):
            item = model.item(row)
            if item is None or item.data(_NODE_ID) != node.GetID():
                self._count = self.nodeCount() + 1
                model.insertRow(row, self._nodeItem(node))
                self.nodeAdded.emit(node)
            elif item.text() != node.GetName():
                item.setText(node.GetName() or "")

    def _nodeItem(self, node):
        item = QStandardItem(node.GetName() or "")
        item.setData(node.GetID(), _NODE_ID)
        item.setToolTip(f"{node.GetName()}: {node.GetID()}")
        return item

    def _updateNone(self):
        model, has_none = self._comboBox.model(), getattr(self, "_hasNone", False)
        if self._scene is None:
            return
        if has_none and not self.noneEnabled:
            self._hasNone = False
            model.removeRow(0)
        elif has_none:
            model.item(0).setText(self.noneDisplay)
        elif self.noneEnabled:
            self._hasNone = True
            index = self._comboBox.currentIndex
            item = QStandardItem(self.noneDisplay)
            item.setData("", _NODE_ID)
            model.insertRow(0, item)
            if index == -1:
                self._comboBox.setCurrentIndex(0)

    def _updateActions(self):
        model, index = self._comboBox.model(), self._comboBox.currentIndex
        nodes_end = int(getattr(self, "_hasNone", False)) + self.nodeCount()
        if model.rowCount() > nodes_end:
            model.removeRows(nodes_end, model.rowCount() - nodes_end)
        if self._scene is None:
            return
        label = self.nodeTypeLabel(self.nodeTypes[0] if len(self.nodeTypes) == 1 else "")
        actions = []
        if self.renameEnabled:
            actions.append((f"Rename current {label}", "RENAME"))
        if self.editEnabled:
            actions.append((f"Edit current {label}", "EDIT"))
        if self.addEnabled:
            for node_type in self.nodeTypes:
                actions.append((f"Create new {self.nodeTypeLabel(node_type)}", f"CREATE/{node_type}"))
                if self.renameEnabled:
                    actions.append((f"Create new {self.nodeTypeLabel(node_type)} as...", f"CREATE_AS/{node_type}"))
        if self.removeEnabled:
            actions.append((f"Delete current {label}", "DELETE"))
        actions += [(action.text, action) for action in self._menuActions]
        if actions:
            self._comboBox.insertSeparator(model.rowCount())
        for text, action in actions:
            item = QStandardItem(text)
            item.setData(action, _ACTION)
            model.appendRow(item)
        self._comboBox.setCurrentIndex(index)

    # Events

    def _onNodeModified(self, _node, _event, _data):
        self._updateList()

    def _onSceneNodeAdded(self, _scene, _event, node):
        if node is not None and any(node.IsA(t) for t in self.nodeTypes):
            self._updateList()

    def _onSceneNodeAboutToBeRemoved(self, _scene, _event, node):
        if node is not None and self._comboBox.findData(node.GetID(), _NODE_ID) >= 0:
            self.nodeAboutToBeRemoved.emit(node)

    def _onSceneChanged(self, _scene, _event, _data):
        self._updateList()

    def _emitCurrentNodeChanged(self, _text=None):
        if self._switchingScene:
            return
        index, node = self._comboBox.currentIndex, self.currentNode()
        if node is None and index != (0 if self.noneEnabled else -1):
            # An action or the separator became current: select the last node instead.
            last = self.nodeFromIndex(self.nodeCount() - 1)
            if last:
                self.setCurrentNode(last)
            return
        self._lastNodeIndex = index
        self.currentNodeChanged.emit(node)
        self._currentNodeValid.emit(node is not None)
        self.currentNodeIDChanged.emit(node.GetID() if node else "")

    def _onActivated(self, index):
        item = self._comboBox.model().item(index)
        action = item.data(_ACTION) if item else None
        if action is None:
            self.nodeActivated.emit(self.currentNode())
            return
        self._comboBox.setCurrentIndex(self._lastNodeIndex)
        if not isinstance(action, str):
            action.trigger()
        elif action.startswith("CREATE"):
            kind, _, node_type = action.partition("/")
            self._createByUser(node_type, ask_name=kind == "CREATE_AS")
        else:
            {"RENAME": self.renameCurrentNode, "EDIT": self.editCurrentNode, "DELETE": self.removeCurrentNode}[action]()

    def _createByUser(self, node_type, ask_name):
        name = ""
        if ask_name:
            name, accepted = QInputDialog.getText(self, f"Create new {self.nodeTypeLabel(node_type)}", "New name:")
            if not (accepted and name):
                return
        node = self.addNode(node_type)
        if name:
            node.SetName(name)
        self.setCurrentNode(node)
        self.nodeAddedByUserAction.emit(node)

    # Slots and invokable methods

    def mrmlScene(self):
        return self._scene

    @Slot(object)
    def setMRMLScene(self, scene):
        if scene is self._scene:
            return
        previous, requested = (self._currentID() if self.nodeCount() else ""), self._requestedID
        self._sceneObservations.clear()
        self._switchingScene = True
        self._scene = scene
        if scene is not None:
            events = slicer.vtkMRMLScene
            self._sceneObservations.add(scene, events.NodeAddedEvent, "_onSceneNodeAdded")
            self._sceneObservations.add(scene, events.NodeAboutToBeRemovedEvent, "_onSceneNodeAboutToBeRemoved")
            for event in (events.NodeRemovedEvent, events.EndImportEvent, events.EndRestoreEvent):
                self._sceneObservations.add(scene, event, "_onSceneChanged")
        self._updateNone()
        self._updateList()
        self._updateActions()
        self._comboBox.setCurrentIndex(-1)
        self._switchingScene = False
        self._setCurrentID(previous or requested)
        self._requestedID = ""
        self._comboBox.defaultText = f"Select a {self.nodeTypeLabel(next(iter(self.nodeTypes), ''))}"
        self.setEnabled(scene is not None)

    def currentNode(self):
        node_id = self._currentID()
        return self._scene.GetNodeByID(node_id) if self._scene and node_id else None

    def _currentID(self):
        return self._comboBox.itemData(self._comboBox.currentIndex, _NODE_ID) or ""

    @Slot(object)
    def setCurrentNode(self, node):
        self.setCurrentNodeID(node if isinstance(node, str) else node.GetID() if node else "")

    @Slot(str)
    def setCurrentNodeID(self, node_id):
        if self._scene is None:
            self._requestedID = node_id or ""
        self._setCurrentID(node_id)

    def _setCurrentID(self, node_id):
        index = self._comboBox.findData(node_id, _NODE_ID) if node_id else -1
        self._comboBox.setCurrentIndex(index if index >= 0 else 0 if self.noneEnabled else -1)

    @Slot(int)
    def setCurrentNodeIndex(self, index):
        index = -1 if index >= self.nodeCount() else index
        self._comboBox.setCurrentIndex(index + int(self.noneEnabled))

    def nodeCount(self):
        return getattr(self, "_count", 0)

    def nodeFromIndex(self, index):
        item = self._comboBox.model().item(index + int(self.noneEnabled)) if index >= 0 else None
        node_id = item.data(_NODE_ID) if item else None
        return self._scene.GetNodeByID(node_id) if node_id else None

    def addNode(self, nodeType=None):
        nodeType = nodeType or next(iter(self.nodeTypes), None)
        if nodeType is None or nodeType not in self.nodeTypes:
            return None
        node = self._scene.CreateNodeByClass(nodeType)
        node.UnRegister(None)
        base = self._baseNames.get(nodeType) or self._scene.GetTagByClassName(nodeType) or nodeType
        node.SetName(self._scene.GenerateUniqueName(base))
        for name, value in self._newAttributes.items():
            node.SetAttribute(name, value)
        node = self._scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    @Slot()
    def removeCurrentNode(self):
        if self.currentNode():
            self._scene.RemoveNode(self.currentNode())

    @Slot()
    def renameCurrentNode(self):
        node = self.currentNode()
        if node is None:
            return
        title = f"Rename {self.nodeTypeLabel(node.GetClassName())}"
        name, accepted = QInputDialog.getText(self, title, "New name:", text=node.GetName())
        if accepted and name:
            node.SetName(name)
            self.currentNodeRenamed.emit(name)

    @Slot()
    def editCurrentNode(self):
        self.nodeAboutToBeEdited.emit(self.currentNode())

    def addAttribute(self, nodeType, attributeName, attributeValue=None):
        self._attributes.append((nodeType, attributeName, attributeValue))
        self._newAttributes[attributeName] = "" if attributeValue is None else str(attributeValue)
        self._refresh()

    def removeAttribute(self, nodeType, attributeName):
        self._attributes = [a for a in self._attributes if a[:2] != (nodeType, attributeName)]
        self._newAttributes.pop(attributeName, None)
        self._refresh()

    def setNodeTypeLabel(self, label, nodeType):
        self._labels[nodeType] = label
        self._updateActions()

    def nodeTypeLabel(self, nodeType):
        if nodeType in self._labels:
            return self._labels[nodeType]
        return (nodeType and self._scene and self._scene.GetTypeDisplayNameByClassName(nodeType)) or "node"

    def addMenuAction(self, action):
        self._menuActions.append(action)
        self._updateActions()


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """Selects several nodes."""

    checkedNodesChanged = Signal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self._states = {}
        self._comboBox.view().pressed.connect(lambda index: self._toggle(index.data(_NODE_ID)))

    def _toggle(self, node_id):
        if node_id:
            node = self._scene.GetNodeByID(node_id)
            self.setCheckState(node, Qt.Unchecked if self.checkState(node) == Qt.Checked else Qt.Checked)

    def _nodeItem(self, node):
        item = super()._nodeItem(node)
        item.setCheckable(True)
        item.setCheckState(Qt.Unchecked)
        return item

    def _item(self, node):
        row = self._comboBox.findData(node.GetID(), _NODE_ID)
        return self._comboBox.model().item(row) if row >= 0 else None

    def checkState(self, node):
        item = self._item(node)
        return item.checkState() if item else Qt.Unchecked

    def setCheckState(self, node, state):
        item = self._item(node)
        if item and item.checkState() != state:
            item.setCheckState(state)
            self.checkedNodesChanged.emit()

    def checkedNodes(self):
        nodes = (self.nodeFromIndex(index) for index in range(self.nodeCount()))
        return [node for node in nodes if self.checkState(node) == Qt.Checked]

    def uncheckedNodes(self):
        nodes = (self.nodeFromIndex(index) for index in range(self.nodeCount()))
        return [node for node in nodes if self.checkState(node) != Qt.Checked]

    def allChecked(self):
        return not self.uncheckedNodes()

    def noneChecked(self):
        return not self.checkedNodes()


class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """Selects a segmentation and one or several of its segments."""

    currentNodeChanged = Signal(object)
    currentSegmentChanged = Signal(str)
    segmentSelectionChanged = Signal("QStringList")
    nodeAboutToBeEdited = Signal(object)
    _currentNodeValid = Signal(bool)
    cppSignals = {
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
    cppSignals = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}
    _scene = None

    def mrmlScene(self):
        return self._scene

    @Slot(object)
    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)
