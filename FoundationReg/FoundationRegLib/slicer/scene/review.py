"""Judging a registration in the slice and 3-D views: fade, flicker, checkerboard, difference, deformation, features."""

from __future__ import annotations

import numpy as np
import slicer

from . import copies, extras, nodes, results, views
from .choices import DeformationMode, ReviewMode

IMAGES = ""  # what to compare: the volumes themselves, or the features of an encoder by its id


def encoders_of(owner) -> list[str]:
    """Ids of the encoders whose features were kept with the result ``owner``."""
    text = owner.GetAttribute(results.ENCODERS_ATTRIBUTE) if owner is not None else None
    names = [name for name in (text or "").split(";") if name]
    return [name for name in names if extras.find(owner, f"features.{name}.fixed") is not None]


def find_owner(*candidates):
    """The first of the nodes that holds the result of a registration whose volumes are still there."""
    for node in candidates:
        if node is not None and all(node.GetNodeReference(results.ROLE + side) for side in ("fixed", "moving")):
            return node
    return None


class Review:
    """Shows one result in all slice views. ``owner`` is its transform node, or its volume if there is no transform."""

    def __init__(self, owner):
        self.owner = owner
        self.fixed = owner.GetNodeReference(results.ROLE + "fixed")
        self.moving = owner.GetNodeReference(results.ROLE + "moving")
        self.transform = owner if owner.IsA("vtkMRMLTransformNode") else None
        self.warped = owner.GetNodeReference(results.ROLE + "warped") if self.transform else owner
        self.after = True
        self._copies: dict = {}  # node under the transform -> how it lay before
        self._switched_off: list = []
        self._resampled: dict[bool, np.ndarray] = {}
        self._overlay_indices: tuple | None = None
        self._shown = (ReviewMode.FADE, 0.5, 20.0, IMAGES)
        self._flicked = False

    @property
    def placed(self) -> bool:
        """Whether the scene itself shows the result: the moving volume under the transform, or a warped volume."""
        return self.warped is not None or self.moving.GetParentTransformNode() is self.transform

    @property
    def valid(self) -> bool:
        """Whether all that is shown is still in the scene."""
        return all(node is not None and node.GetScene() is not None for node in (self.owner, self.fixed, self.moving))

    def set_after(self, after: bool) -> None:
        """Show the moving side as registered, or as it lay before, with everything under the transform.

        No node is moved for that: of each that can be seen an unsaved copy is shown under the initial transform.
        """
        if after == self.after or not self.valid:
            return
        self.after = after
        if not after:
            self._copy_followers()
        self.show(*self._shown)
        if after:
            self._remove_copies()

    def _copy_followers(self) -> None:
        if self.transform is None:
            return
        initial = self.transform.GetNodeReference(results.INITIAL_ROLE)
        for node in list(slicer.util.getNodesByClass("vtkMRMLDisplayableNode")):
            if node.GetParentTransformNode() is not self.transform:
                continue
            if node.IsA("vtkMRMLVolumeNode"):
                if node is self.moving:
                    self._copies[node] = copies.hidden_copy(node, initial, "before")
            elif visible := [display for display in copies.display_nodes(node) if display.GetVisibility()]:
                self._copies[node] = copies.hidden_copy(node, initial, "before")
                self._switched_off += [display for display in visible if views.switch_off(display)]

    def _remove_copies(self) -> None:
        switched_off, self._switched_off = self._switched_off, []
        for display in switched_off:
            if display.GetScene() is not None:
                views.show_again(display)
        made, self._copies = self._copies, {}
        for copy in made.values():
            copies.remove_copy(copy)

    def show(self, mode: ReviewMode, fade: float = 0.5, check_mm: float = 20.0, compare: str = IMAGES) -> None:
        """Set all slice views to ``mode``. ``fade``: 0 shows the fixed, 1 the moving side. ``compare``: `IMAGES` or an
        encoder's id. ``check_mm``: size of a field of the checkerboard."""
        if not self.valid:
            return
        self._shown = (mode, fade, check_mm, compare)
        fixed, moving = self._sides(compare)
        foreground, opacity = None, 0.0
        if mode == ReviewMode.JACOBIAN and self.transform is not None and (node := self.jacobian_node()):
            background = self._overlaid(node, results.jacobian_colors(np.linspace(*results.JACOBIAN_RANGE, 256)), fade)
        elif mode == ReviewMode.UNCERTAINTY and (node := extras.find(self.owner, "uncertainty")):
            background = self._overlaid(node, results.uncertainty_colors(np.linspace(0, 1, 256)), fade)
        elif mode == ReviewMode.CHECKERBOARD:
            background = self._composed("checkerboard", compare, check_mm)
        elif mode == ReviewMode.DIFFERENCE:
            background = self._composed("difference", compare, check_mm)
        else:
            background, foreground = fixed, moving
            opacity = float(self._flicked) if mode == ReviewMode.FLICKER else fade
        saved = background.GetSaveWithScene() and (foreground is None or foreground.GetSaveWithScene())
        views.set_layers(background, foreground, opacity, None if saved else (self.fixed, self.warped or self.moving))

    def flick(self) -> None:
        """Change sides; called by a timer."""
        if self._shown[0] == ReviewMode.FLICKER and self.valid:
            self._flicked = not self._flicked
            views.set_opacity(float(self._flicked))

    def close(self) -> None:
        """Give the views back what they showed before; what was only made to be looked at is removed."""
        self.after = True
        views.put_back()
        self._remove_copies()
        for kind in ("checkerboard", "difference", "overlay", "shown", "jacobian"):
            node = extras.find(self.owner, kind)
            if node is not None and not node.GetSaveWithScene():
                extras.remove(node)

    def jacobian_node(self):
        """The Jacobian volume of the transform; computed when it is not in the scene."""
        node = extras.find(self.owner, "jacobian")
        if node is None and (grid := results.read_grid(self.transform)) is not None:
            name = f"{self.owner.GetName()} Jacobian"
            node = extras.make(self.owner, "jacobian", "vtkMRMLScalarVolumeNode", name, saved=False)
            determinant = results.jacobian_determinant(*grid)
            results.set_jacobian(node, determinant, grid[1], self.fixed.GetParentTransformNode())
        return node

    def _sides(self, compare: str) -> tuple:
        if compare != IMAGES:
            pair = tuple(extras.find(self.owner, f"features.{compare}.{side}") for side in ("fixed", "moving"))
            if all(pair):
                return pair
        return self.fixed, self._moving_node()

    def _moving_node(self):
        """What stands for the moving side: itself where it lies, or warped when it does not lie under the transform."""
        lies_there = self.transform is not None and self.moving.GetParentTransformNode() is self.transform
        if not self.after:
            return self._copies.get(self.moving, self.moving)
        if lies_there:
            return self.moving
        return self.warped or self._warped_for_review()

    def _warped_for_review(self):
        """The moving volume through the transform, on the fixed grid; made once."""
        node = extras.find(self.owner, "shown")
        if node is None:
            chain = nodes.chain_between(self.fixed.GetParentTransformNode(), self.transform)
            background = float(nodes.volume_array(self.moving).min())
            array = nodes.resample(self.moving, self.fixed, chain, background=background)
            name = f"{self.moving.GetName()}, registered"
            node = extras.make(self.owner, "shown", "vtkMRMLScalarVolumeNode", name, saved=False)
            results.set_warped_volume(node, array, nodes.volume_grid(self.fixed), self.fixed, self.moving)
        return node

    def _composed(self, kind: str, compare: str, check_mm: float):
        """The checkerboard or difference of both sides as a volume on the fixed (or the features') grid."""
        fixed, moving = self._sides(compare)
        if fixed is self.fixed:
            if self.after not in self._resampled:
                background = float(nodes.volume_array(self._moving_node()).min())
                self._resampled[self.after] = nodes.resample(self._moving_node(), fixed, background=background)
            second = normalized(self._resampled[self.after], moving)
        else:
            second = nodes.volume_array(moving)
        first = normalized(nodes.volume_array(fixed), fixed) if fixed is self.fixed else nodes.volume_array(fixed)
        color = first.ndim == 4
        class_name = "vtkMRMLVectorVolumeNode" if color and kind == "checkerboard" else "vtkMRMLScalarVolumeNode"
        node = extras.make(self.owner, kind, class_name, f"{self.owner.GetName()} {kind}", saved=False)
        grid, parent = nodes.volume_grid(fixed), self.fixed.GetParentTransformNode()
        if kind == "checkerboard":
            results.fill_volume(node, checkerboard(first, second, grid.spacing, check_mm), grid, parent)
            node.GetDisplayNode().SetAutoWindowLevel(False)
            node.GetDisplayNode().SetWindowLevel(255, 127.5)
        else:
            difference = first.astype(np.int16) - second
            if color:
                difference = np.linalg.norm(difference, axis=-1).astype(np.int16)
            results.fill_volume(node, difference, grid, parent)
            show_difference(node)
        return node

    def _overlaid(self, values, rgba: np.ndarray, strength: float):
        """The fixed volume with the volume node ``values`` over it in the colours ``rgba`` (256, 4) of its window."""
        if self._overlay_indices is None or self._overlay_indices[0] is not values:
            self._overlay_indices = values, normalized(nodes.resample(values, self.fixed), values)
        grey = np.arange(256)[None, :, None]
        alpha = rgba[:, None, 3:] * strength
        table = np.rint(grey * (1 - alpha) + 255 * rgba[:, None, :3] * alpha).astype(np.uint8)
        fixed = normalized(nodes.volume_array(self.fixed), self.fixed)
        name = f"{self.owner.GetName()} overlay"
        node = extras.make(self.owner, "overlay", "vtkMRMLVectorVolumeNode", name, saved=False)
        parent = self.fixed.GetParentTransformNode()
        results.set_features(node, table[self._overlay_indices[1], fixed], nodes.volume_grid(self.fixed), parent)
        return node

    def show_deformation(
        self, how: DeformationMode, spacing_mm: float, scale_percent: float, in_slices: bool = True, in_3d: bool = False
    ) -> None:
        """Draw the transform. It shows where the moving anatomy goes, magnified by ``scale_percent`` / 100.

        ``spacing_mm``: distance between lines or arrows; for contours the step from one level to the next.
        """
        if self.transform is None or not self.valid:
            return
        if self.transform.GetDisplayNode() is None:
            self.transform.CreateDefaultDisplayNodes()
        display = self.transform.GetDisplayNode()
        shown = how != DeformationMode.NONE
        with slicer.util.NodeModify(display):
            if how == DeformationMode.GRID:
                display.SetVisualizationMode(display.VIS_MODE_GRID)
                display.SetGridSpacingMm(spacing_mm)
                display.SetGridResolutionMm(max(spacing_mm / 5, 1.0))
                display.SetGridScalePercent(scale_percent)
            elif how == DeformationMode.ARROWS:
                display.SetVisualizationMode(display.VIS_MODE_GLYPH)
                display.SetGlyphType(display.GLYPH_TYPE_ARROW)
                display.SetGlyphSpacingMm(spacing_mm)
                display.SetGlyphScalePercent(scale_percent)
            elif how == DeformationMode.CONTOURS:
                display.SetVisualizationMode(display.VIS_MODE_CONTOUR)
                levels = " ".join(f"{spacing_mm * n:g}" for n in range(1, 11))
                display.SetContourLevelsMmFromString(levels)
                display.SetContourResolutionMm(2.0)
                display.SetContourOpacity(1.0 if in_3d else 0.8)
            # Without a region the 3-D view shows nothing.
            display.SetAndObserveRegionNode(self.fixed)
            display.SetVisibility(shown and (in_slices or in_3d))
            display.SetVisibility2D(shown and in_slices)
            display.SetVisibility3D(shown and in_3d)


