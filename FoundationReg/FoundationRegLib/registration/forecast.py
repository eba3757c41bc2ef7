"""How long the stages of a registration will take, roughly, before they begin."""

from __future__ import annotations

import numpy as np
import torch

from ..images.conversion import grid_of
from ..images.preprocessing import default_spacing
from ..settings import Settings
from ..weights.catalogue import catalogue, entry
from .encoding import is_mind
from .inputs import Inputs
from .preparation import working_voxels
from .pyramid import search_factor

# Seconds on two cores of a processor of 2020, by what each stage's work grows with. What counts is how they relate to
# each other: the stages that are done set the scale.
_ALIGN = 6.0
_VOXEL = {"load": 3e-8, "prepare": 1.5e-7, "output": 4e-7}
_CANDIDATE, _REFINED_VOXEL = 2.0e-8, 5e-6
_MIND_CHANNELS = 6
# Share of its bounding box that a body fills.
_BODY = 0.7
# A graphics card against two cores, for what it does.
_CUDA = 0.05


def expected_seconds(inputs: Inputs, settings: Settings, device: torch.device) -> dict[str, float]:
    """Seconds by stage of `pipeline.register`, for `Progress.expect`."""
    sizes = [int(np.prod(image.GetSize())) for image in (inputs.fixed, inputs.moving)]
    voxels = working_voxels(settings, device)
    spacing = settings.finest_spacing_mm or default_spacing(inputs.fixed, voxels)
    extent = grid_of(inputs.fixed).extent
    working = _BODY * float(np.prod(extent)) / spacing**3
    quick = _CUDA if device.type == "cuda" else 1.0
    stages = {name: seconds * sum(sizes) for name, seconds in _VOXEL.items()}
    stages["align"] = _ALIGN if settings.rigid or settings.affine or settings.start == "auto" else 0.5
    stages["encode"] = quick * sum(_encoding(name, settings, extent) for name, _ in settings.encoders)
    if settings.search_range_mm > 0:
        node_mm = search_factor(settings, spacing) * spacing
        candidates = 4.2 * (settings.search_range_mm / node_mm) ** 3
        nodes = _BODY * float(np.prod(extent)) / node_mm**3
        channels = sum(_MIND_CHANNELS if is_mind(name) else settings.pca_components for name, _ in settings.encoders)
        stages["search"] = quick * 2 * _CANDIDATE * candidates * nodes * channels / _MIND_CHANNELS
    coarse = sum(1 / factor**3 for factor in settings.levels)
    stages["refine"] = quick * _REFINED_VOXEL * working * coarse * settings.iterations / Settings.iterations
    return stages


def _encoding(name: str, settings: Settings, extent: np.ndarray) -> float:
    """Seconds that an encoder takes for both images."""
    if is_mind(name) or name not in catalogue():
        return 0.0
    slices = 2 * len(settings.planes) * float(extent[0]) / settings.slice_gap_mm
    return slices * float(entry(name).seconds_cpu or 1.0)
