"""A first look at what other settings or masks change, from the last run on the same images.

While the full result is computed anew, the coarsest level is refined from where it was left, with what was chosen now:
the smoothness and the masks can be seen at once. Weights of encoders decide in the search, so that comes first when
they change, from the features that are still there; the full result takes it over.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import SimpleITK as sitk
import torch

from ..core.cache import Cache
from ..core.progress import Progress
from ..settings import Settings
from .deformable import Deformation, FieldObserver, displacement_of, refine_level, searched
from .encoding import is_mind
from .inputs import Inputs
from .pair import Pair
from .preparation import with_masks
from .pyramid import FeaturePyramid


@dataclass(frozen=True, eq=False)
class LastRun:
    """What a run on the same images, with any settings and masks, has left in the cache."""

    linear: sitk.Transform
    pair: Pair
    deformation: Deformation
    masks: Hashable


def remember(cache: Cache, images: Hashable, run: LastRun) -> None:
    """Keep ``run`` on ``images`` for the next one."""
    cache.put(("last run", images), run)


def look_ahead(
    cache: Cache,
    images: Hashable,
    masks: Hashable,
    inputs: Inputs,
    settings: Settings,
    device: torch.device,
    progress: Progress,
    observer: Callable[[sitk.Transform, Progress], FieldObserver | None],
) -> None:
    """Show the coarsest level from the last run with other ``settings`` and the masks of ``inputs``, if there is one.

    ``observer``: gives a `FieldObserver` for a linear transform, or None where nobody watches.
    """
    last: LastRun | None = cache.find(("last run", images))
    on_field: FieldObserver | None = observer(last.linear, progress) if last is not None else None
    if on_field is None or settings.optimizer == "adam" or not settings.deformable:
        return
    before = last.deformation.pyramid
    if before.device != device or before.settings.diffeomorphic != settings.diffeomorphic:
        return
    pair = last.pair if masks == last.masks else with_masks(last.pair, inputs, last.linear)
    pyramid = FeaturePyramid(pair, settings, device, last.deformation.rasters, cache)
    kept = cache.find(before.coarse_key)
    if kept is None:
        return
    quiet = Progress(on_preview=progress.preview, should_cancel=progress.cancelled)
    field_mm, grey = kept
    if settings.encoders != before.settings.encoders:
        known = set(last.deformation.rasters)
        if settings.search_range_mm <= 0 or any(
            not is_mind(name) and name not in known for name, _ in settings.encoders
        ):
            return
        field_mm, _ = searched(pyramid, quiet)
        nodes = pyramid.grid_like(field_mm)
        on_field("search", displacement_of(field_mm, nodes, settings), nodes)
    refine_level(pyramid, max(before.settings.levels), field_mm, grey, quiet, on_field)
