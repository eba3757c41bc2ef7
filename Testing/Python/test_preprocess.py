"""Intensity scaling, body masks and working grids on phantoms with a known body."""

import numpy as np
import pytest
from conftest import make_grid, smooth_noise
from FoundationRegLib.images import conversion, morphology, preprocessing
from scipy import ndimage

SHAPE, SPACING = (40, 60, 64), (3.0, 2.5, 2.5)


def ellipsoid(center, radii):
    place = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING
    return np.linalg.norm((place - center) / radii, axis=-1) <= 1


BODY = ellipsoid((58, 75, 80), (500, 60, 65))  # A trunk: cut by the first and the last slice.
LUNGS = ellipsoid((0, 75, 53), (90, 38, 24)) | ellipsoid((0, 75, 107), (90, 38, 24))
HEAD = ellipsoid((58, 75, 80), (48, 60, 50))


def ct():
    noise = 15 * smooth_noise(SHAPE, 0.5, 0)
    values = np.where(BODY, 40.0, -1000.0)
    values[LUNGS] = -830
    table = np.zeros(SHAPE, bool)
    table[:, 57:58, 10:54] = True
    return np.where(table & ~BODY, 200.0, values) + noise


def mr(body, seed=0, background=12.0):
    """Rician noise in the air, a coil that fades across the body."""
    rng = np.random.default_rng(seed)
    fade = np.linspace(1.4, 0.6, SHAPE[2])
    signal = np.where(body, 200 * fade * (1 + 0.2 * smooth_noise(SHAPE, 3, seed)), 0)
    return np.hypot(signal + rng.normal(0, background, SHAPE), rng.normal(0, background, SHAPE))


