"""The one path from two images to a transform: `register`."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from .. import __version__
from ..core.cache import Cache
from ..core.grid import Grid
from ..core.progress import Preview, Progress
from ..encoders.loading import require
from ..errors import InputError, OutOfMemory
from ..evaluation import metrics
from ..features.extraction import FeatureRaster, is_out_of_memory, place
from ..images.image import compose_field, grid_of, image_from_array, overlap_fraction, resample_to_grid, warp
from ..images.inversion import inverse_points
from ..settings import Settings
from ..weights.catalogue import catalogue
from . import linear
from .deformable import Deformation, Pair, deform
from .inputs import ImageLike, Inputs, PointsLike, read_inputs
from .preparation import LEAST_VOXELS, prepare_pair, working_voxels
from .quality import describe

__all__ = ["Cache", "Registration", "register"]

_LEAST_OVERLAP = 0.02


@dataclass
class Registration:
    """What a registration found. Images are SimpleITK images in the fixed geometry; points are LPS mm.

    ``transform`` maps fixed points to moving points: one displacement field over the whole fixed image, with every
    stage and the initial transform composed. ``linear`` is the part before the deformation.
    ``metrics``: ``{"before": {...}, "linear": {...}, "after": {...}}`` with the keys of `metrics.evaluate`.
    ``record``: settings, versions, weights' hashes, seed, device, seconds per stage, warnings.
    ``loss``: loss per iteration by refinement level. ``features``: encoder id (or the name of your own model's
    file) -> {"fixed", "moving"} -> uint8 RGB (z, y, x, 3) on ``feature_grid``: the first three principal components.
    ``uncertainty``: error estimate in mm.
    ``quality``: one plain sentence for the user.
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
    warnings: list[str] = field(default_factory=list)

    def inverse(self) -> sitk.DisplacementFieldTransform:
        """The numerical inverse: maps moving points to fixed points, over the whole moving image.

        Found node by node with Newton's method; where the transform does not reach a point, the nearest try stands.
        """
        grid = grid_of(self.moving)
        coarse = grid.with_spacing(np.maximum(grid.spacing, 2 * np.array(self.fixed.GetSpacing()).min()))
        # One node beyond every face, so that the lattice covers the outermost voxel centres.
        lattice = coarse.padded(1, 1)
        points = lattice.points(np.moveaxis(np.indices(lattice.shape), 0, -1).reshape(-1, 3))
        found, _ = inverse_points(self.transform, points)
        vectors = (found - points).reshape(*lattice.shape, 3)
        return sitk.DisplacementFieldTransform(image_from_array(vectors, lattice))

    def jacobian(self) -> sitk.Image:
        """Determinant of the Jacobian of ``transform`` at each fixed voxel, float32; at most 0 where it folds."""
        return metrics.jacobian(self.transform, self.fixed)


def register(
    fixed: ImageLike,
    moving: ImageLike,
    settings: Settings | None = None,
    *,
    initial_transform: str | Path | sitk.Transform | None = None,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    exclude_fixed: ImageLike | None = None,
    exclude_moving: ImageLike | None = None,
    fixed_labels: ImageLike | None = None,
    moving_labels: ImageLike | None = None,
    fixed_points: PointsLike | None = None,
    moving_points: PointsLike | None = None,
    guide_with_labels: bool = False,
    guide_with_points: bool = False,
    progress: Progress | None = None,
    cache: Cache | None = None,
) -> Registration:
    """Find the transform that takes fixed points to moving points.

    Images are paths or SimpleITK images. Labels and points measure the result; they guide it only when asked.
    ``exclude_*`` masks keep a lesion out of the similarity. Raises `InputError` for input that cannot be used before
    any long work starts, `OutOfMemory`, and `Cancelled` when ``progress`` says so.
    """
    settings, progress, cache = settings or Settings.from_preset(), progress or Progress(), cache or Cache()
    device = choose_device(settings.device)
    _check_guides(guide_with_labels and (fixed_labels, moving_labels), "labels")
    _check_guides(guide_with_points and (fixed_points, moving_points), "points")
    for name, _ in settings.encoders:
        require(name, settings.encoder_layers)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        with progress.stage("load", 0.03):
            inputs = read_inputs(
                fixed, moving, initial_transform=initial_transform, fixed_mask=fixed_mask, moving_mask=moving_mask,
                exclude_fixed=exclude_fixed, exclude_moving=exclude_moving, fixed_labels=fixed_labels,
                moving_labels=moving_labels, fixed_points=fixed_points, moving_points=moving_points,
            )  # fmt: skip
        with progress.stage("align", 0.12):
            key = ("linear", _content(inputs), _aligning(settings))
            linear, facts = cache.get(key, lambda: _aligned(inputs, settings, progress))
        if overlap_fraction(inputs.fixed, inputs.moving, linear) < _LEAST_OVERLAP:
            raise InputError(
                "The images do not overlap after the initial alignment; give an initial transform or another start."
            )
        guided = (guide_with_labels, guide_with_points)
        pair, found, warnings = _deformed(inputs, linear, key, guided, settings, device, progress, cache)
        facts = {**facts, "warnings": [*facts.get("warnings", []), *warnings]}
        with progress.stage("output", 0.15):
            made = _result(inputs, linear, facts, pair, found, settings, device, progress)
        made.record["seconds"] = {name: round(seconds, 3) for name, seconds in progress.seconds.items()}
        return made
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"The memory of {device} is not enough; set a larger finest_spacing_mm or choose the preset fast."
        ) from None


