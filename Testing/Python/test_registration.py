"""`register` from images to result: known motions in mm, what comes with a result, and everything that stops it."""

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import make_grid
from FoundationRegLib.core.cache import Cache
from FoundationRegLib.core.progress import Progress
from FoundationRegLib.errors import Cancelled, FoundationRegError, InputError, OutOfMemory, WeightsError
from FoundationRegLib.images import conversion, transforms
from FoundationRegLib.registration import encoding, pipeline, preparation, result
from FoundationRegLib.registration.ahead import Ahead
from FoundationRegLib.registration.deformable import deform
from FoundationRegLib.registration.pipeline import register
from FoundationRegLib.settings import Settings
from FoundationRegLib.weights import store
from test_deformable import FakeEncoder

FIXED = make_grid((32, 36, 34), (3.5, 2.5, 3.0))
MOVING = make_grid((36, 40, 40), (3.0, 2.5, 2.5), turn=(8, -4, 6), flip=(0,), center=(4.0, 1.0, 3.0))
BODY_POINTS = np.random.default_rng(0).uniform(-20, 20, (80, 3))
ADAM = {"optimizer": "adam", "diffeomorphic": False, "sliding": False, "grey_values": False}
MIND = Settings(
    encoders=(("mind", 1.0),), device="cpu", start="none", rigid=False, affine=False, finest_spacing_mm=4.0,
    search_spacing_mm=8.0, search_range_mm=16.0, slice_gap_mm=12.0, pca_components=3,
)  # fmt: skip
# Nothing but the start: the transform must then be the start, exactly.
NOTHING = MIND.replace(search_range_mm=0.0, iterations=0, levels=[1])
SHIFT = (5.0, -4.0, 6.0)


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


def shifted(points):
    return points + np.array(SHIFT)


def a_pair(phantom, truth, fixed=FIXED, moving=MOVING):
    """Images of which ``truth`` (fixed to moving LPS points) is the registration."""
    return (
        conversion.image_from_array(phantom.on(fixed, truth), fixed),
        conversion.image_from_array(phantom.on(moving), moving),
    )


def moved(transform, points=BODY_POINTS):
    return np.array([transform.TransformPoint(p) for p in np.asarray(points).tolist()])


def error_mm(transform, truth, points=BODY_POINTS):
    return np.linalg.norm(moved(transform, points) - truth(points), axis=1)


@pytest.fixture(scope="module")
def shifted_pair(phantom):
    return a_pair(phantom, shifted)


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


# Bad input: one sentence before any long work


def forbidden(*_, **__):
    raise AssertionError("long work began")


def flat_transform():
    return sitk.TranslationTransform(2, (1.0, 2.0))


def constant():
    return sitk.Image(16, 16, 16, sitk.sitkInt16) + 3


def noise(shape=(12, 12, 12), share_of_nan=0.0, value=np.nan):
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    array.ravel()[: int(share_of_nan * array.size)] = value
    return sitk.GetImageFromArray(array)


def label_image(value):
    array = np.zeros(FIXED.shape, np.uint8)
    array[10:20, 10:20, 10:20] = value
    return conversion.image_from_array(array, FIXED)


