"""Pairs of landmarks as two markups lists: point n of both is the same anatomy.

They are the lists under *Guide with landmarks*. The fixed list lies under the parent of the fixed volume, the moving
one under that of the moving volume, so that its points move with the image. A pair that does not count is not selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import slicer

from . import nodes

DEFINED = 2  # vtkMRMLMarkupsNode::PositionDefined
_LPS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class PairState:
    """One pair: its name, where both points lie in their lists' own coordinates (RAS), and whether it counts."""

    name: str
    fixed: tuple[float, float, float]
    moving: tuple[float, float, float]
    active: bool = True


class LandmarkPairs:
    """The two lists ``fixed_list`` and ``moving_list`` of the volumes ``fixed`` and ``moving``."""

    def __init__(self, fixed_list, moving_list, fixed, moving):
        self.fixed_list, self.moving_list, self.fixed, self.moving = fixed_list, moving_list, fixed, moving

    @property
    def valid(self) -> bool:
        """Whether all nodes are still in the scene."""
        every = (self.fixed_list, self.moving_list, self.fixed, self.moving)
        return all(node is not None and node.GetScene() is not None for node in every)

    def complete(self) -> int:
        """How many pairs have both points placed, from the first on."""
        count = 0
        for n in range(min(node.GetNumberOfControlPoints() for node in (self.fixed_list, self.moving_list))):
            if any(node.GetNthControlPointPositionStatus(n) != DEFINED for node in (self.fixed_list, self.moving_list)):
                break
            count += 1
        return count

    def states(self) -> tuple[PairState, ...]:
        """All complete pairs."""
        return tuple(
            PairState(
                self.fixed_list.GetNthControlPointLabel(n),
                tuple(self.fixed_list.GetNthControlPointPosition(n)),
                tuple(self.moving_list.GetNthControlPointPosition(n)),
                bool(self.fixed_list.GetNthControlPointSelected(n)),
            )
            for n in range(self.complete())
        )

    def restore(self, states: tuple[PairState, ...]) -> None:
        """Make both lists hold ``states`` and nothing else."""
        for node, side in ((self.fixed_list, "fixed"), (self.moving_list, "moving")):
            with slicer.util.NodeModify(node):
                node.RemoveAllControlPoints()
                for state in states:
                    index = node.AddControlPoint(*getattr(state, side), state.name)
                    node.SetNthControlPointSelected(index, state.active)

    def for_worker(self) -> list[dict]:
        """The pairs as the worker takes them: LPS mm in the volumes' local coordinates."""
        count = self.complete()
        points = [
            nodes.landmark_points(markups, volume)[:count].tolist()
            for markups, volume in ((self.fixed_list, self.fixed), (self.moving_list, self.moving))
        ]
        return [
            {"fixed": fixed, "moving": moving, "active": state.active}
            for fixed, moving, state in zip(*points, self.states(), strict=True)
        ]

    def add(self, fixed_world, moving_world) -> int:
        """Add a pair at two places of the views (RAS, as the scene shows them now) and return its number."""
        number = self.complete()
        name = f"P-{number + 1}"
        for node, place in ((self.fixed_list, fixed_world), (self.moving_list, moving_world)):
            node.AddControlPointWorld(np.asarray(place, float).tolist(), name)
        return number

    def remove(self, number: int) -> None:
        for node in (self.fixed_list, self.moving_list):
            node.RemoveNthControlPoint(number)

    def set_active(self, number: int, active: bool) -> None:
        for node in (self.fixed_list, self.moving_list):
            node.SetNthControlPointSelected(number, active)


def make_list(name: str, volume, color: tuple[float, float, float]):
    """An empty list that lies where ``volume`` lies."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", slicer.mrmlScene.GenerateUniqueName(name))
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetSelectedColor(*color)
        display.SetColor(0.5, 0.5, 0.5)
        display.SetGlyphTypeFromString("CrossDot2D")
        display.SetTextScale(2.5)
        display.SetGlyphScale(2.5)
    follow(node, volume)
    return node


def follow(node, volume) -> None:
    """Put a list under the parent transform of ``volume``, keeping its points' own coordinates."""
    parent = volume.GetParentTransformNode()
    if node.GetParentTransformNode() is not parent:
        node.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
