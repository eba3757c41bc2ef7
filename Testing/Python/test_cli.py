"""The command line: results, exit codes, one plain sentence for bad input, and no file left behind."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fakes import SHIFT, blob_image, fake_register
from FoundationRegLib import cli, commands, consent, image, registration, weights
from FoundationRegLib.encoders import catalogue
from FoundationRegLib.errors import OutOfMemory, WeightsError

RESULTS = {"transform.h5", "warped.nii.gz", "jacobian.nii.gz", "result.json", "report.html"}


@pytest.fixture
def pair(tmp_path):
    """Folder with fixed.nii.gz and moving.nii.gz, which is the fixed image shifted by SHIFT."""
    sitk.WriteImage(blob_image(), str(tmp_path / "fixed.nii.gz"))
    sitk.WriteImage(blob_image(size=(30, 26, 22), center=SHIFT), str(tmp_path / "moving.nii.gz"))
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(registration, "register", fake_register)


def register(folder, *more, fixed="fixed.nii.gz", moving="moving.nii.gz"):
    return cli.main(["register", str(folder / fixed), str(folder / moving), "--encoder", "mind", *map(str, more)])


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def refused(capsys, *arguments):
    """The one sentence that a call with bad input prints; checks its form and the exit code."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("foundationreg: ")]
    assert len(lines) == 1 and "Traceback" not in err and out == "", err
    return lines[0].removeprefix("foundationreg: ")


# Results


def test_register_writes_its_files_and_a_valid_record(pair, fake, capsys):
    assert register(pair, "--output", pair / "deep" / "out", "--set", "smoothness=2", "--seed", 7) == 0
    assert files_below(pair / "deep" / "out") == RESULTS
    record = json.loads((pair / "deep" / "out" / "result.json").read_text(encoding="utf-8"))
    assert record["metrics"]["after"]["nmi"] == 1.1
    assert record["metrics"]["after"]["sd_log_jacobian"] is None, "NaN is no JSON"
    assert record["metrics"]["after"]["dice_per_label"] == {"1": 0.5}
    assert record["record"]["settings"]["smoothness"] == 2 and record["record"]["settings"]["seed"] == 7
    assert record["record"]["settings"]["encoders"] == [["mind", 1.0]]
    assert record["record"]["seconds"] == {"encode": 1.0, "refine": 2.0}
    assert record["warnings"] == ["The moving image was repaired <gently>."]
    out, _ = capsys.readouterr()
    assert "The images are well aligned." in out and "transform.h5" in out


def test_transform_file_is_read_by_simpleitk_and_maps_fixed_to_moving_points(pair, fake):
    assert register(pair, "--transform", pair / "t.h5", "--warped", pair / "w.nrrd", "--quiet") == 0
    assert files_below(pair) == {"fixed.nii.gz", "moving.nii.gz", "t.h5", "w.nrrd"}
    transform = sitk.ReadTransform(str(pair / "t.h5"))
    np.testing.assert_allclose(transform.TransformPoint((1.0, 2.0, 3.0)), np.add((1, 2, 3), SHIFT), atol=1e-9)
    fixed = sitk.ReadImage(str(pair / "fixed.nii.gz"))
    warped = sitk.ReadImage(str(pair / "w.nrrd"))
    assert image.grid_of(warped) == image.grid_of(fixed)
    inside = np.s_[4:-4, 4:-4, 4:-4]
    difference = sitk.GetArrayFromImage(warped)[inside] - sitk.GetArrayFromImage(fixed)[inside]
    assert np.abs(difference).max() < 120, "of 1000: only the error of linear interpolation"


def test_inverse_transform_file_maps_moving_to_fixed_points(pair, fake):
    assert register(pair, "--inverse-transform", pair / "back.h5", "--quiet") == 0
    inverse = sitk.ReadTransform(str(pair / "back.h5"))
    np.testing.assert_allclose(inverse.TransformPoint(SHIFT), (0, 0, 0), atol=1e-9)


