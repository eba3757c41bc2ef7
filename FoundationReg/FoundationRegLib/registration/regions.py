"""What an anatomy network sees in both images: named regions, and how far they can be believed.

Predicted regions are results of their own, a measure of the registration without any label from the user, and a second
opinion on the start. They do not guide the field: docs/anatomy.md has the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..core.grid import Grid
from ..core.progress import Progress
from ..encoders.anatomy import AnatomyNetwork, certain_volume
from ..encoders.anatomy_loading import load_anatomy
from ..evaluation.metrics import dice
from ..images.conversion import grid_of, image_from_array
from ..images.preprocessing import foreground_mask, intensity_kind
from ..images.resampling import resample_to_grid, warp
from ..images.transforms import affine_transform
from ..settings import Settings

# Mean probability of what was named, from which a prediction is believed. Seen with brainchop's 50 regions: two brains,
# 0.87 and 0.85.
_LEAST_CERTAINTY = 0.7
# Share of the network's structures that must be there, where it sees them on both images.
_LEAST_FOUND = 0.3
# A structure counts from so many ml: fewer voxels are noise.
_LEAST_ML = 0.1
# The start by regions replaces the usual one where it makes them overlap by so much more (mean Dice).
_CLEAR_OVERLAP = 0.1
_COARSE_MM = 3.0
# Mean Dice of predicted regions after a registration below which both images were not named alike. Seen with
# brainchop's 50 regions on a T1 brain and one of another contrast: 0.01, with 31 structures found in it.
_ALIKE = 0.2


@dataclass(frozen=True)
class Regions:
    """What a network saw in one image.

    ``labels``: image of numbers into ``names`` on the lattice of the image, counted from 1; 0 is none of them.
    ``certainty``: mean probability, 0 to 1, of what was named. ``rejection``: why it is not believed, empty when it is.
    """

    names: tuple[str, ...]
    labels: sitk.Image
    certainty: float
    rejection: str = ""

    @property
    def volumes(self) -> dict[str, float]:
        """Millilitres of each structure that was found."""
        counts = np.bincount(sitk.GetArrayViewFromImage(self.labels).ravel(), minlength=len(self.names) + 1)[1:]
        voxel = float(np.prod(self.labels.GetSpacing())) / 1000
        return {name: count * voxel for name, count in zip(self.names, counts, strict=True) if count}


@dataclass(frozen=True)
class RegionPair:
    """Predicted regions of both images by one network. ``network``: its id. ``sha256``: of its weights."""

    network: str
    sha256: str
    fixed: Regions
    moving: Regions

    @property
    def believed(self) -> bool:
        return not (self.fixed.rejection or self.moving.rejection)

    @property
    def warnings(self) -> list[str]:
        """One sentence for each image whose regions are not believed."""
        return [
            f"The regions that {self.network} sees in the {side} image are not believed: {regions.rejection}."
            for side, regions in (("fixed", self.fixed), ("moving", self.moving))
            if regions.rejection
        ]

    def shared(self) -> list[int]:
        """Numbers of the structures that were found in both images."""
        volumes = [regions.volumes for regions in (self.fixed, self.moving)]
        names = self.fixed.names
        return [n for n, name in enumerate(names, 1) if all(v.get(name, 0) >= _LEAST_ML for v in volumes)]

    def overlap(self, transform: sitk.Transform, coarse: bool = False) -> dict[str, float]:
        """Dice of each shared structure under ``transform`` (fixed to moving), on the fixed image's lattice."""
        shared, reference = self.shared(), grid_of(self.fixed.labels)
        fixed = self.fixed.labels
        if coarse:
            reference = reference.with_spacing(np.maximum(reference.spacing, _COARSE_MM))
            fixed = warp(fixed, sitk.Transform(3, sitk.sitkIdentity), reference, "nearest")
        moved = warp(self.moving.labels, transform, reference, "nearest")
        scores = dice(sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(moved), shared)
        return {self.fixed.names[number - 1]: score for number, score in scores.items()}


def predict_pair(
    images: tuple[sitk.Image, sitk.Image], settings: Settings, device: torch.device, progress: Progress | None = None
) -> RegionPair:
    """Show both images to the network that ``settings.anatomy`` names. Raises `InputError` and `WeightsError`."""
    progress = progress or Progress()
    network = load_anatomy(settings.anatomy, device, progress)
    sides = []
    for side, image in zip(("fixed", "moving"), images, strict=True):
        with progress.stage(f"regions of the {side} image", 0.5):
            kind = getattr(settings, f"{side}_intensity")
            sides.append(predict(image, network, "" if kind == "auto" else kind, settings.memory_gb, progress))
    return RegionPair(network.id, network.weights_sha256, *sides)


