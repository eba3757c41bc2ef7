"""The deformable stage by itself: torch and numpy, no SimpleITK, no image files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_grid, smooth_noise
from FoundationRegLib.core.cache import Cache
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.errors import Cancelled
from FoundationRegLib.numerics.agreement import lowest_correlation
from FoundationRegLib.numerics.fields import resize, warp
from FoundationRegLib.registration import deformable, encoding, pyramid
from FoundationRegLib.registration.deformable import deform
from FoundationRegLib.registration.pair import Pair
from FoundationRegLib.settings import Settings
from scipy import ndimage

SHAPE, SPACING = (24, 28, 32), 2.0
CPU = torch.device("cpu")
INNER = np.s_[..., 6:-6, 6:-6, 6:-6]
ADAM = {"optimizer": "adam", "diffeomorphic": False, "sliding": False, "grey_values": False}
MIND = Settings(
    encoders=(("mind", 1.0),), search_spacing_mm=4.0, search_range_mm=8.0, slice_gap_mm=6.0, pca_components=3
)
TWO = MIND.replace(encoders=(("medsam-lite", 1.0), ("mind", 1.0)))


def make_pair(truth_mm, **more):
    """Grey noise and what is seen of it at x + ``truth_mm`` (3, D, H, W)."""
    moving = smooth_noise(SHAPE, 1.5, 3)
    moving = (moving - moving.min()) / (moving.max() - moving.min())
    fixed = ndimage.map_coordinates(moving, np.indices(SHAPE) + truth_mm / SPACING, order=3, mode="nearest")
    everywhere = {f"{side}_{kind}": np.ones(SHAPE, bool) for side in ("fixed", "moving") for kind in ("body", "mask")}
    grid = make_grid(SHAPE, (SPACING,) * 3, turn=(10, 20, 30))
    return Pair(grid, fixed.astype(np.float32), moving.astype(np.float32), **{**everywhere, **more})


def smooth_truth(amplitude_mm=5.0):
    z, y, x = (np.pi * i / n for i, n in zip(np.indices(SHAPE), SHAPE, strict=True))
    return amplitude_mm * np.stack([np.sin(y) * np.sin(x), -np.sin(z) * np.cos(x), np.sin(z) * np.sin(y)])


def error_mm(found, truth):
    return np.linalg.norm(resize(found.displacement, SHAPE).numpy() - truth, axis=0)[INNER]


class FakeEncoder:
    """Grey value and edges of squares of four pixels; counts the slices that it is shown."""

    id, channels, stride, multiple, pixels, weights_sha256, bytes_per_pixel = "fake", 3, 4, 4, 64, "abc", 100

    def __init__(self):
        self.slices = 0

    def __call__(self, slices):
        self.slices += len(slices)
        along_y, along_x = torch.gradient(slices, dim=(2, 3))
        return torch.nn.functional.avg_pool2d(torch.cat([slices, along_y, along_x], 1), self.stride)


@pytest.fixture
def fake(monkeypatch):
    """Stands in for medsam-lite, whose weights a computer may lack."""
    encoder, real = FakeEncoder(), encoding.load_encoder
    monkeypatch.setattr(
        encoding, "load_encoder", lambda id, *a, **k: encoder if id == "medsam-lite" else real(id, *a, **k)
    )
    return encoder


def test_numerics_run_where_simpleitk_is_absent():
    code = (
        "import sys\nsys.modules['SimpleITK'] = None\n"
        "import torch, numpy as np\n"
        "from FoundationRegLib.registration.deformable import deform\n"
        "from FoundationRegLib.registration.pair import Pair\n"
        "from FoundationRegLib.core.grid import Grid\nfrom FoundationRegLib.settings import Settings\n"
        "a = np.random.default_rng(0).random((12, 12, 12), np.float32)\nm = np.ones(a.shape, bool)\n"
        "s = Settings(encoders=(('mind', 1.0),), search_spacing_mm=4, search_range_mm=4, iterations=1)\n"
        "d = deform(Pair(Grid(a.shape, np.diag([2., 2, 2, 1])), a, a, m, m, m, m), s, torch.device('cpu'))\n"
        "assert tuple(d.displacement.shape) == (3, 6, 6, 6)\n"
    )
    folder = Path(deformable.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, timeout=300)


@pytest.mark.parametrize("diffeomorphic", [True, False])
def test_smooth_warp_is_recovered(diffeomorphic):
    truth = smooth_truth()
    found = deform(make_pair(truth), MIND.replace(diffeomorphic=diffeomorphic), CPU)
    assert np.linalg.norm(truth, axis=0)[INNER].mean() > 4
    assert error_mm(found, truth).mean() < 0.4
    assert found.grid.shape == tuple(n // 2 for n in SHAPE)
    np.testing.assert_allclose(found.grid.corners(), make_pair(truth).grid.corners(), atol=1e-6)
    assert set(found.losses) == {"8 mm", "4 mm", "2 mm"} and all(found.losses.values())


def test_published_schedule_recovers_it_too():
    truth = smooth_truth()
    settings = MIND.replace(
        optimizer="adam",
        diffeomorphic=False,
        sliding=False,
        grey_values=False,
        iterations=60,
        levels=(2,),
        adam_rate=0.5,
    )
    found = deform(make_pair(truth), settings.replace(adam_kernel=3, adam_passes=2, adam_diffusion=0.5), CPU)
    assert error_mm(found, truth).mean() < 1.5, "of more than 4"


@pytest.mark.parametrize("limit, finer", [(-1.0, True), (np.inf, False)])
def test_a_search_that_contradicts_itself_is_followed_by_a_finer_one(monkeypatch, limit, finer):
    monkeypatch.setattr(deformable, "METHOD", replace(deformable.METHOD, contradiction_mm=limit))
    settings, truth = MIND.replace(search_spacing_mm=8.0, search_range_mm=16.0), smooth_truth()
    made = pyramid.FeaturePyramid(make_pair(truth), settings, CPU, {}, Cache())
    field, inconsistency = deformable.searched(made, Progress())
    assert tuple(inconsistency.shape) == (6, 7, 8) and tuple(field.shape[1:]) == ((12, 14, 16) if finer else (6, 7, 8))
    grid = made.grid_like(field)
    found = resize(deformable.displacement_of(field, grid, settings), SHAPE).numpy()
    error = np.linalg.norm(found - truth, axis=0)[INNER].mean()
    assert error < 1.2 if finer else error > 1.2


def test_coarse_levels_see_the_descriptors_of_the_fine_image():
    pair = make_pair(smooth_truth())
    made = pyramid.FeaturePyramid(pair, MIND, CPU, {}, Cache())
    fine = made.features("mind", 1)
    for factor in (2, 4):
        for whole, coarse in zip(fine, made.features("mind", factor), strict=True):
            torch.testing.assert_close(coarse, torch.nn.functional.avg_pool3d(whole[None], factor)[0])


def test_pooling_is_the_mean_over_blocks():
    pair = make_pair(smooth_truth())
    levels = pyramid.FeaturePyramid(pair, MIND, CPU, {}, Cache())
    for factor in (2, 4):
        blocks = pair.fixed.reshape(sum(((n // factor, factor) for n in SHAPE), ()))
        np.testing.assert_allclose(levels.pooled(pair.fixed, factor).numpy(), blocks.mean((1, 3, 5)), atol=1e-5)
        stacked = levels.pooled(np.stack([pair.fixed, pair.moving]), factor)
        np.testing.assert_allclose(stacked[0].numpy(), blocks.mean((1, 3, 5)), atol=1e-5)


@pytest.mark.parametrize(("wanted", "factor"), [(4.0, 2), (6.0, 4), (8.0, 4), (0.5, 2), (12.0, 6)])
def test_search_lattice_is_a_whole_number_of_node_blocks(wanted, factor):
    assert pyramid.search_factor(MIND.replace(search_spacing_mm=wanted), SPACING) == factor


def test_foundation_encoder_and_mind_are_combined(fake):
    truth = smooth_truth()
    found = deform(make_pair(truth), TWO, CPU)
    assert error_mm(found, truth).mean() < 0.6
    assert fake.slices > 0 and found.weights == {"medsam-lite": "abc"}
    fixed, moving = found.rasters["medsam-lite"]
    assert fixed.channels == moving.channels == 3


def test_every_plane_is_encoded_and_their_channels_joined(fake):
    alone = deform(make_pair(smooth_truth()), TWO.replace(encoders=(("medsam-lite", 1.0),), iterations=1), CPU)
    axial = fake.slices
    planes = ("axial", "coronal", "sagittal")
    three = deform(
        make_pair(smooth_truth()), TWO.replace(encoders=(("medsam-lite", 1.0),), planes=planes, iterations=1), CPU
    )
    assert fake.slices > 3 * axial
    assert three.rasters["medsam-lite"][0].channels == 3 * alone.rasters["medsam-lite"][0].channels


def test_other_smoothness_uses_what_was_encoded(fake):
    pair, cache = make_pair(smooth_truth()), Cache()
    first = deform(pair, TWO, CPU, cache=cache)
    encoded = fake.slices
    second = deform(pair, TWO.replace(smoothness=4.0), CPU, cache=cache)
    assert fake.slices == encoded
    assert not torch.equal(first.displacement, second.displacement)
    fresh = deform(pair, TWO.replace(smoothness=4.0), CPU)
    assert torch.equal(second.displacement, fresh.displacement), "the cache must not change the result"


@pytest.mark.parametrize("change", [{"pca_components": 2}, {"slice_gap_mm": 12.0}, {"planes": ("coronal",)}])
def test_settings_that_change_the_features_do_not_meet_stale_ones(fake, change):
    pair, cache = make_pair(smooth_truth()), Cache()
    deform(pair, TWO.replace(iterations=1), CPU, cache=cache)
    settings = TWO.replace(iterations=1, **change)
    cached, fresh = deform(pair, settings, CPU, cache=cache), deform(pair, settings, CPU)
    assert torch.equal(cached.displacement, fresh.displacement)


def test_other_masks_or_guides_do_not_meet_stale_results():
    pair, cache = make_pair(smooth_truth()), Cache()
    deform(pair, MIND, CPU, cache=cache)
    half = np.arange(SHAPE[0])[:, None, None] < SHAPE[0] // 2
    masked = replace(pair, fixed_mask=pair.fixed_mask & half)
    guided = replace(pair, guides=(pair.fixed[None], np.roll(pair.moving, 4, 2)[None]))
    for other in (masked, guided):
        cached, fresh = deform(other, MIND, CPU, cache=cache), deform(other, MIND, CPU)
        assert torch.equal(cached.displacement, fresh.displacement)


def test_same_input_gives_the_same_bits():
    results = [deform(make_pair(smooth_truth()), MIND, CPU).displacement for _ in range(2)]
    assert torch.equal(*results)


def test_grey_values_outside_of_both_masks_have_no_say():
    truth = smooth_truth()
    mask = np.zeros(SHAPE, bool)
    mask[4:-4, 4:-4, 4:-4] = True
    pair = make_pair(truth, fixed_mask=mask)
    assert error_mm(deform(pair, MIND, CPU), truth).mean() < 0.5


def test_grey_values_that_are_opposite_in_a_part_have_no_say():
    truth = np.zeros((3, *SHAPE))
    alike = make_pair(truth)
    opposite = alike.moving.copy()
    opposite[:, :, -7:] = 1 - opposite[:, :, -7:]
    settings = MIND.replace(finest_spacing_mm=SPACING)
    assert deform(alike, settings, CPU).grey[0] == 1
    pair = replace(alike, moving=opposite)
    deformation = deform(pair, settings, CPU)
    grey = deformation.pyramid.grey(2, settings.grey_sigma)
    correlation = float((grey.fixed * grey.moving).mean() / (grey.fixed**2).mean())
    # By their overall correlation alone they would count in full.
    assert correlation > max(deformable.METHOD.grey_correlation) and deformation.grey == (0.0, 0.0)


def test_lowest_correlation_is_that_of_the_worst_tenth():
    random = np.random.default_rng(5)
    first, noise = (torch.as_tensor(random.normal(size=(24, 24, 40)), dtype=torch.float32) for _ in range(2))
    share = torch.ones(24, 24, 40)
    share[:, :, :10] = -0.6
    second = share * first + (1 - share.square()).sqrt() * noise
    products = torch.stack([first * second, first.square(), second.square()])
    assert lowest_correlation(products, 2.0) == pytest.approx(-0.6, abs=0.15)
    assert lowest_correlation(products[..., 16:], 2.0) > 0.95


def featureless_pair(**more):
    """Two images of nothing but faint noise that differs: what moves must come from elsewhere."""
    rng = np.random.default_rng(0)
    pair = make_pair(np.zeros((3, *SHAPE)), **more)
    noise = [(0.5 + 0.001 * rng.normal(size=SHAPE)).astype(np.float32) for _ in range(2)]
    return replace(pair, fixed=noise[0], moving=noise[1])


def test_landmarks_pull_the_field_to_them():
    places = np.array([[8.0, 8, 8], [16, 20, 24], [12, 14, 16]])
    wanted = np.array([[3.0, 0, -2], [3, 0, -2], [3, 0, -2]])
    settings = MIND.replace(search_range_mm=0.0)
    found = deform(featureless_pair(landmarks=(places, wanted)), settings, CPU)
    at = resize(found.displacement, SHAPE)[(slice(None), *places.astype(int).T)].T.numpy()
    assert np.linalg.norm(at - wanted, axis=1).max() < 1.5, "of 3.6"


def test_guides_pull_one_structure_onto_the_other():
    steps = np.indices(SHAPE)
    spheres = [
        np.clip(6 - np.linalg.norm(steps - np.reshape(middle, (3, 1, 1, 1)), axis=0), 0, 1).astype(np.float32)[None]
        for middle in ((12, 14, 13), (12, 14, 17))
    ]
    found = deform(featureless_pair(guides=tuple(spheres)), MIND, CPU)
    u = resize(found.displacement, SHAPE)
    fixed, moving = (sphere[0] > 0.5 for sphere in spheres)
    warped = warp(torch.from_numpy(spheres[1]), u, (SPACING,) * 3)[0].numpy() > 0.5
    before, after = (2 * (fixed & seen).sum() / (fixed.sum() + seen.sum()) for seen in (moving, warped))
    assert before < 0.5 and after > 0.95


def test_fields_are_shown_on_the_way_in_millimetres():
    shown, truth = [], smooth_truth()
    progress = Progress(on_preview=lambda preview: None)
    found = deform(make_pair(truth), MIND, CPU, progress, on_field=lambda *a: shown.append(a))
    assert shown[0][0] == "search" and {s for s, _, _ in shown[1:]} == {"refine"}
    for _, field, grid in shown:
        assert tuple(field.shape) == (3, *grid.shape)
    torch.testing.assert_close(shown[-1][1], found.displacement)
    searched = np.linalg.norm(resize(shown[0][1], SHAPE).numpy() - truth, axis=0)[INNER].mean()
    assert searched < 4.0, "the search alone is right to about its spacing"


def test_accepting_what_there_is_ends_every_level_after_one_step():
    found = deform(make_pair(smooth_truth()), MIND, CPU, Progress(should_finish=lambda: True))
    assert {len(curve) for curve in found.losses.values()} == {1}
    assert torch.isfinite(found.displacement).all()


@pytest.mark.parametrize("stage", ["encode", "search", "refine 4 mm", "refine 2 mm"])
def test_cancel_stops_in_every_stage(fake, stage):
    seen = []
    progress = Progress(on_event=lambda event: seen.append(event.stage), should_cancel=lambda: stage in seen)
    with pytest.raises(Cancelled):
        deform(make_pair(smooth_truth()), TWO, CPU, progress)
    assert seen[-1] == stage


def test_more_error_is_expected_where_nothing_is_to_be_seen():
    pair = make_pair(smooth_truth())
    blank = {side: getattr(pair, side).copy() for side in ("fixed", "moving")}
    half = pair.grid.shape[0] // 2
    for image in blank.values():
        image[:half] = 0.5
    error = deform(replace(pair, **blank), MIND, CPU).uncertainty
    edge = error.shape[0] // 2
    assert error[: edge - 3].median() > 2 * error[edge + 3 :].median()


def test_expected_error_grows_with_both_of_its_sources():
    deviation, inconsistency = torch.tensor([3.0, 3.0, 6.0]), torch.tensor([0.0, 4.0, 8.0])
    error = deformable.expected_error(deviation, inconsistency)
    torch.testing.assert_close(error / error[0], torch.tensor([1.0, 5 / 3, 10 / 3]))


@pytest.mark.parametrize("levels", [(1,), (4, 2, 1), (8, 2)])
def test_the_grid_of_registration_holds_the_lattices_of_all_levels(levels):
    settings = MIND.replace(levels=levels, search_spacing_mm=6.0)
    for spacing in (0.7, 1.0, 1.5, 4.0):
        multiple = pyramid.lattice_multiple(settings, spacing)
        assert multiple % pyramid.search_factor(settings, spacing) == 0
        assert all(multiple % factor == 0 for factor in levels)
