"""Unsaved stand-ins of the user's nodes, so that something can be shown elsewhere without moving the node itself."""

from __future__ import annotations

import slicer


def hidden_copy(node, parent, suffix: str):
    """A node like ``node`` under transform node ``parent`` (None is world), sharing its data, in no list and no file.

    A volume also shares its display node, so that window and level stay those of the user.
    """
    copy = slicer.mrmlScene.CreateNodeByClass(node.GetClassName())
    copy.UnRegister(None)
    copy.CopyContent(node, False)
    copy.SetName(f"{node.GetName()} {suffix}")
    copy.SetHideFromEditors(True)
    copy.SetSaveWithScene(False)
    slicer.mrmlScene.AddNode(copy)
    if node.IsA("vtkMRMLVolumeNode"):
        copy.SetAndObserveDisplayNodeID(node.GetDisplayNodeID())
    else:
        for display in display_nodes(node):
            copy.AddAndObserveDisplayNodeID(_display_copy(display).GetID())
    copy.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
    return copy


def remove_copy(copy) -> None:
    """Remove what `hidden_copy` made."""
    if copy.GetScene() is None:
        return
    displays = [] if copy.IsA("vtkMRMLVolumeNode") else display_nodes(copy)
    for node in (copy, *displays):
        slicer.mrmlScene.RemoveNode(node)


def display_nodes(node) -> list:
    """The display nodes of a displayable node."""
    displays = (node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes()))
    return [display for display in displays if display is not None]


def _display_copy(display):
    copy = slicer.mrmlScene.CreateNodeByClass(display.GetClassName())
    copy.UnRegister(None)
    copy.CopyContent(display)
    copy.SetSaveWithScene(False)
    return slicer.mrmlScene.AddNode(copy)
