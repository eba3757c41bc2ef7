"""The probe: click, and see what an encoder takes for the same place."""

from __future__ import annotations

import json
from collections.abc import Callable

from slicer.i18n import tr as _

from ...weights.catalogue import catalogue
from ..client.session import Session
from ..scene.probe_view import ProbeView
from ..scene.review import encoders_of
from .placing import PointPlacer


class ProbeSection:
    """Connects the probe's widgets of ``ui`` with the session that ``session()`` gives; ``lost`` is called when the
    worker has no features any more."""

    def __init__(self, ui, session: Callable[[], Session | None], lost: Callable[[], None]):
        self._ui, self._session, self._lost = ui, session, lost
        self.view: ProbeView | None = None
        self._asked: tuple | None = None
        self._placer = PointPlacer()
        ui.probeButton.connect("toggled(bool)", self._onProbe)
        ui.probeEncoderComboBox.connect("currentIndexChanged(int)", lambda _index: self._askAgain())

    def fillEncoders(self, owner) -> None:
        """Offer the encoders of the run whose result ``owner`` holds, those that were encoded since, and MIND."""
        record = owner.GetAttribute("FoundationReg.record") if owner is not None else None
        settings = (json.loads(record) if record else {}).get("settings") or {}
        names = [name for name, _weight in settings.get("encoders") or []]
        since = [name for name in encoders_of(owner) if name in catalogue()] if owner is not None else []
        names = list(dict.fromkeys([*names, *since, "mind"])) if owner is not None else []
        combo = self._ui.probeEncoderComboBox
        if [combo.itemData(n) for n in range(combo.count)] == names:
            return
        blocked = combo.blockSignals(True)
        combo.clear()
        for name in names:
            combo.addItem(name, name)
        combo.blockSignals(blocked)

    def _onProbe(self, wanted: bool) -> None:
        session = self._session()
        if wanted and session is not None:
            self.view, self._asked = ProbeView(session.fixed, session.moving, session.transform), None
            self.view.open()
            self._placer.watch(self.ask)
            self._ui.probeLabel.text = _("Click in either view, or move the crosshair with Shift.")
        elif self.view is not None:
            self._placer.stop()
            self.view.close()
            self.view = None
            self._ui.probeLabel.text = ""

    def ask(self, ras, view: str) -> None:
        """Ask the encoder chosen about the place ``ras`` of the scene in the volume that ``view`` shows."""
        session = self._session()
        if self.view is None or session is None:
            return
        self._asked = ras, view
        side = self.view.side_of(view)
        point = self.view.to_local(self.view.volume_of(side), ras)

        def answer(found: dict | Exception) -> None:
            if isinstance(found, Exception):
                self._ui.probeLabel.text = str(found)
                self._lost()
            elif self.view is not None:
                self.view.show(found, point)
                self._ui.probeLabel.text = probe_text(found)

        session.probe(point, side, self._ui.probeEncoderComboBox.currentData, answer)

    def _askAgain(self) -> None:
        if self.view is not None and self._asked is not None:
            self.ask(*self._asked)


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
        text += _("; expected error about {error:.1f} mm (relative)").format(error=error)
    return text + "."
