"""Qt widgets that show Slicer's real slice and 3-D views.

The wheels' own render windows cannot live inside a Qt window. Each view therefore renders offscreen, its frame is
painted in a widget, and the widget passes mouse and wheel events to the view's VTK interactor, so that Slicer's
own interaction (scroll, window and level, pan, zoom, crosshair, rotate) works.
"""

import contextlib
from typing import ClassVar

import numpy as np
import slicer
import trame_slicer.views.abstract_view as abstract_view
import vtk
from PySide6.QtCore import QSize, Qt, QTimer, Signal
from PySide6.QtGui import QImage, QPainter
from PySide6.QtWidgets import QApplication, QSizePolicy, QWidget
from trame_slicer.views import AbstractView, SliceView, ThreeDView
from trame_slicer.views.render_scheduler import ScheduledRenderStrategy
from vtk.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkRenderingUI import vtkGenericRenderWindowInteractor


class _RenderLater(ScheduledRenderStrategy):
    """Marks the widget as outdated; it renders when Qt paints it."""

    def __init__(self, widget):
        super().__init__()
        self._widget = widget

    def schedule_render(self):
        self._widget.scheduleRender()


@contextlib.contextmanager
def _embedded_interactor():
    """Views made here get an interactor that is driven by Qt, and keep silent about VTK 9.6's renamed event."""
    original, abstract_view.vtkRenderWindowInteractor = (
        abstract_view.vtkRenderWindowInteractor,
        vtkGenericRenderWindowInteractor,
    )
    warnings = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        abstract_view.vtkRenderWindowInteractor = original
        vtk.vtkObject.SetGlobalWarningDisplay(warnings)


class _SliceView(SliceView):
    """A slice view that takes the slice node which the layout has made, and makes one only if there is none."""

    def set_scene(self, scene):
        AbstractView.set_scene(self, scene)
        self._logic.SetMRMLScene(scene)
        node = scene.GetSingletonNode(self.name, "vtkMRMLSliceNode")
        if node:
            self._logic.SetSliceNode(node)
        # Some displayable managers look at their slice node only once: it must be the right one from the start.
        self.set_view_node(node or self._logic.AddSliceNode(self.name))


class _ThreeDView(ThreeDView):
    """The same for a 3-D view, whose logic however knows only a node that it made itself."""

    def set_scene(self, scene):
        AbstractView.set_scene(self, scene)
        self._logic.SetMRMLScene(scene)
        self.set_view_node(scene.GetSingletonNode(self.name, "vtkMRMLViewNode") or self._logic.AddViewNode(self.name))


def make_slice_view(scene, app_logic, name: str) -> SliceView:
    with _embedded_interactor():
        return _SliceView(scene, app_logic, name)


def make_threed_view(scene, app_logic, name: str) -> ThreeDView:
    with _embedded_interactor():
        return _ThreeDView(scene, app_logic, name)


def _take_apart(view: AbstractView) -> None:
    """Take a view apart while its scene, its OpenGL context and Python are all there."""
    view.set_render_blocked(True)
    view.set_scheduled_render(None)
    view._interactor_observer.SetInteractor(None)
    view._displayable_manager_group.SetMRMLDisplayableNode(None)
    del view._displayable_manager_group, view._interactor_observer
    view.finalize()


