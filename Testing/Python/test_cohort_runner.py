"""Runs over many pairs in one process: resuming, failures, full disks, and killed runs."""

import csv
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_produce import OPTIONS, VARIANTS, dice_of, write_table
from FoundationRegLib.cohort import runner
from FoundationRegLib.cohort.cluster import Where
from FoundationRegLib.cohort.job import Options
from FoundationRegLib.cohort.pairs import read_pairs
from FoundationRegLib.errors import InputError

HERE = Path(__file__)
IN_PROCESS = Where(workers=0)


def run(table, output, **options):
    options = {"variants": VARIANTS, "options": OPTIONS, "where": IN_PROCESS, **options}
    return runner.run_batch(read_pairs(table), root=output, **options)


def table_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results(output):
    """Dice by pair and variant, as results.csv tells it."""
    return {(row["id"], row["variant"]): row["dice"] for row in table_of(output / "results.csv")}


def marks(output):
    """When and as which file each result was written."""
    found = (path for path in output.glob("pairs/*/*/result.json") if not path.parent.name.startswith("."))
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


def hidden(output):
    return [path for path in output.rglob(".*") if path.name != ".lock"]


def test_every_pair_and_variant_is_in_the_table_in_its_order(tmp_path):
    texts = {"b": "one", "a": "two", "ä 3": "three"}
    table = write_table(tmp_path, texts, task={"b": "left", "a": "right"})
    seen = []
    outcome = run(table, tmp_path / "out", watch=lambda state: seen.append((state.done, state.fraction)))
    rows = table_of(tmp_path / "out" / "results.csv")
    assert [(row["id"], row["variant"]) for row in rows] == [(id, v.name) for id in texts for v in VARIANTS]
    assert [row["task"] for row in rows] == ["left", "left", "right", "right", "", ""]
    for row in rows:
        expected = dice_of(texts[row["id"]], int(row["variant"][-1]))
        assert float(row["dice"]) == expected and float(row["dice_label_2"]) == expected / 2
        assert (row["dice_before"], row["dice_linear"], row["status"]) == ("0.5", "0.6", "done")
        assert (tmp_path / "out" / "pairs" / row["folder"] / "result.json").exists()
    assert (outcome.failed, outcome.found, outcome.cancelled) == (0, 0, False)
    assert seen[0] == (0, 0.0) and seen[-1] == (6, 1.0)
    assert not hidden(tmp_path / "out")


def test_results_as_parquet_hold_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run(write_table(tmp_path, {"a": "one", "b": "bug"}), tmp_path / "out")
    columns = parquet.read_table(tmp_path / "out" / "results.parquet").to_pydict()
    assert columns["id"] == ["a", "a", "b", "b"] and columns["status"] == ["done", "done", "failed", "failed"]
    assert columns["dice"] == [dice_of("one", 1), dice_of("one", 2), None, None]


def test_what_is_finished_stays_until_an_input_or_a_setting_changes(tmp_path):
    table = write_table(tmp_path, {"a": "one", "b": "two", "c": "three"})
    out = tmp_path / "out"
    run(table, out)
    before = marks(out)
    assert run(table, out).found == 6 and marks(out) == before

    os.utime(tmp_path / "a.txt")
    assert run(table, out).found == 6, "a file that was only touched is still the same"

    (tmp_path / "b.txt").write_text("changed")
    outcome = run(table, out)
    assert outcome.found == 4 and results(out)["b", VARIANTS[0].name] == str(dice_of("changed", 1))
    assert {path for path, mark in marks(out).items() if before[path] != mark} == set(out.glob("pairs/b/*/result.json"))

    other = runner.Variant(VARIANTS[0].name, VARIANTS[0].folder, {"smoothness": 3})
    assert run(table, out, variants=[other, VARIANTS[1]]).found == 3
    threads = runner.Variant(other.name, other.folder, {"smoothness": 3, "threads": 4})
    assert run(table, out, variants=[threads]).found == 3, "threads change how fast, not what"

    (out / "pairs" / "c" / "s2" / "result.json").write_text('{"half')
    assert run(table, out).found == 6 - 3 - 1
    assert len(results(out)) == 6 and not hidden(out)


