"""What runs share in memory: what variants of one pair have in common, and a worker's encoders for its lifetime."""

from __future__ import annotations

import time
from collections.abc import Hashable
from pathlib import Path

from ..core.cache import Cache

# Encoders stay from pair to pair, by the first part of their key.
_LASTING = "encoder"
_MOST_ENCODERS = 3
# What another variant of the same pair can use; the rest takes much memory and is made for one variant alone.
_COMMON = ("linear", "pair", "rasters")
_encoders: dict[Hashable, tuple] = {}


class MeasuredCache(Cache):
    """A `Cache` that knows what each entry cost, so that a run's time can be told as if it had been alone.

    ``saved``: seconds that entries made earlier would have taken. What takes memory of one pair is gone with the cache;
    encoders are taken over from the worker's earlier pairs, at no cost.
    """

    def __init__(self, limit: int = 32, store=None):
        super().__init__(limit, store)
        self.saved = 0.0
        self._cost: dict[Hashable, float] = {}

    def get(self, key: Hashable, make):
        if isinstance(key, tuple) and key and key[0] == _LASTING:
            return _encoder(key, make)
        if key in self._entries:
            self.saved += self._cost.get(key, 0.0)
            return super().get(key, make)
        began, saved = time.monotonic(), self.saved
        value = super().get(key, make)
        self._cost[key] = time.monotonic() - began + self.saved - saved
        return value

    def find(self, key: Hashable):
        if isinstance(key, tuple) and key and key[0] == _LASTING:
            return _encoders.get(key)
        return super().find(key)

    def drop_own(self) -> None:
        """Forget what only the last variant could use."""
        self._entries = {key: value for key, value in self._entries.items() if key[0] in _COMMON}


def _encoder(key: Hashable, make):
    if key in _encoders:
        _encoders[key] = _encoders.pop(key)
    else:
        _encoders[key] = make()
        while len(_encoders) > _MOST_ENCODERS:
            _encoders.pop(next(iter(_encoders)))
    return _encoders[key]


def cache_for(folder: Path | None, limit_gb: float) -> MeasuredCache:
    """A new cache for a pair; with ``folder``, features of images are kept there for other pairs."""
    if folder is None:
        return MeasuredCache()
    from ..features.store import FeatureStore

    return MeasuredCache(store=FeatureStore(folder, limit_gb))
