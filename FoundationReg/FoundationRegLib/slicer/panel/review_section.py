"""The review section of the panel: sliders and boxes that drive `review.Review`."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from ...evaluation.titles import FOLDED_LIMIT_PERCENT
from ..scene import extras, views
from ..scene.choices import DeformationMode, ReviewMode
from ..scene.review import IMAGES, Review, encoders_of, find_owner

REVIEW_PARAMETERS = ("reviewMode", "fade", "checkSize")
DEFORMATION_PARAMETERS = (
    "deformation",
    "deformationSpacing",
    "deformationScale",
    "deformationInSlices",
    "deformationIn3D",
)


# Failure verdicts of the worker that the user must not miss.
_VERDICT_COLORS = {"look": "#c07000", "wrong": "#c00000"}


class ReviewPanel:
    """Connects the review widgets of ``ui`` with the result that the parameters point to."""

    def __init__(self, ui):
        self._ui, self._parameters = ui, None
        self.review: Review | None = None
        self._resume = False  # whether to show the result again when the module is entered again
        self._layouts: tuple[int, int] | None = None  # the user's, and the one that was set instead
        self._shown: tuple = ()
        self._drawn: tuple = ()
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self._flick)
        ui.beforeButton.connect("toggled(bool)", self._onBefore)
        ui.compareComboBox.connect("currentIndexChanged(int)", self._onCompare)
        ui.showTableButton.connect("clicked(bool)", self._onShowTable)
        ui.showPlotButton.connect("clicked(bool)", self._onShowPlot)
        self._enable()

    def setParameters(self, parameters) -> None:
        """Follow another parameter node; None lets go of the scene."""
        resume = parameters is not None and (self._resume or views.are_changed())
        self._parameters = parameters
        self.close()
        self._resume = False
        self.findResult()
        if resume and self.review is not None:
            self.setOwner(self.review.owner, show=True)

    def findResult(self) -> None:
        """Look for a result among the outputs, without changing the views."""
        parameters = self._parameters
        candidates = (parameters.outputTransform, parameters.outputVolume) if parameters is not None else ()
        self.setOwner(find_owner(*candidates))

    def setOwner(self, owner, show: bool = False, fit: bool = False) -> None:
        """Review the result that node ``owner`` holds. ``show``: set the views to it now."""
        if owner is None or self.review is None or self.review.owner is not owner or show:
            self.close()
            self.review = Review(owner) if owner is not None else None
        self._fillCompare()
        self._shown, self._drawn = self._view(), self._drawing()
        self._showQuality()
        self._enable()
        if show and self.review is not None:
            self._show()
            self._draw()
            if fit:
                slicer.util.resetSliceViews()

    def update(self) -> None:
        """The parameters changed: change the views if that concerns them."""
        if self._parameters is None:
            return
        if self.review is not None and not self.review.valid:
            self.findResult()
        if self.review is None:
            self.findResult()
            return
        if self._view() != self._shown:
            self._shown = self._view()
            self._show()
        if self._drawing() != self._drawn:
            self._drawn = self._drawing()
            self._draw()
        self._updateTimer()
        self._enable()

    def refresh(self) -> None:
        """The transform itself was changed: make again what was computed from it."""
        if self.review is None or not self.review.valid:
            return
        if self._parameters.reviewMode in (ReviewMode.FADE, ReviewMode.FLICKER) and self.review.placed:
            return
        self.setOwner(self.review.owner, show=True)

    def showMeasures(self) -> None:
        """What was measured has come: the sentence, and the buttons for table and plot."""
        self._showQuality()
        self._enable()

    def showFeatures(self, encoder: str) -> None:
        """Compare the features of ``encoder``, which have just come."""
        self._fillCompare()
        self._ui.compareComboBox.currentIndex = self._ui.compareComboBox.findData(encoder)
        self.update()

    def suspend(self) -> None:
        """The module is left: give layout and views back what they showed."""
        self._resume = self.review is not None and views.are_changed()
        self.close()
        layouts, self._layouts = self._layouts, None
        manager = slicer.app.layoutManager()
        if layouts is not None and manager.layout == layouts[1]:
            manager.setLayout(layouts[0])

    def showAfter(self) -> None:
        """Show the registered state again."""
        self._ui.beforeButton.checked = False

    def close(self) -> None:
        """Let go of the result."""
        self._timer.stop()
        self.showAfter()
        if self.review is not None:
            self.review.close()
        self.review = None

    def _setLayout(self, layout: int) -> None:
        manager = slicer.app.layoutManager()
        if self._layouts is None or manager.layout != self._layouts[1]:
            self._layouts = (manager.layout, layout)
        else:
            self._layouts = (self._layouts[0], layout)
        manager.setLayout(layout)

    def _view(self) -> tuple:
        if self._parameters is None:
            return ()
        return (*(getattr(self._parameters, name) for name in REVIEW_PARAMETERS), self._compare())

    def _drawing(self) -> tuple:
        return tuple(getattr(self._parameters, name) for name in DEFORMATION_PARAMETERS) if self._parameters else ()

    def _compare(self) -> str:
        return self._ui.compareComboBox.currentData or IMAGES

    def _show(self) -> None:
        self.review.show(*self._view())
        self._updateTimer()

    def _draw(self) -> None:
        self.review.show_deformation(*self._drawing())

    def _updateTimer(self) -> None:
        flickering = self.review is not None and self._parameters.reviewMode == ReviewMode.FLICKER
        if flickering:
            interval = int(500 / max(self._parameters.flickerRate, 0.1))
            if not self._timer.active or self._timer.interval != interval:
                self._timer.start(interval)
        else:
            self._timer.stop()

    def _flick(self) -> None:
        if self.review is not None:
            self.review.flick()

    def _onBefore(self, before: bool) -> None:
        if self.review is not None:
            self.review.set_after(not before)
        self._ui.beforeButton.text = _("Showing before: press again for after") if before else _("Show before")

    def _onCompare(self, _index: int) -> None:
        self.update()

    def _onShowTable(self, _clicked=False) -> None:
        node = self._reference("metrics")
        if node is not None:
            logic = slicer.app.applicationLogic()
            logic.GetSelectionNode().SetActiveTableID(node.GetID())
            self._setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpTableView)
            logic.PropagateTableSelection()

    def _onShowPlot(self, _clicked=False) -> None:
        node = self._reference("lossChart")
        if node is not None:
            logic = slicer.app.applicationLogic()
            logic.GetSelectionNode().SetActivePlotChartID(node.GetID())
            self._setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotView)
            logic.PropagatePlotChartSelection()

    def _reference(self, role: str):
        return extras.find(self.review.owner, role) if self.review is not None else None

    def _fillCompare(self) -> None:
        combo = self._ui.compareComboBox
        wanted = [(_("Images"), IMAGES)]
        for name in encoders_of(self.review.owner) if self.review is not None else []:
            wanted.append((_("Features of {encoder}").format(encoder=name), name))
        if [combo.itemData(n) for n in range(combo.count)] == [data for _text, data in wanted]:
            return
        blocked = combo.blockSignals(True)
        combo.clear()
        for text, data in wanted:
            combo.addItem(text, data)
        combo.blockSignals(blocked)

    def _showQuality(self) -> None:
        label = self._ui.qualityLabel
        if self.review is None:
            label.text = _("Register two volumes to see the result here.")
            return
        sentence = self.review.owner.GetAttribute("FoundationReg.quality") or ""
        color = _VERDICT_COLORS.get(self.review.owner.GetAttribute("FoundationReg.verdict"))
        if color:
            first, dot, rest = sentence.partition(". ")
            sentence = f'<b style="color:{color}">{first}{dot}</b>{rest}'
        folded = float(self.review.owner.GetAttribute("FoundationReg.folded") or 0)
        if folded >= FOLDED_LIMIT_PERCENT:
            warning = _(
                "The deformation folds in {percent:.2g} % of the voxels. There, landmarks and models cannot follow "
                "reliably: raise the smoothness or choose Diffeomorphic under Advanced."
            ).format(percent=folded)
            sentence = f'{sentence}<br/><b style="color:#c04000">{warning}</b>'
        if not self.review.placed:
            hint = _("The moving volume was left where it is; the views show a copy taken through the transform.")
            sentence = f"{sentence}<br/>{hint}"
        label.text = sentence

    def _enable(self) -> None:
        ui, there = self._ui, self.review is not None
        mode = self._parameters.reviewMode if self._parameters is not None else ReviewMode.FADE
        drawn = self._parameters is not None and self._parameters.deformation != DeformationMode.NONE
        transform = there and self.review.transform is not None
        ui.reviewModeComboBox.enabled = ui.compareComboBox.enabled = ui.beforeButton.enabled = there
        ui.fadeSlider.enabled = there and mode in (ReviewMode.FADE, ReviewMode.JACOBIAN, ReviewMode.UNCERTAINTY)
        ui.flickerSlider.enabled = there and mode == ReviewMode.FLICKER
        ui.checkSizeSlider.enabled = there and mode == ReviewMode.CHECKERBOARD
        ui.deformationComboBox.enabled = transform
        for widget in (ui.deformationSpacingSlider, ui.deformationScaleSlider):
            widget.enabled = transform and drawn
        for widget in (ui.deformationSlicesCheckBox, ui.deformation3DCheckBox):
            widget.enabled = transform and drawn
        ui.showTableButton.enabled = self._reference("metrics") is not None
        ui.showPlotButton.enabled = self._reference("lossChart") is not None
