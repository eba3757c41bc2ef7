"""Libraries that a registration needs, loaded in as little time as possible."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from pathlib import Path

from ..weights.catalogue import Entry


@contextmanager
def uncollected():
    """No garbage is looked for while modules are loaded in the block, and never among what they leave.

    Torch makes some hundred thousand objects that stay; looking through them again and again takes a tenth of the time
    that loading takes, and later some more.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if before:
            gc.enable()


def load_libraries() -> None:
    """Load what a registration with the default preset needs, so that the first one begins at once."""
    with uncollected():
        from ..encoders.loading import load_encoder
        from ..registration import pipeline

    load_encoder("mind", "cpu")
    pipeline.choose_device("auto")


def build_network(item: Entry, path: Path) -> object:
    """`encoders.loading.build_network`, which loads torch only when a file of weights has to be tried."""
    from ..encoders.loading import build_network

    return build_network(item, path)
