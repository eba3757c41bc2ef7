"""`register` from images to result: known motions in mm, what comes with a result, and how it is stopped."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import make_grid
from FoundationRegLib.core.cache import Cache
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.errors import Cancelled
from FoundationRegLib.images import conversion, transforms
from FoundationRegLib.registration import encoding, pipeline, result
from FoundationRegLib.registration.pipeline import register
from FoundationRegLib.settings import Settings
from known_pairs import BODY_POINTS, FIXED, MIND, MOVING, NOTHING, SHIFT, a_pair, error_mm, forbidden, moved, shifted
from test_deformable import FakeEncoder

ADAM = {"optimizer": "adam", "diffeomorphic": False, "sliding": False, "grey_values": False}


class Bend:
    """A smooth motion of LPS points, ``amplitude`` mm at most along each axis."""

    def __init__(self, amplitude):
        self.amplitude = amplitude

    def __call__(self, points):
        x, y, z = np.moveaxis(np.asarray(points, float), -1, 0) / 25
        return points + self.amplitude * np.stack([np.sin(y + 0.5), np.cos(z), np.sin(x - z)], -1)


def turned_and_shifted(points):
    transform = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.12, -0.08, 0.15, SHIFT)
    matrix = transforms.affine_matrix(transform)
    return points @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.fixture(scope="module")
def bent(phantom):
    """The registration of images under a smooth motion, with all that can be watched or measured on the way."""
    fixed, moving = a_pair(phantom, Bend(4.0))
    labels = [conversion.image_from_array((sitk.GetArrayFromImage(i) > 350).astype(np.uint8), conversion.grid_of(i))
              for i in (fixed, moving)]  # fmt: skip
    events, previews = [], []
    result = register(
        fixed, moving, MIND.replace(seed=7), fixed_labels=labels[0], moving_labels=labels[1],
        fixed_points=BODY_POINTS, moving_points=Bend(4.0)(BODY_POINTS),
        progress=Progress(events.append, previews.append),
    )  # fmt: skip
    return result, events, previews


# Known motions


def test_known_shift_is_recovered_below_a_millimetre(shifted_pair):
    found = register(*shifted_pair, MIND)
    assert error_mm(found.transform, shifted).mean() < 0.8


def test_rotation_is_recovered_with_the_rigid_stage(phantom):
    found = register(*a_pair(phantom, turned_and_shifted), MIND.replace(start="auto", rigid=True))
    assert found.record["linear"] == "rigid"
    assert error_mm(found.linear, turned_and_shifted).mean() < 1.2
    assert error_mm(found.transform, turned_and_shifted).mean() < 1.0


def test_smooth_warp_is_recovered_on_any_grid(phantom, grid):
    """Oblique, left-handed and anisotropic fixed grids against a moving one of other axes and size."""
    truth = Bend(4.0)
    found = register(*a_pair(phantom, truth, grid), MIND)
    before = np.linalg.norm(truth(BODY_POINTS) - BODY_POINTS, axis=1).mean()
    # On voxels of 4 mm.
    assert before > 4 and error_mm(found.transform, truth).mean() < 1.5
    assert found.metrics["after"]["folded_percent"] == 0


def test_published_schedule_with_adam_works_end_to_end(shifted_pair):
    settings = MIND.replace(
        optimizer="adam",
        diffeomorphic=False,
        sliding=False,
        grey_values=False,
        iterations=40,
        levels=[2],
        adam_rate=0.5,
    )
    found = register(*shifted_pair, settings.replace(adam_kernel=3, adam_passes=2))
    assert error_mm(found.transform, shifted).mean() < 3.0, "of 8.8"


# Initial transforms


def bending_field():
    """A non-linear initial transform that covers the fixed image."""
    lattice = FIXED.padded(3, 3)
    points = lattice.points(np.moveaxis(np.indices(lattice.shape), 0, -1))
    return sitk.DisplacementFieldTransform(conversion.image_from_array(Bend(3.0)(points) - points, lattice))


def affine():
    return transforms.affine_transform(
        np.array([[1.1, 0.1, 0, 4], [-0.05, 0.95, 0, -5], [0, 0.02, 1.0, 6], [0, 0, 0, 1]])
    )


@pytest.mark.parametrize(
    "initial",
    [affine(), bending_field(), sitk.CompositeTransform([affine(), bending_field()])],
    ids=["affine", "field", "composite"],
)
def test_initial_transform_is_composed_exactly_over_the_whole_fixed_image(shifted_pair, initial, tmp_path):
    found = register(*shifted_pair, NOTHING, initial_transform=initial)
    nodes = conversion.grid_of(found.transform.GetDisplacementField())
    ends = nodes.indices(FIXED.corners())
    assert (ends.min() >= 0 and (ends <= np.array(nodes.shape) - 1).all()) or nodes == FIXED
    voxels = FIXED.points(np.argwhere(np.ones(FIXED.shape))[::97])
    np.testing.assert_allclose(moved(found.transform, voxels), moved(initial, voxels), atol=1e-3)
    last = FIXED.points(np.array(FIXED.shape) - 1.0)
    np.testing.assert_allclose(moved(found.transform, [last]), moved(initial, [last]), atol=1e-3)


def test_initial_transform_that_bends_is_refined(phantom):
    """What is left after a non-linear start is found on top of it."""
    start = bending_field()
    fixed, moving = a_pair(phantom, lambda p: Bend(3.0)(p) + np.array([2.0, -3.0, 2.0]))
    found = register(fixed, moving, MIND, initial_transform=start)
    assert error_mm(found.transform, lambda p: Bend(3.0)(p) + np.array([2.0, -3.0, 2.0])).mean() < 1.0


def test_initial_transform_from_a_file(shifted_pair, tmp_path):
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(tmp_path / "shift.tfm"))
    found = register(*shifted_pair, NOTHING, initial_transform=tmp_path / "shift.tfm")
    np.testing.assert_allclose(moved(found.transform), shifted(BODY_POINTS), atol=1e-3)


# What a result holds


def test_warped_image_is_what_simpleitk_makes_of_the_transform(bent):
    found, _, _ = bent
    expected = sitk.Resample(found.moving, found.fixed, found.transform, sitk.sitkLinear, 0.0)
    inside = sitk.GetArrayFromImage(found.fixed) > 100
    got = sitk.GetArrayFromImage(found.warped)
    np.testing.assert_allclose(got[inside], sitk.GetArrayFromImage(expected)[inside], atol=1e-2)
    assert found.warped_labels.GetPixelID() == sitk.sitkUInt8
    assert set(np.unique(sitk.GetArrayFromImage(found.warped_labels))) == {0, 1}


def test_metrics_tell_before_from_after(bent):
    found, _, _ = bent
    before, after = found.metrics["before"], found.metrics["after"]
    assert after["tre_mm"] < 1.5 < 4 < before["tre_mm"]
    assert after["dice"] > before["dice"] and after["nmi"] > before["nmi"]
    assert after["tre_mm"] == pytest.approx(error_mm(found.transform, Bend(4.0)).mean(), rel=1e-6)


def test_inverse_leads_back(bent):
    found, _, _ = bent
    back = found.inverse()
    assert np.linalg.norm(moved(back, moved(found.transform)) - BODY_POINTS, axis=1).max() < 0.3
    corners = MOVING.points([np.zeros(3), np.array(MOVING.shape) - 1.0])
    inside = conversion.grid_of(back.GetDisplacementField()).indices(corners)
    assert (inside >= -1e-6).all(), "the inverse must cover the whole moving image"


def test_jacobian_of_the_result_is_positive_and_agrees_with_finite_differences(bent):
    found, _, _ = bent
    point, step = np.array([3.0, -4.0, 5.0]), 3.0
    columns = [moved(found.transform, [point + step * e])[0] - moved(found.transform, [point - step * e])[0]
               for e in np.eye(3)]  # fmt: skip
    expected = np.linalg.det(np.stack(columns, 1) / (2 * step))
    determinant = found.jacobian()
    here = sitk.GetArrayFromImage(determinant)[tuple(np.rint(FIXED.indices(point)).astype(int))]
    assert here == pytest.approx(expected, abs=0.1)
    assert sitk.GetArrayFromImage(determinant).min() > 0


def test_record_says_how_the_result_was_made(bent):
    found, _, _ = bent
    record = json.loads(json.dumps(found.record))
    assert record["seed"] == 7 and Settings.from_dict(record["settings"]) == MIND.replace(seed=7)
    assert record["versions"]["torch"] == torch.__version__
    assert {"load", "align", "prepare", "search", "refine", "output"} <= set(record["seconds"])
    assert record["device"] == "cpu" and record["linear"] == "start" and record["weights_sha256"] == {}
    assert record["working_grid"]["spacing_mm"] == 4.0
    assert found.quality.endswith(".") and "folds nowhere" in found.quality
    assert {"16 mm", "8 mm", "4 mm"} == set(found.loss)


def test_progress_runs_from_zero_to_one(bent):
    _, events, _ = bent
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] > 0.9


def test_previews_arrive_and_the_last_is_nearly_the_transform(bent):
    found, _, previews = bent
    assert list(dict.fromkeys(preview.stage for preview in previews)) == ["align", "search", "refine"]
    misses = []
    for preview in (previews[0], previews[-1]):
        field = sitk.DisplacementFieldTransform(
            conversion.image_from_array(preview.displacement.astype(float), preview.grid)
        )
        misses.append(np.linalg.norm(moved(field) - moved(found.transform), axis=1).mean())
    assert misses[1] < 0.5 and misses[1] < misses[0]


# Masks, labels, landmarks


def homogeneous_pair(offset):
    """Two equal bodies without texture, and a structure in each that only labels show, ``offset`` mm apart."""
    points = FIXED.points(np.moveaxis(np.indices(FIXED.shape), 0, -1))
    rng = np.random.default_rng(0)
    made = []
    for middle in (np.zeros(3), np.array(offset)):
        body = 300.0 * (np.linalg.norm(points / (40, 34, 46), axis=-1) < 1) + rng.normal(size=FIXED.shape)
        label = (np.linalg.norm(points - middle, axis=-1) < 14).astype(np.uint8)
        made.append([conversion.image_from_array(a, FIXED) for a in (body.astype(np.float32), label)])
    return made


def test_labels_guide_only_when_asked():
    (fixed, fixed_labels), (moving, moving_labels) = homogeneous_pair((8.0, 0.0, 0.0))
    dice = {
        asked: register(
            fixed, moving, MIND, fixed_labels=fixed_labels, moving_labels=moving_labels, guide_with_labels=asked
        ).metrics["after"]["dice"]
        for asked in (False, True)
    }
    assert dice[False] < 0.65 and dice[True] > 0.85


def test_landmarks_guide_only_when_asked():
    (fixed, _), (moving, _) = homogeneous_pair((0.0, 0.0, 0.0))
    here = np.array([[0.0, 0, 0], [8, -8, 4], [-8, 8, 8]])
    there = here + np.array([3.0, 0.0, -3.0])
    tre = {
        asked: register(
            fixed, moving, MIND, fixed_points=here, moving_points=there, guide_with_points=asked
        ).metrics["after"]["tre_mm"]
        for asked in (False, True)
    }  # fmt: skip
    assert tre[False] > 3.0 and tre[True] < 0.6 * tre[False]


def test_lesion_that_is_excluded_does_not_pull_its_surroundings(phantom):
    """A bright ball that only the moving image has; the truth is that nothing moved."""
    points = FIXED.points(np.moveaxis(np.indices(FIXED.shape), 0, -1))
    clean = phantom.on(FIXED)
    ball = np.linalg.norm(points - (8.0, 0, 0), axis=-1) < 11
    fixed, moving = (
        conversion.image_from_array(a, FIXED) for a in (clean, np.where(ball, 900, clean).astype(np.float32))
    )
    mask = conversion.image_from_array(np.linalg.norm(points - (8.0, 0, 0), axis=-1) < 13, FIXED)
    around = np.array([8.0, 0, 0]) + 15 * np.vstack([np.eye(3), -np.eye(3)])
    with_it = register(fixed, moving, MIND)
    without = register(fixed, moving, MIND, exclude_moving=mask, exclude_fixed=mask)
    errors = [error_mm(r.transform, lambda p: p, around).mean() for r in (with_it, without)]
    assert errors[1] < 0.3 and errors[1] < 0.5 * errors[0] < 0.5


def test_mask_on_another_grid_is_resampled_with_a_warning(shifted_pair):
    ones = conversion.image_from_array(np.ones((20, 20, 20), np.uint8), make_grid((20, 20, 20), (6.0, 6.0, 6.0)))
    found = register(*shifted_pair, NOTHING, fixed_mask=ones)
    assert any("another grid" in warning for warning in found.warnings)


# The same again, and other settings


def test_same_seed_gives_the_same_bits(shifted_pair):
    settings = MIND.replace(start="auto", rigid=True, iterations=2)
    fields = [
        sitk.GetArrayFromImage(register(*shifted_pair, settings).transform.GetDisplacementField()) for _ in range(2)
    ]
    np.testing.assert_array_equal(*fields)


def test_other_smoothness_neither_aligns_nor_encodes_again(shifted_pair, monkeypatch):
    encoder, cache = FakeEncoder(), Cache()
    real = encoding.load_encoder
    monkeypatch.setattr(encoding, "load_encoder", lambda i, *a, **k: encoder if i != "mind" else real(i, *a, **k))
    monkeypatch.setattr(pipeline, "require", lambda *arguments: None)  # a computer may lack the weights
    settings = MIND.replace(encoders="medsam-lite,mind")
    first = register(*shifted_pair, settings, cache=cache)
    assert first.features["medsam-lite"]["fixed"].dtype == np.uint8 and first.feature_grid is not None
    assert first.record["weights_sha256"] == {"medsam-lite": "abc"}
    encoded = encoder.slices
    monkeypatch.setattr(pipeline.linear, "align_linearly", forbidden)
    measured, measure = [], result.metrics.evaluate_each
    monkeypatch.setattr(result.metrics, "evaluate_each", lambda *a, **k: measured.append([*a[2]]) or measure(*a, **k))
    second = register(*shifted_pair, settings.replace(smoothness=5.0), cache=cache)
    assert measured == [["after"]]
    assert [second.metrics[stage] == first.metrics[stage] for stage in first.metrics] == [True, True, False]
    assert encoder.slices == encoded > 0
    assert second.metrics["after"]["sd_log_jacobian"] < first.metrics["after"]["sd_log_jacobian"]


def test_other_grey_values_or_windows_are_aligned_anew(shifted_pair, monkeypatch):
    cache, calls = Cache(), []
    real = pipeline.linear.align_linearly
    monkeypatch.setattr(pipeline.linear, "align_linearly", lambda *a: calls.append(1) or real(*a))
    fixed, moving = shifted_pair
    register(fixed, moving, NOTHING, cache=cache)
    register(fixed, moving, NOTHING.replace(fixed_window="0,600"), cache=cache)
    register(fixed + 5.0, moving, NOTHING, cache=cache)
    register(fixed, moving, NOTHING, cache=cache)
    assert len(calls) == 3


# Stopping


@pytest.mark.parametrize("stage", ["load", "align", "prepare", "search", "refine 8 mm", "refine 4 mm", "output"])
def test_cancel_is_heard_in_every_stage(shifted_pair, stage):
    seen = []
    progress = Progress(on_event=lambda event: seen.append(event.stage), should_cancel=lambda: stage in seen)
    with pytest.raises(Cancelled):
        register(*shifted_pair, MIND.replace(iterations=1), progress=progress)
    assert stage in seen and set(seen[seen.index(stage):]) <= {stage, "start", "linear"}  # fmt: skip


def test_finishing_early_gives_a_whole_result(shifted_pair):
    found = register(*shifted_pair, MIND, progress=Progress(should_finish=lambda: True))
    assert {len(curve) for curve in found.loss.values()} == {1}
    assert error_mm(found.transform, shifted).mean() < 4.0
