"""Buttons that prepare or finish a registration: swap, place by hand, inverse, release memory."""

from __future__ import annotations

from collections.abc import Callable

import slicer
from slicer.i18n import tr as _

from ..scene import results
from ..scene.handles import place_by_hand

SWAPPED = ("Volume", "Mask", "Labels", "Landmarks", "Box", "BoxMask", "Intensity")


class ToolButtons:
    """Connects the buttons of ``ui``. ``owner()``: the node with the result; ``channel()``: the way to the worker."""

    def __init__(
        self, ui, owner: Callable, channel: Callable, say: Callable[[str], None], released: Callable[[], None]
    ):
        self._ui, self._owner, self._channel, self._say, self._released = ui, owner, channel, say, released
        self._parameters = None
        ui.swapButton.connect("clicked(bool)", self._onSwap)
        ui.placeByHandButton.connect("clicked(bool)", self._onPlaceByHand)
        ui.exportInverseButton.connect("clicked(bool)", self._onInverse)
        ui.releaseButton.connect("clicked(bool)", self._onRelease)

    def setParameters(self, node) -> None:
        """Follow another parameter node; None when the scene closes."""
        self._parameters = node

    def update(self) -> None:
        """What can be pressed now."""
        node, ui = self._parameters, self._ui
        ui.swapButton.enabled = node is not None and bool(node.fixedVolume or node.movingVolume)
        ui.placeByHandButton.enabled = node is not None and node.movingVolume is not None
        owner = self._owner()
        ui.exportInverseButton.enabled = owner is not None and owner.IsA("vtkMRMLTransformNode")
        for widget in (ui.interpolationComboBox, ui.voxelTypeComboBox, ui.backgroundEdit):
            widget.enabled = node is not None and node.makeVolume
        ui.releaseButton.enabled = self._channel().process.alive

    def _onSwap(self, _clicked=False) -> None:
        node = self._parameters
        if node is None:
            return
        modified = node.StartModify()
        for what in SWAPPED:
            fixed, moving = getattr(node, f"fixed{what}"), getattr(node, f"moving{what}")
            setattr(node, f"fixed{what}", moving)
            setattr(node, f"moving{what}", fixed)
        node.excludeFixed, node.excludeMoving = node.excludeMoving, node.excludeFixed
        # The other way round is another result: it gets nodes of its own.
        node.outputTransform = node.outputVolume = node.initialTransform = None
        node.EndModify(modified)

    def _onPlaceByHand(self, _clicked=False) -> None:
        node = self._parameters
        if node is None or node.movingVolume is None:
            return
        node.initialTransform = place_by_hand(node.movingVolume, node.initialTransform)
        self._say(_("Drag the handles in the views, then press Apply."))

    def _onInverse(self, _clicked=False) -> None:
        owner = self._owner()
        if owner is None:
            return
        moving = owner.GetNodeReference(results.ROLE + "moving")
        name = slicer.mrmlScene.GenerateUniqueName(f"{owner.GetName()}, inverse")
        kind = "vtkMRMLLinearTransformNode" if owner.IsLinear() else "vtkMRMLTransformNode"
        node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
        results.set_inverse(node, owner, moving)
        self._say(_("The inverse is the transform {name}.").format(name=name))

    def _onRelease(self, _clicked=False) -> None:
        channel = self._channel()
        if channel.job is not None and channel.job.running:
            channel.job.cancel()
        channel.close()
        self._say(_("The memory is released; the next run loads models and features again."))
        self._released()
        self.update()


def allow_folded(percent: float) -> bool:
    """Ask whether landmarks and models may follow a transform that folds in ``percent`` of the voxels."""
    text = _(
        "The deformation folds in {percent:.2g} % of the voxels, so landmarks and models cannot follow it reliably "
        "there. Let them follow nevertheless?"
    )
    return slicer.util.confirmYesNoDisplay(text.format(percent=percent))
