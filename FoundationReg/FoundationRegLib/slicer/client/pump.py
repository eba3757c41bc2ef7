"""The timer that keeps the worker's answers coming while Slicer's event loop runs."""

from __future__ import annotations

import qt
import slicer

from .channel import Channel
from .process import WorkerProcess

INTERVAL_MS = 60
_shared: Channel | None = None


def attach(channel: Channel) -> Channel:
    """Pump ``channel`` from a timer whenever somebody waits for an answer."""
    timer = qt.QTimer()
    timer.setInterval(INTERVAL_MS)

    def tick() -> None:
        channel.pump()
        if not channel.waiting:
            timer.stop()

    timer.connect("timeout()", tick)
    channel.wake = timer.start
    channel.timer = timer  # keeps it alive as long as the channel
    return channel


def shared_channel() -> Channel:
    """The one channel, with its warm worker, that all logic objects of this Slicer share."""
    global _shared
    if _shared is None:
        _shared = attach(Channel(WorkerProcess(parent_folder=slicer.app.temporaryPath)))
    return _shared


def use_channel(channel: Channel | None) -> None:
    """Replace the shared channel; the old one is closed."""
    global _shared
    if _shared is not None and _shared is not channel:
        _shared.close()
        _shared.timer.stop()
    _shared = attach(channel) if channel is not None else None