def choose_device(name: str) -> torch.device:
    """The torch device of a setting; ``auto`` takes CUDA, then MPS, then the CPU. Raises `InputError` if not there."""
    mps = getattr(torch.backends, "mps", None)
    has = {"cuda": torch.cuda.is_available(), "mps": bool(mps and mps.is_available()), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in has.items() if there))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"There is no device {name!r}; use auto, cpu, cuda, cuda:N or mps.") from None
    present = has.get(device.type, False)
    if present and device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        present = False
    if not present:
        raise InputError(f"The device {name} is not available on this computer; use auto or cpu.")
    return device


def _content(inputs: Inputs) -> str:
    """Hash of everything that came in."""
    digest = hashlib.sha256()
    for value in vars(inputs).values():
        if isinstance(value, sitk.Image):
            digest.update(grid_of(value).affine.tobytes())
            digest.update(np.ascontiguousarray(sitk.GetArrayViewFromImage(value)).tobytes())
        elif isinstance(value, sitk.DisplacementFieldTransform):
            digest.update(sitk.GetArrayViewFromImage(value.GetDisplacementField()).tobytes())
        elif isinstance(value, sitk.Transform):
            digest.update(repr((value.GetName(), value.GetParameters(), value.GetFixedParameters())).encode())
        elif isinstance(value, np.ndarray):
            digest.update(value.tobytes())
        digest.update(b"|")
    return digest.hexdigest()


def _check_guides(sides, kind: str) -> None:
    """Raise where ``sides``, those of fixed and moving that shall guide, are not both there."""
    if sides and any(side is None for side in sides):
        raise InputError(f"To guide with {kind}, {kind} of both images are needed.")


def _aligning(settings: Settings) -> str:
    """The settings that decide the linear stage."""
    names = ("start", "rigid", "affine", "seed", "fixed_intensity", "moving_intensity", "fixed_window",
             "moving_window")  # fmt: skip
    return str([getattr(settings, name) for name in names])


def _preparing(settings: Settings) -> str:
    """The settings that decide how the pair looks."""
    names = ("fixed_intensity", "moving_intensity", "fixed_window", "moving_window", "body_mask", "finest_spacing_mm",
             "search_spacing_mm", "levels")  # fmt: skip
    return str([getattr(settings, name) for name in names])


def _aligned(inputs: Inputs, settings: Settings, progress: Progress) -> tuple[sitk.Transform, dict[str, Any]]:
    sides = [
        linear.prepare(image, mask, None if kind == "auto" else kind, window)
        for image, mask, kind, window in (
            (inputs.fixed, inputs.fixed_mask, settings.fixed_intensity, settings.fixed_window),
            (inputs.moving, inputs.moving_mask, settings.moving_intensity, settings.moving_window),
        )
    ]
    with progress.stage("start", 0.3):
        start = linear.initial(*sides, settings.start, inputs.initial, settings.seed, progress, settings.affine)
    with progress.stage("linear", 0.7):
        return linear.linear(*sides, start, settings.rigid, settings.affine, settings.seed, progress)


