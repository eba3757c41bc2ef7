"""The result of a registration, and how it is put together."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from .. import __version__
from ..core.grid import Grid
from ..core.progress import Progress
from ..evaluation import metrics
from ..features.raster import FeatureRaster, resample_features
from ..images.conversion import grid_of, image_from_array
from ..images.resampling import resample_to_grid, warp
from ..images.transforms import compose_field
from ..settings import Settings
from ..weights.catalogue import catalogue
from .deformable import Deformation
from .inputs import Inputs
from .inverse import inverse_transform
from .pair import Pair
from .quality import describe
from .regions import RegionPair, region_scores
from .trust import Trust, choose, warnings_of


@dataclass
class Registration:
    """The result of a registration. Images are SimpleITK images in the fixed geometry; points are LPS mm.

    ``transform`` maps fixed points to moving points: one displacement field over the whole fixed image, with every
    stage and the initial transform composed. ``linear`` is the part before the deformation.
    ``metrics``: ``{"before": {...}, "linear": {...}, "after": {...}}`` with the keys of `metrics.evaluate`.
    ``record``: settings, versions, weights' hashes, seed, device, seconds per stage, warnings.
    ``loss``: loss per iteration by refinement level. ``features``: encoder id (or the name of your own model's
    file) -> {"fixed", "moving"} -> uint8 RGB (z, y, x, 3) on ``feature_grid``: the first three principal components.
    ``uncertainty``: error estimate in mm.
    ``quality``: one plain sentence for the user. ``trust``: the failure score, and which candidate the result is.
    ``regions``: what an anatomy network predicted in both images. ``box_masks``: what was segmented in the user's boxes
    in the fixed and the moving image, each on its image's lattice.
    """

    fixed: sitk.Image
    moving: sitk.Image
    transform: sitk.DisplacementFieldTransform
    linear: sitk.Transform
    warped: sitk.Image
    metrics: dict[str, dict[str, float]]
    record: dict[str, Any]
    quality: str
    loss: dict[str, list[float]] = field(default_factory=dict)
    features: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    feature_grid: Grid | None = None
    uncertainty: sitk.Image | None = None
    warped_labels: sitk.Image | None = None
    trust: Trust | None = None
    warnings: list[str] = field(default_factory=list)
    regions: RegionPair | None = None
    box_masks: tuple[sitk.Image, sitk.Image] | None = None

    def inverse(self) -> sitk.DisplacementFieldTransform:
        """The numerical inverse: maps moving points to fixed points, over the whole moving image.

        Where the transform folds it has no inverse; the share of such places is added to ``warnings``.
        """
        spacing = 2 * float(np.array(self.fixed.GetSpacing()).min())
        transform, failed = inverse_transform(self.transform, grid_of(self.moving), spacing)
        if failed:
            warning = f"{100 * failed:.2g} % of the transform has no inverse, because it folds there."
            self.warnings.extend({warning} - set(self.warnings))
        return transform

    def jacobian(self) -> sitk.Image:
        """Determinant of the Jacobian of ``transform`` at each fixed voxel, float32; at most 0 where it folds."""
        return metrics.jacobian(self.transform, self.fixed)


def build_result(
    inputs: Inputs,
    linear: sitk.Transform,
    facts: dict[str, Any],
    pair: Pair,
    deformation: Deformation,
    regions: RegionPair | None,
    settings: Settings,
    device: torch.device,
    progress: Progress,
) -> Registration:
    """All stages as one transform, the warped images and what they score. ``facts``: of the linear stage."""
    # A start that bends is kept in full detail.
    lattice = _lattice(inputs.fixed, deformation.grid) if linear.IsLinear() else None
    transform = compose_field(linear, deformation.displacement, deformation.grid, inputs.fixed, lattice)
    before = inputs.initial or sitk.Transform(3, sitk.sitkIdentity)
    stages = {"after": transform, "linear": linear, "before": before}
    trust = choose(stages, facts, facts["guided"])
    if trust.kept != "after":
        linear = stages[trust.kept]
        deformation = replace(deformation, displacement=torch.zeros_like(deformation.displacement), uncertainty=None)
        transform = compose_field(linear, deformation.displacement, deformation.grid, inputs.fixed)
    progress.update(0.3)
    warped = warp(inputs.moving, transform, inputs.fixed)
    scores = _scores(inputs, linear, transform, regions, progress)
    seen = regions.warnings if regions else []
    warnings = list(dict.fromkeys([*inputs.warnings, *facts.get("warnings", []), *seen, *warnings_of(trust)]))
    labels = None
    if inputs.moving_labels is not None:
        labels = warp(inputs.moving_labels, transform, inputs.fixed, "nearest")
    record = _record(settings, device, deformation, pair) | {
        "linear": facts.get("kept", "start"), "trust": trust.to_dict(), "warnings": warnings,
    }  # fmt: skip
    if regions is not None:
        record["anatomy"] = {"network": regions.network, "sha256": regions.sha256, "believed": regions.believed}
    boxed = (inputs.fixed_box_mask, inputs.moving_box_mask) if inputs.fixed_box_mask is not None else None
    pictures, picture_grid = _feature_pictures(deformation.rasters, pair)
    return Registration(
        fixed=inputs.fixed, moving=inputs.moving, transform=transform, linear=linear, warped=warped, metrics=scores,
        record=record, quality=describe(scores, deformation, settings, trust), loss=deformation.losses,
        features=pictures, feature_grid=picture_grid, uncertainty=_uncertainty_image(deformation, inputs.fixed), warped_labels=labels,
        trust=trust, warnings=warnings, regions=regions, box_masks=boxed,
    )  # fmt: skip


def _scores(
    inputs: Inputs,
    linear: sitk.Transform,
    transform: sitk.Transform,
    regions: RegionPair | None,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Metrics before, after the linear stage and after all."""
    references = {
        name: getattr(inputs, name) for name in ("fixed_labels", "moving_labels", "fixed_points", "moving_points")
    }
    identity = sitk.Transform(3, sitk.sitkIdentity)
    stages = {"before": inputs.initial or identity, "linear": linear, "after": transform}
    predicted = region_scores(regions, stages) if regions is not None else {}
    scores = {}
    for name, candidate in stages.items():
        scores[name] = metrics.evaluate(inputs.fixed, inputs.moving, candidate, mask=inputs.fixed_mask, **references)
        scores[name].update(predicted.get(name, {}))
        progress.update(0.5)
    return scores


