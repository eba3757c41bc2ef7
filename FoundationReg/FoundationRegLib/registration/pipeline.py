"""The one path from two images to a transform: `register`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from ..core.cache import Cache
from ..core.constants import METHOD, SIDES
from ..core.grid import Grid
from ..core.memory import is_out_of_memory, out_of_memory_explained
from ..core.progress import Preview, Progress
from ..encoders.anatomy_loading import anatomy_fingerprint, anatomy_names, require_anatomy
from ..encoders.loading import build_network, require
from ..errors import InputError
from ..evaluation.metrics import Similarity
from ..images.conversion import grid_of
from ..images.resampling import overlap_fraction
from ..images.transforms import compose_field
from ..numerics.devices import choose_device, cpu_threads
from ..settings import Settings
from ..weights import acquisition
from ..weights.catalogue import entry, own_model
from . import boxes, linear
from .ahead import Ahead
from .boxes import BoxLike
from .content import aligned_by, content_hash, prepared_by, shown_by
from .deformable import Deformation, deform
from .encoding import begin_loading
from .forecast import Forecast
from .inputs import ImageLike, Inputs, PointsLike, read_inputs
from .pair import Pair
from .preparation import prepare_pair, working_voxels
from .regions import RegionPair, predict_pair, region_start
from .result import Registration, build_result, measure
from .retuning import LastRun, look_ahead, remember
from .trust import keep_supported

__all__ = ["Cache", "Registration", "register"]


_LEAST_OVERLAP = 0.02


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
    fixed_box: BoxLike | None = None,
    moving_box: BoxLike | None = None,
    fixed_box_mask: ImageLike | None = None,
    moving_box_mask: ImageLike | None = None,
    guide_with_labels: bool = False,
    guide_with_points: bool = False,
    download: bool = False,
    progress: Progress | None = None,
    cache: Cache | None = None,
    on_found: Callable[[Registration], None] | None = None,
    begun: Ahead | None = None,
) -> Registration:
    """Find the transform that takes fixed points to moving points.

    Args:
        fixed, moving: paths or scalar 3-D SimpleITK images, of any grids; the result lies on the fixed one's.
        settings: by default those of the preset ``default``.
        initial_transform: file or transform from fixed to moving points, LPS mm, to start from.
        fixed_mask, moving_mask: similarity counts only where they are above 0.
        exclude_fixed, exclude_moving: what they hold above 0, such as a lesion, is kept out of the similarity.
        fixed_labels, moving_labels: integer label images; values that both hold are compared.
        fixed_points, moving_points: files or arrays (n, 3) in LPS mm; row n of both is the same anatomy. Labels and
            points measure the result. They guide it only with ``guide_with_labels`` or ``guide_with_points``.
        fixed_box, moving_box: around the same organ, six numbers each: x, y, z of two opposite corners in LPS mm. What
            they hold is segmented (MedSAM-Lite) and guides the start and the field like a segmentation of the user's.
        fixed_box_mask, moving_box_mask: what the boxes hold, above 0, as a person corrected it. Nothing is segmented on
            that side, and its box may be left out.
        download: fetch weights that are missing; says yes to their licences. Otherwise nothing is fetched.
        on_found: gets the result as soon as its transform is known and before anything is measured: ``metrics`` and
            ``quality`` are still empty then.
        progress: takes events and previews, and carries the wish to cancel. cache: keeps features for later calls.
        begun: of `ahead.begin` with the same arguments, where these have been read already.

    Raises:
        InputError: for input that cannot be used, before any long work starts.
        WeightsError: when weights of an encoder are missing. OutOfMemory. Cancelled: when ``progress`` says so.
    """
    settings, progress, cache = settings or Settings.from_preset(), progress or Progress(), cache or Cache()
    device = choose_device(settings.device)
    guided = (
        _guides(guide_with_labels, fixed_labels, moving_labels, "labels"),
        _guides(guide_with_points, fixed_points, moving_points, "points"),
    )
    around = boxes.require_boxes(fixed_box, moving_box, fixed_box_mask, moving_box_mask)
    _require_heeded(settings, guided[1], moving_mask is not None or exclude_moving is not None)
    _require_networks(settings, download, progress)
    with cpu_threads(settings.threads), out_of_memory_explained(device):
        with progress.stage("load", 0.03):
            ahead = begun or Ahead(
                read_inputs(
                    fixed, moving, initial_transform=initial_transform, fixed_mask=fixed_mask,
                    moving_mask=moving_mask, exclude_fixed=exclude_fixed, exclude_moving=exclude_moving,
                    fixed_labels=fixed_labels, moving_labels=moving_labels, fixed_points=fixed_points,
                    moving_points=moving_points, fixed_box_mask=fixed_box_mask, moving_box_mask=moving_box_mask,
                ),
                settings,
            )  # fmt: skip
            inputs = ahead.inputs
            forecast = Forecast(inputs, settings, device, around is not None)
            progress.expect(forecast.seconds)
        with progress.stage("segment", 0.3 if around is not None or settings.anatomy else 0.0):
            regions = _look(inputs, around, settings, device, progress, cache)
        with progress.stage("align", 0.12):
            images, masks = content_hash(inputs.fixed, inputs.moving, inputs.initial), content_hash(*inputs.guidance())
            look_ahead(cache, images, masks, inputs, settings, device, progress, _previewer)
            key = ("linear", images, masks, aligned_by(settings))
            if cache.find(key) is None:
                ahead.start()
            encoders_loaded = begin_loading(settings, device, cache)
            transform, facts = cache.get(key, lambda: _align(ahead, regions, settings, progress))
        if overlap_fraction(inputs.fixed, inputs.moving, transform) < _LEAST_OVERLAP:
            raise InputError(
                "The images do not overlap after the initial alignment; give an initial transform or another start."
            )
        encoders_loaded()
        revise = partial(forecast.revise, progress=progress)
        pair, deformation, warnings = _deform(ahead, transform, key, guided, settings, device, progress, cache, revise)
        facts = {**facts, "warnings": [*facts.get("warnings", []), *warnings]}
        if settings.deformable:
            remember(cache, images, LastRun(transform, pair, deformation, masks))
        with progress.stage("output", 0.15):
            # Masks of both images that a person looked at are as good as labels.
            drawn = fixed_box_mask is not None and moving_box_mask is not None
            facts |= {"guided": any(guided) or drawn, "boxed": inputs.fixed_box_mask is not None}
            result = build_result(inputs, transform, facts, pair, deformation, regions, settings, device)
            if on_found is not None:
                on_found(result)
            compared = partial(Similarity, inputs.fixed, inputs.moving, inputs.fixed_mask)
            compare = partial(cache.get, ("compared", images, masks), compared)
            known = cache.get(("scores", images, masks, content_hash(result.linear)), dict)
            measure(result, inputs, deformation, settings, progress, compare, known)
        forecast.learn(progress)
        result.record["seconds"] = {name: round(seconds, 3) for name, seconds in progress.seconds.items()}
        return result


def _require_networks(settings: Settings, download: bool, progress: Progress) -> None:
    """Raise for an encoder or anatomy network that cannot run, after fetching what may be fetched."""
    for name, _ in settings.encoders if settings.deformable else ():
        if download and not own_model(name) and entry(name).weights is not None:
            acquisition.download(name, build_network, accept_licence=True, progress=progress)
        require(name, settings.encoder_layers)
    if settings.anatomy:
        if download and settings.anatomy in anatomy_names():
            acquisition.download(settings.anatomy, build_network, accept_licence=True, progress=progress)
        require_anatomy(settings.anatomy)


def _require_heeded(settings: Settings, by_points: bool, by_moving_mask: bool) -> None:
    """Raise `InputError` where something was given that the optimizer Adam, the published schedule, does not know."""
    if settings.optimizer == "adam" and (by_points or by_moving_mask):
        what = "landmarks" if by_points else "a mask of the moving image"
        raise InputError(f"The optimizer adam cannot be guided by {what}; leave it out or take gauss-newton.")


def _guides(wanted: bool, fixed: Any, moving: Any, kind: str) -> bool:
    """``wanted``; raises where what shall guide is not there for both images."""
    if wanted and (fixed is None or moving is None):
        raise InputError(f"To guide with {kind}, {kind} of both images are needed.")
    return wanted


def _look(
    inputs: Inputs,
    around: dict[str, np.ndarray] | None,
    settings: Settings,
    device: torch.device,
    progress: Progress,
    cache: Cache,
) -> RegionPair | None:
    """Segment what the boxes ``around`` hold, into ``inputs``, and predict regions where the settings say so."""
    parts = (around is not None) + bool(settings.anatomy)
    if around is not None:
        with progress.stage("segment boxes", 1 / parts):
            boxes.segment_into(inputs, around, settings, device, progress, cache)
    if not settings.anatomy:
        return None
    images = (inputs.fixed, inputs.moving)
    with progress.stage("predict regions", 1 / parts):
        key = ("regions", content_hash(*images), shown_by(settings), settings.anatomy,
               anatomy_fingerprint(settings.anatomy))  # fmt: skip
        return cache.get(key, lambda: predict_pair(images, settings, device, progress))


def _align(
    ahead: Ahead, regions: RegionPair | None, settings: Settings, progress: Progress
) -> tuple[sitk.Transform, dict[str, Any]]:
    inputs = ahead.inputs
    sides = [ahead.side(name) for name in SIDES]
    descriptors = linear.DescriptorPair(*sides)
    with progress.stage("start", 0.25):
        given = inputs.initial
        if given is None and inputs.fixed_box_mask is not None:
            given = boxes.box_start(inputs.fixed_box, inputs.moving_box, settings.affine)
        start = linear.start_transform(
            *sides, settings.start, given, settings.seed, progress, settings.affine,
            on_found=lambda transform: _show(transform, inputs.fixed, progress), descriptors=descriptors,
        )  # fmt: skip
        chosen = given if settings.start in ("auto", "features") else start
        if given is None and regions is not None and settings.start == "auto":
            chosen = region_start(regions, start)
            start = chosen or start
        _show(start, inputs.fixed, progress)
    with progress.stage("linear", 0.625):
        aligned, facts = linear.align_linearly(
            *sides, start, settings.rigid, settings.affine, settings.seed, progress, descriptors
        )
        _show(aligned, inputs.fixed, progress)
    if inputs.fixed_box_mask is not None:
        overlaps = [boxes.overlap(inputs.fixed_box_mask, inputs.moving_box_mask, t) for t in (start, aligned)]
        if overlaps[1] < overlaps[0]:
            aligned, facts = start, {**facts, "kept": "start"}
    with progress.stage("check", 0.125):
        return keep_supported(*sides, aligned, facts, chosen, progress, descriptors)


def _deform(
    ahead: Ahead,
    linear: sitk.Transform,
    content: Hashable,
    guided: tuple[bool, bool],
    settings: Settings,
    device: torch.device,
    progress: Progress,
    cache: Cache,
    on_prepared: Callable[[Pair], None],
) -> tuple[Pair, Deformation, list[str]]:
    """Both images on the working grid, the deformation between them, and warnings.

    When memory runs out on a grid that nobody asked for, one of half as many voxels is taken instead.
    """
    preview = _previewer(linear, progress)
    guides = any(guided) or ahead.inputs.fixed_box_mask is not None
    wanted = str([settings.to_dict(), guided]) if guides else prepared_by(settings)

    def attempt(voxels: int) -> tuple[Pair, Deformation | None]:
        with progress.stage("prepare", 0.05):
            key = ("pair", content, wanted, voxels)
            pair = cache.get(key, lambda: prepare_pair(ahead, linear, settings, voxels, *guided))
        try:
            on_prepared(pair)
            with progress.stage("deform", 0.65):
                return pair, deform(pair, settings, device, progress, cache, preview)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or settings.finest_spacing_mm or _size(pair) < 2 * METHOD.least_voxels:
                raise
            return pair, None

    voxels, warnings = working_voxels(settings, device), []
    pair, found = attempt(voxels)
    while found is None:
        cache.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        spacing, voxels = pair.grid.spacing[0], min(voxels, _counted(pair)) // 2
        pair, found = attempt(voxels)
        warnings.append(
            f"The memory of {device} was not enough for a working grid of {spacing:.2g} mm; one of "
            f"{pair.grid.spacing[0]:.2g} mm was taken."
        )
    return pair, found, warnings


def _size(pair: Pair) -> int:
    return int(np.prod(pair.grid.shape))


def _counted(pair: Pair) -> int:
    """Voxels of the box around the fixed body, which `preprocessing.default_spacing` counts."""
    inside = np.nonzero(pair.fixed_body)
    return int(np.prod([np.ptp(indices) + 1 for indices in inside])) if len(inside[0]) else _size(pair)


def _show(transform: sitk.Transform, fixed: sitk.Image, progress: Progress) -> None:
    """Send ``transform`` alone as a preview, if anybody watches."""
    send = _previewer(transform, progress)
    if send is not None:
        grid = grid_of(fixed).with_spacing(METHOD.linear_margin_mm)
        send("align", torch.zeros(3, *grid.shape), grid)


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
