"""How much work the stages of a registration are, before they begin, and how long this computer will take for it."""

from __future__ import annotations

import numpy as np
import torch

from ..core.constants import METHOD
from ..core.progress import Progress
from ..images.conversion import grid_of
from ..images.preprocessing import default_spacing
from ..settings import Settings
from ..weights.catalogue import catalogue, entry
from .deformable import level_key
from .encoding import is_mind
from .inputs import Inputs
from .pace import Pace
from .pair import Pair
from .preparation import working_voxels
from .pyramid import search_factor

# Seconds on two quiet cores with the compiled kernels, by what each stage's work grows with, from the eleven cases and
# synthetic pairs of 96 to 256 voxels. How they relate to each other is what counts until `pace` knows better: the
# stages that are done set the scale.
_START, _LINEAR, _CHECK = 0.25, 0.1, 0.1
_PREPARE, _OUTPUT = (0.04, 2.8e-8), (0.28, 8e-9)
_CANDIDATE, _DESCRIBED_VOXEL = 9e-9, 5e-8
_REFINED_VOXEL, _REFINED_NODE = 4e-7, 2.4e-6
_MIND_CHANNELS = 6
_BOX, _ANATOMY = 3.0, 15.0
# Share of a frame that is compared.
_BODY = 0.45
# A graphics card against two cores, for what it does.
_CUDA = 0.05


class Forecast:
    """What a registration of ``inputs`` will take. ``seconds``: by stage, for `Progress.expect`."""

    def __init__(self, inputs: Inputs, settings: Settings, device: torch.device, boxes: bool = False):
        self._settings, self._device = settings, device
        self._expected = expected_seconds(inputs, settings, device, boxes)
        self._pace = Pace(device)
        self.seconds = self._pace.foreseen(self._expected)

    def revise(self, pair: Pair, progress: Progress) -> None:
        """Tell ``progress`` what the deformable stage will take, now that its grid and masks are known."""
        if not self._settings.deformable:
            return
        spacing, inside = float(pair.grid.spacing[0]), float(pair.fixed_mask.mean())
        self._expected |= _deforming(pair.grid.extent, spacing, inside, self._settings, self._device)
        self.seconds = self._pace.foreseen(self._expected)
        progress.revise(self.seconds)

    def learn(self, progress: Progress) -> None:
        """Remember what the stages took, unless the user ended some of them early."""
        if not progress.finish_early():
            self._pace.learn(self._expected, progress.measured())


def expected_seconds(inputs: Inputs, settings: Settings, device: torch.device, boxes: bool = False) -> dict[str, float]:
    """Seconds by stage of `pipeline.register` from reading on. ``boxes``: whether what they hold is segmented."""
    voxels = sum(int(np.prod(image.GetSize())) for image in (inputs.fixed, inputs.moving))
    quick = _CUDA if device.type == "cuda" else 1.0
    stages = {name: base + each * voxels for name, (base, each) in (("prepare", _PREPARE), ("output", _OUTPUT))}
    if boxes:
        stages["segment/segment boxes"] = quick * 2 * _BOX
    if settings.anatomy:
        stages["segment/predict regions"] = quick * 2 * _ANATOMY
    stages["align/start"] = 0.05 if settings.start == "none" else _START
    stages["align/linear"] = _LINEAR * (settings.rigid + settings.affine) / 2 + 0.05
    stages["align/check"] = _CHECK
    if not settings.deformable:
        return stages
    extent = grid_of(inputs.fixed).extent
    spacing = settings.finest_spacing_mm or default_spacing(inputs.fixed, working_voxels(settings, device))
    return stages | _deforming(extent, spacing, _BODY, settings, device)


def _deforming(
    extent: np.ndarray, spacing: float, inside: float, settings: Settings, device: torch.device
) -> dict[str, float]:
    """Seconds by stage of the deformation on a grid over ``extent`` mm with voxels of ``spacing`` mm.

    ``inside``: share of the grid that is compared.
    """
    quick = _CUDA if device.type == "cuda" else 1.0
    volume, stages = float(np.prod(extent)), {}
    for name, _ in settings.encoders:
        if not is_mind(name):
            stages[f"encode/encode {name}"] = quick * _encoding(name, settings, extent)
    if settings.search_range_mm > 0:
        node_mm = search_factor(settings, spacing) * spacing
        candidates = 4.2 * (settings.search_range_mm / node_mm) ** 3
        channels = sum(_MIND_CHANNELS if is_mind(name) else settings.pca_components for name, _ in settings.encoders)
        each = 2 * _CANDIDATE * candidates * inside / node_mm**3 + _DESCRIBED_VOXEL / spacing**3
        stages["search"] = quick * volume * each * channels / _MIND_CHANNELS
    share = settings.iterations / Settings.iterations
    for factor in settings.levels:
        each = _REFINED_VOXEL / factor**3 + _REFINED_NODE / max(factor, METHOD.node_factor) ** 3
        stages[level_key(factor)] = quick * share * volume * inside / spacing**3 * each
    return stages


def _encoding(name: str, settings: Settings, extent: np.ndarray) -> float:
    """Seconds that an encoder takes for both images."""
    slices = 2 * len(settings.planes) * float(extent[0]) / settings.slice_gap_mm
    return slices * float((entry(name).seconds_cpu if name in catalogue() else None) or 1.0)
