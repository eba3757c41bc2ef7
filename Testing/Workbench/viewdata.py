"""Table and plot views: the text of a table node, and the series of a chart node."""

import slicer
import vtk
from PySide6.QtCore import QPointF, QRectF, Qt
from PySide6.QtGui import QColor, QPainter, QPen, QPolygonF
from PySide6.QtWidgets import QTableWidget, QTableWidgetItem, QVBoxLayout, QWidget

from .mrmlwidgets import Observations, qMRMLWidget


def _view_node(scene, class_name: str, tag: str):
    node = scene.GetSingletonNode(tag, class_name)
    if node is None:
        node = scene.CreateNodeByClass(class_name)
        node.UnRegister(None)
        node.SetSingletonTag(tag)
        node.SetLayoutName(tag)
        node = scene.AddNode(node)
    return node


class qMRMLTableView(QTableWidget):
    """Shows a vtkMRMLTableNode, read only (Libs/MRML/Widgets/qMRMLTableView.h)."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node, self._scene = None, None
        self._observations = Observations(self)
        self.setEditTriggers(QTableWidget.NoEditTriggers)

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._scene = scene

    def mrmlTableNode(self):
        return self._node

    def setMRMLTableNode(self, node):
        self._observations.clear()
        self._node = node
        if node is not None:
            self._observations.add(node, vtk.vtkCommand.ModifiedEvent, "_update")
        self._update()

    def _update(self, *_):
        table = self._node.GetTable() if self._node else None
        self.clear()
        self.setRowCount(table.GetNumberOfRows() if table else 0)
        self.setColumnCount(table.GetNumberOfColumns() if table else 0)
        if table is None:
            return
        self.setHorizontalHeaderLabels([table.GetColumnName(c) or "" for c in range(table.GetNumberOfColumns())])
        for column in range(table.GetNumberOfColumns()):
            for row in range(table.GetNumberOfRows()):
                self.setItem(row, column, QTableWidgetItem(table.GetValue(row, column).ToString()))
        self.resizeColumnsToContents()


class qMRMLPlotView(QWidget):
    """Draws the series of a vtkMRMLPlotChartNode as lines (Libs/MRML/Widgets/qMRMLPlotView.h)."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._viewNode, self._node = None, None
        self._viewObservations, self._observations = Observations(self), Observations(self)
        self.setMinimumSize(120, 80)

    def setMRMLPlotViewNode(self, node):
        self._viewObservations.clear()
        self._viewNode = node
        if node is not None:
            self._viewObservations.add(node, vtk.vtkCommand.ModifiedEvent, "_update_chart")
        self._update_chart()

    def _update_chart(self, *_):
        self._observations.clear()
        self._node = self._viewNode.GetPlotChartNode() if self._viewNode else None
        if self._node is not None:
            for event in (vtk.vtkCommand.ModifiedEvent, slicer.vtkMRMLPlotChartNode.PlotModifiedEvent):
                self._observations.add(self._node, event, "_repaint")
        self.update()

    def _repaint(self, *_):
        self.update()

    def _series(self):
        """(name, colour, xs, ys) of each series that has data."""
        found = []
        for index in range(self._node.GetNumberOfPlotSeriesNodes() if self._node else 0):
            series = self._node.GetNthPlotSeriesNode(index)
            table = series.GetTableNode().GetTable() if series and series.GetTableNode() else None
            y_column = table.GetColumnByName(series.GetYColumnName() or "") if table else None
            if y_column is None:
                continue
            x_column = table.GetColumnByName(series.GetXColumnName() or "")
            rows = range(table.GetNumberOfRows())
            xs = [x_column.GetVariantValue(i).ToDouble() if x_column else float(i) for i in rows]
            ys = [y_column.GetVariantValue(i).ToDouble() for i in rows]
            if xs:
                found.append((series.GetName(), QColor.fromRgbF(*series.GetColor()), xs, ys))
        return found

    def paintEvent(self, _event):
        painter = QPainter(self)
        painter.setRenderHint(QPainter.Antialiasing)
        painter.fillRect(self.rect, Qt.white)
        series = self._series()
        if not series:
            return
        frame = QRectF(self.rect).adjusted(60, 28, -16, -36)
        x_low, x_high = min(min(s[2]) for s in series), max(max(s[2]) for s in series)
        y_low, y_high = min(min(s[3]) for s in series), max(max(s[3]) for s in series)
        x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0
        painter.setPen(QPen(QColor("#404040")))
        painter.drawRect(frame)
        painter.drawText(QRectF(self.rect).adjusted(0, 4, 0, 0), int(Qt.AlignHCenter | Qt.AlignTop), self._title())
        for step in range(5):
            part = step / 4
            y = frame.bottom() - part * frame.height()
            x = frame.left() + part * frame.width()
            label = QRectF(0, y - 9, frame.left() - 6, 18)
            painter.drawText(label, int(Qt.AlignRight | Qt.AlignVCenter), f"{y_low + part * y_span:.3g}")
            painter.drawText(
                QRectF(x - 30, frame.bottom() + 2, 60, 16), int(Qt.AlignHCenter), f"{x_low + part * x_span:.3g}"
            )
        names = (self._node.GetXAxisTitle() or "", self._node.GetYAxisTitle() or "")
        painter.drawText(QRectF(frame.left(), frame.bottom() + 16, frame.width(), 18), int(Qt.AlignHCenter), names[0])
        painter.drawText(QRectF(4, 4, frame.left() + 60, 18), int(Qt.AlignLeft), names[1])
        for number, (name, color, xs, ys) in enumerate(series):
            painter.setPen(QPen(color, 2))
            legend = QRectF(frame.left(), frame.top() + 6 + 16 * number, frame.width() - 8, 16)
            painter.drawText(legend, int(Qt.AlignRight), name)
            points = [
                QPointF(
                    frame.left() + (x - x_low) / x_span * frame.width(),
                    frame.bottom() - (y - y_low) / y_span * frame.height(),
                )
                for x, y in zip(xs, ys, strict=True)
            ]
            painter.drawPolyline(QPolygonF(points))

    def _title(self):
        return self._node.GetTitle() or self._node.GetName()


class _DataWidget(qMRMLWidget):
    view_class: type
    node_class = ""

    def __init__(self, scene, app_logic, tag):
        super().__init__()
        self._viewNode = _view_node(scene, self.node_class, tag)
        self._view = self.view_class(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._view)
        self.setMRMLScene(scene)
        self._observations = Observations(self)
        self._observations.add(self._viewNode, vtk.vtkCommand.ModifiedEvent, "_update")
        self._update()

    def mrmlAbstractViewNode(self):
        return self._viewNode

    def show_view_node(self) -> None:
        """Nothing but the content of the view node is shown."""

    def viewWidget(self):
        return self._view


class qMRMLTableWidget(_DataWidget):
    """A table view (Libs/MRML/Widgets/qMRMLTableWidget.h)."""

    view_class, node_class = qMRMLTableView, "vtkMRMLTableViewNode"

    def _update(self, *_):
        self._view.setMRMLTableNode(self._viewNode.GetTableNode())

    def tableView(self):
        return self._view


class qMRMLPlotWidget(_DataWidget):
    """A plot view (Libs/MRML/Widgets/qMRMLPlotWidget.h)."""

    view_class, node_class = qMRMLPlotView, "vtkMRMLPlotViewNode"

    def _update(self, *_):
        self._view.setMRMLPlotViewNode(self._viewNode)

    def plotView(self):
        return self._view