def test_transform_as_displacement_image(pair, fake):
    assert register(pair, "--transform", pair / "field.nii.gz", "--quiet") == 0
    field = sitk.ReadImage(str(pair / "field.nii.gz"))
    np.testing.assert_allclose(sitk.GetArrayFromImage(field).reshape(-1, 3), [SHIFT] * np.prod(field.GetSize()))


def test_quiet_prints_nothing(pair, fake, capsys):
    assert register(pair, "--output", pair / "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_stderr(pair, fake, capsys):
    assert register(pair, "--output", pair / "out") == 0
    _, err = capsys.readouterr()
    assert "Encode" in err and "Refine" in err


def test_labels_of_an_older_result_are_replaced(pair, fake):
    labels = image.image_from_array(
        (sitk.GetArrayFromImage(blob_image()) > 300).astype(np.uint8), image.grid_of(blob_image())
    )
    sitk.WriteImage(labels, str(pair / "labels.nii.gz"))
    given = ["--fixed-labels", pair / "labels.nii.gz", "--moving-labels", pair / "labels.nii.gz"]
    assert register(pair, "--output", pair / "out", "--quiet", *given) == 0
    assert files_below(pair / "out") == RESULTS | {"warped_labels.nii.gz"}
    warped = sitk.ReadImage(str(pair / "out" / "warped_labels.nii.gz"))
    assert set(np.unique(sitk.GetArrayFromImage(warped))) == {0, 1}
    (pair / "out" / "notes.txt").write_text("mine")
    assert register(pair, "--output", pair / "out", "--quiet") == 0
    assert files_below(pair / "out") == RESULTS | {"notes.txt"}, "the other run's labels would mislead"


def test_encoder_weights_and_settings_reach_the_registration(pair, monkeypatch):
    seen = {}

    def spy(fixed, moving, settings, **others):
        seen.update(settings=settings, **others)
        return fake_register(fixed, moving, settings, **others)

    monkeypatch.setattr(registration, "register", spy)
    monkeypatch.setattr(commands, "require_encoders", lambda *arguments: None)
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(pair / "start.tfm"))
    more = ["--encoder", "medsam-lite=0.5", "--no-affine", "--device", "cpu", "--initial-transform", pair / "start.tfm"]
    more += ["--exclude-fixed", pair / "fixed.nii.gz", "--guide-with-points", "--set", "slice_gap_mm=4"]
    assert register(pair, "--output", pair / "out", "--quiet", *more) == 0
    settings = seen["settings"]
    assert settings.encoders == (("mind", 1.0), ("medsam-lite", 0.5))
    assert (settings.affine, settings.rigid, settings.device, settings.slice_gap_mm) == (False, True, "cpu", 4.0)
    assert seen["initial_transform"] == str(pair / "start.tfm") and seen["exclude_fixed"] and seen["guide_with_points"]


