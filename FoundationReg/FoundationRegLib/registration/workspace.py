"""What a registration leaves in memory, so that it can be asked and corrected without beginning anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..core.constants import METHOD
from ..core.grid import Grid
from ..images.inversion import inverse_points
from ..images.transforms import compose_field
from ..numerics.data_term import FeaturePair
from ..settings import Settings
from .deformable import Deformation, refining_encoders
from .inputs import Inputs
from .pyramid import FeaturePyramid


@dataclass(eq=False)
class Workspace:
    """The images, their features and the field of one registration, on its working grid.

    ``linear`` takes fixed points to moving ones before the deformation; ``transform`` is the whole of it, with its
    nodes on ``lattice``. ``found.displacement`` (3, d, h, w) in mm lies on ``found.grid``, whose nodes are twice as far
    apart as the voxels of ``pyramid.pair.grid``. ``kept``: what a first question had to work out for the next one.
    """

    inputs: Inputs
    linear: sitk.Transform
    settings: Settings
    found: Deformation
    transform: sitk.DisplacementFieldTransform
    lattice: Grid | None
    kept: dict[str, Any] = field(default_factory=dict)
    _features: dict[int, list[FeaturePair]] = field(default_factory=dict)

    @property
    def pyramid(self) -> FeaturePyramid:
        return self.found.pyramid

    @property
    def spacing(self) -> float:
        """Millimetres between the nodes of the field."""
        return float(self.found.grid.spacing[0])

    @property
    def device(self) -> torch.device:
        return self.pyramid.device

    def features(self, factor: int) -> list[FeaturePair]:
        """What the refinement compared, on the lattice whose voxels are ``factor`` working voxels wide."""
        if factor not in self._features:
            names = refining_encoders(self.settings)
            self._features[factor] = self.pyramid.pairs(factor, names, self.found.grey)
        return self._features[factor]

    def finest_factors(self) -> list[int]:
        """Levels for a quick look at single places: that of the nodes, then the finest, if it is finer."""
        return sorted({METHOD.node_factor, min(METHOD.node_factor, *self.settings.levels)}, reverse=True)

    def nodes(self, points) -> Tensor:
        """Continuous node indices (n, 3) of fixed ``points`` (n, 3) in LPS mm."""
        indices = self.found.grid.indices(np.asarray(points, float).reshape(-1, 3))
        return torch.as_tensor(indices, dtype=torch.float32, device=self.device)

    def before_transform(self, points) -> tuple[Tensor, np.ndarray]:
        """Node indices (n, 3) that ``transform`` takes to moving ``points`` (n, 3) in LPS mm, and which were found."""
        origins, found = inverse_points(self.transform, points)
        return self.nodes(origins), found

    def composed(self, displacement: Tensor) -> sitk.DisplacementFieldTransform:
        """The whole transform with another ``displacement`` on the nodes of ``found.grid``."""
        return compose_field(self.linear, displacement, self.found.grid, self.inputs.fixed, self.lattice)
