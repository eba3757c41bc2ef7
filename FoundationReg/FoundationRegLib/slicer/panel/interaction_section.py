"""The section *Ask and correct*: probe the encoders, correct by pairs of points, refine a region."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from ...errors import Cancelled
from ..client.session import Session
from ..scene import nodes, results
from ..scene.landmark_pairs import LandmarkPairs, PairState, follow, make_list
from ..scene.regions import box_of
from ..scene.review import find_owner
from .pairs_table import PairsTable
from .placing import PointPlacer
from .probe_section import ProbeSection
from .space_section import SpaceSection

MEASURE_DELAY_MS = 1500
CHANGE_DELAY_MS = 150
FIXED_COLOR, MOVING_COLOR = (0.2, 0.8, 1.0), (1.0, 0.55, 0.1)
CHANGES = ("PointModifiedEvent", "PointEndInteractionEvent", "PointRemovedEvent", "PointPositionDefinedEvent",
           "PointPositionUndefinedEvent")  # fmt: skip


class InteractionSection:
    """Connects the widgets ``ui`` of the section with the session of the last run.

    ``say`` shows a sentence below the progress bar. ``encode_again`` starts the registration anew. ``changed`` is
    called when the transform was changed, ``measured`` with new metrics.
    """

    def __init__(
        self,
        ui,
        say: Callable[[str], None],
        encode_again: Callable[[], None],
        changed: Callable[[], None],
        measured: Callable[[dict], None],
    ):
        self._ui, self._say, self._encode_again = ui, say, encode_again
        self._changed, self._measured = changed, measured
        self._parameters = None
        self._owner = None
        self.session: Session | None = None
        self.pairs: LandmarkPairs | None = None
        self._placer = PointPlacer()
        self._observed: list[tuple] = []
        self._past: list[tuple[tuple[PairState, ...], int]] = []
        self._future: list[tuple[tuple[PairState, ...], int]] = []
        self._known: tuple[PairState, ...] = ()
        self._regions = 0
        self._good = None
        self._filling = False
        self._fits: list[tuple[float, str]] = []
        self._first_click = None
        self._delay = _single_shot(CHANGE_DELAY_MS, self._takeChange)
        self._measure = _single_shot(MEASURE_DELAY_MS, self._askMeasures)
        self.probe = ProbeSection(ui, lambda: self.session if self.ready else None, self.update)
        self._table = PairsTable(ui.pairsTable, self._onSwitched)
        self.space = SpaceSection(ui, lambda: self.transform, say)
        self._connect()
        self.update()

    def _connect(self) -> None:
        ui = self._ui
        ui.encodeAgainButton.connect("clicked(bool)", lambda _clicked=False: self._encode_again())
        ui.addPairButton.connect("toggled(bool)", self._onAddPair)
        ui.pinButton.connect("toggled(bool)", self._onPin)
        ui.undoButton.connect("clicked(bool)", lambda _clicked=False: self.undo())
        ui.redoButton.connect("clicked(bool)", lambda _clicked=False: self.redo())
        ui.removePairButton.connect("clicked(bool)", self._onRemove)
        ui.refineHereButton.connect("clicked(bool)", self._onRefine)

    #
    # What there is to work with
    #

    def setParameters(self, parameters) -> None:
        """Follow another parameter node; None lets go of the scene."""
        self.leave()
        self._parameters = parameters
        self._findOwner()
        self._past, self._future = [], []
        self._follow()
        self.update()

    def _findOwner(self) -> bool:
        """Look for the result that the parameters name; whether it is another one than before."""
        node = self._parameters
        owner = find_owner(node.outputTransform, node.outputVolume) if node is not None else None
        if owner is self._owner:
            return False
        self._owner, self.session = owner, None
        return True

    def setResult(self, session: Session | None, owner) -> None:
        """A run put its transform into ``owner``; ``session`` asks the worker about it. Pairs are obeyed again."""
        self.session, self._owner, self._good, self._regions = session, owner, None, 0
        self._ui.probeButton.checked = False
        self.space.refresh()
        self._follow()
        self.update()
        if self.pairs is not None and self.pairs.complete() and self._parameters.guideWithLandmarks:
            self._correct()

    @property
    def transform(self):
        """The transform node that corrections change."""
        owner = self._owner
        return owner if owner is not None and owner.IsA("vtkMRMLTransformNode") and owner.GetScene() else None

    @property
    def ready(self) -> bool:
        """Whether the worker still has what corrections need."""
        node, session = self._parameters, self.session
        if session is None or node is None or not session.alive or self.transform is None:
            return False
        return session.fixed is node.fixedVolume and session.moving is node.movingVolume

    def leave(self) -> None:
        """Stop placing and probing; the views are as before."""
        self._delay.stop()
        self._measure.stop()
        self._placer.stop()
        self.space.leave()
        for button in (self._ui.probeButton, self._ui.addPairButton, self._ui.pinButton):
            button.checked = False

    def _follow(self) -> None:
        """Watch the lists of landmarks that the parameters name."""
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed, self.pairs = [], None
        node = self._parameters
        lists = (node.fixedLandmarks, node.movingLandmarks) if node is not None else (None, None)
        if all(lists) and node.fixedVolume and node.movingVolume and node.guideWithLandmarks:
            self.pairs = LandmarkPairs(*lists, node.fixedVolume, node.movingVolume)
            for markups in lists:
                for name in CHANGES:
                    event = getattr(slicer.vtkMRMLMarkupsNode, name)
                    self._observed.append((markups, markups.AddObserver(event, self._onPointChanged)))
            self._known = self.pairs.states()
        else:
            self._known = ()

    def followParameters(self) -> None:
        """The parameters changed: other lists may have been chosen."""
        node = self._parameters
        if node is None:
            return
        lists = (node.fixedLandmarks, node.movingLandmarks) if node.guideWithLandmarks else (None, None)
        ours = (self.pairs.fixed_list, self.pairs.moving_list) if self.pairs is not None else (None, None)
        if lists != ours:
            self._follow()
        if self._findOwner() or lists != ours:
            self.update()

    def update(self) -> None:
        """Bring the widgets up to date."""
        ui, ready = self._ui, self.ready
        if self.transform is None:
            ui.memoryLabel.text = _("Register two volumes first.")
        elif ready:
            ui.memoryLabel.text = _("The features of the last run are in memory.")
        else:
            ui.memoryLabel.text = _(
                "The features of this result are no longer in memory. Encode again to ask or correct."
            )
        ui.encodeAgainButton.visible = self.transform is not None and not ready
        for widget in (ui.probeButton, ui.addPairButton, ui.pinButton):
            widget.enabled = ready
        ui.probeEncoderComboBox.enabled = ready
        ui.undoButton.enabled, ui.redoButton.enabled = ready and bool(self._past), ready and bool(self._future)
        ui.refineHereButton.enabled = ready
        self.space.update()
        self.probe.fillEncoders(self._owner if self.transform is not None else None)
        self._table.fill(self._known, self._fits)
        ui.removePairButton.enabled = bool(self._known)

    #
    # Pairs
    #

    def ensurePairs(self) -> LandmarkPairs:
        """The lists of the pairs, made when there are none; they guide from then on."""
        node = self._parameters
        if self.pairs is None or not self.pairs.valid:
            measuring = not node.guideWithLandmarks and any(
                markups is not None and markups.GetNumberOfControlPoints()
                for markups in (node.fixedLandmarks, node.movingLandmarks)
            )
            if measuring or not (node.fixedLandmarks and node.movingLandmarks):
                node.fixedLandmarks = make_list(_("Corrections, fixed"), node.fixedVolume, FIXED_COLOR)
                node.movingLandmarks = make_list(_("Corrections, moving"), node.movingVolume, MOVING_COLOR)
            node.guideWithLandmarks = True
            self._follow()
        follow(self.pairs.fixed_list, node.fixedVolume)
        follow(self.pairs.moving_list, node.movingVolume)
        return self.pairs

    def _onAddPair(self, wanted: bool) -> None:
        self._first_click = None
        if not wanted or not self.ready:
            self._placer.stop()
            return
        self._ui.probeButton.checked = self._ui.pinButton.checked = False
        self.ensurePairs()
        self._say(_("Click on a place of the moving volume, then where it belongs."))
        self._placer.watch(self._placed, clicks_only=True)

    def _placed(self, ras, _view: str) -> None:
        if self._first_click is None:
            self._first_click = ras
            self._say(_("Now click where it belongs."))
            return
        first, self._first_click = self._first_click, None
        self._ui.addPairButton.checked = False
        self.addPair(ras, first)

    def _onPin(self, wanted: bool) -> None:
        if not wanted or not self.ready:
            self._placer.stop()
            return
        self._ui.probeButton.checked = self._ui.addPairButton.checked = False
        self.ensurePairs()
        self._say(_("Click on a place of the moving volume, then drag its point to where it belongs."))

        def placed(ras, _view: str) -> None:
            self._ui.pinButton.checked = False
            self.addPair(ras, ras)

        self._placer.watch(placed, clicks_only=True)

    def addPair(self, fixed_world, moving_world) -> None:
        """What is shown at ``moving_world`` belongs to ``fixed_world``; both RAS in the scene."""
        pairs = self.ensurePairs()
        pairs.add(fixed_world, self._moving_place(moving_world))
        self._takeChange()

    def _moving_place(self, shown):
        """Where the list of moving points has the place of the moving volume that is ``shown`` at a RAS point."""
        session = self.session
        parent = session.moving.GetParentTransformNode()
        if parent is session.transform:
            return shown
        # A copy through the transform is shown; the volume itself lies elsewhere.
        chains = (nodes.chain_between(None, session.transform), nodes.chain_between(parent, None))
        point = np.reshape(shown, (1, 3))
        for chain in chains:
            point = nodes.transform_points(chain, point)
        return point[0]

    def _onRemove(self, _clicked=False) -> None:
        rows = self._table.chosen()
        if self.pairs is None or not rows:
            return
        for row in rows:
            self.pairs.remove(row)
        self._takeChange()

    def _onSwitched(self, row: int, active: bool) -> None:
        if self.pairs is not None and row < self.pairs.complete() and active != self.pairs.states()[row].active:
            self.pairs.set_active(row, active)
            self._takeChange()

    def _onPointChanged(self, _caller=None, _event=None) -> None:
        if not self._filling:
            self._delay.start()

    def _takeChange(self) -> None:
        """The pairs are not what they were: remember how they were, and correct."""
        self._delay.stop()
        if self.pairs is None or not self.pairs.valid:
            self._follow()
            self.update()
            return
        states = self.pairs.states()
        if states == self._known:
            return
        self._past.append((self._known, self._regions))
        self._future = []
        self._known = states
        self._correct()

    def undo(self) -> None:
        """Back to the pairs of before the last change."""
        self._step(self._past, self._future)

    def redo(self) -> None:
        """The last change again that was taken back."""
        self._step(self._future, self._past)

    def _step(self, source: list, target: list) -> None:
        if not source or (self.pairs is not None and not self.pairs.valid):
            return
        target.append((self._known, self._regions))
        self._known, self._regions = source.pop()
        self._filling = True
        try:
            if self.pairs is not None:
                self.pairs.restore(self._known)
        finally:
            self._filling = False
        self._delay.stop()
        self._correct()

    #
    # Correcting
    #

    def _correct(self) -> None:
        self._fits = []
        self.update()
        if not self.ready:
            self._say(_("The pairs are kept; encode again to make the transform obey them."))
            return
        self._begin()
        pairs = self.pairs.for_worker() if self.pairs is not None else []
        self.session.correct(pairs, self._regions, self._show, self._answered)

    def _onRefine(self, _clicked=False) -> None:
        region = self._ui.regionSelector.currentNode()
        if region is None or not self.ready:
            self._say(_("Choose or create a region of interest first."))
            return
        self._past.append((self._known, self._regions))
        self._future = []
        self._begin()
        self.session.refine(box_of(region, self.session.fixed), self._show, self._answered)

    def _begin(self) -> None:
        if self._good is None:
            self._good = self.transform.GetTransformFromParent()
        self._measure.stop()
        self._say(_("Correcting..."))

    def _show(self, event: dict) -> None:
        """A transform from the worker: the first answer, or the full one."""
        if self.transform is None:
            return
        results.set_transform(self.transform, *event["transform"], self.session.fixed, self.session.moving)
        self._regions = event.get("regions", self._regions)
        notes = [" ".join(filter(None, said)) for said in zip(event["conflicts"], event["remarks"], strict=True)]
        self._fits = list(zip(event["residuals"], notes, strict=True))
        self._table.fill(self._known, self._fits)
        self.space.refresh()
        if self.probe.view is None:
            self._changed()

    def _answered(self, event: dict | Exception) -> None:
        if isinstance(event, Exception):
            if self._good is not None and self.transform is not None:
                self.transform.SetAndObserveTransformFromParent(self._good)
                self._changed()
            if not isinstance(event, Cancelled):
                self._say(str(event))
        else:
            self._show(event)
            doubtful = sum(map(bool, event["conflicts"]))
            text = _("Corrected; doubtful pairs: {count}, see the notes.") if doubtful else _("Corrected.")
            self._say(text.format(count=doubtful))
            self._measure.start()
        self._good = None
        self.update()

    def _askMeasures(self) -> None:
        if not self.ready or self.session.busy:
            return

        def answer(found: dict | Exception) -> None:
            if not isinstance(found, Exception) and self.transform is not None:
                self._measured(found)

        self.session.measure(answer)


def _single_shot(milliseconds: int, call: Callable[[], None]):
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.connect("timeout()", call)
    return timer