# Bad input: one sentence, exit code 2, no file


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
        (["{fixed}", "{moving}"], "Say where the result goes"),
        (["{fixed}", "{moving}", "--transform", "{out}.pdf"], "cannot be written as"),
        (["{fixed}", "{moving}", "--warped", "{out}.h5"], "cannot be written as"),
        (["{fixed}", "{moving}", "-o", "{out}", "--preset", "best"], "There is no preset 'best'. There are: default"),
        (["{fixed}", "{moving}", "-o", "{out}", "--encoder", "mnd"], "There is no encoder 'mnd'; did you mean 'mind'?"),
        (["{fixed}", "{moving}", "-o", "{out}", "--encoder", "mind=x"], "The setting encoders cannot be"),
        (["{fixed}", "{moving}", "-o", "{out}", "--set", "smothness=2"], "did you mean 'smoothness'?"),
        (["{fixed}", "{moving}", "-o", "{out}", "--set", "smoothness"], "--set wants KEY=VALUE"),
        (["{fixed}", "{moving}", "-o", "{out}", "--set", "smoothness=-1"], "must be greater than zero"),
        (["{fixed}", "{moving}", "-o", "{out}", "--set", "iterations=1.5"], "The setting iterations cannot be"),
        (["{fixed}", "{moving}", "-o", "{fixed}"], "is a file; choose another name."),
        (["{fixed}", "{moving}", "-o", "{fixed}/below"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(pair, capsys, monkeypatch, arguments, sentence):
    monkeypatch.setattr(registration, "register", lambda *a, **k: pytest.fail("the work began"))
    before = files_below(pair)
    places = {"fixed": pair / "fixed.nii.gz", "moving": pair / "moving.nii.gz", "out": pair / "out"}
    encoder = [] if "--encoder" in arguments else ["--encoder", "mind"]
    said = refused(capsys, "register", *[a.format(**places) for a in arguments], *encoder)
    assert sentence in said
    assert files_below(pair) == before


def write(path, array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing[: made.GetDimension()])
    made.SetOrigin(origin[: made.GetDimension()])
    sitk.WriteImage(made, str(path))


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
        sitk.WriteImage(image.image_from_array(labels, image.grid_of(blob_image())), str(pair / f"{name}.nii.gz"))
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
    monkeypatch.setattr(weights, "_folder", pair / "nothing")
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "medsam-lite"]
    said = refused(capsys, *arguments)
    assert "foundationreg encoders download medsam-lite" in said and "39 MB" in said and "--download" in said
    assert not (pair / "out").exists()


def test_weights_that_must_be_asked_for_name_the_way_to_take_them_in(pair, capsys, monkeypatch):
    monkeypatch.setattr(weights, "_folder", pair / "nothing")
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "dinov3-s"]
    said = refused(capsys, *arguments, "--download")
    assert "foundationreg encoders import dinov3-s FILE" in said and "http" in said


def test_download_flag_fetches_missing_weights(pair, fake, monkeypatch):
    fetched = []
    monkeypatch.setattr(weights, "_folder", pair / "nothing")
    monkeypatch.setattr(weights, "download", lambda id, **more: fetched.append(id), raising=False)
    assert register(pair, "-o", pair / "out", "-q", "--download", "-e", "medsam-lite") == 0
    assert fetched == ["medsam-lite"]


# One's own model


@pytest.fixture
def model(pair, monkeypatch):
    """A TorchScript file as far as the command line can tell; nothing is trusted yet."""
    monkeypatch.setattr(consent, "_given", {})
    monkeypatch.setattr(weights, "_folder", pair / "models")
    (pair / "model.pt").write_bytes(b"a program")
    return pair / "model.pt"


def test_a_program_wants_a_yes_before_any_work(pair, model, capsys, monkeypatch):
    monkeypatch.setattr(registration, "register", lambda *a, **k: pytest.fail("the work began"))
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", model]
    said = refused(capsys, *arguments)
    assert str(model) in said and "program" in said and "--trust-model" in said and not (pair / "out").exists()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n" if "model.pt" in question else "y")
    assert "was not run" in refused(capsys, *arguments)
    assert not consent.trusted()


@pytest.mark.parametrize("answer", ["--trust-model", "typed", "earlier"])
def test_a_yes_is_remembered_for_exactly_this_content(pair, model, fake, capsys, monkeypatch, answer):
    more = ["-o", pair / "out", "-q", "-e", f"{model}=0.5"]
    if answer == "typed":
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda _: "yes")
    elif answer == "earlier":
        assert cli.main(["encoders", "trust", str(model)]) == 0
    assert register(pair, *more, *(["--trust-model"] if answer == "--trust-model" else [])) == 0
    monkeypatch.setattr(consent, "_given", {})
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert register(pair, *more) == 0
    assert cli.main(["encoders"]) == 0
    assert f"Trusted to run: {model}" in capsys.readouterr().out.replace("\n", "")
    model.write_bytes(b"another program")
    assert "add --trust-model" in refused(capsys, "register", pair / "fixed.nii.gz", pair / "moving.nii.gz", *more)


