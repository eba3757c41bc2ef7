"""Features of an encoder that took no part in a result: encode, look, probe, and give them a say."""

from __future__ import annotations

from collections.abc import Callable

from slicer.i18n import tr as _

from ...settings import Settings
from ..client import outputs
from ..client.session import Session
from ..scene import results
from ..scene.review import encoders_of
from . import availability, parameters
from .availability import Availability
from .encoders_section import ModelsPanel
from .wording import stage_title, time_left

FALLBACK, PRESET = "medsam-lite", "foundation"


class FeaturesSection:
    """Connects the row of the review that encodes with one more encoder.

    ``session()``: the way to what the worker kept. ``owner()``: the node with the result that is reviewed. ``busy``
    marks the panel as working, ``say`` shows a sentence, ``fail`` an error, ``shown`` is called with the encoder whose
    features have come, ``run`` registers anew.
    """

    def __init__(
        self,
        ui,
        models: ModelsPanel,
        session: Callable[[], Session | None],
        owner: Callable,
        busy: Callable[[bool], None],
        say: Callable[[str], None],
        fail: Callable[[Exception], None],
        shown: Callable[[str], None],
        run: Callable[[], None],
    ):
        self._ui, self._models, self._session, self._owner = ui, models, session, owner
        self._busy, self._say, self._fail, self._shown, self._run = busy, say, fail, shown, run
        self._parameters = None
        self._listed: tuple = ()
        ui.encodeFeaturesButton.connect("clicked(bool)", self._onEncode)
        ui.useFeaturesButton.connect("clicked(bool)", self._onUse)
        ui.featureEncoderComboBox.connect("currentIndexChanged(int)", lambda _index: self._enable())

    def setParameters(self, node) -> None:
        """Follow another parameter node; None when the scene closes."""
        self.cancel()
        self._parameters = node

    def update(self) -> None:
        """The parameters or the result changed."""
        owner = self._owner()
        if (owner, encoders_of(owner)) != self._listed:
            self.refresh()
        else:
            self._enable()

    def refresh(self) -> None:
        """List what can be encoded with: the encoders that are installed. Looks at the files of their weights."""
        combo, owner = self._ui.featureEncoderComboBox, self._owner()
        self._listed = owner, encoders_of(owner)
        there = [encoder for encoder in availability.encoders() if encoder.file]
        wanted = [encoder for encoder in there if encoder.availability == Availability.READY]
        if not wanted:
            wanted = [encoder for encoder in there if encoder.id == FALLBACK]
        # What is in the comparison already needs no encoding, but may still be given a say.
        texts = [(encoder.title, encoder.id) for encoder in sorted(wanted, key=lambda item: item.id in self._listed[1])]
        if [(combo.itemText(n), combo.itemData(n)) for n in range(combo.count)] != texts:
            chosen = combo.currentData
            blocked = combo.blockSignals(True)
            combo.clear()
            for title, name in texts:
                combo.addItem(title, name)
            combo.currentIndex = max(0, combo.findData(chosen))
            combo.blockSignals(blocked)
        self._enable()

    def _enable(self) -> None:
        ui, owner, session = self._ui, self._owner(), self._session()
        name = ui.featureEncoderComboBox.currentData
        there = owner is not None and bool(name)
        ui.featureEncoderComboBox.enabled = there
        alive = session is not None and session.alive
        ui.encodeFeaturesButton.enabled = there and alive and name not in encoders_of(owner)
        took_part = self._parameters is not None and name in _encoders(self._parameters)
        ui.useFeaturesButton.enabled = there and self._parameters is not None and not took_part
        if there and not alive:
            text = _("The worker has given the images of this result free; press Apply, then encode.")
        else:
            text = _("Encode both volumes with it and show its features; the result stays as it is.")
        ui.encodeFeaturesButton.toolTip = text

    def _onEncode(self, _clicked=False) -> None:
        encoder = availability.encoder(self._ui.featureEncoderComboBox.currentData)
        if encoder.availability == Availability.READY:
            self.encode(encoder)
        elif self._models.confirmDownload([encoder]):
            self._busy(True)
            self._models.download([encoder], lambda error: self._afterDownload(error, encoder))

    def _afterDownload(self, error: Exception | None, encoder: availability.Encoder) -> None:
        self._busy(False)
        if error is not None:
            self._fail(error)
        elif self._parameters is not None and self._session() is not None:
            self.encode(encoder)

    def encode(self, encoder: availability.Encoder) -> None:
        """Ask the worker for the features; they are shown when they come."""
        session, owner = self._session(), self._owner()
        self._busy(True)
        self._say(_("Encoding with {title}...").format(title=encoder.title))
        session.encode(encoder.id, lambda found: self._answered(encoder, owner, session, found), self._showProgress)

    def cancel(self) -> bool:
        """Give up what was begun here. Whether there was something."""
        session = self._session()
        return session is not None and session.cancel_encoding()

    def _showProgress(self, event: dict) -> None:
        self._ui.progressBar.value = round(1000 * event.get("fraction", 0))
        parts = [stage_title(event.get("stage", "")), time_left(event.get("seconds_left"))]
        self._say(" · ".join(part for part in parts if part))

    def _answered(self, encoder: availability.Encoder, owner, session: Session, found: dict | Exception) -> None:
        self._busy(False)
        if isinstance(found, Exception):
            self._fail(found)
        elif owner.GetScene() is not None and owner is self._owner():
            outputs.set_feature_pair(owner, encoder.id, found, session.fixed, session.moving)
            names = list(dict.fromkeys([*encoders_of(owner), encoder.id]))
            owner.SetAttribute(results.ENCODERS_ATTRIBUTE, ";".join(names))
            self._shown(encoder.id)
            text = _("The features of {title} are shown under Compare, and can be probed. The result is the same.")
            self._say(text.format(title=encoder.title))
        self.update()

    def _onUse(self, _clicked=False) -> None:
        """Register again with the encoder: by the preset that has it, else beside MIND."""
        node, name = self._parameters, self._ui.featureEncoderComboBox.currentData
        if name in dict(Settings.from_preset(PRESET).encoders):
            parameters.apply_preset(node, PRESET)
        else:
            node.encoder, node.combineMind = name, True
        self._run()


def _encoders(node) -> list[str]:
    """The encoders that the next run would use."""
    chosen = parameters.encoders_of(node) or Settings.from_preset(node.preset).encoders
    return [name for name, _weight in chosen]
