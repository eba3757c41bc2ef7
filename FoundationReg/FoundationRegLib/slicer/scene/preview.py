"""The moving volume deforming in the slice views while the worker still searches."""

from __future__ import annotations

import numpy as np
import slicer

from ...core.grid import Grid
from . import copies, results, views


class LivePreview:
    """Shows a copy of the moving volume under a temporary transform, in place of the volume; `restore` ends it.

    Neither is saved, and the moving volume itself stays where it is.
    """

    def __init__(self, fixed, moving):
        self._fixed, self._moving = fixed, moving
        self._copy = self._transform = None

    def show(self, displacement: np.ndarray, grid: Grid) -> None:
        """Show an LPS ``displacement`` (z, y, x, 3) in mm on ``grid``, from fixed to moving points."""
        if self._moving.GetScene() is None or self._fixed.GetScene() is None:
            return
        if self._transform is None:
            self._transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "FoundationReg preview")
            self._transform.SetHideFromEditors(True)
            self._transform.SetSaveWithScene(False)
            parent = self._fixed.GetParentTransformNode()
            self._transform.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
            self._copy = copies.hidden_copy(self._moving, self._transform, "preview")
        self._transform.SetAndObserveTransformFromParent(results.grid_transform(displacement, grid))
        views.exchange(self._moving, self._copy)

    def restore(self) -> None:
        """Undo it."""
        copy, transform = self._copy, self._transform
        self._copy = self._transform = None
        if copy is not None and copy.GetScene() is not None:
            views.exchange_back(copy, self._moving if self._moving.GetScene() is not None else None)
            copies.remove_copy(copy)
        if transform is not None and transform.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(transform)