def test_trust_can_be_taken_back_and_is_refused_where_it_makes_no_sense(pair, model, capsys):
    assert cli.main(["encoders", "trust", str(model)]) == 0 and consent.is_trusted(model)
    assert cli.main(["encoders", "distrust", str(model)]) == 0 and not consent.is_trusted(model)
    assert "not among the trusted" in refused(capsys, "encoders", "distrust", model)
    assert "does not exist" in refused(capsys, "encoders", "trust", pair / "absent.pt")
    assert "no TorchScript file" in refused(capsys, "encoders", "trust", pair / "fixed.nii.gz")
    assert "only read, never run" in refused(capsys, "encoders", "trust", pair)


def test_trust_that_cannot_be_kept_is_said(pair, model, capsys, monkeypatch):
    (pair / "file").write_text("no folder")
    monkeypatch.setattr(weights, "_folder", pair / "file")
    assert "cannot be written to" in refused(capsys, "encoders", "trust", model)


def test_a_model_that_is_not_there_is_said(pair, capsys):
    said = refused(capsys, "register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "m.pt")
    assert "There is no encoder 'm.pt': no such file or folder" in said


# Failing while it works


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (MemoryError(), 2, "ran out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            2,
            "ran out of memory",
        ),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), 2, "ran out of memory"),
        (OutOfMemory("The device is full; lower the resolution."), 2, "lower the resolution"),
        (WeightsError("The weights are damaged."), 2, "damaged"),
        (KeyboardInterrupt(), 130, "Stopped"),
    ],
)
def test_failure_during_the_work_leaves_nothing(pair, capsys, monkeypatch, error, code, sentence):
    def fail(*arguments, **more):
        raise error

    monkeypatch.setattr(registration, "register", fail)
    before = files_below(pair)
    assert register(pair, "-o", pair / "new" / "out", "--transform", pair / "other" / "t.h5", "-q") == code
    assert sentence in capsys.readouterr().err
    assert files_below(pair) == before


def test_an_unexpected_error_is_not_hidden(pair, monkeypatch):
    def fail(*arguments, **more):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(registration, "register", fail)
    with pytest.raises(ZeroDivisionError):
        register(pair, "-o", pair / "out", "-q")
    assert not (pair / "out").exists()


def test_older_results_survive_a_failed_run(pair, fake, monkeypatch):
    assert register(pair, "-o", pair / "out", "-q") == 0
    before = {path: path.read_bytes() for path in (pair / "out").iterdir()}

    def fail(*arguments, **more):
        raise MemoryError

    monkeypatch.setattr(registration, "register", fail)
    assert register(pair, "-o", pair / "out", "-q") == 2
    assert {path: path.read_bytes() for path in (pair / "out").iterdir()} == before


def test_failing_report_leaves_no_half_result(pair, fake, monkeypatch, capsys):
    from FoundationRegLib import report

    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_report", full)
    assert register(pair, "-o", pair / "out", "-q") == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not (pair / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_full_disk_leaves_no_file(pair, fake, capsys):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        code = register(pair, "-o", pair / "out", "-q")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2 and "disk" in capsys.readouterr().err
    assert not (pair / "out").exists()


def test_folder_without_permission_is_refused(pair, capsys, monkeypatch):
    from FoundationRegLib import outputs

    def denied(*arguments, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(outputs.tempfile, "mkdtemp", denied)
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-e", "mind", "-o", pair / "a" / "b"]
    assert "not allowed" in refused(capsys, *arguments)
    assert not (pair / "a").exists()


def test_ctrl_c_cancels_and_leaves_nothing(pair, capsys, monkeypatch):
    def interrupted(fixed, moving, settings, *, progress, **others):
        signal.raise_signal(signal.SIGINT)
        progress.update(0.5)
        pytest.fail("the work went on")

    monkeypatch.setattr(registration, "register", interrupted)
    before, handler = files_below(pair), signal.getsignal(signal.SIGINT)
    assert register(pair, "-o", pair / "out") == 130
    assert "cancelled" in capsys.readouterr().err
    assert files_below(pair) == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_second_ctrl_c_stops_work_that_does_not_listen(pair, monkeypatch):
    def deaf(*arguments, **more):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the work went on")

    monkeypatch.setattr(registration, "register", deaf)
    assert register(pair, "-o", pair / "out", "-q") == 130
    assert not (pair / "out").exists()


# Apply, evaluate and the rest


def moved_by(offset):
    return sitk.AffineTransform(np.eye(3).ravel().tolist(), offset)


def test_apply_resamples_an_image_like_simpleitk(pair):
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(pair / "t.tfm"))
    arguments = ["apply", pair / "t.tfm", pair / "moving.nii.gz", "-r", pair / "fixed.nii.gz", "-o", pair / "w.nii.gz"]
    assert cli.main([str(a) for a in arguments]) == 0
    fixed, moving = (sitk.ReadImage(str(pair / f"{side}.nii.gz")) for side in ("fixed", "moving"))
    background = float(sitk.GetArrayViewFromImage(moving).min())
    expected = sitk.Resample(moving, fixed, sitk.TranslationTransform(3, SHIFT), sitk.sitkLinear, background)
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(pair / "w.nii.gz")))
    np.testing.assert_allclose(ours, sitk.GetArrayFromImage(expected), atol=1e-3)


