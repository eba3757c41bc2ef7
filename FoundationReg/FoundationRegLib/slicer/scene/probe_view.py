"""An encoder's answer in the views: how alike every place is, and marks for its best match and for the transform's."""

from __future__ import annotations

import numpy as np
import slicer

from ...core.grid import Grid
from . import copies, extras, nodes, results

LOWEST_SHOWN = 0.25
MATCH_COLOR, TRANSFORM_COLOR, POINT_COLOR = (0.1, 0.9, 0.2), (1.0, 0.75, 0.0), (0.2, 0.8, 1.0)
_SIDES = ("fixed", "moving")


class ProbeView:
    """Fixed and moving volume side by side, and what an encoder says about one point of them.

    The moving image is shown through ``transform``, so that both views show the same place: itself where it lies under
    it, else a copy. `close` puts layout, layers and links back as they were and removes all that was added.
    """

    def __init__(self, fixed, moving, transform):
        self.fixed, self.moving, self._transform, self._copy = fixed, moving, transform, None
        self._map = self._point = self._marks = None
        self._before: list[tuple] = []
        self._layout: int | None = None
        self.shown = False

    def open(self) -> None:
        """Fixed volume in the first slice view of the layout, moving volume in the second."""
        if self.shown:
            return
        self.shown = True
        if self.moving.GetParentTransformNode() is not self._transform:
            self._copy = copies.hidden_copy(self.moving, self._transform, "probed")
        layout = slicer.app.layoutManager()
        self._layout = layout.layout if isinstance(layout.layout, int) else layout.layout()
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            names = ("BackgroundVolumeID", "ForegroundVolumeID", "ForegroundOpacity", "LinkedControl",
                     "HotLinkedControl")  # fmt: skip
            state = tuple(getattr(composite, f"Get{name}")() for name in names)
            self._before.append((composite, state))
        slices = [(node, node.GetOrientation()) for node in slicer.util.getNodesByClass("vtkMRMLSliceNode")]
        self._orientations = [(node, text) for node, text in slices if node.GetLayoutName() in ("Red", "Yellow")]
        layout.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
        for name, volume in zip(("Red", "Yellow"), (self.fixed, self.shown_moving), strict=True):
            logic = layout.sliceWidget(name).sliceLogic()
            composite = logic.GetSliceCompositeNode()
            with slicer.util.NodeModify(composite):
                composite.SetLinkedControl(False)
                composite.SetBackgroundVolumeID(volume.GetID())
                composite.SetForegroundVolumeID(None)
            logic.GetSliceNode().SetOrientation("Axial")
        for name in ("Red", "Yellow"):
            composite = layout.sliceWidget(name).sliceLogic().GetSliceCompositeNode()
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)

    @property
    def shown_moving(self):
        """What stands for the moving volume in the views."""
        return self._copy or self.moving

    def volume_of(self, side: str):
        """What is shown of the volume ``side``."""
        return self.fixed if side == "fixed" else self.shown_moving

    def side_of(self, view_name: str) -> str:
        """Which volume the slice view of that name shows."""
        return "moving" if view_name == "Yellow" else "fixed"

    def show(self, answer: dict, point_local: np.ndarray) -> None:
        """Show the worker's ``answer`` for ``point_local`` (LPS, local coordinates of the asked volume)."""
        if not self.valid:
            return
        side = answer["side"]
        asked, other = self.volume_of(side), self.volume_of("moving" if side == "fixed" else "fixed")
        self._show_map(*answer["similarity"], other, "Yellow" if side == "fixed" else "Red")
        places = [(asked, point_local, "asked"), (other, answer["match"], answer["encoder"]),
                  (other, answer["transform"], "transform")]  # fmt: skip
        self._show_marks(places)
        self._jump(self.to_world(asked, point_local))

    @property
    def valid(self) -> bool:
        return all(node is not None and node.GetScene() is not None for node in (self.fixed, self.moving))

    def to_world(self, volume, point) -> np.ndarray:
        """RAS in the scene of an LPS ``point`` in the local coordinates of ``volume``."""
        chain = nodes.chain_between(volume.GetParentTransformNode(), None)
        return nodes.transform_points(chain, np.asarray(point, float).reshape(1, 3) * (-1.0, -1.0, 1.0))[0]

    def to_local(self, volume, ras) -> np.ndarray:
        """LPS in the local coordinates of ``volume`` of a RAS point in the scene."""
        chain = nodes.chain_between(None, volume.GetParentTransformNode())
        return nodes.transform_points(chain, np.asarray(ras, float).reshape(1, 3))[0] * (-1.0, -1.0, 1.0)

    def _show_map(self, similarity: np.ndarray, grid: Grid, volume, view: str) -> None:
        if self._map is None or self._map.GetScene() is None:
            self._map = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "FoundationReg similarity")
            self._map.SetHideFromEditors(True)
            self._map.SetSaveWithScene(False)
        results.fill_volume(self._map, similarity, grid, volume.GetParentTransformNode())
        display = self._map.GetDisplayNode()
        results.set_colors(self._map, "FoundationReg similarity colors", similarity_colors())
        with slicer.util.NodeModify(display):
            display.SetAutoWindowLevel(False)
            display.SetWindowLevelMinMax(0.0, 1.0)
            display.SetApplyThreshold(True)
            display.SetAutoThreshold(False)
            display.SetThreshold(LOWEST_SHOWN, 1.01)
        layout = slicer.app.layoutManager()
        for name in ("Red", "Yellow"):
            composite = layout.sliceWidget(name).sliceLogic().GetSliceCompositeNode()
            linked = composite.GetLinkedControl()
            composite.SetLinkedControl(False)
            composite.SetForegroundVolumeID(self._map.GetID() if name == view else None)
            composite.SetForegroundOpacity(0.55 if name == view else 0.0)
            composite.SetLinkedControl(linked)

    def _show_marks(self, places: list[tuple]) -> None:
        if self._marks is None or self._marks.GetScene() is None:
            self._marks = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "FoundationReg probe")
            self._marks.SetHideFromEditors(True)
            self._marks.SetSaveWithScene(False)
            self._marks.SetLocked(True)
            self._marks.CreateDefaultDisplayNodes()
            display = self._marks.GetDisplayNode()
            display.SetGlyphTypeFromString("CrossDot2D")
            display.SetSelectedColor(*MATCH_COLOR)
            display.SetColor(*TRANSFORM_COLOR)
            display.SetTextScale(3.0)
            display.SetGlyphScale(3.0)
            display.SetSliceProjection(True)
        marks = self._marks
        with slicer.util.NodeModify(marks):
            if marks.GetNumberOfControlPoints() != len(places):
                marks.RemoveAllControlPoints()
            for n, (volume, point, name) in enumerate(places):
                world = self.to_world(volume, point).tolist()
                if n < marks.GetNumberOfControlPoints():
                    marks.SetNthControlPointPositionWorld(n, world)
                else:
                    marks.AddControlPointWorld(world, name)
                marks.SetNthControlPointLabel(n, name)
                # Selected ones have the colour of the match.
                marks.SetNthControlPointSelected(n, n == 1)

    def _jump(self, ras: np.ndarray) -> None:
        for name in ("Red", "Yellow"):
            slice_node = slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode()
            slice_node.JumpSliceByOffsetting(*ras.tolist())

    def close(self) -> None:
        """Remove what was added, and put the views back."""
        for node in (self._map, self._marks):
            if node is not None and node.GetScene() is not None:
                extras.remove(node)
        copy, self._copy = self._copy, None
        self._map = self._marks = None
        if not self.shown:
            return
        self.shown = False
        for composite, (background, foreground, opacity, linked, hot) in self._before:
            if composite.GetScene() is None:
                continue
            with slicer.util.NodeModify(composite):
                composite.SetLinkedControl(False)
                composite.SetBackgroundVolumeID(background)
                composite.SetForegroundVolumeID(foreground)
                composite.SetForegroundOpacity(opacity)
                composite.SetLinkedControl(linked)
                composite.SetHotLinkedControl(hot)
        for node, text in self._orientations:
            if node.GetScene() is not None:
                node.SetOrientation(text)
        self._before = []
        if copy is not None:
            copies.remove_copy(copy)
        slicer.app.layoutManager().setLayout(self._layout)


def similarity_colors() -> np.ndarray:
    """RGBA (256, 4) from dark blue over magenta to yellow: 0 to 1."""
    values = np.linspace(0, 1, 256)
    stops = [[0.05, 0.03, 0.3], [0.45, 0.05, 0.6], [0.85, 0.25, 0.45], [0.98, 0.6, 0.15], [0.98, 0.98, 0.45]]
    stops = np.array(stops)
    rgb = np.stack([np.interp(values, np.linspace(0, 1, len(stops)), stops[:, c]) for c in range(3)], -1)
    return np.hstack([rgb, np.ones((256, 1))])