def normalized(array: np.ndarray, node) -> np.ndarray:
    """Grey values as ``node`` shows them: its window becomes 0 to 255, uint8."""
    display = node.GetDisplayNode()
    if display is not None and display.IsA("vtkMRMLScalarVolumeDisplayNode"):
        low = display.GetLevel() - display.GetWindow() / 2
        high = display.GetLevel() + display.GetWindow() / 2
    else:
        low, high = np.percentile(array[:: max(1, array.shape[0] // 32)], (1, 99))
    scale = 255.0 / max(high - low, 1e-6)
    return np.clip((array.astype(np.float32) - low) * scale, 0, 255).astype(np.uint8)


def checkerboard(first: np.ndarray, second: np.ndarray, spacing, size_mm: float) -> np.ndarray:
    """Cubes of ``size_mm`` (z, y, x spacing in mm) that alternate between the two arrays (z, y, x[, colours])."""
    planes = np.ogrid[tuple(slice(n) for n in first.shape[:3])]
    parity = sum((plane * step / size_mm).astype(np.int32) for plane, step in zip(planes, spacing, strict=True)) % 2
    return np.where(parity[..., None] if first.ndim == 4 else parity, second, first)


def show_difference(node) -> None:
    """Colours from blue (the moving side is brighter) over black (equal) to orange (the fixed side is brighter)."""
    values = np.linspace(-1, 1, 256)[:, None]
    rgb = np.abs(values) * np.where(values < 0, [0.25, 0.55, 1.0], [1.0, 0.55, 0.1])
    results.set_colors(node, "FoundationReg difference colors", np.hstack([rgb, np.ones((256, 1))]))
    display = node.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(510, 0)