def predict(
    image: sitk.Image,
    network: AnatomyNetwork,
    kind: str = "",
    memory_gb: float = 0.0,
    progress: Progress | None = None,
) -> Regions:
    """Show ``image`` to the network in its frame. Where that covers only a part of the body, the part is taken of which
    the network is sure of the largest volume.

    ``kind``: mr or ct, by default as the grey values look. An image of another kind or size than the network knows is
    not shown to it at all.
    """
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    own, kind = grid_of(image), kind or intensity_kind(values)
    body = foreground_mask(values, kind, own.spacing)
    if rejection := _misfit(network, own, body, kind):
        empty = sitk.Image(image.GetSize(), sitk.sitkUInt8)
        empty.CopyInformation(image)
        return Regions(network.classes[1:], empty, 0.0, rejection)
    probabilities, grid = _best_view(image, network, values[body], body, memory_gb, progress or Progress())
    certainty, number = probabilities.max(0)
    named = number > 0
    sure = float(certainty[named].float().mean()) if named.any() else 0.0
    wide = np.uint8 if len(network.classes) < 256 else np.uint16
    labels = image_from_array(number.numpy().astype(wide), grid)
    labels = sitk.Resample(labels, image, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    regions = Regions(network.classes[1:], labels, sure)
    return Regions(regions.names, labels, sure, _rejection(regions))


def _misfit(network: AnatomyNetwork, grid: Grid, body: np.ndarray, kind: str) -> str:
    """Why the network cannot know such an image; empty when it can."""
    frame = network.frame
    if frame.kind and frame.kind != kind:
        return f"it knows {frame.kind.upper()}, and the image looks like {kind.upper()}"
    filled = np.argwhere(body) if body.any() else np.argwhere(np.ones(grid.shape, bool))
    longest = float(((filled.max(0) - filled.min(0) + 1) * grid.spacing).max())
    shortest, most = frame.extent
    if not shortest <= longest <= most:
        return f"it knows anatomy of {shortest:g} to {most:g} mm, and the image shows {longest:.0f} mm"
    return ""


def _rejection(regions: Regions) -> str:
    found = [name for name, volume in regions.volumes.items() if volume >= _LEAST_ML]
    if not found:
        return "it finds none of its structures"
    if regions.certainty < _LEAST_CERTAINTY:
        return f"it is sure of them by {regions.certainty:.0%} on average only"
    if len(found) < _LEAST_FOUND * len(regions.names):
        return f"it finds {len(found)} of its {len(regions.names)} structures only"
    return ""


def _best_view(
    image: sitk.Image,
    network: AnatomyNetwork,
    foreground: np.ndarray,
    body: np.ndarray,
    memory_gb: float,
    progress: Progress,
) -> tuple[Tensor, Grid]:
    """Probabilities (classes, D, H, W) and their lattice, where the network is sure of the largest volume."""
    frame = network.frame
    outside = frame.limits(foreground)[0] if frame.outside is None else frame.outside
    grids = frame.grids(grid_of(image), body)
    best: tuple[float, Tensor, Grid] | None = None
    for grid in grids:
        with progress.stage(f"predict with {network.id}", 1 / len(grids)):
            scaled = frame.scaled(resample_to_grid(image, grid, background=outside), foreground)
            probabilities = network.probabilities(torch.from_numpy(scaled), memory_gb, progress)
        sure = certain_volume(probabilities, grid)
        if best is None or sure > best[0]:
            best = (sure, probabilities, grid)
    return best[1], best[2]


def region_start(pair: RegionPair, start: sitk.Transform) -> sitk.Transform | None:
    """The rigid transform that brings the centroids of the shared regions together, where it makes them overlap clearly
    more than ``start`` does; None where it does not, or fewer than four can be seen. Least squares weighted by volume
    (Kabsch, Acta Cryst. A32, 1976)."""
    shared = pair.shared()
    if not pair.believed or len(shared) < 4:
        return None
    points, weights = [], np.ones(len(shared))
    for regions in (pair.fixed, pair.moving):
        array, grid = sitk.GetArrayViewFromImage(regions.labels), grid_of(regions.labels)
        places = np.argwhere(np.isin(array, shared))
        numbers = array[tuple(places.T)].astype(int)
        counts = np.bincount(numbers, minlength=max(shared) + 1)[shared]
        sums = [np.bincount(numbers, places[:, n], max(shared) + 1)[shared] for n in range(3)]
        points.append(grid.points(np.stack(sums, 1) / counts[:, None]))
        weights = weights * np.sqrt(counts)
    fit = affine_transform(_rigid(*points, weights / weights.sum()))
    gain = _mean(pair.overlap(fit, coarse=True)) - _mean(pair.overlap(start, coarse=True))
    return fit if gain > _CLEAR_OVERLAP else None


def _rigid(fixed: np.ndarray, moving: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Matrix (4, 4) of the rotation and shift from ``fixed`` to ``moving`` points (n, 3)."""
    centres = weights @ fixed, weights @ moving
    left, _, right = np.linalg.svd((fixed - centres[0]).T @ (weights[:, None] * (moving - centres[1])))
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    matrix = np.eye(4)
    matrix[:3, :3] = (left @ flip @ right).T
    matrix[:3, 3] = centres[1] - matrix[:3, :3] @ centres[0]
    return matrix


def region_scores(pair: RegionPair, transforms: dict[str, sitk.Transform]) -> dict[str, dict[str, Any]]:
    """By stage, as in a result's metrics: ``predicted_dice``, the mean over shared structures, and
    ``predicted_dice_per_structure``. Empty when the regions are not believed."""
    if not pair.believed or not pair.shared():
        return {}
    scores = {stage: pair.overlap(transform) for stage, transform in transforms.items()}
    return {
        stage: {"predicted_dice": _mean(overlap), "predicted_dice_per_structure": overlap}
        for stage, overlap in scores.items()
    }


def unlike_warning(pair: RegionPair, scores: dict[str, Any]) -> str | None:
    """A sentence where the regions hardly meet after the registration, by its ``scores`` of `region_scores`."""
    if scores.get("predicted_dice", 1.0) >= _ALIKE:
        return None
    return (
        f"The regions that {pair.network} names hardly meet after the registration (mean Dice "
        f"{scores['predicted_dice']:.2f}): either this result is wrong, or one of the images is not of the kind that "
        "the network was trained on. Do not rely on them before you have looked at them."
    )


def _mean(scores: dict[str, float]) -> float:
    return float(np.mean(list(scores.values()))) if scores else 0.0
