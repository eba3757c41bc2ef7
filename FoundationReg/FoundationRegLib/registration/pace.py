"""How fast this computer was with each stage lately, kept between runs, so that the time left can be told early.

What changes from version to version and from computer to computer is not the amount of work but what a unit of it
costs. So the file holds, for each kind of device, how many times longer than `forecast.expected_seconds` says a stage
took. It holds nothing of images or their names.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping

import torch

from .. import __version__
from ..core.files import replacing
from ..core.resources import cache_path

# A new run counts as much as all before it together: a changed computer is learnt in a few runs. A stage of less than
# so many seconds counts in proportion: with small images most of its time does not grow with them.
_NEW, _TELLING_SECONDS = 0.5, 2.0
# Factors beyond these are no measurements.
_LEAST, _MOST = 1e-3, 1e3
_FILE = "pace.json"


class Pace:
    """Factors by stage for work on ``device`` with torch's present number of threads."""

    def __init__(self, device: torch.device):
        threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        self._kind = f"{__version__}, {device.type}{threads}"
        self._factors = _read().get(self._kind, {})

    def foreseen(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """``seconds`` by stage as this computer took them lately; stages that it never ran go at its mean pace."""
        logs = [math.log(self._factors[name]) for name in seconds if name in self._factors]
        mean = math.exp(sum(logs) / len(logs)) if logs else 1.0
        return {name: value * self._factors.get(name, mean) for name, value in seconds.items()}

    def learn(self, seconds: Mapping[str, float], measured: Mapping[str, float]) -> None:
        """Remember what was ``measured`` where ``seconds`` were expected. Nothing happens where nothing can be kept."""
        for name, taken in measured.items():
            if seconds.get(name, 0.0) <= 0 or taken <= 0:
                continue
            factor = min(max(taken / seconds[name], _LEAST), _MOST)
            weight = (_NEW if name in self._factors else 1.0) * min(1.0, taken / _TELLING_SECONDS)
            before = self._factors.get(name, 1.0)
            self._factors[name] = math.exp((1 - weight) * math.log(before) + weight * math.log(factor))
        everything = _read()
        everything[self._kind] = {name: float(f"{factor:.4g}") for name, factor in self._factors.items()}
        place = cache_path(_FILE)
        with contextlib.suppress(Exception):
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as partial:
                partial.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read() -> dict[str, dict[str, float]]:
    """What is known by kind of device; nothing of a file that is none of ours."""
    try:
        found = json.loads(cache_path(_FILE).read_text(encoding="utf-8"))
        return {
            kind: {name: float(factor) for name, factor in factors.items() if _LEAST <= factor <= _MOST}
            for kind, factors in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