def test_one_bad_pair_stops_nothing_and_its_reason_is_told(tmp_path):
    texts = {"a": "refuse", "b": "bug", "c": "vanished", "d": "fine"}
    out = tmp_path / "out"
    outcome = run(write_table(tmp_path, texts), out)
    assert outcome.failed == 6 and not outcome.cancelled
    reasons = {row["id"]: row["reason"] for row in table_of(out / "failures.csv")}
    assert reasons["a"] == "The fixed image is empty."
    assert "unexpected error (ZeroDivisionError: a bug)" in reasons["b"]
    assert "no such file" in reasons["c"] and "c.txt" in reasons["c"]
    assert "fake_produce.py" in table_of(out / "failures.csv")[2]["details"], "where a bug was"
    assert sorted(path.name for path in (out / "pairs").iterdir()) == ["a", "b", "c", "d"]
    assert [path.parent.parent.name for path in marks(out)] == ["d", "d"] and not hidden(out)

    (tmp_path / "a.txt").write_text("healed")
    assert run(write_table(tmp_path, {**texts, "a": "healed"}), out).failed == 4
    assert "a" not in {row["id"] for row in table_of(out / "failures.csv")}
    (tmp_path / "d.txt").unlink()
    gone = runner.run_batch(read_pairs(tmp_path / "pairs.csv", must_exist=False), VARIANTS, out, OPTIONS, IN_PROCESS)
    assert [row["status"] for row in gone.rows if row["id"] == "d"] == ["failed"] * 2


def program(table, output, *more, **environment):
    paths = os.pathsep.join(
        [str(HERE.parent), str(HERE.parents[2] / "FoundationReg"), os.environ.get("PYTHONPATH", "")]
    )
    command = [sys.executable, str(HERE.with_name("fake_produce.py")), str(table), str(output), *map(str, more)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths, **environment})


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_disk_that_fills_fails_the_pair_and_not_the_run(tmp_path):
    table = write_table(tmp_path, {"a": "one", "b": "fill", "c": "three"})
    assert program(table, tmp_path / "out", "--most-bytes", 500_000).wait(60) == 1
    rows = table_of(tmp_path / "out" / "results.csv")
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed", "done", "done"]
    assert all(row["reason"].startswith("The disk is full") for row in rows[2:4])
    assert not hidden(tmp_path / "out") and not (tmp_path / "out" / "pairs" / "b" / "s1").exists()


def test_a_run_killed_at_random_moments_loses_nothing_and_does_nothing_twice(tmp_path):
    texts = {f"p{n}": f"text {n}" for n in range(20)}
    table = write_table(tmp_path, texts)
    out, seen, generator = tmp_path / "out", {}, random.Random(1)
    for _ in range(5):
        process = program(table, out, FAKE_SECONDS="0.04")
        deadline, wanted = time.monotonic() + 30, len(seen) + generator.randint(1, 6)
        while len(marks(out)) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.05))
        process.kill()
        process.wait()
        now = marks(out)
        assert all(now[path] == mark for path, mark in seen.items()), "a finished result was touched"
        seen = now
    assert 0 < len(seen) < 40, "the kills came in the middle"
    assert program(table, out, FAKE_SECONDS="0").wait(60) == 0
    assert all(marks(out)[path] == mark for path, mark in seen.items())
    run(table, tmp_path / "undisturbed")
    assert results(out) == results(tmp_path / "undisturbed")
    assert not hidden(out)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    table = write_table(tmp_path, {"a": "one"})
    with runner._folder_for_one_run(tmp_path / "out"), pytest.raises(InputError, match="Another run is at work"):
        run(table, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        run(table, tmp_path / "file")


def test_cancel_keeps_what_is_finished(tmp_path):
    table = write_table(tmp_path, {f"p{n}": str(n) for n in range(9)})
    wish = threading.Event()
    outcome = run(
        table, tmp_path / "out", stop=wish.is_set, watch=lambda state: wish.set() if state.done >= 4 else None
    )
    assert outcome.cancelled and 4 <= len(outcome.rows) < 18 and outcome.failed == 0
    assert len(marks(tmp_path / "out")) == len(outcome.rows) and not hidden(tmp_path / "out")
    assert run(table, tmp_path / "out").found == len(outcome.rows)


def test_a_result_that_kept_less_is_made_again_when_more_is_wanted(tmp_path):
    table = write_table(tmp_path, {"a": "one"})
    run(table, tmp_path / "out")
    more = Options(produce=OPTIONS.produce, keep="transform")
    assert run(table, tmp_path / "out", options=more).found == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_reaches_a_run_of_the_command_line(tmp_path):
    from FoundationRegLib.app.batch_console import batch_progress

    with batch_progress(quiet=True) as (watch, stop):
        assert watch is None and not stop()
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 5
        while not stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop()
