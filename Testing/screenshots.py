"""The pictures of README.md and docs/slicer.md, taken from the module in the workbench with the demo's brains.

    python dev.py screenshots                     # all, into Resources/Screenshots
    python dev.py screenshots --preset fast       # quicker, for a look at the pictures themselves

The fixed volume is an average brain, the moving one is made from its tissue maps (see `FoundationRegLib.app.demo`); the
clicks and choices are those that the pages describe, so that the pictures never show another panel than today's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "FoundationReg")]

import Workbench  # noqa: E402

# Points of the fixed brain, LPS mm: the wall of a ventricle, and a gyrus that is corrected.
PROBED, CORRECTED = (14.0, 20.0, 24.0), (-38.0, 20.0, 40.0)
# Opposite corners of boxes around the lateral ventricles, LPS mm.
VENTRICLES = ((-29.0, -22.0, 2.0), (29.0, 48.0, 30.0))
OTHER_VENTRICLES = ((-28.0, -40.0, -4.0), (24.0, 50.0, 27.0))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python dev.py screenshots", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--output", type=Path, default=ROOT / "Resources" / "Screenshots")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--encoder", default="", help="instead of the preset's")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    bench = Workbench.start(headless=True)
    try:
        Photographer(bench, args.output, args.preset, args.encoder).take_all()
    finally:
        bench.close()
    return 0


class Photographer:
    """Goes through the panel and takes the pictures into ``folder``."""

    def __init__(self, bench, folder: Path, preset: str, encoder: str):
        self.bench, self.folder = bench, folder
        self.widget = bench.load_module(ROOT / "FoundationReg" / "FoundationReg.py")
        self.ui, self.panel = self.widget.ui, self.widget.panel
        self.preset, self.encoder = preset, encoder

    @property
    def parameters(self):
        return self.widget._parameterNode

    def take(self, name: str) -> None:
        self.bench.process_events(0.2)
        self.bench.screenshot(self.folder / f"{name}.png")
        print(self.folder / f"{name}.png", flush=True)

    def take_all(self) -> None:
        self.load()
        self.boxes()
        self.register()
        self.review()
        self.ask()

    def load(self) -> None:
        """The two brains in the views."""
        import slicer

        volumes = [add_volume(*volume) for volume in demo_volumes()]
        self.ui.fixedSelector.setCurrentNode(volumes[0])
        self.ui.movingSelector.setCurrentNode(volumes[1])
        slicer.util.setSliceViewerLayers(*volumes, foregroundOpacity=0.5, fit=True)
        self.take("loaded")
        self.ui.inputsCollapsibleButton.collapsed = True
        self.ui.outputsCollapsibleButton.collapsed = True
        self.ui.guidanceCollapsibleButton.collapsed = False
        self.take("masks")
        self.ui.guidanceCollapsibleButton.collapsed = True
        self.ui.inputsCollapsibleButton.collapsed = False

    def boxes(self) -> None:
        """Boxes around the ventricles, and what MedSAM-Lite finds in them; not without its weights."""
        import slicer
        from FoundationRegLib.slicer.panel.availability import Availability, encoder

        if encoder("medsam-lite").availability != Availability.READY:
            return
        made = []
        for side, low, high in (("fixed", *VENTRICLES), ("moving", *OTHER_VENTRICLES)):
            self.panel.guidance.draw(side)
            made.append(getattr(self.parameters, f"{side}Box"))
            for corner in (low, high):
                made[-1].AddControlPoint(*(value * sign for value, sign in zip(corner, (-1, -1, 1), strict=True)))
        slicer.app.applicationLogic().GetInteractionNode().SwitchToViewTransformMode()
        self.bench.process_events(0.3)
        for button in (self.ui.inputsCollapsibleButton, self.ui.outputsCollapsibleButton):
            button.collapsed = True
        self.ui.guidanceCollapsibleButton.collapsed = False
        self.ui.segmentBoxesButton.click()
        self.bench.wait_until(lambda: not self.panel._busy, 600)
        if self.parameters.fixedBoxMask is None:
            raise SystemExit(self.ui.statusLabel.text)
        made += [self.parameters.fixedBoxMask, self.parameters.movingBoxMask]
        self.compare_sides(made)
        self.take("boxes")
        for node in made:
            slicer.mrmlScene.RemoveNode(node)
        slicer.util.setSliceViewerLayers(
            self.parameters.fixedVolume, self.parameters.movingVolume, foregroundOpacity=0.5, fit=True
        )
        slicer.util.getNode("vtkMRMLSliceNodeYellow").SetOrientationToSagittal()
        self.ui.guidanceCollapsibleButton.collapsed = True
        self.ui.inputsCollapsibleButton.collapsed = False

    def compare_sides(self, made: list) -> None:
        """Axial slices of the fixed volume in the red view and of the moving one in the yellow view, each with its own
        box and segmentation of ``made``."""
        import slicer

        node, manager = self.parameters, slicer.app.layoutManager()
        shown = (("Red", node.fixedVolume, VENTRICLES), ("Yellow", node.movingVolume, OTHER_VENTRICLES))
        for number, (name, volume, corners) in enumerate(shown):
            widget = manager.sliceWidget(name)
            view = slicer.util.getNode(f"vtkMRMLSliceNode{name}")
            view.SetOrientationToAxial()
            composite = widget.mrmlSliceCompositeNode()
            composite.SetBackgroundVolumeID(volume.GetID())
            composite.SetForegroundVolumeID(None)
            widget.sliceLogic().FitSliceToAll()
            view.JumpSliceByOffsetting(*((a + b) / 2 * sign for a, b, sign in zip(*corners, (-1, -1, 1), strict=True)))
            for own in made[number::2]:
                own.GetDisplayNode().AddViewNodeID(view.GetID())

    def register(self) -> None:
        """While it runs, and when it is done."""
        import slicer

        combo = self.ui.presetComboBox
        combo.currentIndex = combo.findData(self.preset)
        if self.encoder:
            self.ui.encoderComboBox.currentIndex = self.ui.encoderComboBox.findData(self.encoder)
        self.parameters.device = "cpu"
        seen = []
        self.panel.run()
        job = self.panel._job
        shown = job._show_preview

        def preview(event) -> None:
            shown(event)
            if event.get("stage") == "refine" and not seen:
                seen.append(event)
                self.take("running")

        job._show_preview = preview
        self.bench.wait_until(lambda: not self.panel._busy, 3600)
        if self.panel.interaction.transform is None:
            raise SystemExit(self.ui.statusLabel.text)
        slicer.util.resetSliceViews()
        self.take("done")

    def review(self) -> None:
        """Checkerboard, Jacobian, grid and features."""
        from FoundationRegLib.slicer.scene.choices import DeformationMode, ReviewMode

        for mode, name in ((ReviewMode.CHECKERBOARD, "checkerboard"), (ReviewMode.JACOBIAN, "jacobian")):
            self.parameters.reviewMode = mode
            self.take(name)
        self.parameters.reviewMode = ReviewMode.FADE
        self.parameters.deformation = DeformationMode.GRID
        self.take("grid")
        self.parameters.deformation = DeformationMode.NONE
        if self.ui.compareComboBox.count > 1:
            self.ui.compareComboBox.currentIndex = 1
            self.take("features")
            self.ui.compareComboBox.currentIndex = 0

    def ask(self) -> None:
        """A probe and a correction."""
        import numpy as np

        section, ui = self.panel.interaction, self.widget.interactionUi
        for button in (self.ui.inputsCollapsibleButton, self.ui.outputsCollapsibleButton):
            button.collapsed = True
        self.ui.reviewCollapsibleButton.collapsed = True
        ui.interactionCollapsibleButton.collapsed = False
        ui.probeButton.checked = True
        world = section.probe.view.to_world(section.session.fixed, PROBED)
        section.probe.ask(tuple(world), "Red")
        self.bench.wait_until(lambda: "best match" in ui.probeLabel.text, 120)
        self.take("probe")
        ui.probeButton.checked = False
        place = np.array(CORRECTED) * (-1, -1, 1)
        section.addPair(tuple(place), tuple(place + np.array((0.0, 5.0, 3.0))))
        self.bench.wait_until(lambda: not section.session.busy, 300)
        jump(place)
        self.take("correction")


def demo_volumes() -> list[tuple]:
    """Name and SimpleITK image of both volumes of the demo."""
    import SimpleITK as sitk
    from FoundationRegLib.app import demo
    from FoundationRegLib.core.progress import Progress

    paths = demo.fetch_data(Progress())
    case = demo.make_case(*(sitk.ReadImage(str(paths[name])) for name in ("t1", "gm", "wm")))
    return [("AverageBrain", case.fixed), ("OtherBrain", case.moving)]


def add_volume(name: str, image):
    """A volume node of a SimpleITK image."""
    import SimpleITK as sitk
    import slicer
    from FoundationRegLib.images.conversion import grid_of
    from FoundationRegLib.slicer.scene import nodes

    return slicer.util.addVolumeFromArray(sitk.GetArrayFromImage(image), nodes.ijk_to_ras(grid_of(image)), name)


def jump(ras) -> None:
    """All slice views to one place."""
    import slicer

    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByOffsetting(*map(float, ras))


if __name__ == "__main__":
    sys.exit(main())
