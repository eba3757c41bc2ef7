"""Results that a second run can use again."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any


class Cache:
    """Keeps what the stages made, by what went into them, so that a second run repeats only what changed.

    Holds the newest ``limit`` entries. Pass the same cache to several `register` calls in one process. ``store``: a
    `features.store.FeatureStore` where features of single images are kept for other runs and processes, or None.
    """

    def __init__(self, limit: int = 32, store: Any = None):
        self.limit, self.store = limit, store
        self._entries: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make):
        """The entry of ``key``, made by calling ``make()`` when it is not there."""
        if key in self._entries:
            self._entries[key] = self._entries.pop(key)
        else:
            value = make()
            self._entries[key] = value
            while len(self._entries) > self.limit:
                self._entries.pop(next(iter(self._entries)))
        return self._entries[key]

    def put(self, key: Hashable, value) -> None:
        """Keep ``value`` as the entry of ``key``, whatever was there."""
        self._entries.pop(key, None)
        self.get(key, lambda: value)

    def find(self, key: Hashable):
        """The entry of ``key``, or None."""
        return self._entries.get(key)

    def clear(self) -> None:
        self._entries.clear()
