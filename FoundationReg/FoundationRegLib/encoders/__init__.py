"""Encoders: from grey slices or volumes to features. `catalogue` lists them, `load_encoder` builds one.

Importing this package imports no torch.
"""

from __future__ import annotations

from .catalogue import Entry, Weights, catalogue, entry, own_model

__all__ = ["Entry", "Weights", "catalogue", "entry", "load_encoder", "own_model"]


def load_encoder(id: str, device: str = "cpu", precision: str = "auto", progress=None, **options):
    """A ready encoder; arguments as of `loading.load_encoder`."""
    from .loading import load_encoder

    return load_encoder(id, device, precision, progress, **options)
