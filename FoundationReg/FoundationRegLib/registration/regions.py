"""What an anatomy network sees in both images: named regions, and how far they can be believed.

A prediction is a result of its own (a segmentation that says so), a measure of the registration that needs no label
from the user, and soft labels that may guide it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.grid import Grid
from ..core.progress import Progress
from ..encoders.anatomy import SURE, AnatomyNetwork, certain_volume
from ..images.conversion import grid_of, image_from_array
from ..images.preprocessing import foreground_mask, intensity_kind
from ..images.resampling import resample_to_grid

# Probabilities are kept on a lattice so many times coarser than the network's.
_COARSER = 2


@dataclass(frozen=True)
class Regions:
    """What a network saw in one image.

    ``labels`` (uint8 or uint16 image on the image's own lattice): numbers of ``names``, 0 is none of them. ``soft``
    (classes, d, h, w), float16, on ``grid``: probabilities, the background first. ``certainty``: mean probability, 0 to
    1, of the voxels that were given a name. ``volume``: millilitres that the network is sure of.
    """

    names: tuple[str, ...]
    labels: sitk.Image
    soft: Tensor
    grid: Grid
    certainty: float
    volume: float


def predict_regions(
    image: sitk.Image, network: AnatomyNetwork, memory_gb: float = 0.0, progress: Progress | None = None
) -> Regions:
    """Show ``image`` to the network in its frame. Where that covers only a part of the body, the part is taken of which
    the network is sure of the largest volume."""
    progress = progress or Progress()
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    own = grid_of(image)
    kind = intensity_kind(values)
    body = foreground_mask(values, kind, own.spacing)
    low, high = network.frame.limits(values[body])
    outside = network.frame.outside if network.frame.outside is not None else low
    grids = network.frame.grids(own, body)
    best: tuple[float, Tensor, Grid] | None = None
    for grid in grids:
        with progress.stage(f"regions {network.id}", 1 / len(grids)):
            seen = resample_to_grid(image, grid, background=outside)
            scaled = torch.from_numpy(network.frame.scaled(seen, values[body]))
            found = network.probabilities(scaled, memory_gb, progress)
            sure = certain_volume(found, grid)
            if best is None or sure > best[0]:
                best = (sure, found, grid)
    volume, probabilities, grid = best
    return _regions(network, image, probabilities, grid, volume)


def _regions(network: AnatomyNetwork, image: sitk.Image, probabilities: Tensor, grid: Grid, volume: float) -> Regions:
    certainty, number = probabilities.max(0)
    named = number > 0
    kind = np.uint8 if len(network.classes) < 256 else np.uint16
    labels = image_from_array(number.numpy().astype(kind), grid)
    labels = sitk.Resample(labels, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    sure = float(certainty[named].float().mean()) if named.any() else 0.0
    shape = [n - n % _COARSER for n in grid.shape]
    cut = probabilities[:, : shape[0], : shape[1], : shape[2]]
    # One class at a time: the average needs float32.
    soft = torch.stack([F.avg_pool3d(part[None, None].float(), _COARSER)[0, 0].half() for part in cut])
    coarse = grid.with_spacing(grid.spacing * _COARSER, [n // _COARSER for n in shape])
    return Regions(network.classes[1:], labels, soft, coarse, sure, volume)


__all__ = ["SURE", "Regions", "predict_regions"]
