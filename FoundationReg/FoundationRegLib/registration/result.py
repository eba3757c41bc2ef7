"""The result of a registration, and how it is put together."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
import torch

from .. import __version__
from ..core.grid import Grid
from ..core.progress import Progress
from ..errors import InputError
from ..evaluation import metrics
from ..images.conversion import grid_of, image_from_array
from ..images.resampling import warp
from ..images.transforms import compose_field
from ..native import library
from ..settings import Settings
from .deformable import Deformation
from .feature_review import encode_for_review, feature_pictures
from .inputs import Inputs
from .inverse import inverse_transform
from .pair import Pair
from .quality import describe
from .regions import RegionPair, region_scores, unlike_warning
from .trust import Trust, choose, warnings_of
from .workspace import Workspace

if TYPE_CHECKING:
    from ..interaction.correction import Corrections
    from ..interaction.probe import Correspondence, Side


@dataclass
class Registration:
    """The result of a registration. Images are SimpleITK images in the fixed geometry; points are LPS mm.

    ``transform`` maps fixed points to moving points: one displacement field over the whole fixed image, with every
    stage and the initial transform composed. ``linear`` is the part before the deformation.
    ``metrics``: ``{"before": {...}, "linear": {...}, "after": {...}}`` with the keys of `metrics.evaluate`.
    ``record``: settings, versions, weights' hashes, seed, device, seconds per stage, warnings.
    ``loss``: loss per iteration by refinement level. ``features``: encoder id (or the name of your own model's
    file) -> {"fixed", "moving"} -> uint8 RGB (z, y, x, 3) on ``feature_grid``: the first three principal components.
    ``uncertainty``: error estimate in mm, which is relative: it ranks places and is no confidence interval.
    ``quality``: one plain sentence for the user. ``trust``: the failure score, and which candidate the result is.
    ``regions``: what an anatomy network predicted in both images. ``box_masks``: what was segmented in the user's boxes
    in the fixed and the moving image, each on its image's lattice.
    ``workspace``: the features, for `correspondence` and `corrections`; None gives their memory free.
    """

    fixed: sitk.Image
    moving: sitk.Image
    transform: sitk.DisplacementFieldTransform
    linear: sitk.Transform
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
    workspace: Workspace | None = field(default=None, repr=False)

    def correspondence(self, point, encoder: str | None = None, side: Side = "fixed") -> Correspondence:
        """What ``encoder`` (by default the run's first) sees at an LPS ``point`` of the image ``side``, and where the
        transform goes from there: see `interaction.probe.Correspondence`. Raises `InputError`."""
        from ..interaction import probe

        return probe.correspondence(self._workspace(), point, encoder, side)

    def corrections(self) -> Corrections:
        """Correct the transform by pairs of points, with undo and redo; ``current.transform`` is the corrected one."""
        from ..interaction.correction import Corrections

        return Corrections(self._workspace())

    def _workspace(self) -> Workspace:
        if self.workspace is None:
            raise InputError("The features of this registration are gone; register again to ask or to correct it.")
        return self.workspace

    def show_features(self, encoder: str, progress: Progress | None = None) -> None:
        """Encode both images with ``encoder``, which took no part: its ``features`` are added, and `correspondence` may
        ask it. The transform stays. Raises `InputError`, `WeightsError` and `Cancelled`."""
        pictures, self.feature_grid, digest = encode_for_review(self._workspace(), encoder, progress)
        self.features |= pictures
        self.record.setdefault("weights_sha256_shown", {})[encoder] = digest

    @cached_property
    def warped(self) -> sitk.Image:
        """The moving image in the fixed geometry, linearly interpolated when it is first asked for."""
        return warp(self.moving, self.transform, self.fixed)

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
) -> Registration:
    """The result as soon as the transform is known: without ``metrics`` and ``quality``.

    ``facts``: of the linear stage.
    """
    # A start that bends is kept in full detail.
    lattice = _lattice(inputs.fixed, deformation.grid) if linear.IsLinear() else None
    transform = compose_field(linear, deformation.displacement, deformation.grid, inputs.fixed, lattice)
    before = inputs.initial or sitk.Transform(3, sitk.sitkIdentity)
    stages = {"after": transform, "linear": linear, "before": before}
    trust = choose(stages, facts, facts["guided"])
    if trust.kept != "after":
        linear, lattice = stages[trust.kept], None
        deformation = replace(deformation, displacement=torch.zeros_like(deformation.displacement), uncertainty=None)
        transform = compose_field(linear, deformation.displacement, deformation.grid, inputs.fixed)
    seen = regions.warnings if regions else []
    warnings = list(dict.fromkeys([*inputs.warnings, *facts.get("warnings", []), *seen, *warnings_of(trust)]))
    record = _record(settings, device, deformation, pair) | {
        "linear": facts.get("kept", "start"), "trust": trust.to_dict(), "warnings": warnings,
    }  # fmt: skip
    if regions is not None:
        record["anatomy"] = {"network": regions.network, "sha256": regions.sha256, "believed": regions.believed}
    boxed = (inputs.fixed_box_mask, inputs.moving_box_mask) if inputs.fixed_box_mask is not None else None
    pictures, picture_grid = feature_pictures(deformation.rasters, pair)
    workspace = None
    # The features were taken after the linear stage: they say nothing about a result without it.
    if settings.deformable and trust.kept != "before":
        workspace = Workspace(inputs, linear, settings, deformation, transform, lattice)
    return Registration(
        fixed=inputs.fixed, moving=inputs.moving, transform=transform, linear=linear, metrics={},
        record=record, quality="", loss=deformation.losses, features=pictures, feature_grid=picture_grid,
        uncertainty=_uncertainty_image(deformation, inputs.fixed), warnings=warnings, regions=regions,
        box_masks=boxed, trust=trust, workspace=workspace,
    )  # fmt: skip


def measure(
    result: Registration,
    inputs: Inputs,
    deformation: Deformation,
    settings: Settings,
    progress: Progress,
    compare: Callable[[], metrics.Similarity] | None = None,
    known: dict[str, metrics.Scores] | None = None,
) -> None:
    """Warp the moving labels, and fill in ``metrics`` and ``quality``. Raises `Cancelled`.

    ``compare``: gives the similarity of the images inside of the fixed mask, where it may be there already. ``known``:
    scores of the same inputs before and after the same linear stage, which are added where they are not there yet.
    """
    known = {} if known is None else known
    scores = _scores(inputs, result.linear, result.transform, result.regions, progress, compare, known)
    if inputs.moving_labels is not None:
        result.warped_labels = warp(inputs.moving_labels, result.transform, inputs.fixed, "nearest")
    result.metrics, result.quality = scores, describe(scores, deformation, settings, result.trust)
    if result.regions is not None and (warning := unlike_warning(result.regions, scores["after"])):
        result.warnings.append(warning)


def _scores(
    inputs: Inputs,
    linear: sitk.Transform,
    transform: sitk.Transform,
    regions: RegionPair | None,
    progress: Progress,
    compare: Callable[[], metrics.Similarity] | None,
    known: dict[str, metrics.Scores],
) -> dict[str, dict[str, float]]:
    """Metrics before, after the linear stage and after all."""
    references = {
        name: getattr(inputs, name) for name in ("fixed_labels", "moving_labels", "fixed_points", "moving_points")
    }
    before = inputs.initial or sitk.Transform(3, sitk.sitkIdentity)
    stages = {"before": before, "linear": linear, "after": transform}
    predicted = region_scores(regions, stages) if regions is not None else {}
    images = inputs.fixed, inputs.moving
    new = {name: stage for name, stage in stages.items() if name not in known}
    measured = metrics.evaluate_each(*images, new, mask=inputs.fixed_mask, compare=compare, **references)
    known |= {name: measured[name] for name in new if name != "after"}
    scores = {name: dict(known.get(name) or measured[name]) for name in stages}
    for name, found in predicted.items():
        scores[name].update(found)
    progress.update(0.8)
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
        "compiled_kernels": library.in_use() if device.type == "cpu" else "none",
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
    """Nodes of the resulting field: the displacement's own, so that nothing is interpolated twice, and as many more
    as it takes to reach beyond the outer faces of ``fixed``."""
    ends = nodes.indices(grid_of(fixed).corners())
    before = np.maximum(0, np.ceil(-ends.min(axis=0) - 1e-6)).astype(int)
    after = np.maximum(0, np.ceil(ends.max(axis=0) - np.array(nodes.shape) + 1 - 1e-6)).astype(int)
    return nodes.padded(before, after)
