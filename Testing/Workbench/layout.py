"""View widgets with their controls, and the layout manager that arranges them as the scene's layout node says."""

import xml.etree.ElementTree as ElementTree
from typing import ClassVar

import slicer
import vtk
from PySide6.QtCore import Property, QObject, Qt, Signal
from PySide6.QtGui import QColor
from PySide6.QtWidgets import (
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from .mrmlwidgets import Observations, qMRMLSliderWidget, qMRMLWidget
from .renderview import make_slice_view, make_threed_view, qMRMLSliceView, qMRMLThreeDView
from .viewdata import qMRMLPlotWidget, qMRMLTableWidget


def _apply_properties(node, properties: dict[str, str]) -> None:
    """The <property> elements of a view in a layout description (vtkMRMLLayoutLogic::ApplyProperty)."""
    if "orientation" in properties:
        node.SetOrientation(properties["orientation"])
    if "viewlabel" in properties:
        node.SetLayoutLabel(properties["viewlabel"])
    if "viewgroup" in properties:
        node.SetViewGroup(int(properties["viewgroup"]))
    if "viewcolor" in properties:
        node.SetLayoutColor(*QColor(properties["viewcolor"]).getRgbF()[:3])


def _bar(*widgets) -> QWidget:
    """The strip above a view: its coloured label, then its controls."""
    bar = QWidget()
    layout = QHBoxLayout(bar)
    layout.setContentsMargins(0, 0, 0, 0)
    label = QLabel()
    label.setObjectName("ViewLabel")
    layout.addWidget(label)
    for widget in widgets:
        layout.addWidget(widget, 1)
    return bar


def _show_label(bar: QWidget, node) -> None:
    label = bar.findChild(QLabel, "ViewLabel")
    label.text = node.GetLayoutLabel() or node.GetLayoutName()
    color = QColor.fromRgbF(*node.GetLayoutColor()).name()
    label.styleSheet = f"background: {color}; color: black; font-weight: bold; padding: 2px 5px;"


class qMRMLSliceControllerWidget(qMRMLWidget):
    """The offset slider of a slice view."""

    def __init__(self, slice_widget):
        super().__init__(slice_widget)
        self._sliceWidget = slice_widget
        self._updating = False
        self._slider = qMRMLSliderWidget()
        self._slider.setObjectName("SliceOffsetSlider")
        self._slider.suffix = " mm"
        self._slider.toolTip = "Position of the slice"
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(_bar(self._slider))
        self._slider.valueChanged.connect(self._on_slider)
        self._observations = Observations(self)
        for subject in (slice_widget.mrmlSliceNode(), slice_widget.sliceLogic()):
            self._observations.add(subject, vtk.vtkCommand.ModifiedEvent, "_update")
        self._update()

    def sliceOffsetSlider(self):
        return self._slider

    def _on_slider(self, value):
        if self._updating:
            return
        logic = self._sliceWidget.sliceLogic()
        logic.StartSliceOffsetInteraction()
        logic.SetSliceOffset(value)
        logic.EndSliceOffsetInteraction()

    def _update(self, *_):
        logic, limits, resolution = self._sliceWidget.sliceLogic(), [-1.0, -1.0], vtk.reference(1.0)
        if not logic.GetSliceOffsetRangeResolution(limits, resolution):
            return
        offset, step = logic.GetSliceOffset(), resolution.get()
        self._updating = True
        try:
            self._slider.decimals = 2
            self._slider.singleStep = step if step > 0 else 1.0
            self._slider.minimum = min(limits[0], offset)
            self._slider.maximum = max(limits[1], offset)
            self._slider.value = offset
        finally:
            self._updating = False


class qMRMLSliceWidget(qMRMLWidget):
    """A slice view with its controls (Libs/MRML/Widgets/qMRMLSliceWidget.h)."""

    def __init__(self, scene, app_logic, name):
        super().__init__()
        self._view = make_slice_view(scene, app_logic, name)
        self._canvas = qMRMLSliceView(self._view, self)
        self._controller = qMRMLSliceControllerWidget(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self._controller)
        layout.addWidget(self._canvas, 1)
        self.setMRMLScene(scene)
        self.show_view_node()

    def show_view_node(self) -> None:
        """Show the label and colour of the view node."""
        _show_label(self._controller, self.mrmlSliceNode())

    sliceViewName = Property(str, lambda self: self.mrmlSliceNode().GetLayoutName())

    def sliceView(self):
        return self._canvas

    viewWidget = sliceView

    def sliceLogic(self):
        return self._view._logic

    def sliceController(self):
        return self._controller

    def mrmlSliceNode(self):
        return self._view.get_view_node()

    mrmlAbstractViewNode = mrmlSliceNode

    def mrmlSliceCompositeNode(self):
        return self.sliceLogic().GetSliceCompositeNode()

    def fitSliceToBackground(self):
        logic = self.sliceLogic()
        logic.StartSliceNodeInteraction(slicer.vtkMRMLSliceNode.ResetFieldOfViewFlag)
        logic.FitSliceToBackground()
        logic.EndSliceNodeInteraction()


class qMRMLThreeDWidget(qMRMLWidget):
    """A 3-D view with its controls (Libs/MRML/Widgets/qMRMLThreeDWidget.h)."""

    def __init__(self, scene, app_logic, name):
        super().__init__()
        self._view = make_threed_view(scene, app_logic, name)
        self._canvas = qMRMLThreeDView(self._view, self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(_bar())
        layout.addWidget(self._canvas, 1)
        self.setMRMLScene(scene)
        self.show_view_node()

    def show_view_node(self) -> None:
        """Show the label and colour of the view node."""
        _show_label(self, self.mrmlViewNode())

    def _center(self):
        self._canvas.resetFocalPoint()
        self._view.reset_camera()
        self._canvas.scheduleRender()

    def threeDView(self):
        return self._canvas

    viewWidget = threeDView

    def mrmlViewNode(self):
        return self._view.get_view_node()

    mrmlAbstractViewNode = mrmlViewNode


class qMRMLLayoutManager(QObject):
    """Arranges the views by the layout description of the scene's layout node (qMRMLLayoutManager.h)."""

    layoutChanged = Signal(int)
    cppSignals: ClassVar[dict] = {"layoutChanged(int)": "layoutChanged"}
    _classes: ClassVar[dict] = {
        "vtkMRMLSliceNode": qMRMLSliceWidget,
        "vtkMRMLViewNode": qMRMLThreeDWidget,
        "vtkMRMLTableViewNode": qMRMLTableWidget,
        "vtkMRMLPlotViewNode": qMRMLPlotWidget,
    }

    def __init__(self, scene, app_logic, viewport: QWidget):
        super().__init__(viewport)
        self._scene, self._appLogic, self._viewport = scene, app_logic, viewport
        self._widgets, self._shown, self._arranged = {}, [], None
        self._grid = QGridLayout(viewport)
        self._grid.setContentsMargins(0, 0, 0, 0)
        # A view logic cannot be given another node later: make the 3-D view before the layout makes its node.
        self._widgets["vtkMRMLViewNode", "1"] = qMRMLThreeDWidget(scene, app_logic, "1")
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLApplicationLogic(app_logic)
        self._logic.SetMRMLScene(scene)
        self._observations = Observations(self)
        self._observations.add(self._logic.GetLayoutNode(), vtk.vtkCommand.ModifiedEvent, "_arrange")

    layout = Property(int, lambda self: self._logic.GetLayoutNode().GetViewArrangement(), lambda s, v: s.setLayout(v))
    threeDViewCount = Property(int, lambda self: len(self._of_class(qMRMLThreeDWidget)))
    tableViewCount = Property(int, lambda self: len(self._of_class(qMRMLTableWidget)))
    plotViewCount = Property(int, lambda self: len(self._of_class(qMRMLPlotWidget)))

    def _arrange(self, *_):
        """Rebuild the arrangement, keeping the view widgets that exist."""
        description = self._logic.GetLayoutNode().GetCurrentLayoutDescription()
        if not description or (self.layout, description) == self._arranged:
            return
        self._arranged = (self.layout, description)
        root = ElementTree.fromstring(description)
        layout = root.find("layout") if root.tag == "viewports" else root
        self._shown = []
        before = self._grid.itemAt(0).widget() if self._grid.count() else None
        content = self._build(layout)
        for widget in self._widgets.values():
            shown = widget in self._shown
            if not shown:
                widget.setParent(self._viewport)
            widget.setVisible(shown)
            widget.mrmlAbstractViewNode().SetMappedInLayout(shown)
        if before is not None:
            self._grid.removeWidget(before)
            if before not in self._widgets.values():
                before.deleteLater()
        self._grid.addWidget(content, 0, 0)
        self.layoutChanged.emit(self.layout)

    def _build(self, element) -> QWidget:
        if element.tag == "view":
            return self._view_widget(element)
        box = QSplitter(Qt.Vertical if element.get("type") == "vertical" else Qt.Horizontal)
        box.setChildrenCollapsible(False)
        box.setHandleWidth(3)
        for item in element.findall("item"):
            box.addWidget(self._build(next(iter(item))))
            box.setStretchFactor(box.count() - 1, 1)
        box.setSizes([1000] * box.count())
        return box

    def _view_widget(self, element) -> QWidget:
        class_name, tag = element.get("class"), element.get("singletontag", "1")
        widget = self._widgets.get((class_name, tag))
        if widget is None:
            properties = {item.get("name"): (item.text or "").strip() for item in element.findall("property")}
            widget = self._classes[class_name](self._scene, self._appLogic, tag)
            _apply_properties(widget.mrmlAbstractViewNode(), properties)
            widget.show_view_node()
            self._widgets[class_name, tag] = widget
        self._shown.append(widget)
        return widget

    def _of_class(self, cls):
        return [widget for widget in self._shown if type(widget) is cls]

    def release_views(self) -> None:
        """Let go of the views and of the scene, before the widgets are deleted."""
        self._observations.clear()
        for widget in self._widgets.values():
            if isinstance(widget, (qMRMLSliceWidget, qMRMLThreeDWidget)):
                widget.viewWidget().release_view()
        self._widgets, self._shown = {}, []
        self._logic.SetMRMLScene(None)
        self._logic.SetMRMLApplicationLogic(None)

    # Invokable methods

    def mrmlScene(self):
        return self._scene

    def viewport(self):
        return self._viewport

    def layoutLogic(self):
        return self._logic

    def setLayout(self, layout):
        self._logic.GetLayoutNode().SetViewArrangement(layout)
        self._arrange()

    def sliceViewNames(self):
        return [widget.sliceViewName for widget in self._of_class(qMRMLSliceWidget)]

    def sliceWidget(self, name):
        return self._widgets.get(("vtkMRMLSliceNode", name))

    def threeDWidget(self, which):
        if isinstance(which, str):
            return self._widgets.get(("vtkMRMLViewNode", which))
        shown = self._of_class(qMRMLThreeDWidget)
        return shown[which] if which < len(shown) else None

    def tableWidget(self, index):
        return self._of_class(qMRMLTableWidget)[index]

    def plotWidget(self, index):
        return self._of_class(qMRMLPlotWidget)[index]

    def viewWidget(self, node):
        return next((w for w in self._widgets.values() if w.mrmlAbstractViewNode() is node), None)

    def mrmlSliceLogics(self):
        return self._appLogic.GetSliceLogics()

    def resetSliceViews(self):
        for widget in self._of_class(qMRMLSliceWidget):
            widget.sliceLogic().FitSliceToBackground()

    def resetThreeDViews(self):
        for widget in self._of_class(qMRMLThreeDWidget):
            widget._center()

    def setRenderPaused(self, paused):
        for widget in self._widgets.values():
            if isinstance(widget, (qMRMLSliceWidget, qMRMLThreeDWidget)):
                widget.viewWidget().set_paused(paused)


class qSlicerLayoutManager(qMRMLLayoutManager):
    """The application's layout manager (Base/QTGUI/qSlicerLayoutManager.h)."""
