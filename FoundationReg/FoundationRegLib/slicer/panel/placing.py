"""Clicks and the moving crosshair in the slice views, without anything being placed."""

from __future__ import annotations

from collections.abc import Callable

import slicer
import vtk

CLICK_PIXELS = 3


class PointPlacer:
    """Tells where the user clicks in a slice view, or moves the crosshair to with Shift.

    A click is a left button that goes down and up at one place, so that dragging keeps its meaning (window and level,
    moving a control point). Handlers get RAS in the scene and the name of the view.
    """

    def __init__(self):
        self._observed: list[tuple] = []
        self._pressed = None

    def watch(self, handler: Callable[[tuple[float, float, float], str], None], clicks_only: bool = False) -> None:
        """Call ``handler`` from now on."""
        self.stop()
        layout = slicer.app.layoutManager()
        for name in layout.sliceViewNames():
            widget = layout.sliceWidget(name)
            interactor = widget.sliceView().interactor()

            def press(caller, _event):
                self._pressed = caller.GetEventPosition()

            def release(caller, _event, widget=widget, name=name):
                where, before = caller.GetEventPosition(), self._pressed
                self._pressed = None
                if before is None or max(abs(a - b) for a, b in zip(where, before, strict=True)) > CLICK_PIXELS:
                    return
                handler(self._ras(widget, where), name)

            for event, call in (("LeftButtonPressEvent", press), ("LeftButtonReleaseEvent", release)):
                # Before the view's own interaction, which may take the event for itself.
                self._observed.append((interactor, interactor.AddObserver(event, call, 10.0)))
        if not clicks_only:
            self._watch_crosshair(handler)

    def _watch_crosshair(self, handler) -> None:
        node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if node is None:
            return
        last: list[tuple | None] = [tuple(node.GetCrosshairRAS())]

        def moved(caller, _event):
            ras = tuple(caller.GetCrosshairRAS())
            if ras != last[0]:
                last[0] = ras
                handler(ras, self._view_under_mouse(caller))

        self._observed.append((node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, moved)))

    @staticmethod
    def _view_under_mouse(crosshair) -> str:
        position = [0.0, 0.0, 0.0]
        node = crosshair.GetCursorPositionXYZ(position) if hasattr(crosshair, "GetCursorPositionXYZ") else None
        return node.GetLayoutName() if node is not None else "Red"

    @staticmethod
    def _ras(widget, position) -> tuple[float, float, float]:
        matrix = widget.mrmlSliceNode().GetXYToRAS()
        return tuple(matrix.MultiplyPoint((float(position[0]), float(position[1]), 0.0, 1.0))[:3])

    def stop(self) -> None:
        """Listen no more."""
        for target, tag in self._observed:
            target.RemoveObserver(tag)
        self._observed, self._pressed = [], None
