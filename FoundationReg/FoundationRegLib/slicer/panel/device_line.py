"""The line that says where PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable

from slicer.i18n import tr as _

from . import dependencies
from .wording import device_text


class DeviceLine:
    """Fills the device label of ``ui`` when its button is pressed, and with the first run."""

    def __init__(self, ui, channel: Callable, parameters: Callable):
        self._ui, self._channel, self._parameters = ui, channel, parameters
        self._text = ""
        ui.deviceButton.connect("clicked(bool)", self._onPressed)
        self._show()

    def ask(self, again: bool = True) -> None:
        """Ask the worker; unless ``again``, only when it has not answered yet."""
        if self._text and not again:
            return
        node = self._parameters()
        device = node.device if node is not None else "auto"
        self._channel().ask(self._take, "warm", settings={"device": device})

    def _onPressed(self, _clicked=False) -> None:
        self._ui.deviceLabel.text = _("Loading PyTorch...")
        self.ask()

    def _take(self, event: dict) -> None:
        if event["event"] == "result":
            self._text = device_text(event)
        elif event["event"] == "error":
            self._text = event["message"]
        self._show()

    def _show(self) -> None:
        version = dependencies.torch_version()
        if self._text:
            self._ui.deviceLabel.text = self._text
        elif version is None:
            self._ui.deviceLabel.text = _("PyTorch is not installed yet; it is asked for when you press Apply.")
        else:
            self._ui.deviceLabel.text = _("PyTorch {version}; device not checked yet.").format(version=version)
        self._ui.deviceButton.enabled = version is not None