def _deformed(
    inputs: Inputs,
    linear: sitk.Transform,
    content: Hashable,
    guided: tuple[bool, bool],
    settings: Settings,
    device: torch.device,
    progress: Progress,
    cache: Cache,
) -> tuple[Pair, Deformation, list[str]]:
    """Both images on the working grid, the deformation between them, and warnings.

    When memory runs out on a grid that nobody asked for, one of half as many voxels is taken instead.
    """
    preview = _previewer(linear, progress)
    wanted = str([settings.to_dict(), guided]) if any(guided) else _preparing(settings)

    def attempt(voxels: int) -> tuple[Pair, Deformation | None]:
        with progress.stage("prepare", 0.05):
            key = ("pair", content, wanted, voxels)
            pair = cache.get(key, lambda: prepare_pair(inputs, linear, settings, voxels, *guided))
        try:
            with progress.stage("deform", 0.65):
                return pair, deform(pair, settings, device, progress, cache, preview)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or settings.finest_spacing_mm or _size(pair) < 2 * LEAST_VOXELS:
                raise
            return pair, None

    voxels, warnings = working_voxels(settings, device), []
    pair, found = attempt(voxels)
    while found is None:
        cache.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        spacing, voxels = pair.grid.spacing[0], min(voxels, _size(pair)) // 2
        pair, found = attempt(voxels)
        warnings.append(
            f"The memory of {device} was not enough for a working grid of {spacing:.2g} mm; one of "
            f"{pair.grid.spacing[0]:.2g} mm was taken."
        )
    return pair, found, warnings


def _size(pair: Pair) -> int:
    return int(np.prod(pair.grid.shape))


def _previewer(linear: sitk.Transform, progress: Progress):
    """Sends the composed field, coarse enough to be quick, to who watches; None when nobody does."""
    if not progress.wants_previews:
        return None

    def send(stage: str, displacement: Tensor, grid: Grid) -> None:
        lattice = grid.with_spacing(max(6.0, float(grid.spacing.max()))).padded(1, 1)
        transform = compose_field(linear, displacement, grid, lattice)
        vectors = sitk.GetArrayFromImage(transform.GetDisplacementField()).astype(np.float32)
        progress.preview(Preview(stage, lattice, vectors))

    return send


def _result(
    inputs: Inputs,
    linear: sitk.Transform,
    facts: dict[str, Any],
    pair: Pair,
    found: Deformation,
    settings: Settings,
    device: torch.device,
    progress: Progress,
) -> Registration:
    # A start that bends is kept in full detail.
    lattice = _lattice(inputs.fixed, found.grid) if linear.IsLinear() else None
    transform = compose_field(linear, found.displacement, found.grid, inputs.fixed, lattice)
    progress.update(0.3)
    warped = warp(inputs.moving, transform, inputs.fixed)
    measured = {
        name: getattr(inputs, name) for name in ("fixed_labels", "moving_labels", "fixed_points", "moving_points")
    }
    identity = sitk.Transform(3, sitk.sitkIdentity)
    scores = {}
    for name, candidate in (("before", inputs.initial or identity), ("linear", linear), ("after", transform)):
        scores[name] = metrics.evaluate(inputs.fixed, inputs.moving, candidate, mask=inputs.fixed_mask, **measured)
        progress.update(0.5)
    warnings = list(dict.fromkeys(inputs.warnings + facts.get("warnings", [])))
    labels = None
    if inputs.moving_labels is not None:
        labels = warp(inputs.moving_labels, transform, inputs.fixed, "nearest")
    uncertainty = None
    if found.uncertainty is not None:
        mapped = found.uncertainty.cpu().numpy().astype(np.float32)
        uncertainty = warp(image_from_array(mapped, found.grid), identity, inputs.fixed, background=float(mapped.max()))
    record = {
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
        "weights_sha256": found.weights,
        "grey_weights": [round(share, 3) for share in found.grey],
        "linear": facts.get("kept", "start"),
        "working_grid": {"shape": list(pair.grid.shape), "spacing_mm": float(pair.grid.spacing[0])},
        "warnings": warnings,
    }
    pictures, picture_grid = _feature_pictures(found.rasters, pair)
    return Registration(
        fixed=inputs.fixed, moving=inputs.moving, transform=transform, linear=linear, warped=warped, metrics=scores,
        record=record, quality=describe(scores, found, settings), loss=found.losses, features=pictures,
        feature_grid=picture_grid, uncertainty=uncertainty, warped_labels=labels, warnings=warnings,
    )  # fmt: skip


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
        placed = [place(raster, grid)[:3].cpu().numpy() for raster in sides]
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
