"""What the slice views show, changed by the module and put back: layers, opacity, links.

A scene is written without a word before: StartSaveEvent is declared (Slicer, vtkMRMLScene.h) but never invoked. Nodes
whose SaveWithScene is off are left out, references to them are not (vtkMRMLScene.cxx, vtkMRMLScene::Commit), so that a
view that shows such a node opens empty. Therefore each composite node also refers to what to show instead, and to what
the user had there before, by node references, which Slicer renames along when it loads a scene into another.
"""

from __future__ import annotations

import slicer

LAYERS = ("Background", "Foreground")
INSTEAD = "FoundationReg.instead"  # role, followed by a layer: a node that is saved, for one that is not
USER = "FoundationReg.user"  # role, followed by a layer: what was shown before the module changed it
USER_STATE = "FoundationReg.userOpacityAndLink"  # attribute
SHOWN = "FoundationReg.shown"  # attribute: IDs of the layers that the module set last
HIDDEN = "FoundationReg.hidden"  # attribute of display nodes of the user's that are switched off for a while


def composite_nodes() -> list:
    """The nodes that hold the layers of the slice views."""
    return list(slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"))


def set_layers(background, foreground=None, opacity: float = 0.0, instead: tuple | None = None) -> None:
    """Show two volume nodes in all slice views, linked. ``instead``: a pair that is saved, for a scene saved meanwhile;
    needed when ``background`` or ``foreground`` is not saved."""
    for composite in composite_nodes():
        with slicer.util.NodeModify(composite):
            _remember(composite)
            composite.SetLinkedControl(True)
            for layer, node in zip(LAYERS, (background, foreground), strict=True):
                _set(composite, layer, node)
            for layer, node in zip(LAYERS, instead or (None, None), strict=True):
                composite.SetNodeReferenceID(INSTEAD + layer, node.GetID() if node is not None else None)
            composite.SetForegroundOpacity(opacity)
            composite.SetAttribute(SHOWN, _ids(composite))


def set_opacity(opacity: float) -> None:
    """Set the opacity of the foreground of all slice views."""
    for composite in composite_nodes():
        composite.SetForegroundOpacity(opacity)


def exchange(node, other) -> None:
    """Show the unsaved ``other`` wherever ``node`` is shown."""
    for composite in composite_nodes():
        for layer in LAYERS:
            if _get(composite, layer) == node.GetID():
                _set(composite, layer, other)
                composite.SetNodeReferenceID(INSTEAD + layer, node.GetID())
                _keep_shown(composite, node.GetID(), other.GetID())


def exchange_back(other, node) -> None:
    """Undo `exchange` wherever ``other`` is still shown."""
    for composite in composite_nodes():
        for layer in LAYERS:
            if _get(composite, layer) == other.GetID():
                _set(composite, layer, node)
                composite.SetNodeReferenceID(INSTEAD + layer, None)
                _keep_shown(composite, other.GetID(), node.GetID() if node is not None else "")


def put_back() -> None:
    """Give the views what the user had there, save where the user has chosen something else meanwhile."""
    for composite in composite_nodes():
        state = composite.GetAttribute(USER_STATE)
        if state is None:
            continue
        with slicer.util.NodeModify(composite):
            if composite.GetAttribute(SHOWN) == _ids(composite):
                for layer in LAYERS:
                    _set(composite, layer, composite.GetNodeReference(USER + layer))
                opacity, linked = state.split()
                composite.SetForegroundOpacity(float(opacity))
                composite.SetLinkedControl(int(linked))
            _forget(composite)


def are_changed() -> bool:
    """Whether the module has changed the views and not put them back."""
    return any(composite.GetAttribute(USER_STATE) is not None for composite in composite_nodes())


def repair() -> None:
    """After a scene was loaded: show what stands for nodes that were not saved, and what was switched off."""
    for composite in composite_nodes():
        unchanged = composite.GetAttribute(SHOWN) == _ids(composite)
        with slicer.util.NodeModify(composite):
            for layer in LAYERS:
                node = composite.GetNodeReference(INSTEAD + layer)
                lost = slicer.mrmlScene.GetNodeByID(_get(composite, layer) or "") is None
                if node is not None and (lost or unchanged):
                    _set(composite, layer, node)
                    composite.SetAttribute(SHOWN, _ids(composite))
                    if layer == "Background":
                        composite.SetForegroundOpacity(0.5)
                composite.SetNodeReferenceID(INSTEAD + layer, None)
    for display in slicer.util.getNodesByClass("vtkMRMLDisplayNode"):
        if display.GetAttribute(HIDDEN):
            show_again(display)


def switch_off(display) -> bool:
    """Make a display node of the user's invisible until `show_again`. False when it is not visible anyway."""
    if not display.GetVisibility():
        return False
    display.SetAttribute(HIDDEN, "1")
    display.SetVisibility(False)
    return True


def show_again(display) -> None:
    """Undo `switch_off`."""
    display.RemoveAttribute(HIDDEN)
    display.SetVisibility(True)


def _get(composite, layer: str) -> str | None:
    return getattr(composite, f"Get{layer}VolumeID")()


def _set(composite, layer: str, node) -> None:
    getattr(composite, f"Set{layer}VolumeID")(node.GetID() if node is not None else None)


def _ids(composite) -> str:
    return ";".join(_get(composite, layer) or "" for layer in LAYERS)


def _keep_shown(composite, before: str, after: str) -> None:
    """The module itself replaced a layer: what it set last is still what is shown."""
    shown = composite.GetAttribute(SHOWN)
    if shown is not None:
        composite.SetAttribute(SHOWN, ";".join(after if part == before else part for part in shown.split(";")))


def _remember(composite) -> None:
    if composite.GetAttribute(USER_STATE) is None:
        for layer in LAYERS:
            composite.SetNodeReferenceID(USER + layer, _get(composite, layer))
        state = f"{composite.GetForegroundOpacity()} {int(composite.GetLinkedControl())}"
        composite.SetAttribute(USER_STATE, state)


def _forget(composite) -> None:
    for layer in LAYERS:
        composite.SetNodeReferenceID(USER + layer, None)
        composite.SetNodeReferenceID(INSTEAD + layer, None)
    for name in (USER_STATE, SHOWN):
        composite.RemoveAttribute(name)
