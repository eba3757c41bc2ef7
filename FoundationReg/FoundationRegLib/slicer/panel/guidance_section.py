"""What guides besides masks, and what names regions: boxes around an organ, their segmentations, an anatomy network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from ...core.constants import SIDES
from ...errors import FoundationRegError
from ..client.box_job import segment_boxes
from ..scene.segmentations import is_prediction
from . import availability, parameters
from .wording import stage_title

COLORS = {"fixed": (0.2, 0.8, 1.0), "moving": (1.0, 0.55, 0.1)}
CHANGE_DELAY_MS = 150
CHOOSE_FILE = "choose file"  # entry of the list of anatomy networks that opens a dialog


class GuidanceSection:
    """Connects the boxes, the anatomy network and the nodes that follow with the parameters.

    ``prepare(then)`` gets what MedSAM-Lite needs and calls ``then``. ``busy`` marks the panel as working, ``say`` shows
    a sentence, ``fail`` an error. ``changed`` is called when a box was changed.
    """

    def __init__(
        self,
        ui,
        channel: Callable,
        prepare: Callable[[Callable[[], None]], None],
        busy: Callable[[bool], None],
        say: Callable[[str], None],
        fail: Callable[[Exception], None],
        changed: Callable[[], None],
    ):
        self._ui, self._channel, self._prepare = ui, channel, prepare
        self._busy, self._say, self._fail, self._changed = busy, say, fail, changed
        self._parameters = None
        self._filling = False
        self._asked: int | None = None  # what the worker knows the segmentation under way by
        self._observed: list[tuple] = []
        self._delay = qt.QTimer()
        self._delay.setSingleShot(True)
        self._delay.setInterval(CHANGE_DELAY_MS)
        self._delay.connect("timeout()", self._takeChange)
        ui.carrySelector.connect("checkedNodesChanged()", self._onCarry)
        ui.segmentBoxesButton.connect("clicked(bool)", self._onSegment)
        ui.anatomyComboBox.connect("currentIndexChanged(int)", self._onAnatomy)
        for side in SIDES:
            draw, selector = getattr(ui, f"{side}BoxDrawButton"), getattr(ui, f"{side}BoxSelector")
            draw.connect("clicked(bool)", lambda _clicked=False, side=side: self.draw(side))
            selector.connect("nodeAddedByUser(vtkMRMLNode*)", lambda node, side=side: self._onAdded(node, side))
        self._fillNetworks()

    def setParameters(self, node) -> None:
        """Follow another parameter node; None when the scene closes."""
        self._delay.stop()
        if node is not self._parameters and self._asked is not None:
            self._channel().process.send("cancel", target=self._asked)
            self.forget()
        self._parameters = node
        self._follow()
        if node is not None:
            self._showCarried()
            self.update()

    def update(self) -> None:
        """The parameters changed."""
        node, ui = self._parameters, self._ui
        if node is None:
            return
        if list(dict.fromkeys(target for target, _tag in self._observed)) != self._boxes():
            self._follow()
        for side in SIDES:
            box, button = getattr(node, f"{side}Box"), getattr(ui, f"{side}BoxDrawButton")
            button.enabled = getattr(node, f"{side}Volume") is not None and not _is_drawn(box)
        ui.segmentBoxesButton.enabled = all(map(_is_drawn, (node.fixedBox, node.movingBox)))
        ui.boxesLabel.text = self._boxesText()
        ui.boxesLabel.visible = bool(ui.boxesLabel.text)
        self._showNetwork()

    #
    # Boxes
    #

    def _boxes(self) -> list:
        node = self._parameters
        return [box for box in (node.fixedBox, node.movingBox) if box is not None] if node is not None else []

    def _follow(self) -> None:
        """Watch the boxes: whether they can be used depends on where they are dragged."""
        for target, tag in self._observed:
            target.RemoveObserver(tag)
        markups = slicer.vtkMRMLMarkupsNode
        events = (vtk.vtkCommand.ModifiedEvent, markups.PointModifiedEvent, markups.PointPositionDefinedEvent)
        self._observed = [
            (box, box.AddObserver(event, self._onBoxModified)) for box in self._boxes() for event in events
        ]

    def _onBoxModified(self, _caller=None, _event=None) -> None:
        self._delay.start()

    def _takeChange(self) -> None:
        if self._parameters is not None:
            self.update()
            self._changed()

    def _boxesText(self) -> str:
        node = self._parameters
        there = [getattr(node, f"{side}Box") or getattr(node, f"{side}BoxMask") for side in SIDES]
        if not any(there):
            return ""
        if not all(there):
            return _("Draw a box around the same organ in both volumes.")
        if node.fixedBoxMask is None and node.movingBoxMask is None:
            return _("Apply segments what the boxes hold, and that guides. Segment first to see and correct it.")
        return _(
            "Look at both segmentations; where one is wrong, correct it in the module Segment Editor. What you drew "
            "guides as it is."
        )

    def _onAdded(self, box, side: str) -> None:
        """A box was created in the list: it belongs to its volume, and is drawn next."""
        self._dress(box, side)
        if getattr(self._parameters, f"{side}Volume") is not None:
            self._place(box, side)

    def _dress(self, box, side: str) -> None:
        volume = getattr(self._parameters, f"{side}Volume")
        parent = volume.GetParentTransformNode() if volume is not None else None
        box.SetAndObserveTransformNodeID(parent.GetID() if parent is not None else None)
        if box.GetDisplayNode() is None:
            box.CreateDefaultDisplayNodes()
        box.GetDisplayNode().SetSelectedColor(*COLORS[side])
        box.GetDisplayNode().SetFillVisibility(False)  # what is in it is to be seen

    def draw(self, side: str) -> None:
        """Let the user click on two opposite corners of the box, which is created when there is none."""
        node = self._parameters
        box = getattr(node, f"{side}Box")
        if box is None:
            name = slicer.mrmlScene.GenerateUniqueName(_("Fixed box") if side == "fixed" else _("Moving box"))
            box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
            self._dress(box, side)
            setattr(node, f"{side}Box", box)
        self._place(box, side)

    def _place(self, box, side: str) -> None:
        logic = slicer.app.applicationLogic()
        selection, interaction = logic.GetSelectionNode(), logic.GetInteractionNode()
        selection.SetReferenceActivePlaceNodeClassName("vtkMRMLMarkupsROINode")
        selection.SetReferenceActivePlaceNodeID(box.GetID())
        interaction.SwitchToSinglePlaceMode()
        volume = getattr(self._parameters, f"{side}Volume")
        text = _("Click on two opposite corners of the box around the organ in {volume}, then drag its faces.")
        self._say(text.format(volume=volume.GetName()))

    #
    # Segmenting
    #

    def _onSegment(self, _clicked=False) -> None:
        node = self._parameters
        masks = [mask for mask in (node.fixedBoxMask, node.movingBoxMask) if mask is not None]
        changed = [mask.GetName() for mask in masks if not is_prediction(mask)]
        if changed:
            text = _("Take new segmentations instead of {names}, which you drew or corrected? They stay in the scene.")
            if not slicer.util.confirmYesNoDisplay(text.format(names=", ".join(changed))):
                return
        self._prepare(self.segment)

    def segment(self) -> None:
        """Ask the worker what the boxes hold."""
        node = self._parameters
        try:
            request = parameters.request_of(node)
            for side in SIDES:
                if not is_prediction(getattr(node, f"{side}BoxMask")):
                    setattr(request, f"{side}_box_mask", None)
            self._busy(True)
            self._say(_("Sending the volumes..."))
            self._asked = segment_boxes(
                self._channel(), request, self._answered, self._showProgress, lambda number: number == self._asked
            )
        except FoundationRegError as error:
            self._busy(False)
            self._fail(error)

    def _showProgress(self, event: dict) -> None:
        self._ui.progressBar.value = round(1000 * event.get("fraction", 0))
        self._say(stage_title(event.get("stage", "")))

    def forget(self) -> None:
        """The worker was ended, or nobody wants its answer any more."""
        if self._asked is not None:
            self._asked = None
            self._busy(False)

    def _answered(self, _number: int, found: dict | Exception) -> None:
        self.forget()
        if isinstance(found, Exception):
            self._fail(found)
        elif self._parameters is not None:
            self.takeMasks(found["nodes"])
            looked = _("Look at what was found in the boxes, correct it where needed, and press Apply.")
            self._say(" ".join([looked, *found["notes"]]))
        self._changed()

    def takeMasks(self, masks: dict) -> None:
        """Choose the segmentations of what was predicted in the boxes, by side, and make them distinguishable."""
        for side, mask in masks.items():
            segmentation = mask.GetSegmentation()
            for segment_id in segmentation.GetSegmentIDs():
                segmentation.GetSegment(segment_id).SetColor(*COLORS[side])
            mask.GetDisplayNode().SetOpacity2DFill(0.25)
            setattr(self._parameters, f"{side}BoxMask", mask)

    #
    # Anatomy network
    #

    def _fillNetworks(self) -> None:
        combo = self._ui.anatomyComboBox
        blocked = combo.blockSignals(True)
        combo.clear()
        combo.addItem(_("None"), "")
        for network in availability.networks():
            combo.addItem(network.title, network.id)
            if network.suits:
                combo.setItemData(combo.count - 1, network.suits, qt.Qt.ToolTipRole)
        combo.addItem(_("Your own network..."), CHOOSE_FILE)
        combo.blockSignals(blocked)

    def _showNetwork(self) -> None:
        combo, name = self._ui.anatomyComboBox, self._parameters.anatomy
        blocked = combo.blockSignals(True)
        if name and combo.findData(name) < 0:
            combo.insertItem(combo.findData(CHOOSE_FILE), Path(name).stem, name)
            combo.setItemData(combo.findData(name), name, qt.Qt.ToolTipRole)
        combo.currentIndex = combo.findData(name)
        combo.blockSignals(blocked)

    def _onAnatomy(self, index: int) -> None:
        node, name = self._parameters, self._ui.anatomyComboBox.itemData(index)
        if node is None or self._filling:
            return
        if name == CHOOSE_FILE:
            title = _("Description of your own anatomy network")
            name = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, "", "JSON (*.json)")
        if name or index == 0:
            node.anatomy = name
        self._showNetwork()

    #
    # What follows
    #

    def carried(self) -> tuple:
        """The nodes that shall follow the moving volume."""
        nodes = self._parameters.carried if self._parameters is not None else []
        return tuple(node for node in nodes if node is not None)

    def _onCarry(self) -> None:
        if self._parameters is not None and not self._filling:
            self._parameters.carried = list(self._ui.carrySelector.checkedNodes())

    def _showCarried(self) -> None:
        self._filling = True
        wanted, selector = self.carried(), self._ui.carrySelector
        for index in range(selector.nodeCount()):
            node = selector.nodeFromIndex(index)
            selector.setCheckState(node, qt.Qt.Checked if node in wanted else qt.Qt.Unchecked)
        self._filling = False


def _is_drawn(box) -> bool:
    return box is not None and any(box.GetSize())
