"""Metrics against brute force, SimpleITK and analytic values."""

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import make_grid, rotation, smooth_noise
from FoundationRegLib.errors import InputError
from FoundationRegLib.evaluation import metrics
from FoundationRegLib.images import conversion, transforms
from scipy import ndimage


def ball(shape, center, radius, spacing=(1, 1, 1)):
    place = np.moveaxis(np.indices(shape), 0, -1) * np.asarray(spacing, float)
    return np.linalg.norm(place - center, axis=-1) <= radius


def test_dice_per_label_agrees_with_simpleitk():
    a = np.digitize(smooth_noise((20, 22, 24), 2, 0), [-1, 0, 1]).astype(np.uint8)
    b = np.digitize(smooth_noise((20, 22, 24), 2, 0) + 0.5 * smooth_noise((20, 22, 24), 2, 1), [-1, 0, 1]).astype(
        np.uint8
    )
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(sitk.GetImageFromArray(a), sitk.GetImageFromArray(b))
    ours = metrics.dice(a, b)
    assert sorted(ours) == [1, 2, 3]
    for label, value in ours.items():
        assert value == pytest.approx(measure.GetDiceCoefficient(label))


def test_dice_of_negative_and_huge_label_values():
    a, b = np.array([-5, -5, 10**8, 0]), np.array([-5, 0, 10**8, 10**8])
    assert metrics.dice(a, b) == {-5: pytest.approx(2 / 3), 10**8: pytest.approx(2 / 3)}


def brute_force_hd95(a, b, spacing):
    """By distance maps over the whole array."""
    edge_a, edge_b = (m ^ ndimage.binary_erosion(m) for m in (a, b))
    to_a, to_b = (ndimage.distance_transform_edt(~e, spacing) for e in (edge_a, edge_b))
    return np.percentile(np.concatenate([to_b[edge_a], to_a[edge_b]]), 95)


def test_hd95_agrees_with_distance_maps_also_at_the_image_border():
    shape, spacing = (24, 26, 28), (3.0, 1.5, 2.0)
    a = ball(shape, (30, 18, 25), 14, spacing) | ball(shape, (0, 0, 0), 9, spacing)
    b = ball(shape, (36, 20, 28), 12, spacing)
    assert metrics.hd95(a, b, spacing) == pytest.approx(brute_force_hd95(a, b, spacing))
    assert metrics.hd95(a, a, spacing) == 0
    assert np.isnan(metrics.hd95(a, np.zeros_like(a), spacing))


def test_label_scores_pass_labels_through_the_transform(grid):
    labels = np.zeros(grid.shape, np.int16)
    labels[ball(grid.shape, (15, 20, 20), 7)] = 4
    labels[ball(grid.shape, (20, 30, 12), 5)] = 9
    fixed = conversion.image_from_array(labels, grid)
    shift = 3 * grid.spacing[2] * grid.direction[:, 2]
    moving = conversion.image_from_array(np.roll(labels, 3, axis=2), grid)
    found = metrics.label_scores(fixed, moving, sitk.TranslationTransform(3, shift.tolist()))
    assert found["dice_per_label"] == {4: 1.0, 9: 1.0} and found["hd95_mm"] == 0
    before = metrics.label_scores(fixed, moving, sitk.Transform(3, sitk.sitkIdentity))
    assert before["dice"] == pytest.approx(np.mean(list(metrics.dice(labels, np.roll(labels, 3, axis=2)).values())))
    expected = [brute_force_hd95(labels == n, np.roll(labels, 3, axis=2) == n, grid.spacing) for n in (4, 9)]
    assert before["hd95_mm"] == pytest.approx(np.mean(expected))


def test_labels_without_common_values_are_an_input_error():
    grid = make_grid((6, 6, 6))
    one, two = (conversion.image_from_array(np.full(grid.shape, n, np.uint8), grid) for n in (1, 2))
    with pytest.raises(InputError, match="no value in common: 1 in the fixed, 2 in the moving"):
        metrics.common_labels(one, two)


def test_target_registration_error_of_a_known_shift():
    p = np.array([[0.0, 0, 0], [10, 0, 0], [0, 5, 5]])
    error = metrics.target_registration_error(p, p + np.array((3, 4, 0)), sitk.TranslationTransform(3, (0.0, 4.0, 0.0)))
    np.testing.assert_allclose(error, 3)
    with pytest.raises(InputError, match="3 fixed but 2 moving"):
        metrics.target_registration_error(p, p[:2], sitk.Transform())


