"""Encoders on the command line: their list, weights and licences, and models of one's own."""

import sys

import pytest
from cli_steps import refused, register
from FoundationRegLib.app import cli
from FoundationRegLib.registration import pipeline
from FoundationRegLib.weights import acquisition, store, trust
from FoundationRegLib.weights.catalogue import catalogue


@pytest.fixture
def model(pair, monkeypatch):
    """A TorchScript file as far as the command line can tell; nothing is trusted yet."""
    monkeypatch.setattr(trust, "_given", {})
    monkeypatch.setattr(store, "_folder", pair / "models")
    (pair / "model.pt").write_bytes(b"a program")
    return pair / "model.pt"


def test_a_program_wants_a_yes_before_any_work(pair, model, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "register", lambda *a, **k: pytest.fail("the work began"))
    arguments = ["register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", model]
    said = refused(capsys, *arguments)
    assert str(model) in said and "program" in said and "--trust-model" in said and not (pair / "out").exists()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n" if "model.pt" in question else "y")
    assert "was not run" in refused(capsys, *arguments)
    assert not trust.trusted()


@pytest.mark.parametrize("answer", ["--trust-model", "typed", "earlier"])
def test_a_yes_is_remembered_for_exactly_this_content(pair, model, fake_registration, capsys, monkeypatch, answer):
    more = ["-o", pair / "out", "-q", "-e", f"{model}=0.5"]
    if answer == "typed":
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda _: "yes")
    elif answer == "earlier":
        assert cli.main(["encoders", "trust", str(model)]) == 0
    assert register(pair, *more, *(["--trust-model"] if answer == "--trust-model" else [])) == 0
    monkeypatch.setattr(trust, "_given", {})
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert register(pair, *more) == 0
    assert cli.main(["encoders"]) == 0
    assert f"Trusted to run: {model}" in capsys.readouterr().out.replace("\n", "")
    model.write_bytes(b"another program")
    assert "add --trust-model" in refused(capsys, "register", pair / "fixed.nii.gz", pair / "moving.nii.gz", *more)


def test_trust_can_be_taken_back_and_is_refused_where_it_makes_no_sense(pair, model, capsys):
    assert cli.main(["encoders", "trust", str(model)]) == 0 and trust.is_trusted(model)
    assert cli.main(["encoders", "distrust", str(model)]) == 0 and not trust.is_trusted(model)
    assert "not among the trusted" in refused(capsys, "encoders", "distrust", model)
    assert "does not exist" in refused(capsys, "encoders", "trust", pair / "absent.pt")
    assert "no TorchScript file" in refused(capsys, "encoders", "trust", pair / "fixed.nii.gz")
    assert "only read, never run" in refused(capsys, "encoders", "trust", pair)


def test_trust_that_cannot_be_kept_is_said(pair, model, capsys, monkeypatch):
    (pair / "file").write_text("no folder")
    monkeypatch.setattr(store, "_folder", pair / "file")
    assert "cannot be written to" in refused(capsys, "encoders", "trust", model)


def test_a_model_that_is_not_there_is_said(pair, capsys):
    said = refused(capsys, "register", pair / "fixed.nii.gz", pair / "moving.nii.gz", "-o", pair / "out", "-e", "m.pt")
    assert "There is no encoder 'm.pt': no such file or folder" in said


def test_encoders_are_listed_with_their_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "_folder", tmp_path)
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
    monkeypatch.setattr(store, "_folder", tmp_path)
    monkeypatch.setattr(acquisition, "download", lambda id, *more: pytest.fail("downloaded"))
    said = refused(capsys, "encoders", "download", "dinov3-s")
    assert "DINOv3 License" in said and "--accept-licence" in said
    fetched = []
    monkeypatch.setattr(acquisition, "download", lambda id, *more: fetched.append(id))
    assert cli.main(["encoders", "download", "dinov3-s", "--accept-licence"]) == 0
    assert cli.main(["encoders", "download", "sam-b"]) == 0
    assert fetched == ["dinov3-s", "sam-b"]


def test_import_remove_and_verify_reach_the_weights(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(store, "_folder", tmp_path)
    (tmp_path / "wrong.pth").write_bytes(b"not the published file")
    refused(capsys, "encoders", "import", "medsam-lite", tmp_path / "wrong.pth")
    refused(capsys, "encoders", "verify", "medsam-lite")
    assert "does not exist" in refused(capsys, "encoders", "import", "medsam-lite", tmp_path / "nothing.pth")
    assert cli.main(["encoders", "remove", "medsam-lite"]) == 0


def test_verify_without_an_id_reads_all_that_is_here(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(store, "_folder", tmp_path)
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
