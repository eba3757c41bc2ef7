"""Table and plot views: only the name of what Slicer would show in them."""

import vtk
from PySide6.QtWidgets import QLabel, QVBoxLayout

from .mrmlwidgets import Observations, qMRMLWidget


class _DataWidget(qMRMLWidget):
    def __init__(self, scene, app_logic, tag):
        super().__init__()
        self._viewNode = scene.GetSingletonNode(tag, self._node_class)
        if self._viewNode is None:
            node = scene.CreateNodeByClass(self._node_class)
            node.UnRegister(None)
            node.SetSingletonTag(tag)
            node.SetLayoutName(tag)
            self._viewNode = scene.AddNode(node)
        self._label = QLabel(self)
        QVBoxLayout(self).addWidget(self._label)
        self.setMRMLScene(scene)
        self._observations = Observations(self)
        self._observations.add(self._viewNode, vtk.vtkCommand.ModifiedEvent, "_update")
        self._update()

    def _update(self, *_):
        node = getattr(self._viewNode, self._getter)()
        self._label.text = node.GetName() if node else ""

    def mrmlAbstractViewNode(self):
        return self._viewNode

    def viewWidget(self):
        return self._label

    def show_view_node(self) -> None:
        """Nothing but the content of the view node is shown."""


class qMRMLTableWidget(_DataWidget):
    """A table view (Libs/MRML/Widgets/qMRMLTableWidget.h)."""

    _node_class, _getter = "vtkMRMLTableViewNode", "GetTableNode"
    tableView = _DataWidget.viewWidget


class qMRMLPlotWidget(_DataWidget):
    """A plot view (Libs/MRML/Widgets/qMRMLPlotWidget.h)."""

    _node_class, _getter = "vtkMRMLPlotViewNode", "GetPlotChartNode"
    plotView = _DataWidget.viewWidget
