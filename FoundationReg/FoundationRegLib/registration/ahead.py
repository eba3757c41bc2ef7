"""What is needed of each image alone, made in threads while other work goes on. Needs no torch.

The command line begins before torch is loaded, which keeps one core busy for a second and more; otherwise the linear
stage, which has little for a second core to do, is what goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..core.constants import SIDES
from ..settings import Settings
from .inputs import ImageLike, Inputs, read_inputs
from .sides import Detail, Side, detail, prepare


class Ahead:
    """Both images of ``inputs`` as the linear stage sees them, and in full detail; each is made when it is asked for,
    unless `start` has begun with it."""

    def __init__(self, inputs: Inputs, settings: Settings):
        self.inputs, self._settings = inputs, settings
        self._begun: dict[tuple[str, str], Future] = {}

    def start(self) -> None:
        """Begin with everything, in a thread for each image, where the settings allow more than one."""
        if self._begun or self._settings.threads == 1:
            return
        pool = ThreadPoolExecutor(len(SIDES))
        for what in ("side", "detail") if self._settings.deformable else ("side",):
            for name in SIDES:
                self._begun[what, name] = pool.submit(self._make, what, name)
        pool.shutdown(wait=False)

    def side(self, name: str) -> Side:
        """Of the image ``name``, fixed or moving."""
        return self._taken("side", name)

    def detail(self, name: str) -> Detail:
        """Of the image ``name``; it is not kept, since it takes much memory."""
        return self._taken("detail", name)

    def _taken(self, what: str, name: str) -> Any:
        begun = self._begun.pop((what, name), None)
        return begun.result() if begun is not None else self._make(what, name)

    def _make(self, what: str, name: str) -> Side | Detail:
        image, kind = getattr(self.inputs, name), getattr(self._settings, f"{name}_intensity")
        seen_as = None if kind == "auto" else kind, getattr(self._settings, f"{name}_window")
        if what == "detail":
            return detail(image, *seen_as)
        return prepare(image, getattr(self.inputs, f"{name}_mask"), *seen_as)


def begin(settings: Settings, fixed: ImageLike, moving: ImageLike, **others: Any) -> Callable[[], Ahead]:
    """Read the arguments of `inputs.read_inputs` and go on with the images, in a thread.

    What is returned waits until all is read and gives the outcome, or raises what reading has raised. Until then
    nothing should be printed: `images.native.quiet` would keep it back.
    """

    def read() -> Ahead:
        ahead = Ahead(read_inputs(fixed, moving, **others), settings)
        ahead.start()
        return ahead

    pool = ThreadPoolExecutor(1)
    begun = pool.submit(read)
    pool.shutdown(wait=False)
    return begun.result