def test_apply_keeps_labels_whole(pair):
    labels = (np.indices((16, 18, 20)).sum(0) % 5 * 7).astype(np.int16)
    write(pair / "labels.nrrd", labels)
    sitk.WriteTransform(moved_by((0.4, 0.3, 0.2)), str(pair / "t.tfm"))
    arguments = [
        "apply",
        pair / "t.tfm",
        pair / "labels.nrrd",
        "-r",
        pair / "labels.nrrd",
        "-o",
        pair / "w.nrrd",
        "--labels",
    ]
    assert cli.main([str(a) for a in arguments]) == 0
    result = sitk.ReadImage(str(pair / "w.nrrd"))
    assert result.GetPixelID() == sitk.sitkInt16 and set(np.unique(sitk.GetArrayFromImage(result))) <= set(
        np.unique(labels)
    )


def curved_field():
    """A field transform that rotates, shifts and bends, over a 60 mm cube around (0, 0, 0)."""
    grid = image.Grid.from_axes((31, 31, 31), (2.0, 2.0, 2.0), (-30.0, -30.0, -30.0), np.eye(3)[:, ::-1])
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.1, -0.2, 0.3, (12.0, -9.0, 5.0))
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    bent = points + 2.5 * np.sin(points[..., [1, 2, 0]] / 9.0)
    moved = np.array([turn.TransformPoint(p) for p in bent.reshape(-1, 3).tolist()]).reshape(points.shape)
    return sitk.DisplacementFieldTransform(image.image_from_array(moved - points, grid))


@pytest.mark.parametrize("suffix", [".csv", ".fcsv", ".mrk.json"])
def test_apply_takes_moving_points_to_the_fixed_side_and_back(tmp_path, suffix):
    from FoundationRegLib.points import Points, read_points, write_points

    transform = curved_field()
    sitk.WriteTransform(transform, str(tmp_path / "t.h5"))
    fixed = np.random.default_rng(0).uniform(-18, 18, (40, 3))
    moving = np.array([transform.TransformPoint(p) for p in fixed.tolist()])
    write_points(Points(moving), tmp_path / f"moving{suffix}")
    there = ["apply", tmp_path / "t.h5", tmp_path / f"moving{suffix}", "-o", tmp_path / f"fixed{suffix}"]
    assert cli.main([str(a) for a in there]) == 0
    np.testing.assert_allclose(read_points(tmp_path / f"fixed{suffix}").array, fixed, atol=0.005)
    back = ["apply", tmp_path / "t.h5", tmp_path / f"fixed{suffix}", "-o", tmp_path / f"again{suffix}", "--inverse"]
    assert cli.main([str(a) for a in back]) == 0
    np.testing.assert_allclose(read_points(tmp_path / f"again{suffix}").array, moving, atol=0.01)