def overlap(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_hounsfield_images_are_told_from_magnetic_resonance():
    assert preprocessing.intensity_kind(ct()) == "ct"
    assert preprocessing.intensity_kind(conversion.image_from_array(ct().astype(np.int16), make_grid(SHAPE))) == "ct"
    assert preprocessing.intensity_kind(mr(HEAD)) == "mr"
    standardised = mr(HEAD)
    assert preprocessing.intensity_kind((standardised - standardised.mean()) / standardised.std()) == "mr"


def test_window_is_wide_for_a_chest_and_narrow_for_a_belly():
    chest = ct()
    assert preprocessing.ct_window(chest, BODY) == preprocessing.LUNG_WINDOW
    belly = np.where(LUNGS, 40, chest)
    assert preprocessing.ct_window(belly, BODY) == preprocessing.SOFT_TISSUE_WINDOW


def test_ct_mask_is_the_body_with_lungs_without_table():
    mask = preprocessing.foreground_mask(ct(), "ct", SPACING)
    assert overlap(mask, BODY) > 0.95
    assert mask[LUNGS].mean() > 0.98
    assert not mask[:, 57, 12:20].any()


def test_mr_mask_leaves_noise_out():
    mask = preprocessing.foreground_mask(mr(HEAD), "mr", SPACING)
    assert overlap(mask, HEAD) > 0.92
    assert mask[HEAD].mean() > 0.98


def test_mr_mask_keeps_dark_organs_inside_the_body():
    mask = preprocessing.foreground_mask(mr(BODY & ~LUNGS), "mr", SPACING)
    assert mask[LUNGS & BODY].mean() > 0.95


def test_skull_stripped_mask_is_what_is_not_zero():
    values = np.where(HEAD, mr(HEAD) + 1, 0)
    mask = preprocessing.foreground_mask(values, "mr", SPACING)
    assert overlap(mask, HEAD) > 0.95 and mask[HEAD].mean() > 0.98


@pytest.mark.parametrize(
    ("shape", "spacing", "distance"),
    [
        ((20, 25, 30), (3, 3, 3), 10), ((12, 31, 30), (5, 2.7, 1.3), 4), ((1, 30, 3), (2, 1, 1.5), 4),
        ((15, 15, 15), (2.5, 2.5, 2.5), 5), ((24, 24, 24), (0.5, 0.4, 0.5), 9),
    ],
)  # fmt: skip
def test_masks_grow_and_shrink_by_millimetres(shape, spacing, distance):
    mask = smooth_noise(shape, 1.5, 0) > 0.5
    assert mask.any() and not mask.all()
    grown, shrunk = (function(mask, distance, spacing) for function in (morphology.grown, morphology.shrunk))
    np.testing.assert_array_equal(grown, ndimage.distance_transform_edt(~mask, spacing) <= distance)
    np.testing.assert_array_equal(shrunk, ndimage.distance_transform_edt(mask, spacing) > distance)
    for same in (np.zeros(shape, bool), np.ones(shape, bool)):
        assert (morphology.grown(same, distance, spacing) == same).all()
        assert (morphology.shrunk(same, distance, spacing) == same).all()


@pytest.mark.parametrize("values", [np.zeros(SHAPE), np.random.default_rng(0).uniform(100, 101, SHAPE)])
def test_mask_is_everything_when_no_body_stands_out(values):
    values = values.copy()
    values[0, 0, 0] += 1
    mask = preprocessing.foreground_mask(values, "mr", SPACING)
    assert mask.shape == SHAPE and (mask.all() or mask.mean() > 0.02)


def test_scaled_values_ignore_outliers_and_stay_in_range():
    values = mr(HEAD)
    scaled = preprocessing.scale_intensity(values, "mr", mask=HEAD)
    bright = values.copy()
    bright[20, 30, 32] = 1e6
    again = preprocessing.scale_intensity(bright, "mr", mask=HEAD)
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    assert np.abs(again - scaled)[bright < 1e6].max() < 0.01
    low, high = np.percentile(values[HEAD], [1, 99.5])
    inside = (values > low) & (values < high)
    np.testing.assert_allclose(scaled[inside], ((values - low) / (high - low))[inside], atol=1e-5)


def test_a_given_window_is_used_as_it_is():
    scaled = preprocessing.scale_intensity(np.array([[[-2000.0, -100, 0, 100, 3000]]]), "ct", (-100.0, 100.0))
    np.testing.assert_allclose(scaled, [[[0, 0, 0.5, 1, 1]]])


def test_constant_foreground_does_not_divide_by_zero():
    assert np.isfinite(preprocessing.scale_intensity(np.full(SHAPE, 7.0), "mr")).all()


def test_working_grid_covers_the_body_and_its_margin(grid):
    body = np.zeros(grid.shape, bool)
    body[5:20, 10:31, 8:30] = True
    working = preprocessing.working_grid(grid, body, 2.8, 6.0)
    np.testing.assert_allclose(working.spacing, 2.8)
    np.testing.assert_allclose(working.direction, grid.direction, atol=1e-12)
    faces = grid.padded((-5, -10, -8), np.array((20, 31, 30)) - grid.shape).corners()
    reach = working.indices(faces) * 2.8
    assert (reach.min(0) >= 6.0 - 1.4 - 1e-6).all()
    assert (reach.max(0) <= (np.array(working.shape) - 0.5) * 2.8 - 6.0 + 1e-6).all()
    assert (np.array(working.shape) * 2.8 <= (faces.max() - faces.min()) * 3).all()
    smallest = np.ceil((np.array((15, 21, 22)) * grid.spacing + 12) / 2.8 - 1e-3)
    np.testing.assert_array_equal(working.shape, smallest)


def test_working_grid_without_a_body_covers_the_image(grid):
    for empty in (None, np.zeros(grid.shape, bool)):
        working = preprocessing.working_grid(grid, empty, 3.0)
        index = working.indices(grid.corners())
        assert (index.min(0) >= -0.5 - 1e-6).all() and (index.max(0) <= np.array(working.shape) - 0.5 + 1e-6).all()


def test_default_spacing_is_the_finest_until_there_are_too_many_voxels():
    assert preprocessing.default_spacing(make_grid((40, 50, 60), (4.0, 1.5, 1.5))) == 1.5
    large = make_grid((500, 512, 512), (1.0, 0.7, 0.7))
    spacing = preprocessing.default_spacing(large, voxels=1_000_000)
    assert np.prod(large.extent / spacing) == pytest.approx(1_000_000, rel=0.01)


def test_default_spacing_counts_the_voxels_around_the_body():
    large, body = make_grid((500, 512, 512), (1.0, 0.7, 0.7)), np.zeros((500, 512, 512), bool)
    body[100:200, 50:150, 300:400] = True
    # 100 x 70 x 70 mm hold a million voxels of 0.79 mm; the whole frame holds as many of 4 mm.
    assert preprocessing.default_spacing(large, 1_000_000, body) == pytest.approx(0.49 ** (1 / 3), rel=1e-3)
    assert preprocessing.default_spacing(large, 2_000_000, body) == 0.7
    assert preprocessing.default_spacing(large, 1_000_000, body & False) > 4
