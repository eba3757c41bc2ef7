"""What `register` refuses in one sentence before any long work, and what it repairs with a warning."""

import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from FoundationRegLib.errors import FoundationRegError, InputError, OutOfMemory, WeightsError
from FoundationRegLib.images import conversion
from FoundationRegLib.registration import pipeline, preparation
from FoundationRegLib.registration.ahead import Ahead
from FoundationRegLib.registration.deformable import deform
from FoundationRegLib.registration.pipeline import register
from FoundationRegLib.weights import store
from known_pairs import BODY_POINTS, FIXED, MIND, NOTHING, a_pair, forbidden, shifted


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
