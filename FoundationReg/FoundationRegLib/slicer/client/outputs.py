"""What the worker's answer leaves in the scene besides the transform and the volume."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from ..scene import extras, predicted, results, segmentations
from .answers import load_array
from .request import RegistrationRequest, RegistrationResult

BOX_NETWORK = "MedSAM-Lite"
_PAIRS = ("box_masks",)


def take_arrays(event: dict, keep: bool) -> dict:
    """The arrays, each with its `Grid`, that ``event`` names by file; the files are removed unless to ``keep``."""
    single = ("transform", "uncertainty", "warped")
    arrays = {key: load_array(event.pop(key), keep) for key in single if event.get(key)}
    for key in _PAIRS:
        arrays[key] = {side: load_array(value, keep) for side, value in (event.pop(key, None) or {}).items()}
    if regions := event.pop("regions", None):
        sides = {side: load_array(regions[side], keep) for side in ("fixed", "moving") if side in regions}
        arrays["regions"] = regions | sides
    arrays["features"] = {
        encoder: {side: load_array(value, keep) for side, value in pair.items()}
        for encoder, pair in event.pop("features", {}).items()
    }
    return arrays


def fill_extras(
    answer: RegistrationResult, owner, name: str, request: RegistrationRequest, arrays: dict, loss: dict
) -> None:
    """Chart, Jacobian, uncertainty, predicted regions and features of the result ``owner``."""
    if any(loss.values()):
        answer.chartNode = results.set_loss_chart(owner, loss, name)
    for kind in ("jacobian", "uncertainty"):  # of an earlier run, and no longer true
        if (node := extras.find(owner, kind)) is not None:
            extras.remove(node)
    if request.jacobian:
        answer.jacobianNode = extras.make(owner, "jacobian", "vtkMRMLScalarVolumeNode", f"{name} Jacobian")
        displacement, grid = arrays["transform"]
        determinant = results.jacobian_determinant(displacement, grid)
        results.set_jacobian(answer.jacobianNode, determinant, grid, request.fixed.GetParentTransformNode())
    if "uncertainty" in arrays:
        node = extras.make(owner, "uncertainty", "vtkMRMLScalarVolumeNode", f"{name} uncertainty")
        results.set_uncertainty(node, *arrays["uncertainty"], request.fixed.GetParentTransformNode())
    for kind in ("jacobian", "uncertainty"):
        if (node := extras.find(owner, kind)) is not None and node.GetSaveWithScene():
            extras.file_away(owner, node)
    found = arrays.get("regions")
    answer.regionNodes = predicted.set_regions(owner, found, request.fixed, request.moving, arrays["transform"])
    if not request.features:
        return
    owner.SetAttribute(results.ENCODERS_ATTRIBUTE, ";".join(arrays["features"]))
    for encoder, pair in arrays["features"].items():
        answer.featureNodes[encoder] = set_feature_pair(owner, encoder, pair, request.fixed, request.moving)


def set_feature_pair(owner, encoder: str, pair: dict, fixed, moving) -> dict:
    """The colours of an encoder's features of both sides, by side, as nodes of the result ``owner``."""
    made = {}
    for side, volume in (("fixed", fixed), ("moving", moving)):
        title = f"{encoder} features of {volume.GetName()}"
        node = extras.make(owner, f"features.{encoder}.{side}", "vtkMRMLVectorVolumeNode", title, saved=False)
        results.set_features(node, *pair[side], fixed.GetParentTransformNode())
        made[side] = node
    return made


def set_box_masks(request: RegistrationRequest, masks: dict, sides: list[str]) -> dict:
    """Segmentations of what was predicted in the boxes of these ``sides``, by side.

    A node of the request that holds an earlier prediction is filled again; what a person drew is left alone.
    """
    made = {}
    for side in sides:
        if side not in masks:
            continue
        volume, box, node = (getattr(request, name) for name in (side, f"{side}_box", f"{side}_box_mask"))
        array, grid = masks[side]
        if node is None or node.GetScene() is None:
            name = _("{volume}: organ in {box} (predicted by {network} in the box)")
            name = name.format(volume=volume.GetName(), box=box.GetName(), network=BOX_NETWORK)
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        parent = volume.GetParentTransformNode()
        node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
        segmentations.set_segments(node, array, grid, {1: _("Organ in the box")}, volume, BOX_NETWORK)
        segmentations.remember_content(node)
        made[side] = node
    return made
