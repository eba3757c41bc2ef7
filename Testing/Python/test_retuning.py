"""Other settings and masks show something before the full result is computed again."""

import numpy as np
import pytest
from conftest import make_grid
from FoundationRegLib.core.cache import Cache
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.errors import Cancelled
from FoundationRegLib.images.conversion import image_from_array
from FoundationRegLib.registration.pipeline import register
from FoundationRegLib.settings import Settings
from test_module_real import TURNED, unbend

SETTINGS = Settings.from_preset(encoders="mind", search_range_mm=12.0, finest_spacing_mm=4.0)


class Watcher(Progress):
    """Notes in which stage each preview came."""

    def __init__(self):
        self.stages, self.shown = [""], []
        super().__init__(
            lambda event: self.stages.append(event.stage),
            lambda preview: self.shown.append((self.stages[-1], preview)),
        )


@pytest.fixture(scope="module")
def first(phantom):
    """Both images, the cache of their registration, and what was shown."""
    fixed, moving = make_grid(), make_grid(**TURNED)
    images = image_from_array(phantom.on(fixed), fixed), image_from_array(700 - phantom.on(moving, unbend), moving)
    cache, watcher = Cache(), Watcher()
    register(*images, SETTINGS, cache=cache, progress=watcher)
    return images, cache, watcher


def test_the_first_run_shows_the_start_before_anything_is_deformed(first):
    _images, _cache, watcher = first
    stages = [stage for stage, _preview in watcher.shown]
    assert stages[0] in ("start", "linear", "align") and "search" in [preview.stage for _, preview in watcher.shown]


def roughness(preview):
    return float(np.square(np.diff(preview.displacement, n=2, axis=0)).mean())


def test_another_smoothness_is_seen_before_the_linear_stage_is_looked_up(first):
    images, cache, _ = first
    shown = {}
    for smoothness in (20.0, 0.2):
        watcher = Watcher()
        register(*images, SETTINGS.replace(smoothness=smoothness), cache=cache, progress=watcher)
        assert watcher.shown[0][0] == "align"
        before = [preview for stage, preview in watcher.shown if stage == "align"]
        shown[smoothness] = roughness(before[-1])
    assert shown[0.2] > 1.2 * shown[20.0]


def test_a_mask_is_seen_at_once_and_a_newer_wish_ends_it(first):
    images, cache, _ = first
    mask = np.zeros(images[0].GetSize()[::-1], np.uint8)
    mask[6:-6, 8:-8, 8:-8] = 1
    mask = image_from_array(mask, make_grid())
    watcher = Watcher()
    watcher._should_cancel = lambda: bool(watcher.shown)
    with pytest.raises(Cancelled):
        register(*images, SETTINGS, fixed_mask=mask, cache=cache, progress=watcher)
    assert len(watcher.shown) == 1 and watcher.shown[0][0] == "align"
