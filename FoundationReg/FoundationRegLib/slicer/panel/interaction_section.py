"""The section *Ask and correct*: probe the encoders, correct by pairs of points, refine a region."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer
from slicer.i18n import tr as _

from ...errors import Cancelled, FoundationRegError
from ..client.session import Session
from ..scene import results
from ..scene.landmark_pairs import LandmarkPairs, PairState, follow, make_list
from ..scene.probe_view import ProbeView
from ..scene.review import find_owner
from .placing import PointPlacer

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
        self.probe_view: ProbeView | None = None
        self._placer = PointPlacer()
        self._observed: list[tuple] = []
        self._past: list[tuple[PairState, ...]] = []
        self._future: list[tuple[PairState, ...]] = []
        self._known: tuple[PairState, ...] = ()
        self._good = None
        self._filling = False
        self._fits: list[tuple[float, str]] = []
        self._first_click = None
        self._delay = _single_shot(CHANGE_DELAY_MS, self._takeChange)
        self._measure = _single_shot(MEASURE_DELAY_MS, self._askMeasures)
        self._connect()
        self._prepareTable()
        self.update()

    def _connect(self) -> None:
        ui = self._ui
        ui.encodeAgainButton.connect("clicked(bool)", lambda _clicked=False: self._encode_again())
        ui.probeButton.connect("toggled(bool)", self._onProbe)
        ui.probeEncoderComboBox.connect("currentIndexChanged(int)", lambda _index: self._askAgain())
        ui.addPairButton.connect("toggled(bool)", self._onAddPair)
        ui.pinButton.connect("toggled(bool)", self._onPin)
        ui.undoButton.connect("clicked(bool)", lambda _clicked=False: self.undo())
        ui.redoButton.connect("clicked(bool)", lambda _clicked=False: self.redo())
        ui.removePairButton.connect("clicked(bool)", self._onRemove)
        ui.pairsTable.connect("cellChanged(int,int)", self._onCell)
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
        self.session, self._owner, self._good = session, owner, None
        if self.probe_view is not None:
            self._ui.probeButton.checked = False
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
        self._fillEncoders()
        self._fillTable()

    #
    # Probe
    #

    def _fillEncoders(self) -> None:
        combo = self._ui.probeEncoderComboBox
        names = [name for name, _weight in self._encoders()]
        names = list(dict.fromkeys([*names, "mind"])) if self.transform is not None else []
        if [combo.itemData(n) for n in range(combo.count)] != names:
            blocked = combo.blockSignals(True)
            combo.clear()
            for name in names:
                combo.addItem(name, name)
            combo.blockSignals(blocked)

    def _encoders(self) -> list:
        import json

        record = self._owner.GetAttribute("FoundationReg.record") if self._owner is not None else None
        settings = (json.loads(record) if record else {}).get("settings") or {}
        return settings.get("encoders") or []

    def _onProbe(self, wanted: bool) -> None:
        if wanted and self.ready:
            self._ui.addPairButton.checked = self._ui.pinButton.checked = False
            self.probe_view = ProbeView(self.session.fixed, self.session.moving)
            self.probe_view.open()
            self._asked = None
            self._placer.watch(self.probe)
            self._ui.probeLabel.text = _("Click in either view, or move the crosshair with Shift.")
        elif self.probe_view is not None:
            self._placer.stop()
            self.probe_view.close()
            self.probe_view = None
            self._ui.probeLabel.text = ""

    def probe(self, ras, view: str) -> None:
        """Ask the encoder chosen about the place ``ras`` of the scene in the volume that ``view`` shows."""
        if self.probe_view is None or self.session is None:
            return
        side = self.probe_view.side_of(view)
        volume = self.session.fixed if side == "fixed" else self.session.moving
        self._asked = ras, view
        point = self.probe_view.to_local(volume, ras)
        encoder = self._ui.probeEncoderComboBox.currentData

        def answer(found: dict | Exception) -> None:
            if isinstance(found, Exception):
                self._ui.probeLabel.text = str(found)
                self.update()
            elif self.probe_view is not None:
                self.probe_view.show(found, point)
                self._ui.probeLabel.text = probe_text(found)

        self.session.probe(point, side, encoder, answer)

    def _askAgain(self) -> None:
        if self.probe_view is not None and self._asked is not None:
            self.probe(*self._asked)

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
        pairs.add(fixed_world, moving_world)
        self._takeChange()

    def _onRemove(self, _clicked=False) -> None:
        rows = sorted({index.row() for index in self._ui.pairsTable.selectedIndexes()}, reverse=True)
        if self.pairs is None or not rows:
            return
        for row in rows:
            self.pairs.remove(row)
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
        self._past.append(self._known)
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
        if not source or self.pairs is None or not self.pairs.valid:
            return
        target.append(self._known)
        self._known = source.pop()
        self._filling = True
        try:
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
        self.session.correct(self.pairs.for_worker(), self._show, self._answered)

    def _onRefine(self, _clicked=False) -> None:
        region = self._ui.regionSelector.currentNode()
        if region is None or not self.ready:
            self._say(_("Choose or create a region of interest first."))
            return
        from ..scene.regions import box_of

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
        self._fits = list(zip(event["residuals"], event["conflicts"], strict=True))
        self._fillTable()
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
            doubtful = sum(bool(note) for _miss, note in self._fits)
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

    #
    # The list of pairs
    #

    def _prepareTable(self) -> None:
        table = self._ui.pairsTable
        table.setColumnCount(4)
        table.setHorizontalHeaderLabels([_("Pair"), _("Correction (mm)"), _("Misses by (mm)"), _("Note")])
        table.verticalHeader().setVisible(False)
        table.horizontalHeader().setStretchLastSection(True)
        table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)

    def _fillTable(self) -> None:
        table, states = self._ui.pairsTable, self._known
        self._filling = True
        blocked = table.blockSignals(True)
        try:
            table.setRowCount(len(states))
            for row, state in enumerate(states):
                miss, note = self._fits[row] if row < len(self._fits) else (None, "")
                texts = [state.name, "", "" if miss is None else f"{miss:.2f}", note]
                for column, text in enumerate(texts):
                    item = qt.QTableWidgetItem(text)
                    if column:
                        item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
                    else:
                        item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
                        item.setCheckState(qt.Qt.Checked if state.active else qt.Qt.Unchecked)
                    table.setItem(row, column, item)
        finally:
            table.blockSignals(blocked)
            self._filling = False
        self._ui.removePairButton.enabled = bool(states)

    def _onCell(self, row: int, column: int) -> None:
        if self._filling or column != 0 or self.pairs is None or row >= self.pairs.complete():
            return
        active = self._ui.pairsTable.item(row, 0).checkState() == qt.Qt.Checked
        if active != self.pairs.states()[row].active:
            self.pairs.set_active(row, active)
            self._takeChange()


def probe_text(answer: dict) -> str:
    """The figures of a probe in one line."""
    text = _(
        "{encoder}: best match {distance:.1f} mm from where the transform goes; similarity {match:.2f} there, "
        "{here:.2f} at the transform"
    ).format(
        encoder=answer["encoder"],
        distance=answer["distance_mm"],
        match=answer["similarity_at_match"],
        here=answer["similarity_at_transform"],
    )
    error = answer.get("expected_error_mm")
    if error is not None and error == error:
        text += _("; expected error {error:.1f} mm").format(error=error)
    return text + "."


def _single_shot(milliseconds: int, call: Callable[[], None]):
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.connect("timeout()", call)
    return timer
