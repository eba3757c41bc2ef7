"""Writing: everything together or nothing, whatever happens meanwhile."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from FoundationRegLib.core import files
from FoundationRegLib.core.files import Outputs, replacing
from FoundationRegLib.errors import InputError


def below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(outputs, folder, **texts):
    for name, text in texts.items():
        outputs.path(folder / name).write_text(text)


@pytest.mark.parametrize("there", [False, True])
def test_files_appear_together_at_the_end(tmp_path, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
        (out / "mine").write_text("user's")
    with Outputs(out) as outputs:
        write(outputs, out, a="1", b="2")
        assert not (out / "a").exists()
    assert below(out) == {"a": b"1", "b": b"2", **({"mine": b"user's"} if there else {})}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("there", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path, there):
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
        (out / "a").write_text("old")
    with pytest.raises(InputError, match="disk is full"), Outputs(out) as outputs:
        write(outputs, out, a="1")
        raise OSError(28, "No space left on device")
    assert below(tmp_path) == ({"deep/out/a": b"old"} if there else {})
    assert (tmp_path / "deep").exists() == there


def test_a_place_that_cannot_be_replaced_keeps_all_older_files(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).write_text("old")
    real = os.replace

    def locked(source, target):
        if str(target) == str(tmp_path / "b"):
            monkeypatch.setattr(files.os, "replace", real)
            raise PermissionError(13, "The process cannot access the file because it is used by another process")
        real(source, target)

    with pytest.raises(InputError, match="not allowed"), Outputs(tmp_path) as outputs:
        write(outputs, tmp_path, a="1", b="2", c="3")
        monkeypatch.setattr(files.os, "replace", locked)
    assert below(tmp_path) == {"a": b"old", "b": b"old", "c": b"old"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_folder_of_the_same_name_is_refused_before_anything_is_replaced(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match="there is a folder of that name"), Outputs(tmp_path) as outputs:
        write(outputs, tmp_path, a="1")
        outputs.path(tmp_path / "report.html")
    assert below(tmp_path) == {"a": b"old"}


def test_two_results_in_one_place_are_refused(tmp_path):
    with pytest.raises(InputError, match="Two results"), Outputs(tmp_path) as outputs:
        outputs.path(tmp_path / "same.nii.gz")
        outputs.path(tmp_path / "." / "same.nii.gz")


def test_a_linked_folder_is_the_folder_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with Outputs(tmp_path / "link") as outputs:
        write(outputs, tmp_path / "link", a="1")
    assert below(tmp_path / "real") == {"a": b"1"}


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from FoundationRegLib.core import files
    folder, moment = Path(sys.argv[1]), int(sys.argv[2])
    real, count = os.replace, 0
    def replace(source, target):
        global count
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        real(source, target)
    files.os.replace = replace
    with files.Outputs(folder) as outputs:
        for name in "abc":
            outputs.path(folder / name).write_text("new")
        outputs.drop(folder / "gone")
"""


@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
@pytest.mark.parametrize("moment", [0, 1, 2, 4, 7])
def test_what_a_killed_process_left_is_put_right_by_the_next(tmp_path, moment):
    for name in ("a", "b", "c", "gone", "mine"):
        (tmp_path / name).write_text("old")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), str(moment)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    with Outputs(tmp_path):
        pass
    left = below(tmp_path)
    assert left.pop("mine") == b"old"
    old = dict.fromkeys(("a", "b", "c", "gone"), b"old")
    assert left in (old, dict.fromkeys("abc", b"new"))
    assert (left == old) == (moment < 1)


def test_what_living_processes_and_other_computers_write_is_left_alone(tmp_path):
    alive = tmp_path / files.private_name()
    elsewhere = tmp_path / files.private_name().replace(files._HOST, "elsewhere").replace(str(os.getpid()), "99999999")
    for folder in (alive, elsewhere):
        folder.mkdir()
        (folder / "a").write_text("1")
    files.put_right(tmp_path)
    assert alive.is_dir() and elsewhere.is_dir()


def test_a_malicious_journal_reaches_no_other_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_text("old")
    stale = tmp_path / "out" / files.private_name().replace(f"-{os.getpid()}-", "-99999999-")
    stale.mkdir()
    (stale / "journal.json").write_text(json.dumps([["../victim", False], ["../victim", True]]))
    files.put_right(tmp_path / "out")
    assert below(tmp_path) == {"victim": b"old"}


def test_one_file_is_replaced_whole_or_not(tmp_path):
    place = tmp_path / "a.json"
    place.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(place) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert below(tmp_path) == {"a.json": b"old"}
    with replacing(place) as part:
        part.write_text("new")
    assert below(tmp_path) == {"a.json": b"new"}


def test_names_that_are_too_long_are_a_sentence(tmp_path):
    with pytest.raises(InputError, match="name is too long"), Outputs(tmp_path / ("x" * 300)):
        pass
    with pytest.raises(InputError, match="name is too long"), Outputs(tmp_path) as outputs:
        outputs.path(tmp_path / ("x" * 300))
