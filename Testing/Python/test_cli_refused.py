"""Bad input of the command line: one plain sentence, exit code 2, no file."""

import numpy as np
import pytest
import SimpleITK as sitk
from cli_steps import files_below, refused, register, write
from fakes import blob_image
from FoundationRegLib.images import conversion
from FoundationRegLib.registration import pipeline
from FoundationRegLib.weights import acquisition, store


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.nii.gz", "{moving}", "-o", "{out}"], "The fixed image nowhere.nii.gz does not exist."),
        (["{fixed}", "nowhere", "-o", "{out}"], "The moving image nowhere does not exist."),
        (
            ["{fixed}", "{moving}", "-o", "{out}", "--moving-mask", "m.nii"],
            "The mask of the moving image m.nii does not",
        ),
        (
            ["{fixed}", "{moving}", "-o", "{out}", "--fixed-points", "p.csv"],
            "The points of the fixed image p.csv does not",
        ),
        (
            ["{fixed}", "{moving}", "-o", "{out}", "--initial-transform", "t.h5"],
            "The initial transform t.h5 does not exist",
        ),
        (["{fixed}", "{moving}", "-o", "{out}", "--guide-with-labels"], "To guide with labels, give --fixed-labels"),
        (["{fixed}", "{moving}", "-o", "{out}", "--guide-with-points"], "To guide with points, give --fixed-points"),
        (["{fixed}", "{moving}"], "Say where the result goes"),
        (["{fixed}", "{moving}", "--transform", "{out}.pdf"], "cannot be written as"),
        (["{fixed}", "{moving}", "--warped", "{out}.h5"], "cannot be written as"),
        (["{fixed}", "{moving}", "-o", "{out}", "--preset", "best"], "There is no preset 'best'. There are: default"),
        (["{fixed}", "{moving}", "-o", "{out}", "--encoder", "mnd"], "There is no encoder 'mnd'; did you mean 'mind'?"),
        (["{fixed}", "{moving}", "-o", "{out}", "--encoder", "mind=x"], "The setting encoders cannot be"),
        (["{fixed}", "{moving}", "-o", "{out}", "--set", "smothness=2"], "did you mean 'smoothness'?"),
        (["{fixed}", "{moving}", "-o", "{out}", "--set", "smoothness"], "--set wants KEY=VALUE"),
        (["{fixed}", "{moving}", "-o", "{out}", "--set", "smoothness=-1"], "must lie between"),
        (["{fixed}", "{moving}", "-o", "{out}", "--set", "iterations=1.5"], "The setting iterations cannot be"),
        (["{fixed}", "{moving}", "-o", "{fixed}"], "is a file; choose another name."),
        (["{fixed}", "{moving}", "-o", "{fixed}/below"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(pair, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr(pipeline, "register", lambda *a, **k: pytest.fail("the work began"))
    before = files_below(pair)
    places = {"fixed": pair / "fixed.nii.gz", "moving": pair / "moving.nii.gz", "out": pair / "out"}
    encoder = [] if "--encoder" in arguments else ["--encoder", "mind"]
    said = refused(capsys, "register", *[a.format(**places) for a in arguments], *encoder)
    assert sentence in said
    assert files_below(pair) == before


def with_few_nan(array, count):
    array = array.copy()
    array.ravel()[:count] = np.nan
    return array


NOISE = np.random.default_rng(1).random((16, 18, 20)).astype(np.float32)
BAD_IMAGES = {
    "constant": (np.full((16, 18, 20), 3.0, np.float32), "same value"),
    "empty": (np.zeros((16, 18, 20), np.float32), "same value"),
    "nan": (with_few_nan(NOISE, 400), "not numbers"),
    "flat": (NOISE[0], "2 dimensions"),
    "series": (np.stack([NOISE] * 3), "4 dimensions"),
    "thin": (NOISE[:2], "at least"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_images_that_cannot_be_registered_are_refused(pair, capsys, kind, side):
    array, sentence = BAD_IMAGES[kind]
    if kind == "series":
        sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(a) for a in array]), str(pair / "bad.mha"))
    else:
        write(pair / "bad.mha", array)
    before = files_below(pair)
    paths = {"fixed": pair / "fixed.nii.gz", "moving": pair / "moving.nii.gz", side: pair / "bad.mha"}
    said = refused(capsys, "register", paths["fixed"], paths["moving"], "-o", pair / "out", "-e", "mind", "-q")
    assert sentence in said and side in said
    assert files_below(pair) == before


def test_colour_image_is_refused(pair, capsys):
    colours = sitk.GetImageFromArray(np.zeros((8, 8, 8, 3), np.uint8), isVector=True)
    sitk.WriteImage(colours, str(pair / "rgb.nrrd"))
    said = refused(capsys, "register", pair / "fixed.nii.gz", pair / "rgb.nrrd", "-o", pair / "out", "-e", "mind", "-q")
    assert "colours" in said and not (pair / "out").exists()


@pytest.mark.parametrize("name", ["text.nii.gz", "text.nrrd", "text.png"])
def test_unreadable_file_is_refused(pair, capsys, name):
    (pair / name).write_text("this is no image")
    said = refused(capsys, "register", pair / name, pair / "moving.nii.gz", "-o", pair / "out", "-e", "mind", "-q")
    assert name in said and not (pair / "out").exists()


def test_folder_without_dicom_is_refused(pair, capsys):
    (pair / "empty").mkdir()
    said = refused(capsys, "register", pair / "empty", pair / "moving.nii.gz", "-o", pair / "out", "-e", "mind", "-q")
    assert "DICOM" in said and not (pair / "out").exists()


def test_images_far_apart_are_refused(pair, capsys):
    write(pair / "far.nii.gz", NOISE, origin=(5000.0, 0.0, 0.0))
    said = refused(
        capsys,
        *("register", pair / "fixed.nii.gz", pair / "far.nii.gz", "-o", pair / "out", "-e", "mind", "-q"),
        *("--set", "start=none", "--no-rigid", "--no-affine"),
    )
    assert "overlap" in said and not (pair / "out").exists()


def test_empty_mask_is_refused(pair, capsys):
    write(pair / "mask.nii.gz", np.zeros((16, 18, 20), np.uint8))
    said = refused(
        capsys,
        *("register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "mind", "-q"),
        *("--fixed-mask", pair / "mask.nii.gz"),
    )
    assert "mask" in said and not (pair / "out").exists()


def test_labels_without_common_values_are_refused(pair, capsys):
    for name, value in (("a", 1), ("b", 2)):
        labels = (sitk.GetArrayFromImage(blob_image()) > 300).astype(np.uint8) * value
        sitk.WriteImage(
            conversion.image_from_array(labels, conversion.grid_of(blob_image())), str(pair / f"{name}.nii.gz")
        )
    said = refused(
        capsys,
        *("register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "mind", "-q"),
        *("--fixed-labels", pair / "a.nii.gz", "--moving-labels", pair / "b.nii.gz"),
    )
    assert "no value in common" in said and not (pair / "out").exists()


def test_transform_of_wrong_dimension_is_refused(pair, capsys):
    sitk.WriteTransform(sitk.TranslationTransform(2, (1.0, 2.0)), str(pair / "flat.tfm"))
    said = refused(
        capsys,
        *("register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "mind", "-q"),
        *("--initial-transform", pair / "flat.tfm"),
    )
    assert "2-D" in said and not (pair / "out").exists()


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_device_that_is_not_there_is_refused(pair, capsys, device):
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "mind", "-q"]
    assert device.split(":")[0] in refused(capsys, *arguments, "--device", device)
    assert not (pair / "out").exists()


def test_missing_weights_name_the_command_that_fetches_them(pair, capsys, monkeypatch):
    monkeypatch.setattr(store, "_folder", pair / "nothing")
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "medsam-lite"]
    said = refused(capsys, *arguments)
    assert "foundationreg encoders download medsam-lite" in said and "39 MB" in said and "--download" in said
    assert not (pair / "out").exists()


def test_weights_that_must_be_asked_for_name_the_way_to_take_them_in(pair, capsys, monkeypatch):
    monkeypatch.setattr(store, "_folder", pair / "nothing")
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "dinov3-s"]
    said = refused(capsys, *arguments, "--download")
    assert "foundationreg encoders import dinov3-s FILE" in said and "http" in said


def test_download_flag_fetches_missing_weights(pair, fake_registration, monkeypatch):
    fetched = []
    monkeypatch.setattr(store, "_folder", pair / "nothing")
    monkeypatch.setattr(acquisition, "download", lambda id, *more, **options: fetched.append(id))
    assert register(pair, "-o", pair / "out", "-q", "--download", "-e", "medsam-lite") == 0
    assert fetched == ["medsam-lite"]