def test_apply_says_which_points_have_no_way_back(tmp_path, capsys):
    sitk.WriteTransform(curved_field(), str(tmp_path / "t.h5"))
    (tmp_path / "p.csv").write_text("x,y,z\n0,0,0\n0,0,0\n5000,0,0\n")
    grid = image.Grid.from_axes((9, 9, 9), (2.0, 2.0, 2.0), (-8.0, -8.0, -8.0), np.eye(3)[:, ::-1])
    squeeze = np.zeros((9, 9, 9, 3))
    squeeze[..., 0] = -grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))[..., 0]  # everything onto x = 0
    sitk.WriteTransform(
        sitk.DisplacementFieldTransform(image.image_from_array(squeeze, grid)), str(tmp_path / "fold.h5")
    )
    (tmp_path / "q.csv").write_text("x,y,z\n3,0,0\n")
    arguments = ["apply", tmp_path / "fold.h5", tmp_path / "q.csv", "-o", tmp_path / "r.csv"]
    assert cli.main([str(a) for a in arguments]) == 0
    assert "1 of 1 points lie where the transform has no inverse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.h5", "{moving}", "-r", "{fixed}", "-o", "{out}.nii.gz"], "The transform none.h5 does not exist."),
        (["{fixed}", "{moving}", "-r", "{fixed}", "-o", "{out}.nii.gz"], "is no displacement field"),
        (["{t}", "{moving}", "-o", "{out}.nii.gz"], "needs --reference"),
        (["{t}", "{moving}", "-r", "{fixed}", "-o", "{out}.csv"], "cannot be written as"),
        (["{t}", "{points}", "-o", "{out}.nii.gz"], "cannot be written as"),
        (["{t}", "{points}", "-o", "{out}.csv", "--labels"], "--labels is for images"),
    ],
)
def test_apply_refuses_what_it_cannot_do(pair, capsys, arguments, sentence):
    sitk.WriteTransform(moved_by(SHIFT), str(pair / "t.tfm"))
    (pair / "p.csv").write_text("x,y,z\n1,2,3\n")
    before = files_below(pair)
    places = {"fixed": pair / "fixed.nii.gz", "moving": pair / "moving.nii.gz", "out": pair / "out"}
    places |= {"t": pair / "t.tfm", "points": pair / "p.csv"}
    assert sentence in refused(capsys, "apply", *[a.format(**places) for a in arguments])
    assert files_below(pair) == before


