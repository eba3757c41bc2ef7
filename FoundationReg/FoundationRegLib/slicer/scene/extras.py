"""What comes with a result: tables, charts and volumes that belong to its owner and go with it.

The owner is the transform, or the volume where there is none. What is saved lies in a folder of the subject hierarchy
and the owner refers to it. What is not saved is in no list and refers to its owner instead: Slicer writes references to
nodes that it leaves out, and their IDs may later name something else.
"""

from __future__ import annotations

import slicer

ROLE = "FoundationReg."
RESULT = ROLE + "quality"  # attribute of each owner
OWNER_ROLE = ROLE + "owner"
KIND = ROLE + "kind"  # attribute: of what kind an extra is
FOLDER = ROLE + "folder"  # attribute of the subject hierarchy's folder
INPUTS = ("fixed", "moving", "warped", "initialTransform")  # what an owner refers to without owning it


def find(owner, kind: str):
    """The extra of that kind, or None."""
    node = owner.GetNodeReference(ROLE + kind)
    return node if node is not None else next((n for n in _unsaved(owner) if n.GetAttribute(KIND) == kind), None)


def make(owner, kind: str, class_name: str, name: str, saved: bool = True):
    """The extra of that kind; made when there is none, so that a second run updates it."""
    node = find(owner, kind)
    if node is not None and node.IsA(class_name) and bool(node.GetSaveWithScene()) == saved:
        return node
    if node is not None:
        remove(node)
    node = slicer.mrmlScene.CreateNodeByClass(class_name)
    node.UnRegister(None)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    node.SetAttribute(KIND, kind)
    node.SetSaveWithScene(saved)
    node.SetHideFromEditors(not saved)
    slicer.mrmlScene.AddNode(node)
    if saved:
        owner.SetNodeReferenceID(ROLE + kind, node.GetID())
    else:
        node.SetNodeReferenceID(OWNER_ROLE, owner.GetID())
    return node


def file_away(owner, node) -> None:
    """Put an extra into the folder of its owner in the subject hierarchy, which is made when there is none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    folder = _folder(hierarchy, owner)
    if not folder:
        above = hierarchy.GetItemByDataNode(owner)
        above = hierarchy.GetItemParent(above) if above else hierarchy.GetSceneItemID()
        folder = hierarchy.CreateFolderItem(above, f"{owner.GetName()}: details")
        hierarchy.SetItemAttribute(folder, FOLDER, "1")
        hierarchy.SetItemExpanded(folder, False)
    hierarchy.SetItemParent(item, folder)


def of(owner) -> list:
    """All extras of a node."""
    roles = [owner.GetNthNodeReferenceRole(number) for number in range(owner.GetNumberOfNodeReferenceRoles())]
    kinds = [role.removeprefix(ROLE) for role in roles if role.startswith(ROLE)]
    saved = [owner.GetNodeReference(ROLE + kind) for kind in kinds if kind not in INPUTS]
    return [node for node in [*saved, *_unsaved(owner)] if node is not None and node.GetAttribute(KIND)]


class Orphans:
    """Removes the extras of owners that are removed from the scene."""

    def __init__(self):
        self._found: list = []

    def collect(self, owner) -> None:
        """Call before ``owner`` is removed, while it still refers to its extras."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        self._found.append((of(owner), _folder(hierarchy, owner)))

    def remove(self) -> None:
        """Call after it was removed."""
        found, self._found = self._found, []
        for nodes, folder in found:
            for node in nodes:
                remove(node)
            _remove_folder(folder)


def remove(node) -> None:
    """Remove an extra with what only it uses: display and storage nodes, colour table, the series of a chart."""
    scene = slicer.mrmlScene
    if node.GetScene() is None:
        return
    along = []
    if node.IsA("vtkMRMLDisplayableNode"):
        for number in range(node.GetNumberOfDisplayNodes()):
            display = node.GetNthDisplayNode(number)
            if display is not None:
                colors = display.GetColorNode()
                along += [display, colors] if colors is not None and colors.GetAttribute(KIND) else [display]
    if node.IsA("vtkMRMLPlotChartNode"):
        along += [node.GetNthPlotSeriesNode(number) for number in range(node.GetNumberOfPlotSeriesNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        along.append(node.GetStorageNode())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    for one in (node, *along):
        if one is not None and one.GetScene() is not None:
            item = hierarchy.GetItemByDataNode(one)
            if item:
                hierarchy.RemoveItem(item, False, False)
            scene.RemoveNode(one)


def _remove_folder(folder: int) -> None:
    """Remove the folder of an owner, unless the user has put something of their own into it."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if folder and hierarchy.GetNumberOfItemChildren(folder) == 0:
        hierarchy.RemoveItem(folder)


def _unsaved(owner) -> list:
    shown = slicer.util.getNodesByClass("vtkMRMLDisplayableNode")
    return [node for node in shown if node.GetNodeReference(OWNER_ROLE) is owner]


def _folder(hierarchy, owner) -> int:
    for node in of(owner):
        item = hierarchy.GetItemByDataNode(node)
        parent = hierarchy.GetItemParent(item) if item else 0
        if parent and hierarchy.GetItemAttribute(parent, FOLDER):
            return parent
    return 0
