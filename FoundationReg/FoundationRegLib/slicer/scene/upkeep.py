"""Keeps the scene in order, whether or not the panel is open."""

from __future__ import annotations

import slicer
import vtk
from slicer.util import VTKObservationMixin

from . import extras, results, views


class Upkeep(VTKObservationMixin):
    """Puts views of loaded scenes right, and removes what belongs to a result together with it."""

    def __init__(self, scene: slicer.vtkMRMLScene):
        VTKObservationMixin.__init__(self)
        self._orphans = extras.Orphans()
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)
        slicer.app.connect("aboutToQuit()", self.removeObservers)

    def onSceneEndImport(self, caller, event) -> None:
        """Views of a loaded scene may show what was not saved, and fields are read as other ones than were written."""
        views.repair()
        for node in slicer.util.getNodesByClass("vtkMRMLTransformNode"):
            if node.GetAttribute(extras.RESULT) is not None:
                results.interpolate_linearly(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node) -> None:
        """Note what belongs to a result, as long as the result refers to it."""
        if node is not None and node.GetAttribute(extras.RESULT) is not None and not caller.IsClosing():
            self._orphans.collect(node)

    def onNodeRemoved(self, caller, event) -> None:
        self._orphans.remove()