BAD_INPUT = {
    "missing file": ({"moving": "nowhere.nii.gz"}, "nowhere.nii.gz does not exist"),
    "constant": ({"fixed": constant()}, "fixed image has the same value"),
    "2-D": ({"moving": noise((12, 12))}, "2 dimensions"),
    "4-D": ({"fixed": sitk.JoinSeries([noise(), noise()])}, "4 dimensions"),
    "colour": ({"fixed": sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3)}, "colours"),
    "nan": ({"moving": noise(share_of_nan=0.2)}, "not numbers"),
    "infinite": ({"moving": noise(share_of_nan=0.2, value=np.inf)}, "not numbers"),
    "empty mask": ({"fixed_mask": label_image(0)}, "fixed mask is empty"),
    "labels on one side": ({"fixed_labels": label_image(1)}, "both images"),
    "other labels": ({"fixed_labels": label_image(1), "moving_labels": label_image(2)}, "no value in common"),
    "points on one side": ({"fixed_points": BODY_POINTS}, "both images"),
    "points that do not pair": ({"fixed_points": BODY_POINTS, "moving_points": BODY_POINTS[1:]}, "80 fixed and 79"),
    "points of 2-D": ({"fixed_points": BODY_POINTS[:, :2], "moving_points": BODY_POINTS[:, :2]}, "x, y and z"),
    "flat transform": ({"initial_transform": flat_transform()}, "2-D"),
    "missing transform": ({"initial_transform": "nowhere.h5"}, "nowhere.h5 does not exist"),
    "unknown encoder": ({"settings": MIND.replace(encoders="medsam-light")}, "did you mean 'medsam-lite'"),
    "unknown device": ({"settings": MIND.replace(device="tpu")}, "'tpu'"),
    "absent device": ({"settings": MIND.replace(device="cuda:77")}, "cuda:77 is not available"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_refused_in_one_sentence_before_long_work(shifted_pair, monkeypatch, kind):
    arguments, words = BAD_INPUT[kind]
    monkeypatch.setattr(pipeline.linear, "prepare", forbidden)
    fixed, moving = shifted_pair
    with pytest.raises(InputError) as raised:
        register(**{"fixed": fixed, "moving": moving, "settings": MIND, **arguments})
    check_sentence(raised.value, words)


def check_sentence(error: FoundationRegError, words: str):
    said = str(error)
    assert words in said and said.endswith((".", "?")) and "\n" not in said and ". " not in said.rstrip("."), said
    assert error.exit_code == 2


@pytest.mark.parametrize("change", [{"smoothness": 0}, {"levels": "3"}, {"optimizer": "sgd"}, {"smothness": 1}])
def test_bad_settings_are_refused(change):
    with pytest.raises(InputError) as raised:
        MIND.replace(**change)
    assert next(iter(change)) in str(raised.value)


def test_missing_weights_are_told_before_long_work(shifted_pair, monkeypatch, tmp_path):
    monkeypatch.setattr(store, "installed", lambda item: None)
    monkeypatch.setattr(pipeline.linear, "prepare", forbidden)
    with pytest.raises(WeightsError, match="foundationreg encoders download sam-b"):
        register(*shifted_pair, MIND.replace(encoders="sam-b"))


def test_images_that_do_not_overlap_are_refused(phantom):
    fixed, moving = a_pair(phantom, shifted)
    moving.SetOrigin((5000.0, 0.0, 0.0))
    with pytest.raises(InputError) as raised:
        register(fixed, moving, MIND)
    check_sentence(raised.value, "do not overlap")


def test_masks_that_leave_nothing_are_refused(shifted_pair):
    fixed, moving = shifted_pair
    everything = conversion.image_from_array(np.ones(FIXED.shape, np.uint8), FIXED)
    with pytest.raises(InputError) as raised:
        register(fixed, moving, MIND, exclude_fixed=everything)
    check_sentence(raised.value, "Nothing of the fixed image is left")


def test_few_voxels_that_are_not_numbers_are_repaired_with_a_warning(shifted_pair):
    fixed, moving = shifted_pair
    array = sitk.GetArrayFromImage(fixed)
    array[5, 5, 5:9] = np.nan
    found = register(conversion.image_from_array(array, FIXED), moving, NOTHING)
    assert any("4 voxels that are not numbers" in warning for warning in found.record["warnings"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory_says_what_to_reduce(shifted_pair, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(pipeline, "deform", fails)
    with pytest.raises(OutOfMemory) as raised:
        register(*shifted_pair, NOTHING)
    check_sentence(raised.value, "finest_spacing_mm")


def test_too_little_memory_takes_a_coarser_grid_and_says_so(shifted_pair, monkeypatch):
    sizes = []

    def short(pair, *arguments):
        sizes.append(int(np.prod(pair.grid.shape)))
        if len(sizes) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return deform(pair, *arguments)

    monkeypatch.setattr(pipeline, "deform", short)
    monkeypatch.setattr(pipeline, "METHOD", dataclasses.replace(pipeline.METHOD, least_voxels=100))
    found = register(*shifted_pair, NOTHING.replace(finest_spacing_mm=0.0))
    assert len(sizes) == 3 and sizes[1] < 0.8 * sizes[0] and sizes[2] < 0.8 * sizes[1]
    assert found.record["working_grid"]["spacing_mm"] > 1.4 * min(shifted_pair[0].GetSpacing())
    assert sum("was not enough for a working grid" in warning for warning in found.warnings) == 2
    sizes.clear()
    with pytest.raises(OutOfMemory):
        register(*shifted_pair, NOTHING.replace(finest_spacing_mm=4.0))
    assert len(sizes) == 1, "a spacing that was asked for is not changed"


def test_the_memory_setting_bounds_the_working_grid(shifted_pair):
    usual, small = (preparation.working_voxels(NOTHING.replace(memory_gb=gb), torch.device("cpu")) for gb in (0.0, 1.5))
    assert usual == 4_000_000 and 1_000_000 < small < 2_000_000
    assert preparation.working_voxels(NOTHING.replace(memory_gb=0.1), torch.device("cpu")) == 200_000


def test_other_errors_are_not_called_memory(shifted_pair, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(pipeline, "deform", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        register(*shifted_pair, NOTHING)


@pytest.mark.parametrize("kind", ["labels", "points"])
def test_guides_are_needed_on_both_sides(shifted_pair, kind):
    for given in ({}, {f"fixed_{kind}": "there.nii.gz"}):
        with pytest.raises(InputError, match=f"{kind} of both images are needed"):
            register(*shifted_pair, NOTHING, **{f"guide_with_{kind}": True}, **given)


def test_a_cut_image_has_no_edge_where_it_is_cut(phantom):
    """Only what both images show is compared, and the moving one goes on as it ended; uncut, nothing is done."""
    fixed = conversion.image_from_array(phantom.on(FIXED), FIXED)
    still = sitk.Transform(3, sitk.sitkIdentity)

    def prepared(moving):
        inputs = preparation.Inputs(fixed, moving)
        return preparation.prepare_pair(Ahead(inputs, MIND), still, MIND, 10**6, False, False)

    whole, cut = prepared(fixed), prepared(fixed[:, :, 16:])
    assert whole.seen is None and cut.seen is not None and (cut.seen.mean(axis=(1, 2)) < 0.1).sum() > 5
    assert cut.fixed_mask.any() and not (cut.fixed_mask & ~cut.seen).any()
    first = int(np.flatnonzero(cut.seen.any(axis=(1, 2)))[0])
    middle = tuple(n // 2 for n in cut.grid.shape[1:])
    np.testing.assert_array_equal(cut.moving[:first, *middle], cut.moving[first, *middle])
