"""The moving volume deforming in the views while the worker still searches."""

from __future__ import annotations

import numpy as np
import slicer

from ...core.grid import Grid
from . import results


class LivePreview:
    """Puts the moving volume under a temporary transform; `restore` puts it back where it was."""

    def __init__(self, fixed, moving):
        self._fixed, self._moving = fixed, moving
        self._before = moving.GetTransformNodeID()
        self._node = None

    def show(self, displacement: np.ndarray, grid: Grid) -> None:
        """Show an LPS ``displacement`` (z, y, x, 3) in mm on ``grid``, from fixed to moving points."""
        if self._moving.GetScene() is None or self._fixed.GetScene() is None:
            return
        if self._node is None:
            self._node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "FoundationReg preview")
            self._node.SetHideFromEditors(True)
            self._node.SetSaveWithScene(False)
            parent = self._fixed.GetParentTransformNode()
            self._node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
        self._node.SetAndObserveTransformFromParent(results.grid_transform(displacement, grid))
        if self._moving.GetTransformNodeID() != self._node.GetID():
            self._moving.SetAndObserveTransformNodeID(self._node.GetID())

    def restore(self) -> None:
        """Undo it; a parent transform that the user chose meanwhile is kept."""
        node, self._node = self._node, None
        if node is None:
            return
        if self._moving.GetScene() is not None and self._moving.GetTransformNodeID() == node.GetID():
            before = self._before if self._before and slicer.mrmlScene.GetNodeByID(self._before) else None
            self._moving.SetAndObserveTransformNodeID(before)
        if node.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(node)
