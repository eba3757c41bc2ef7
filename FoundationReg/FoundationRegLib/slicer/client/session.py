"""What the worker still knows of the last registration: ask an encoder about a point, correct, measure again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ... import errors
from ...errors import FoundationRegError
from .answers import as_exception, drop_array, load_array
from .channel import Channel


class Session:
    """The ``run`` (`RegistrationResult.run`) that filled ``transform`` from ``fixed`` to ``moving``, while it is kept.

    Points are LPS mm in the local coordinates of the volumes. Answers come later, through `Channel.pump`: each method
    takes a function that gets the worker's answer as a dictionary, or the error.
    """

    def __init__(self, channel: Channel, run: int, fixed, moving, transform):
        self._channel, self.run = channel, run
        self.fixed, self.moving, self.transform = fixed, moving, transform
        self._process = channel.process.pid
        self._probing: int | None = None
        self._next_probe: tuple | None = None
        self._correcting: int | None = None
        self._encoding: int | None = None
        self.forgotten = False

    @property
    def alive(self) -> bool:
        """Whether the worker can still be asked."""
        process = self._channel.process
        return not self.forgotten and process.alive and process.pid == self._process

    @property
    def busy(self) -> bool:
        """Whether a correction is under way."""
        return self._correcting is not None

    def probe(self, point, side: str, encoder: str, answer: Callable[[dict | Exception], None]) -> None:
        """What ``encoder`` sees at ``point`` of ``side``. While a question is open only the newest other one waits."""
        if not self.alive:
            answer(self._gone())
            return
        if self._probing is not None:
            self._next_probe = (point, side, encoder, answer)
            return

        def handle(event: dict) -> None:
            if event["event"] not in ("result", "error"):
                return
            self._probing = None
            waiting, self._next_probe = self._next_probe, None
            if waiting is not None:
                drop_array(event.get("similarity"))
                self.probe(*waiting)
                return
            answer(self._error(event) if event["event"] == "error" else _with_arrays(event, "similarity"))

        point = [float(value) for value in point]
        self._probing = self._channel.ask(handle, "probe", run=self.run, point=point, side=side, encoder=encoder)

    def encode(
        self, encoder: str, answer: Callable[[dict | Exception], None], on_progress: Callable[[dict], None]
    ) -> None:
        """Encode both volumes with an ``encoder`` that took no part; ``answer`` gets its ``features`` by side."""
        if not self.alive:
            answer(self._gone())
            return

        def handle(event: dict) -> None:
            if event["event"] == "progress":
                on_progress(event)
            elif event["event"] in ("result", "error"):
                self._encoding = None
                failed = event["event"] == "error"
                answer(self._error(event) if failed else {side: load_array(a) for side, a in event["features"].items()})

        self._encoding = self._channel.ask(handle, "encode", run=self.run, encoder=encoder)

    def cancel_encoding(self) -> bool:
        """Give up what `encode` began; the worker keeps what it has. Whether there was something to give up."""
        if self._encoding is None or not self.alive:
            return False
        self._channel.process.send("cancel", target=self._encoding)
        return True

    def correct(
        self,
        pairs: list[dict],
        regions: int,
        preview: Callable[[dict], None],
        answer: Callable[[dict | Exception], None],
    ) -> None:
        """The transform that obeys ``pairs`` (``fixed``, ``moving``, ``active``); replaces a correction under way."""
        if not self.alive:
            answer(self._gone())
            return
        self._ask_correction("correct", {"pairs": pairs, "regions": regions}, preview, answer)

    def refine(self, box: dict, preview, answer) -> None:
        """Register a box (``corner`` and ``axes``, LPS) on a finer grid."""
        if not self.alive:
            answer(self._gone())
            return
        self._ask_correction("refine", box, preview, answer)

    def _ask_correction(self, command: str, values: dict, preview, answer) -> None:
        if self._correcting is not None:
            self._channel.process.send("cancel", target=self._correcting)
        number: list[int] = []

        def handle(event: dict) -> None:
            newest = bool(number) and self._correcting == number[0]
            if event["event"] == "preview" and newest:
                preview(_with_arrays(event, "transform"))
            elif event["event"] in ("result", "error"):
                if not newest:
                    drop_array(event.get("transform"))
                    return
                self._correcting = None
                answer(self._error(event) if event["event"] == "error" else _with_arrays(event, "transform"))

        number.append(self._channel.ask(handle, command, run=self.run, **values))
        self._correcting = number[0]

    def measure(self, answer: Callable[[dict | Exception], None]) -> None:
        """The metrics of the transform as it is now."""
        if not self.alive:
            answer(self._gone())
            return

        def handle(event: dict) -> None:
            if event["event"] in ("result", "error"):
                answer(self._error(event) if event["event"] == "error" else event)

        self._channel.ask(handle, "measure", run=self.run)

    def _gone(self) -> FoundationRegError:
        return errors.Forgotten("The features of this result are no longer in memory; encode again to go on.")

    def _error(self, event: dict) -> FoundationRegError:
        error = as_exception(event)
        if isinstance(error, errors.Forgotten) or event.get("kind") == "died":
            self.forgotten = True
        return error


def _with_arrays(event: dict, *names: str) -> dict:
    """``event`` with its files replaced by (array, `Grid`); the files are removed: each answer has its own."""
    values: dict[str, Any] = dict(event)
    for name in names:
        if event.get(name) is not None:
            values[name] = load_array(event[name])
    return values