class RenderWidget(QWidget):
    """Paints a trame-slicer view and feeds its interactor."""

    resized = Signal()
    _buttons: ClassVar[dict] = {
        Qt.LeftButton: "LeftButton",
        Qt.RightButton: "RightButton",
        Qt.MiddleButton: "MiddleButton",
    }

    def __init__(self, view, parent=None):
        super().__init__(parent)
        self.view = view
        self._outdated, self._frame, self._timers = True, QImage(), {}
        self._paused = 0
        view.set_scheduled_render(_RenderLater(self))
        self.setMouseTracking(True)
        self.setFocusPolicy(Qt.WheelFocus)
        self.setAttribute(Qt.WA_OpaquePaintEvent)
        self.setMinimumSize(40, 40)
        self.setSizePolicy(QSizePolicy.Expanding, QSizePolicy.Expanding)
        interactor = view.interactor()
        self._observers = [
            interactor.AddObserver(vtk.vtkCommand.CreateTimerEvent, self._create_timer),
            interactor.AddObserver(vtk.vtkCommand.DestroyTimerEvent, self._destroy_timer),
        ]

    def renderWindow(self):
        return self.view.render_window()

    def interactor(self):
        return self.view.interactor()

    def release_view(self) -> None:
        """Let go of the view: first its displayable managers, then its OpenGL context. Nothing is painted then."""
        for timer in self._timers.values():
            timer.stop()
        for tag in self._observers:
            self.view.interactor().RemoveObserver(tag)
        _take_apart(self.view)
        self.view = None

    # Rendering

    def scheduleRender(self) -> None:
        self._outdated = True
        if not self._paused:
            self.update()

    def forceRender(self) -> None:
        """Render now and paint now."""
        self._render()
        self.repaint()

    def set_paused(self, paused: bool) -> None:
        self._paused = max(0, self._paused + (1 if paused else -1))
        if not self._paused and self._outdated:
            self.update()

    def read_image(self) -> np.ndarray:
        """The current frame as (rows, columns, RGB) bytes, first row at the top."""
        self._render()
        width, height = self.view.render_window().GetSize()
        pixels = vtk.vtkUnsignedCharArray()
        self.view.render_window().GetPixelData(0, 0, width - 1, height - 1, 1, pixels, 0)
        return np.ascontiguousarray(vtk_to_numpy(pixels).reshape(height, width, 3)[::-1])

    def _render(self) -> None:
        self._outdated = False
        self.view.render()

    def paintEvent(self, _event):
        if self._frame.isNull() or (self._outdated and not self._paused):
            frame = self.read_image()
            height, width, _ = frame.shape
            self._frame = QImage(frame.data, width, height, 3 * width, QImage.Format_RGB888).copy()
        QPainter(self).drawImage(self.rect, self._frame)

    def resizeEvent(self, event):
        ratio = self.devicePixelRatioF()
        size = QSize(round(self.width * ratio), round(self.height * ratio))
        self.view.update_size(size.width(), size.height())
        self.resized.emit()
        self.scheduleRender()
        super().resizeEvent(event)

    # Events

    def mousePressEvent(self, event):
        self._button(event, "PressEvent")

    def mouseReleaseEvent(self, event):
        self._button(event, "ReleaseEvent")

    def mouseDoubleClickEvent(self, event):
        self._button(event, "DoubleClickEvent", repeat=1)

    def mouseMoveEvent(self, event):
        self._set_position(event)
        self._invoke("MouseMoveEvent")

    def wheelEvent(self, event):
        self._set_position(event)
        self._invoke("MouseWheelForwardEvent" if event.angleDelta().y() > 0 else "MouseWheelBackwardEvent")

    def enterEvent(self, event):
        self._set_position(event)
        self._invoke("EnterEvent")

    def leaveEvent(self, _event):
        self._invoke("LeaveEvent")

    def _button(self, event, action, repeat=0):
        name = self._buttons.get(event.button())
        if name:
            self._set_position(event, repeat)
            self._invoke(name + action)

    def _set_position(self, event, repeat=0):
        ratio = self.devicePixelRatioF()
        position = event.position()
        x, y = round(position.x() * ratio), round(position.y() * ratio)
        modifiers = event.modifiers() if hasattr(event, "modifiers") else QApplication.keyboardModifiers()
        control, shift = bool(modifiers & Qt.ControlModifier), bool(modifiers & Qt.ShiftModifier)
        interactor = self.view.interactor()
        interactor.SetEventInformationFlipY(x, y, int(control), int(shift), "\0", repeat, None)
        interactor.SetAltKey(int(bool(modifiers & Qt.AltModifier)))

    def _invoke(self, name):
        self.view.interactor().InvokeEvent(name)

    # VTK asks the interactor for timers, Qt runs them.

    @vtk.calldata_type(vtk.VTK_INT)
    def _create_timer(self, interactor, _event, timer_id):
        timer = QTimer(self)
        timer.setSingleShot(interactor.IsOneShotTimer(timer_id))
        timer.timeout.connect(lambda: interactor.InvokeEvent("TimerEvent"))
        timer.start(int(interactor.GetTimerDuration(timer_id)))
        self._timers[timer_id] = timer

    @vtk.calldata_type(vtk.VTK_INT)
    def _destroy_timer(self, _interactor, _event, timer_id):
        timer = self._timers.pop(timer_id, None)
        if timer:
            timer.stop()


class qMRMLSliceView(RenderWidget):
    """A slice view's canvas (Libs/MRML/Widgets/qMRMLSliceView.h, ctkVTKAbstractView.h)."""

    def __init__(self, view: SliceView, parent=None):
        super().__init__(view, parent)
        self.resized.connect(self._resize_slice)

    def _resize_slice(self):
        width, height = self.view.render_window().GetSize()
        self.view._logic.ResizeSliceNode(width, height)

    def mrmlSliceNode(self):
        return self.view.get_view_node()

    def convertRASToXYZ(self, ras):
        to_xyz = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.mrmlSliceNode().GetXYToRAS(), to_xyz)
        return list(to_xyz.MultiplyPoint((*ras, 1.0)))[:3]

    def convertXYZToRAS(self, xyz):
        return list(self.mrmlSliceNode().GetXYToRAS().MultiplyPoint((*xyz, 1.0)))[:3]


class qMRMLThreeDView(RenderWidget):
    """A 3-D view's canvas (Libs/MRML/Widgets/qMRMLThreeDView.h)."""

    def mrmlViewNode(self):
        return self.view.get_view_node()

    def cameraNode(self):
        return self.view.get_camera_node()

    def resetFocalPoint(self):
        self.view.reset_focal_point()
        self.scheduleRender()

    def rotateToViewAxis(self, axis):
        camera = self.cameraNode()
        if camera:  # axes are -X, +X, -Y, +Y, -Z, +Z
            kind = slicer.vtkMRMLCameraNode
            camera.RotateTo((kind.Left, kind.Right, kind.Posterior, kind.Anterior, kind.Inferior, kind.Superior)[axis])