def test_jacobian_does_not_depend_on_how_the_grid_is_turned(grid):
    # A map that stretches along a slanted direction by a known, varying factor.
    along = rotation(20, 30, 40)[:, 0]
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    place = points @ along
    vectors = (10 * np.sin(place / 25))[..., None] * along
    transform = sitk.DisplacementFieldTransform(conversion.image_from_array(vectors, grid))
    volume = conversion.image_from_array(np.zeros(grid.shape, np.float32), grid)
    found = metrics.jacobian(transform, volume)
    expected = 1 + 10 / 25 * np.cos(place / 25)
    assert conversion.grid_of(found) == grid
    array = sitk.GetArrayFromImage(found)
    np.testing.assert_allclose(array[1:-1, 1:-1, 1:-1], expected[1:-1, 1:-1, 1:-1], atol=2e-3)
    np.testing.assert_allclose(array, expected, atol=0.04)
    assert metrics.sd_log_jacobian(found) == pytest.approx(np.log(expected[1:-1, 1:-1, 1:-1]).std(), abs=2e-3)
    assert metrics.folded_percent(found) == 0
    scores = metrics.jacobian_scores(transform, volume)
    assert scores["sd_log_jacobian"] == pytest.approx(metrics.sd_log_jacobian(found), abs=1e-5)
    assert scores["folded_percent"] == 0


@pytest.mark.parametrize("slices", [1, 4, 1000])
def test_jacobian_agrees_with_simpleitk_on_an_axial_grid(slices, monkeypatch):
    grid = make_grid()
    monkeypatch.setattr(metrics, "_SLAB_VOXELS", slices * grid.shape[1] * grid.shape[2])
    u = np.stack([smooth_noise(grid.shape, 3, n) for n in range(3)]) * 4
    transform = sitk.DisplacementFieldTransform(transforms.field_image(u, grid))
    volume = conversion.image_from_array(np.zeros(grid.shape, np.float32), grid)
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(transforms.field_image(u, grid)))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(metrics.jacobian(transform, volume))[inner], theirs[inner], atol=1e-5
    )
    folded = 100 * (theirs[inner] <= 0).mean()
    assert folded > 1
    assert metrics.folded_percent(metrics.jacobian(transform, volume)) == pytest.approx(folded, abs=0.01)


def test_jacobian_of_a_linear_transform_is_its_determinant():
    volume = sitk.Image((5, 6, 7), sitk.sitkUInt8)
    found = metrics.jacobian(sitk.ScaleTransform(3, (2.0, 0.5, 3.0)), volume)
    np.testing.assert_allclose(sitk.GetArrayFromImage(found), 3)


def test_normalized_mutual_information_of_known_pairs():
    values = np.random.default_rng(0).uniform(size=(40, 40, 40))
    other = np.random.default_rng(1).uniform(size=values.shape)
    assert metrics.normalized_mutual_information(values, values) == pytest.approx(2)
    assert metrics.normalized_mutual_information(values, 5 - 3 * values) == pytest.approx(2, abs=0.01)
    assert metrics.normalized_mutual_information(values, other) == pytest.approx(1, abs=0.01)
    assert np.isnan(metrics.normalized_mutual_information(values, other, np.zeros(values.shape, bool)))
    half = np.indices(values.shape)[0] < 20
    mixed = np.where(half, values, other)
    assert metrics.normalized_mutual_information(values, mixed, half) == pytest.approx(2)


def test_evaluate_has_the_agreed_keys_and_improves_with_the_true_transform(phantom):
    grid = make_grid((30, 30, 30), (3.0, 3.0, 3.0))
    truth = sitk.TranslationTransform(3, (6.0, -3.0, 3.0))
    fixed = conversion.image_from_array(phantom.on(grid), grid)
    moving = conversion.image_from_array(phantom.on(grid, lambda p: p - (6.0, -3.0, 3.0)), grid)
    labels = [sitk.Cast(i > 250, sitk.sitkUInt8) for i in (fixed, moving)]
    points = np.random.default_rng(0).uniform(-20, 20, (12, 3))
    extras = (*labels, points, points + np.array((6.0, -3.0, 3.0)))
    before = metrics.evaluate(fixed, moving, sitk.Transform(3, sitk.sitkIdentity), *extras)
    after = metrics.evaluate(fixed, moving, truth, *extras)
    keys = {"dice", "dice_per_label", "hd95_mm", "tre_mm", "tre_p95_mm", "folded_percent", "sd_log_jacobian", "nmi"}
    assert set(before) == set(after) == keys
    assert after["tre_mm"] < 1e-6 and before["tre_mm"] == pytest.approx(np.sqrt(54))
    assert after["dice"] > 0.99 > before["dice"] and after["nmi"] > before["nmi"] + 0.1
    assert set(metrics.evaluate(fixed, moving, truth)) == {"nmi", "folded_percent", "sd_log_jacobian"}
