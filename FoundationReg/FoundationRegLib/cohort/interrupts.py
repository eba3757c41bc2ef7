"""Loaded by every worker on this machine: Ctrl-C in a terminal reaches it too, but is for the run to answer."""

import signal
from contextlib import suppress

with suppress(ValueError):  # not the main thread
    signal.signal(signal.SIGINT, signal.SIG_IGN)
