"""What the command line leaves behind when the work fails or is stopped: nothing half done."""

import signal
import sys

import pytest
from cli_steps import files_below, refused, register
from FoundationRegLib.errors import OutOfMemory, WeightsError
from FoundationRegLib.registration import pipeline


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

    monkeypatch.setattr(pipeline, "register", fail)
    before = files_below(pair)
    assert register(pair, "-o", pair / "new" / "out", "--transform", pair / "other" / "t.h5", "-q") == code
    assert sentence in capsys.readouterr().err
    assert files_below(pair) == before


def test_an_unexpected_error_is_one_sentence_with_its_log(pair, monkeypatch, capsys, tmp_path):
    def fail(*arguments, **more):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "register", fail)
    monkeypatch.setenv("FOUNDATIONREG_CACHE", str(tmp_path / "cache"))
    assert register(pair, "-o", pair / "out", "-q") == 70
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.count("\n") == 1 and "issues" in said
    logs = list((tmp_path / "cache" / "logs").iterdir())
    assert len(logs) == 1 and str(logs[0]) in said and "ZeroDivisionError: a bug" in logs[0].read_text()
    assert not (pair / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without asking them")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_polite_kill_leaves_nothing(pair, monkeypatch, number):
    def killed(*arguments, **more):
        signal.raise_signal(getattr(signal, number))
        signal.raise_signal(getattr(signal, number))
        pytest.fail("the work went on")

    monkeypatch.setattr(pipeline, "register", killed)
    before = files_below(pair)
    assert register(pair, "-o", pair / "new" / "out", "-q") == 130
    assert files_below(pair) == before
    assert signal.getsignal(getattr(signal, number)) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--transform", "{out}/a.nii.gz", "--warped", "{out}/a.nii.gz"], "The transform and the warped image cannot"),
        (["--transform", "{out}/a.h5", "--inverse-transform", "{out}/../out/a.h5"], "cannot both be written"),
        (["-o", "{out}", "--warped", "{out}/warped.nii.gz"], "cannot both be written"),
        (["--warped", "{pair}/fixed.nii.gz"], "would replace the fixed image"),
        (["--warped", "{pair}/" + "x" * 300 + ".nii"], "the name is too long"),
    ],
)
def test_results_that_would_lie_on_one_another_are_refused(pair, capsys, options, words):
    before = {path: path.read_bytes() for path in pair.iterdir()}
    options = [text.format(out=pair / "out", pair=pair) for text in options]
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-e", "mind", *options]
    assert words in refused(capsys, *arguments)
    assert {path: path.read_bytes() for path in pair.iterdir()} == before


def test_a_folder_in_the_place_of_a_result_keeps_all_older_ones(pair, fake_registration, capsys):
    assert register(pair, "-o", pair / "out", "-q") == 0
    (pair / "out" / "report.html").unlink()
    (pair / "out" / "report.html").mkdir()
    before = {path: path.read_bytes() for path in (pair / "out").iterdir() if path.is_file()}
    assert register(pair, "-o", pair / "out", "-q", moving="fixed.nii.gz") == 2
    assert "there is a folder of that name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (pair / "out").iterdir() if path.is_file()} == before


def test_a_bad_input_is_never_blamed_on_the_output(pair, capsys):
    plain = pair / "plain.nii.gz"
    import gzip

    plain.write_bytes(gzip.decompress((pair / "fixed.nii.gz").read_bytes()))
    (pair / "cut.nii.gz").write_bytes((pair / "fixed.nii.gz").read_bytes()[:4000])
    said = refused(capsys, "register", pair / "cut.nii.gz", plain, "-e", "mind", "-o", pair / "out")
    assert said.startswith(f"The fixed image {pair / 'cut.nii.gz'} ") and ".foundationreg" not in said


def test_older_results_survive_a_failed_run(pair, fake_registration, monkeypatch):
    assert register(pair, "-o", pair / "out", "-q") == 0
    before = {path: path.read_bytes() for path in (pair / "out").iterdir()}

    def fail(*arguments, **more):
        raise MemoryError

    monkeypatch.setattr(pipeline, "register", fail)
    assert register(pair, "-o", pair / "out", "-q") == 2
    assert {path: path.read_bytes() for path in (pair / "out").iterdir()} == before


def test_failing_report_leaves_no_half_result(pair, fake_registration, monkeypatch, capsys):
    from FoundationRegLib.reporting import report

    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_report", full)
    assert register(pair, "-o", pair / "out", "-q") == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not (pair / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_full_disk_leaves_no_file(pair, fake_registration, capsys):
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
    from FoundationRegLib.core import files

    def denied(*arguments, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "mkdir", denied)
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-e", "mind", "-o", pair / "a" / "b"]
    assert "not allowed" in refused(capsys, *arguments)
    assert not (pair / "a").exists()


def test_ctrl_c_cancels_and_leaves_nothing(pair, capsys, monkeypatch):
    def interrupted(fixed, moving, settings, *, progress, **others):
        signal.raise_signal(signal.SIGINT)
        progress.update(0.5)
        pytest.fail("the work went on")

    monkeypatch.setattr(pipeline, "register", interrupted)
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

    monkeypatch.setattr(pipeline, "register", deaf)
    assert register(pair, "-o", pair / "out", "-q") == 130
    assert not (pair / "out").exists()


def test_applying_in_place_is_refused(pair, capsys):
    image = pair / "moving.nii.gz"
    before = image.read_bytes()
    arguments = ["apply", pair / "fixed.nii.gz", image, "-r", pair / "fixed.nii.gz", "-o", image]
    assert "would replace the input" in refused(capsys, *arguments)
    assert image.read_bytes() == before


def test_a_models_folder_that_is_a_file_is_one_sentence(pair, capsys, monkeypatch):
    (pair / "models").write_text("a file")
    monkeypatch.setenv("FOUNDATIONREG_MODELS", str(pair / "models"))
    said = refused(capsys, "encoders", "import", "medsam-lite", pair / "fixed.nii.gz")
    assert "Weights cannot be stored in the folder" in said
    assert "too long" in refused(capsys, "encoders", "trust", "x" * 5000 + ".pt")
    assert "not among the trusted" in refused(capsys, "encoders", "distrust", "x" * 5000)
