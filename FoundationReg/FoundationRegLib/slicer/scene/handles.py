"""A linear transform with interaction handles, to place a volume by hand."""

from __future__ import annotations

import slicer

from . import nodes


def place_by_hand(volume, transform=None):
    """Put ``volume`` under a linear transform whose handles are shown in all views, and return the transform.

    ``transform``: one that was made before is used again. Where the volume lies under another transform already, the
    new one is placed between both, so that the volume stays where it is until it is dragged. The handles turn about the
    middle of the volume.
    """
    parent = volume.GetParentTransformNode()
    if transform is None or not transform.IsA("vtkMRMLLinearTransformNode"):
        scene = slicer.mrmlScene
        name = scene.GenerateUniqueName(f"{volume.GetName()}, placed by hand")
        transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
        transform.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    if parent is not transform:
        volume.SetAndObserveTransformNodeID(transform.GetID())
    middle = nodes.volume_grid(volume).center * (-1.0, -1.0, 1.0)
    transform.SetCenterOfTransformation(middle.tolist())
    transform.CreateDefaultDisplayNodes()
    display = transform.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetEditorVisibility(True)
        display.SetEditorSliceIntersectionVisibility(True)
        display.SetEditorTranslationEnabled(True)
        display.SetEditorRotationEnabled(True)
        display.SetEditorScalingEnabled(False)
    return transform


def hide_handles(transform) -> None:
    """Take the handles away; the placement stays."""
    display = transform.GetDisplayNode() if transform is not None else None
    if display is not None:
        display.SetEditorVisibility(False)
        display.SetEditorSliceIntersectionVisibility(False)
