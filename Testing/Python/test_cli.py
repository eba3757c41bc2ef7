"""The command line: register and its files, presets, help, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cli_steps import RESULTS, files_below, register
from fakes import SHIFT, blob_image, fake_register
from FoundationRegLib.app import cli, commands
from FoundationRegLib.images import conversion
from FoundationRegLib.registration import pipeline


def test_register_writes_its_files_and_a_valid_record(pair, fake_registration, capsys):
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


def test_transform_file_is_read_by_simpleitk_and_maps_fixed_to_moving_points(pair, fake_registration):
    assert register(pair, "--transform", pair / "t.h5", "--warped", pair / "w.nrrd", "--quiet") == 0
    assert files_below(pair) == {"fixed.nii.gz", "moving.nii.gz", "t.h5", "w.nrrd"}
    transform = sitk.ReadTransform(str(pair / "t.h5"))
    np.testing.assert_allclose(transform.TransformPoint((1.0, 2.0, 3.0)), np.add((1, 2, 3), SHIFT), atol=1e-9)
    fixed = sitk.ReadImage(str(pair / "fixed.nii.gz"))
    warped = sitk.ReadImage(str(pair / "w.nrrd"))
    assert conversion.grid_of(warped) == conversion.grid_of(fixed)
    inside = np.s_[4:-4, 4:-4, 4:-4]
    difference = sitk.GetArrayFromImage(warped)[inside] - sitk.GetArrayFromImage(fixed)[inside]
    assert np.abs(difference).max() < 120, "of 1000: only the error of linear interpolation"


def test_inverse_transform_file_maps_moving_to_fixed_points(pair, fake_registration):
    assert register(pair, "--inverse-transform", pair / "back.h5", "--quiet") == 0
    inverse = sitk.ReadTransform(str(pair / "back.h5"))
    np.testing.assert_allclose(inverse.TransformPoint(SHIFT), (0, 0, 0), atol=1e-9)


def test_transform_as_displacement_image(pair, fake_registration):
    assert register(pair, "--transform", pair / "field.nii.gz", "--quiet") == 0
    field = sitk.ReadImage(str(pair / "field.nii.gz"))
    np.testing.assert_allclose(sitk.GetArrayFromImage(field).reshape(-1, 3), [SHIFT] * np.prod(field.GetSize()))


def test_quiet_prints_nothing(pair, fake_registration, capsys):
    assert register(pair, "--output", pair / "out", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_stderr(pair, fake_registration, capsys):
    assert register(pair, "--output", pair / "out") == 0
    _, err = capsys.readouterr()
    assert "Encode" in err and "Refine" in err


def test_labels_of_an_older_result_are_replaced(pair, fake_registration):
    labels = conversion.image_from_array(
        (sitk.GetArrayFromImage(blob_image()) > 300).astype(np.uint8), conversion.grid_of(blob_image())
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

    monkeypatch.setattr(pipeline, "register", spy)
    monkeypatch.setattr(commands, "require_encoders", lambda *arguments: None)
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), str(pair / "start.tfm"))
    more = ["--encoder", "medsam-lite=0.5", "--no-affine", "--device", "cpu", "--initial-transform", pair / "start.tfm"]
    more += ["--set", "slice_gap_mm=4", "--guide-with-labels", "--guide-with-points"]
    labels = sitk.Cast(blob_image() > 300, sitk.sitkUInt8)
    files = {}
    for name in ("fixed_mask", "moving_mask", "exclude_fixed", "exclude_moving", "fixed_labels", "moving_labels"):
        files[name] = pair / f"{name}.nii.gz"
        sitk.WriteImage(labels, str(files[name]))
    for name in ("fixed_points", "moving_points"):
        files[name] = pair / f"{name}.csv"
        files[name].write_text("x,y,z\n1,2,3\n", encoding="utf-8")
    for name, file in files.items():
        more += ["--" + name.replace("_", "-"), file]
    assert register(pair, "--output", pair / "out", "--quiet", *more) == 0
    settings = seen["settings"]
    assert settings.encoders == (("mind", 1.0), ("medsam-lite", 0.5))
    assert (settings.affine, settings.rigid, settings.device, settings.slice_gap_mm) == (False, True, "cpu", 4.0)
    assert seen["initial_transform"] == str(pair / "start.tfm")
    assert {name: seen[name] for name in files} == {name: str(file) for name, file in files.items()}
    assert seen["guide_with_labels"] is True and seen["guide_with_points"] is True


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
        "from FoundationRegLib.app import cli\n"
        "from FoundationRegLib.registration import pipeline\n"
        "def slow(*a, progress, **k):\n"
        "    print('working', flush=True)\n"
        "    while True: time.sleep(0.02); progress.update(0.1)\n"
        "pipeline.register = slow\n"
        "sys.exit(cli.main(['register', sys.argv[3], sys.argv[4], '-e', 'mind', '-o', sys.argv[5], '-q']))"
    )
    here = Path(cli.__file__).parents[2]
    images = [str(pair / "fixed.nii.gz"), str(pair / "moving.nii.gz")]
    command = [sys.executable, "-c", code, str(here), str(Path(__file__).parent), *images, str(pair / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert "cancelled" in process.stderr.read() and not (pair / "out").exists()
    process.stdout.close()
    process.stderr.close()


def test_a_process_says_everything_before_it_ends_at_once(pair):
    command = [sys.executable, "-m", "FoundationRegLib.app.cli", "register", str(pair / "fixed.nii.gz")]
    more = ["--transform", str(pair / "t.h5"), "--set", "deformable=false", "--set", "start=none", "--no-affine"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "PYTHONIOENCODING": "utf-8"}
    run = partial(subprocess.run, capture_output=True, encoding="utf-8", timeout=300, env=environment)
    done = run([*command, str(pair / "moving.nii.gz"), *more])
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("t.h5") and (pair / "t.h5").stat().st_size > 1000
    refused = run([*command, str(pair / "nothing.nii.gz"), *more])
    assert refused.returncode == 2 and "does not exist" in refused.stderr
