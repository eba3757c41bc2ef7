"""Anatomy networks: 3-D segmentation networks whose classes have names.

A network wants an image in the frame that it was trained with: axes in a certain order and direction, a voxel size or
a number of voxels over a certain part of the body, and grey values on a certain scale. `AnatomyNetwork` knows these and
turns a volume in its frame into probabilities, tile by tile where memory asks for it. Frames, scales and class lists of
the published networks stand in the catalogue (``Encoders.json``), those of your own in a JSON file beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.grid import Grid
from ..core.progress import Progress
from ..errors import InputError

# LPS axis and direction of each letter.
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
# Voxels of a tile's core at least; smaller ones are all margin.
_LEAST_TILE = 32
_MAIN_MEMORY = 4e9
# The probability from which a voxel counts as found.
SURE = 0.5


@dataclass(frozen=True)
class Frame:
    """How a network wants to see an image.

    ``axes``: three letters of LRPAIS, where the network's axes (D, H, W) lead. ``spacing``: voxel size in mm, or None
    where ``size``, voxels along (D, H, W), is spread over the part of the body that is looked at. ``length``: mm of the
    body along its axis that the network sees at once; 0 is all. ``window``: grey values that become 0 and 1; None where
    ``percentiles`` of the foreground do. ``clip``: nothing goes beyond 0..1. ``outside``: grey value where the image
    ends; None is what becomes 0. ``multiple``: what the sides must be multiples of. ``kind``: ``mr`` or ``ct``, or
    empty for both. ``extent``: shortest and longest that the longest side of the foreground may be, in mm.
    """

    axes: str
    kind: str = ""
    extent: tuple[float, float] = (0.0, math.inf)
    spacing: float | None = None
    size: tuple[int, int, int] | None = None
    length: float = 0.0
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (2.0, 95.0)
    clip: bool = True
    outside: float | None = None
    multiple: int = 1

    def __post_init__(self):
        if len(self.axes) != 3 or {_LETTERS.get(a, (None,))[0] for a in self.axes} != {0, 1, 2}:
            raise InputError(f"The axes of a network must be three letters such as LIA or RAS, not {self.axes!r}.")
        if (self.spacing is None) == (self.size is None):
            raise InputError("A network's frame needs either spacing or size.")
        if self.kind not in ("", "mr", "ct"):
            raise InputError(f"The kind of a network's frame must be mr, ct or empty, not {self.kind!r}.")
        for name in ("window", "percentiles", "extent"):
            value = getattr(self, name)
            if value is not None and not value[0] < value[1]:
                raise InputError(f"The {name} of a network's frame must rise, not {value}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Frame:
        """From JSON. Raises `InputError` for a key that does not exist or a value that cannot be."""
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        except (TypeError, IndexError, AttributeError):
            raise InputError(f"This cannot be the frame of a network: {values}.") from None

    def direction(self) -> np.ndarray:
        """(3, 3): column n is the LPS unit vector of the network's axis n."""
        made = np.zeros((3, 3))
        for n, letter in enumerate(self.axes):
            axis, sign = _LETTERS[letter]
            made[axis, n] = sign
        return made

    def grids(self, image: Grid, body: np.ndarray, margin_mm: float = 8.0) -> list[Grid]:
        """The lattices in which the network may be shown the image: one, or several along the body where it sees only
        a part at once. ``body`` (D, H, W) is the foreground on ``image``."""
        filled = np.argwhere(body) if body.any() else np.argwhere(np.ones(image.shape, bool))
        low, high = filled.min(0) - 0.5, filled.max(0) + 0.5
        corners = image.points(list(itertools.product(*zip(low, high, strict=True))))
        direction = self.direction()
        along = corners @ direction
        first, last = along.min(0), along.max(0)
        if self.spacing is not None:
            first, last = first - margin_mm, last + margin_mm
        return [self._grid(direction, *bounds) for bounds in self._parts(first, last)]

    def _parts(self, first: np.ndarray, last: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        axis = next(n for n, letter in enumerate(self.axes) if letter in "SI")
        extent = last[axis] - first[axis]
        if not self.length or extent <= 1.1 * self.length:
            yield first, last
            return
        for start in np.linspace(first[axis], last[axis] - self.length, 1 + math.ceil(4 * (extent / self.length - 1))):
            low, high = first.copy(), last.copy()
            low[axis], high[axis] = start, start + self.length
            yield low, high

    def _grid(self, direction: np.ndarray, first: np.ndarray, last: np.ndarray) -> Grid:
        if self.size is not None:
            shape = np.array(self.size)
            spacing = (last - first) / shape
        else:
            spacing = np.full(3, self.spacing)
            shape = np.maximum(1, np.ceil((last - first) / spacing - 1e-4)).astype(int)
            shape += -shape % self.multiple
        centre = (first + last) / 2
        return Grid.from_axes(shape, spacing, direction @ (centre - (shape - 1) / 2 * spacing), direction)

    def scaled(self, values: np.ndarray, foreground: np.ndarray) -> np.ndarray:
        """Grey ``values`` on the network's scale, float32. ``foreground``: those (n,) that percentiles are taken of."""
        low, high = self.limits(foreground)
        made = (np.asarray(values, np.float32) - low) / max(high - low, 1e-6)
        return np.clip(made, 0, 1, out=made) if self.clip else made

    def limits(self, foreground: np.ndarray) -> tuple[float, float]:
        """The grey values that become 0 and 1."""
        if self.window is not None:
            return self.window
        low, high = np.percentile(foreground, self.percentiles) if len(foreground) else (0.0, 1.0)
        return float(low), float(high)


class AnatomyNetwork:
    """A network with its frame and the names of its classes, of which the first is the background.

    ``reach``: voxels around a tile that its result depends on; None where the network must see everything at once.
    ``values_per_voxel``: numbers that it holds per voxel at its peak.
    """

    def __init__(
        self,
        id: str,
        network: nn.Module,
        frame: Frame,
        classes: Sequence[str],
        weights_sha256: str,
        *,
        device: torch.device | str = "cpu",
        reach: int | None = None,
        values_per_voxel: int = 64,
    ):
        self.id, self.frame, self.classes, self.weights_sha256 = id, frame, tuple(classes), weights_sha256
        self.device, self.reach, self.values_per_voxel = torch.device(device), reach, values_per_voxel
        self._network = network.eval().to(self.device)

    @torch.inference_mode()
    def probabilities(self, volume: Tensor, memory_gb: float = 0.0, progress: Progress | None = None) -> Tensor:
        """Probabilities (classes, D, H, W), float16 on the CPU, of a ``volume`` (D, H, W) in the network's frame.

        Raises `InputError` when the network's output is of another shape or has another number of classes.
        """
        progress = progress or Progress()
        shape = tuple(volume.shape)
        made = torch.empty((len(self.classes), *shape), dtype=torch.float16)
        tiles = list(self._tiles(shape, memory_gb))
        for number, (core, seen) in enumerate(tiles):
            progress.update(number / len(tiles))
            part = volume[seen].to(self.device, torch.float32)[None, None]
            inner = tuple(slice(c.start - s.start, c.stop - s.start) for c, s in zip(core, seen, strict=True))
            self._fill(made[(slice(None), *core)], part, inner)
        return made

    def _fill(self, target: Tensor, part: Tensor, inner: tuple[slice, ...]) -> None:
        """Write the probabilities of ``part`` within ``inner`` into ``target``, in slabs where the network can."""
        if hasattr(self._network, "features"):
            features = self._network.features(part)[(..., *inner)]
            step = max(1, 4_000_000 // features[0, 0, 0].numel())
            for start in range(0, target.shape[1], step):
                logits = self._network.output(features[:, :, start : start + step])
                target[:, start : start + step] = logits[0].softmax(0).half().cpu()
            return
        output = self._network(part)
        output = output[-1] if isinstance(output, (list, tuple)) else output
        wanted = (1, len(self.classes), *part.shape[2:])
        if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(
                f"The network {self.id} gave {found} for an input of {tuple(part.shape[2:])} voxels; with its "
                f"{len(self.classes)} classes it should be {wanted}. Check its class list and frame."
            )
        target.copy_(output[(0, slice(None), *inner)].softmax(0).half().cpu())

    def _tiles(self, shape: Sequence[int], memory_gb: float) -> list[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Cores that cover ``shape`` once, and what must be seen around each."""
        whole = tuple(slice(0, n) for n in shape)
        room = memory_gb * 1e9 if memory_gb else _MAIN_MEMORY
        voxels = room / (4 * self.values_per_voxel)
        if self.reach is None or math.prod(shape) <= voxels:
            return [(whole, whole)]
        side = max(_LEAST_TILE, int(voxels ** (1 / 3)) - 2 * self.reach)
        counts = [math.ceil(n / side) for n in shape]
        edges = [np.linspace(0, n, count + 1).astype(int) for n, count in zip(shape, counts, strict=True)]
        made = []
        for place in itertools.product(*(range(count) for count in counts)):
            core = tuple(slice(int(e[p]), int(e[p + 1])) for e, p in zip(edges, place, strict=True))
            seen = tuple(
                slice(max(0, c.start - self.reach), min(n, c.stop + self.reach))
                for c, n in zip(core, shape, strict=True)
            )
            made.append((core, seen))
        return made


def certain_volume(probabilities: Tensor, grid: Grid) -> float:
    """Millilitres of named structures, each voxel as much as the network is sure of it and none below `SURE`."""
    best = probabilities[1:].float().amax(0)
    return float(best[best > SURE].sum()) * float(np.prod(grid.spacing)) / 1000