def _record(settings: Settings, device: torch.device, deformation: Deformation, pair: Pair) -> dict[str, Any]:
    """What somebody needs to repeat the registration."""
    return {
        "foundationreg": __version__,
        "settings": settings.to_dict(),
        "seed": settings.seed,
        "device": str(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "SimpleITK": sitk.Version.VersionString(),
        },
        "weights_sha256": deformation.weights,
        "grey_weights": [round(share, 3) for share in deformation.grey],
        "working_grid": {"shape": list(pair.grid.shape), "spacing_mm": float(pair.grid.spacing[0])},
    }


def _uncertainty_image(deformation: Deformation, fixed: sitk.Image) -> sitk.Image | None:
    """The expected error in mm on the fixed image's voxels; its largest value outside the working grid."""
    if deformation.uncertainty is None:
        return None
    values = deformation.uncertainty.cpu().numpy().astype(np.float32)
    image = image_from_array(values, deformation.grid)
    return warp(image, sitk.Transform(3, sitk.sitkIdentity), fixed, background=float(values.max()))


def _lattice(fixed: sitk.Image, nodes: Grid) -> Grid:
    """Nodes of the resulting field: as far apart as the displacement's own, which spares seven eighths of the file,
    from the first voxel centre of ``fixed`` to beyond its last one."""
    grid = grid_of(fixed)
    spacing = np.maximum(grid.spacing, float(nodes.spacing[0]))
    shape = np.ceil((np.array(grid.shape) - 1) * grid.spacing / spacing - 1e-6).astype(int) + 1
    return Grid.from_axes(shape, spacing, grid.origin, grid.direction).padded(1, 1)


def _feature_pictures(rasters: dict[str, tuple[FeatureRaster, FeatureRaster]], pair: Pair):
    """The first three principal components of both images as RGB (z, y, x, 3), black outside the body."""
    grid = pair.grid.with_spacing(max(2.0, float(pair.grid.spacing[0])))
    pictures = {}
    for encoder, sides in rasters.items():
        # Of one's own model not the whole path: names of scene nodes and their references are made of it.
        name = encoder if encoder in catalogue() else re.sub(r"[^\w.+-]+", "_", Path(encoder).name)
        placed = [resample_features(raster, grid)[:3].cpu().numpy() for raster in sides]
        bodies = [
            resample_to_grid(image_from_array(body, pair.grid), grid, None, "nearest", 0) > 0
            for body in (pair.fixed_body, pair.moving_body)
        ]
        inside = np.concatenate([values[:, body] for values, body in zip(placed, bodies, strict=True)], axis=1)
        low, high = np.percentile(inside, [1, 99], axis=1)
        pictures[name] = {}
        for side, values, body in zip(("fixed", "moving"), placed, bodies, strict=True):
            scaled = (np.moveaxis(values, 0, -1) - low) / np.maximum(high - low, 1e-6)
            rgb = (scaled.clip(0, 1) * 255).astype(np.uint8)
            if rgb.shape[-1] < 3:
                rgb = np.repeat(rgb[..., :1], 3, axis=-1)
            pictures[name][side] = rgb * body[..., None]
    return pictures, grid if pictures else None