def test_evaluate_measures_a_known_shift(pair, capsys):
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(pair / "t.tfm"))
    points = np.random.default_rng(0).uniform(-5, 5, (9, 3))
    for name, array in (("fixed", points), ("moving", points + SHIFT)):
        with open(pair / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("x", "y", "z"), *array.tolist()])
    arguments = ["evaluate", pair / "fixed.nii.gz", pair / "moving.nii.gz", "--transform", pair / "t.tfm", "--json"]
    arguments += ["--fixed-points", pair / "fixed.csv", "--moving-points", pair / "moving.csv"]
    assert cli.main([str(a) for a in arguments]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["before"]["tre_mm"] == pytest.approx(np.linalg.norm(SHIFT))
    assert scores["after"]["tre_mm"] == pytest.approx(0, abs=1e-9)
    assert scores["after"]["nmi"] > scores["before"]["nmi"] and scores["after"]["folded_percent"] == 0
    assert cli.main([str(a) for a in arguments if a != "--json"]) == 0
    assert "Target registration error" in capsys.readouterr().out


def test_evaluate_wants_both_sides(pair, capsys):
    (pair / "p.csv").write_text("x,y,z\n1,2,3\n")
    said = refused(capsys, "evaluate", pair / "fixed.nii.gz", pair / "moving.nii.gz", "--fixed-points", pair / "p.csv")
    assert "--moving-points" in said


def test_encoders_are_listed_with_their_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights, "_folder", tmp_path)
    assert cli.main(["encoders"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert (
        "to download" in rows["medsam-lite"] and "39 MB" in rows["medsam-lite"] and "Apache-2.0" in rows["medsam-lite"]
    )
    assert "ready" in rows["mind"]
    (tmp_path / "medsam-lite").mkdir()
    (tmp_path / "medsam-lite" / "lite_medsam.pth").write_bytes(b"here")
    assert cli.main(["encoders", "list"]) == 0
    out = capsys.readouterr().out
    assert "to download" not in next(line for line in out.splitlines() if "medsam-lite" in line)
    assert str(tmp_path) in out


def test_licence_beyond_the_usual_ones_wants_a_yes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(weights, "_folder", tmp_path)
    monkeypatch.setattr(weights, "download", lambda id, **more: pytest.fail("downloaded"))
    said = refused(capsys, "encoders", "download", "dinov3-s")
    assert "DINOv3 License" in said and "--accept-licence" in said
    fetched = []
    monkeypatch.setattr(weights, "download", lambda id, **more: fetched.append(id))
    assert cli.main(["encoders", "download", "dinov3-s", "--accept-licence"]) == 0
    assert cli.main(["encoders", "download", "sam-b"]) == 0
    assert fetched == ["dinov3-s", "sam-b"]


def test_import_remove_and_verify_reach_the_weights(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(weights, "_folder", tmp_path)
    (tmp_path / "wrong.pth").write_bytes(b"not the published file")
    refused(capsys, "encoders", "import", "medsam-lite", tmp_path / "wrong.pth")
    refused(capsys, "encoders", "verify", "medsam-lite")
    assert "does not exist" in refused(capsys, "encoders", "import", "medsam-lite", tmp_path / "nothing.pth")
    assert cli.main(["encoders", "remove", "medsam-lite"]) == 0


def test_verify_without_an_id_reads_all_that_is_here(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(weights, "_folder", tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cli.main(["encoders", "verify"]) == 0
    for id in ("sam-b", "medsam-lite", "sslsam"):
        (tmp_path / id).mkdir()
        (tmp_path / id / catalogue()[id].weights.file).write_bytes(b"not the published file")
    assert cli.main(["encoders", "verify"]) == 2
    out, err = capsys.readouterr()
    assert "SSLSAM: SHA256" in out and "SAM ViT-B" in err and "MedSAM-Lite" in err and "SSLSAM" not in err


@pytest.mark.parametrize("action", ["download", "remove", "verify"])
def test_unknown_encoder_is_refused(capsys, action):
    assert "There is no encoder 'medsam-lit'; did you mean 'medsam-lite'?" in refused(
        capsys, "encoders", action, "medsam-lit"
    )


def test_presets_are_listed_and_shown(capsys):
    assert cli.main(["presets"]) == 0
    assert "default" in capsys.readouterr().out
    assert cli.main(["presets", "default"]) == 0
    assert json.loads(capsys.readouterr().out)["preset"] == "default"
    assert cli.main(["presets", "nothing"]) == 2


def test_argument_errors_return_two(capsys):
    assert cli.main([]) == 2
    assert cli.main(["regster"]) == 2
    assert cli.main(["register", "only-one"]) == 2
    assert cli.main(["--version"]) == 0 and "foundationreg 0" in capsys.readouterr().out


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C in another way")
def test_interrupted_process_ends_with_130_and_leaves_nothing(pair):
    code = (
        "import sys, time; sys.path[:0] = sys.argv[1:3]\n"
        "from FoundationRegLib import cli, registration\n"
        "def slow(*a, progress, **k):\n"
        "    print('working', flush=True)\n"
        "    while True: time.sleep(0.02); progress.update(0.1)\n"
        "registration.register = slow\n"
        "sys.exit(cli.main(['register', sys.argv[3], sys.argv[4], '-e', 'mind', '-o', sys.argv[5], '-q']))"
    )
    here = Path(cli.__file__).parents[1]
    images = [str(pair / "fixed.nii.gz"), str(pair / "moving.nii.gz")]
    command = [sys.executable, "-c", code, str(here), str(Path(__file__).parent), *images, str(pair / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert "cancelled" in process.stderr.read() and not (pair / "out").exists()
    process.stdout.close()
    process.stderr.close()
