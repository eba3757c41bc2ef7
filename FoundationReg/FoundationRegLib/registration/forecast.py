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
from .preparation import working_voxels
from .pyramid import search_factor

# Seconds on two quiet cores with the compiled kernels (breast_task3), by what each stage's work grows with. How they
# relate to each other is what counts until `pace` knows better: the stages that are done set the scale.
_START, _LINEAR, _CHECK = 0.75, 0.75, 0.4
_VOXEL = {"prepare": 8e-8, "output": 3e-8}
_OUTPUT = 1.2
_CANDIDATE, _REFINED_NODE = 1.2e-8, 3.4e-6
# The coarsest level starts from far away and takes more iterations.
_COARSEST = 3.4
_MIND_CHANNELS = 6
_BOX, _ANATOMY = 3.0, 15.0
# Share of its bounding box that a body fills.
_BODY = 0.7
# A graphics card against two cores, for what it does.
_CUDA = 0.05


class Forecast:
    """What a registration of ``inputs`` will take. ``seconds``: by stage, for `Progress.expect`."""

    def __init__(self, inputs: Inputs, settings: Settings, device: torch.device, boxes: bool = False):
        self._expected = expected_seconds(inputs, settings, device, boxes)
        self._pace = Pace(device)
        self.seconds = self._pace.foreseen(self._expected)

    def learn(self, progress: Progress) -> None:
        """Remember what the stages took, unless the user ended some of them early."""
        if not progress.finish_early():
            self._pace.learn(self._expected, progress.measured())


def expected_seconds(inputs: Inputs, settings: Settings, device: torch.device, boxes: bool = False) -> dict[str, float]:
    """Seconds by stage of `pipeline.register` from reading on. ``boxes``: whether what they hold is segmented."""
    sizes = [int(np.prod(image.GetSize())) for image in (inputs.fixed, inputs.moving)]
    voxels = working_voxels(settings, device)
    spacing = settings.finest_spacing_mm or default_spacing(inputs.fixed, voxels)
    extent = grid_of(inputs.fixed).extent
    working = _BODY * float(np.prod(extent)) / spacing**3
    quick = _CUDA if device.type == "cuda" else 1.0
    stages = {name: seconds * sum(sizes) for name, seconds in _VOXEL.items()}
    stages["output"] += _OUTPUT
    if boxes:
        stages["segment/segment boxes"] = quick * 2 * _BOX
    if settings.anatomy:
        stages["segment/predict regions"] = quick * 2 * _ANATOMY
    stages["align/start"] = 0.1 if settings.start == "none" else _START
    stages["align/linear"] = _LINEAR * (settings.rigid + settings.affine) / 2 + 0.1
    stages["align/check"] = _CHECK
    if not settings.deformable:
        return stages
    for name, _ in settings.encoders:
        if not is_mind(name):
            stages[f"encode/encode {name}"] = quick * _encoding(name, settings, extent)
    if settings.search_range_mm > 0:
        node_mm = search_factor(settings, spacing) * spacing
        candidates = 4.2 * (settings.search_range_mm / node_mm) ** 3
        nodes = _BODY * float(np.prod(extent)) / node_mm**3
        channels = sum(_MIND_CHANNELS if is_mind(name) else settings.pca_components for name, _ in settings.encoders)
        stages["search"] = quick * 2 * _CANDIDATE * candidates * nodes * channels / _MIND_CHANNELS
    for factor in settings.levels:
        nodes = working / max(factor, METHOD.node_factor) ** 3
        share = settings.iterations / Settings.iterations * (_COARSEST if factor == max(settings.levels) else 1.0)
        stages[level_key(factor)] = quick * _REFINED_NODE * nodes * share
    return stages


def _encoding(name: str, settings: Settings, extent: np.ndarray) -> float:
    """Seconds that an encoder takes for both images."""
    slices = 2 * len(settings.planes) * float(extent[0]) / settings.slice_gap_mm
    return slices * float((entry(name).seconds_cpu if name in catalogue() else None) or 1.0)
