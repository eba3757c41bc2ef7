"""Node selectors; their list behaves as qMRMLSceneModel with qMRMLSortFilterProxyModel in a QComboBox does."""

from typing import ClassVar

import slicer
import vtk
from PySide6.QtCore import Property, Qt, Signal, Slot
from PySide6.QtGui import QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QInputDialog, QSizePolicy, QWidget

from ..ctkwidgets.inputs import ctkComboBox, paint_combo_box, ticked_text
from ..qtproperty import stored
from .base import Observations

_NODE_ID = Qt.UserRole
_ACTION = Qt.UserRole + 1


class qMRMLNodeComboBox(QWidget):
    """Selects a node of given classes, and creates, renames and deletes nodes."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAddedByUser = Signal(object)
    _currentNodeValid = Signal(bool)
    cppSignals: ClassVar[dict] = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "_currentNodeValid",
        "currentNodeIDChanged(QString)": "currentNodeIDChanged",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
    }
    _comboBoxClass = ctkComboBox

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._requestedID, self._switchingScene = None, "", False
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
        "QStringList",
        lambda self: tuple(getattr(self, "_nodeTypes", ())),
        lambda self, types: self._setNodeTypes(types),
    )
    showHidden = stored(bool, "_showHidden", False, _refresh)
    showChildNodeTypes = stored(bool, "_showChildNodeTypes", True, _refresh)
    noneEnabled = stored(bool, "_noneEnabled", False, lambda self: self._updateNone())
    noneDisplay = stored(str, "_noneDisplay", "None", lambda self: self._updateNone())
    addEnabled = stored(bool, "_addEnabled", True, lambda self: self._updateActions())
    removeEnabled = stored(bool, "_removeEnabled", True, lambda self: self._updateActions())
    renameEnabled = stored(bool, "_renameEnabled", False, lambda self: self._updateActions())
    selectNodeUponCreation = stored(bool, "_selectNodeUponCreation", True)
    baseName = stored(str, "_baseName", "")
    currentNodeID = Property(str, lambda self: self._currentID(), lambda self, node_id: self.setCurrentNodeID(node_id))

    def _setNodeTypes(self, types):
        self._nodeTypes = [t for t in types if t]
        self._comboBox.defaultText = f"Select a {self.nodeTypeLabel(next(iter(self._nodeTypes), ''))}"
        self._refresh()

    # The list: [none] nodes... [separator, actions...]

    def _accepts(self, node) -> bool:
        if node is None or (node.GetHideFromEditors() and not self.showHidden):
            return False
        if self.showChildNodeTypes:
            return any(node.IsA(node_type) for node_type in self.nodeTypes)
        return node.GetClassName() in self.nodeTypes

    def _nodesOfScene(self):
        if self._scene is None:
            return []
        nodes = (self._scene.GetNthNode(number) for number in range(self._scene.GetNumberOfNodes()))
        return [node for node in nodes if any(node.IsA(node_type) for node_type in self.nodeTypes)]

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
        if self.addEnabled:
            for node_type in self.nodeTypes:
                actions.append((f"Create new {self.nodeTypeLabel(node_type)}", f"CREATE/{node_type}"))
                if self.renameEnabled:
                    actions.append((f"Create new {self.nodeTypeLabel(node_type)} as...", f"CREATE_AS/{node_type}"))
        if self.removeEnabled:
            actions.append((f"Delete current {label}", "DELETE"))
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
        if action.startswith("CREATE"):
            kind, _, node_type = action.partition("/")
            self._createByUser(node_type, ask_name=kind == "CREATE_AS")
        else:
            {"RENAME": self.renameCurrentNode, "DELETE": self.removeCurrentNode}[action]()

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
        base = self.baseName or self._scene.GetTagByClassName(nodeType) or nodeType
        node.SetName(self._scene.GenerateUniqueName(base))
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

    def nodeTypeLabel(self, nodeType):
        return (nodeType and self._scene and self._scene.GetTypeDisplayNameByClassName(nodeType)) or "node"


class _TickedComboBox(ctkComboBox):
    def paintEvent(self, _event):
        paint_combo_box(self, ticked_text(self))


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """Selects several nodes."""

    _comboBoxClass = _TickedComboBox
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
