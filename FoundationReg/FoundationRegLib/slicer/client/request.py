"""What to register, and what came of it, in nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from slicer.i18n import tr as _

from ...errors import InputError
from ..scene import nodes, regions, results

MASK_ROLES = {
    "fixed_mask": _("mask of the fixed volume"),
    "moving_mask": _("mask of the moving volume"),
    "exclude_fixed": _("exclusion mask of the fixed volume"),
    "exclude_moving": _("exclusion mask of the moving volume"),
    "fixed_box_mask": _("segmentation of the fixed box"),
    "moving_box_mask": _("segmentation of the moving box"),
}
MATCHED = ("fixed_mask", "moving_mask", "exclude_fixed", "exclude_moving")


@dataclass
class RegistrationRequest:
    """What to register, with what, and where the result goes. All but the volumes may be left out.

    Without ``output_transform`` and ``output_volume`` a new transform node is made; ``create_transform`` and
    ``create_volume`` make new nodes beside given ones. Nodes are made only once there is a result.
    Masks are segmentations (all their segments) or volumes (all voxels but 0): ``fixed_mask`` and ``moving_mask`` say
    where to match, ``exclude_fixed`` and ``exclude_moving`` mark a lesion or implant without a counterpart in the other
    volume, which shall neither shrink nor grow. Labels and points measure; ``guide_with_labels`` and
    ``guide_with_points`` let them take part in the search too.
    ``fixed_box`` and ``moving_box``: markups ROIs around the same organ. What they hold is segmented and guides. Where
    ``fixed_box_mask`` or ``moving_box_mask``, a segmentation of it, was drawn or corrected by a person, that guides
    instead; one that still is as it was predicted is predicted again, which is quick as long as nothing changed.
    ``volume``: how the output volume is made: ``interpolation`` (linear, nearest or bspline), ``background`` (a grey
    value for what lies outside of the moving volume) and ``type`` (a numpy name such as float32); what is left out is
    linear, the moving volume's darkest value and its type.
    ``carry``: nodes of the moving side that follow it, as its labels, points and masks do.
    """

    fixed: Any
    moving: Any
    settings: dict = field(default_factory=dict)
    output_transform: Any = None
    output_volume: Any = None
    create_transform: bool = False
    create_volume: bool = False
    apply_transform: bool = True
    initial_transform: Any = None
    fixed_mask: Any = None
    moving_mask: Any = None
    exclude_fixed: Any = None
    exclude_moving: Any = None
    fixed_labels: Any = None
    moving_labels: Any = None
    fixed_points: Any = None
    moving_points: Any = None
    fixed_box: Any = None
    moving_box: Any = None
    fixed_box_mask: Any = None
    moving_box_mask: Any = None
    guide_with_labels: bool = False
    guide_with_points: bool = False
    volume: dict = field(default_factory=dict)
    carry: tuple = ()
    jacobian: bool = False
    features: bool = True
    preview: bool = False

    def check(self) -> None:
        """Raise `InputError` with one sentence when this cannot be started."""
        nodes.check_volume(self.fixed, _("fixed volume"))
        nodes.check_volume(self.moving, _("moving volume"))
        if self.fixed is self.moving:
            raise InputError(_("The fixed and the moving volume are the same; choose two volumes."))
        for role in ("labels", "points"):
            pair = getattr(self, f"fixed_{role}"), getattr(self, f"moving_{role}")
            if (pair[0] is None) != (pair[1] is None) and pair[0] is not None:
                if role == "labels":
                    raise InputError(_("Choose the segmentation of the moving volume too, or none for the fixed one."))
                raise InputError(_("Choose the landmarks of the moving volume too, or none for the fixed one."))
            if pair[0] is not None and pair[0] is pair[1]:
                if role == "labels":
                    raise InputError(_("The labels of the fixed and of the moving volume are the same node."))
                raise InputError(_("The points of the fixed and of the moving volume are the same node."))
        self._check_masks()
        self._check_boxes()
        if self.guide_with_labels and self.fixed_labels is None:
            raise InputError(_("To guide with segmentations, choose the segmentations of both volumes."))
        if self.guide_with_points and self.fixed_points is None:
            raise InputError(_("To guide with landmarks, choose the landmarks of both volumes."))
        if self.output_volume is not None and self.output_volume in (self.fixed, self.moving):
            raise InputError(_("The output volume is one of the inputs; create a new volume for the result."))
        if self.output_transform is not None:
            linear = not self.settings.get("deformable", True)
            results.check_output_transform(self.output_transform, self.fixed, linear)

    def _check_masks(self) -> None:
        for name in MATCHED:
            mask, role = getattr(self, name), MASK_ROLES[name]
            if mask is None:
                continue
            if mask in (self.fixed, self.moving):
                text = _("The {role} is one of the volumes to register; choose a segmentation or a mask.")
                raise InputError(text.format(role=role))
            if mask.IsA("vtkMRMLSegmentationNode") and not nodes.segment_names(mask):
                text = _("The {role} {name!r} has no segments; draw one or choose none.")
                raise InputError(text.format(role=role, name=mask.GetName()))
        if self.fixed_mask is not None and self.fixed_mask is self.exclude_fixed:
            text = _("{name!r} cannot be both the mask of the fixed volume and excluded in it.")
            raise InputError(text.format(name=self.fixed_mask.GetName()))
        if self.moving_mask is not None and self.moving_mask is self.exclude_moving:
            text = _("{name!r} cannot be both the mask of the moving volume and excluded in it.")
            raise InputError(text.format(name=self.moving_mask.GetName()))

    def _check_boxes(self) -> None:
        given = {
            side: (getattr(self, f"{side}_box"), getattr(self, f"{side}_box_mask")) for side in ("fixed", "moving")
        }
        there = [side for side, pair in given.items() if any(node is not None for node in pair)]
        if len(there) == 1:
            text = _("Draw a box around the same organ in the fixed and the moving volume, or in none of them.")
            raise InputError(text)
        boxes, masks = zip(*given.values(), strict=True)
        if boxes[0] is not None and boxes[0] is boxes[1]:
            raise InputError(_("The boxes of the fixed and of the moving volume are the same node; draw one in each."))
        if masks[0] is not None and masks[0] is masks[1]:
            raise InputError(_("The segmentations of both boxes are the same node; choose one of each volume."))
        for side, (box, mask) in given.items():
            if mask is not None and not nodes.segment_names(mask):
                text = _(
                    "The segmentation {name!r} of the box has no segments; segment the boxes again or choose none."
                )
                raise InputError(text.format(name=mask.GetName()))
            if box is not None:
                regions.organ_box(box, getattr(self, side))

    def inputs(self) -> list:
        """The nodes that must stay in the scene until the end."""
        chosen = [self.fixed, self.moving, self.output_transform, self.output_volume]
        return [node for node in chosen if node is not None]

    def initial_node(self):
        """The transform node whose place for the moving volume the search starts from.

        When the moving volume lies under the result of an earlier run into the same output, that result is no start:
        the search begins where the earlier one did.
        """
        if self.initial_transform is not None:
            return self.initial_transform
        parent = self.moving.GetParentTransformNode()
        if parent is not None and parent is self.output_transform:
            return parent.GetNodeReference(results.INITIAL_ROLE)
        return parent


@dataclass
class RegistrationResult:
    """What a registration left in the scene. Nodes that were not asked for are None.

    ``metrics``: ``{"before": {...}, "after": {...}}``. ``record``: settings, versions, seed, seconds per stage.
    ``regionNodes``: segmentations of what an anatomy network named, as ``fixed``, ``moving`` and ``after``, the moving
    ones as registered. ``boxMaskNodes``: by side, segmentations of what was predicted in the boxes.
    ``run``: what the worker knows it by, as long as it keeps the features.
    """

    transformNode: Any = None
    volumeNode: Any = None
    jacobianNode: Any = None
    tableNode: Any = None
    chartNode: Any = None
    featureNodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    regionNodes: dict[str, Any] = field(default_factory=dict)
    boxMaskNodes: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)
    record: dict = field(default_factory=dict)
    quality: str = ""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    run: int | None = None

    @property
    def folded_percent(self) -> float:
        """Share of the voxels, in percent, where the deformation folds."""
        return float((self.metrics.get("after") or {}).get("folded_percent") or 0.0)
