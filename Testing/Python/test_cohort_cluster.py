"""Real clusters on this machine: workers that die, workers that agree, a running scheduler, jobs of Slurm."""

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest
import SimpleITK as sitk
from fake_produce import OPTIONS, VARIANTS, dice_of, write_table
from fakes import blob_image
from FoundationRegLib.cohort import cluster
from FoundationRegLib.cohort.cluster import Where
from FoundationRegLib.cohort.job import Options
from FoundationRegLib.cohort.pairs import read_pairs
from FoundationRegLib.cohort.runner import run_batch
from FoundationRegLib.cohort.variants import chosen_variants
from FoundationRegLib.errors import InputError

pytest.importorskip("distributed")


def run(table, output, where, variants=VARIANTS, options=OPTIONS, **more):
    return run_batch(read_pairs(table), variants, output, options, where, **more)


def numbers(outcome):
    """What the rows say, without what differs from run to run."""
    passing = ("seconds", "cpu_seconds", "memory_gb", "host")
    return [{name: value for name, value in row.items() if name not in passing} for row in outcome.rows]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_workers_that_die_are_replaced_and_a_pair_that_ends_two_is_skipped(tmp_path):
    texts = {f"p{n}": f"text {n}" for n in range(8)}
    texts |= {"once": "kill once", "always": "kill always", "hog": "memory", "bug": "bug", "ctrl-c": "interrupt"}
    table = write_table(tmp_path, texts)
    states = []
    outcome = run(
        table, tmp_path / "out", Where(workers=2, memory_gb=0.8), VARIANTS[:1],
        watch=lambda state: states.append(dict(state.running)),
    )  # fmt: skip
    rows = {row["id"]: row for row in outcome.rows}
    for id, text in texts.items():
        if id not in ("always", "hog", "bug"):
            assert rows[id]["status"] == "done" and rows[id]["dice"] == dice_of(text, 1), rows[id]
    assert len(list(tmp_path.glob("once.*.died"))) == 1 and len(list(tmp_path.glob("always.*.died"))) == 2
    for id in ("always", "hog"):
        assert rows[id]["status"] == "failed" and "2 worker processes ended" in rows[id]["reason"]
    assert "0.8 GB" in rows["hog"]["reason"] and "a bug" in rows["bug"]["reason"]
    assert outcome.failed == 3
    assert {id for running in states for id in running} & set(texts), "pairs at work were told"
    assert not list((tmp_path / "out").rglob(".unfinished-*"))


def test_one_and_four_workers_bring_the_same_also_through_a_running_scheduler(tmp_path):
    from distributed import LocalCluster

    texts = {f"p{n}": f"text {n}" for n in range(12)}
    table = write_table(tmp_path, texts)
    with LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL") as running:
        four = run(table, tmp_path / "four", Where(scheduler=running.scheduler_address))
    one = run(table, tmp_path / "one", Where(workers=1))
    none = run(table, tmp_path / "none", Where(workers=0))
    assert numbers(one) == numbers(four) == numbers(none)
    assert [row["dice"] for row in one.rows[:2]] == [dice_of("text 0", 1), dice_of("text 0", 2)]


def test_two_workers_register_as_one_process_does(tmp_path):
    sitk.WriteImage(blob_image(), str(tmp_path / "fixed.nii.gz"))
    lines = ["id,fixed,moving,fixed_labels,moving_labels"]
    for name, shift in (("a", (3.0, -2.0, 1.0)), ("b", (-2.0, 1.0, 2.0))):
        moving = blob_image(size=(30, 26, 22), center=shift)
        sitk.WriteImage(moving, str(tmp_path / f"{name}.nii.gz"))
        sitk.WriteImage(sitk.Cast(moving > 300, sitk.sitkUInt8), str(tmp_path / f"{name}_labels.nii.gz"))
        lines.append(f"{name},fixed.nii.gz,{name}.nii.gz,fixed_labels.nii.gz,{name}_labels.nii.gz")
    sitk.WriteImage(sitk.Cast(blob_image() > 300, sitk.sitkUInt8), str(tmp_path / "fixed_labels.nii.gz"))
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(lines))
    variants = chosen_variants(encoders=["mind"], changes={"iterations": 2})
    options = Options(keep="transform")
    two = run(table, tmp_path / "two", Where(workers=2), variants, options)
    one = run(table, tmp_path / "one", Where(workers=0), variants, options)
    assert two.failed == 0 and numbers(two) == numbers(one)
    for name in ("a", "b"):
        fields = [
            sitk.GetArrayFromImage(sitk.DisplacementFieldTransform(
                sitk.ReadTransform(str(tmp_path / where / "pairs" / name / "mind" / "transform.h5"))
            ).GetDisplacementField())
            for where in ("one", "two")
        ]  # fmt: skip
        assert (fields[0] == fields[1]).all(), "every bit of the transform"
        assert abs(fields[0]).max() > 0.5


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for Slurm")
def test_slurm_jobs_are_submitted_with_the_files_options(tmp_path, monkeypatch):
    """The stand-in for sbatch runs the job's script at once, as Slurm does later."""
    pytest.importorskip("dask_jobqueue")
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "sbatch": f'#!/bin/sh\ncp "$1" {tools}/submitted\nsh {tools}/submitted >{tools}/log 2>&1 &\n'
        f'echo $! >>{tools}/jobs\necho "Submitted batch job $!"\n',
        "scancel": "#!/bin/sh\nkill $1\n",
    }
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    here = Path(__file__)
    paths = os.pathsep.join([str(here.parent), str(here.parents[2] / "FoundationReg")])
    monkeypatch.setenv("PYTHONPATH", paths)
    options = tmp_path / "slurm.json"
    given = {"jobs": 1, "cores": 1, "memory": "2 GB", "queue": "night", "interface": "lo", "walltime": "01:00:00"}
    options.write_text(json.dumps(given))
    table = write_table(tmp_path, {"a": "one", "b": "two"})
    try:
        outcome = run(table, tmp_path / "out", Where(slurm=str(options)))
    finally:
        time.sleep(0.5)
        for job in (tools / "jobs").read_text().split() if (tools / "jobs").exists() else ():
            assert not Path(f"/proc/{job}/cmdline").exists() or not Path(f"/proc/{job}/cmdline").read_bytes()
    assert outcome.failed == 0 and outcome.rows[0]["dice"] == dice_of("one", 1)
    script = (tools / "submitted").read_text()
    assert "#SBATCH -p night" in script and "#SBATCH -t 01:00:00" in script


def test_clusters_that_cannot_be_used_are_told_at_once(tmp_path, monkeypatch):
    table = write_table(tmp_path, {"a": "one"})
    monkeypatch.setattr(cluster, "_CONNECTED_WITHIN_SECONDS", 1.0)
    with pytest.raises(InputError, match="cannot be reached"):
        run(table, tmp_path / "out", Where(scheduler="tcp://127.0.0.1:1"))
    with pytest.raises(InputError, match="not both"):
        run(table, tmp_path / "out", Where(scheduler="a", slurm="b"))
    file = tmp_path / "slurm.yaml"
    for text, words in (
        (None, "does not exist"), ("- a", "by name"), ("jobs: 0", "above zero"), ("jobs: 2\ncores: 1", "lacks memory"),
        ("a: [", "not valid"),
    ):  # fmt: skip
        if text is not None:
            file.write_text(text)
        with pytest.raises(InputError, match=words):
            cluster.read_slurm_options(str(file))
    monkeypatch.setattr(cluster, "has_distributed", lambda: False)
    with pytest.raises(InputError, match=r"foundationreg\[batch\]"):
        run(table, tmp_path / "out", Where(workers=2))
    assert run(table, tmp_path / "out", Where()).failed == 0, "without Dask, in this process"


def test_one_worker_for_each_graphics_card_and_memory_bounds_the_others(monkeypatch):
    monkeypatch.setattr(cluster, "machine_memory_gb", lambda: 40.0)
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 16)
    assert cluster.workers_on_this_machine(Where(), jobs=100, cards=0) == (9, 4.0)
    assert cluster.workers_on_this_machine(Where(memory_gb=12), jobs=100, cards=0) == (3, 12)
    assert cluster.workers_on_this_machine(Where(), jobs=3, cards=0) == (3, 12.0)
    assert cluster.workers_on_this_machine(Where(), jobs=100, cards=2) == (2, 18.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    seen = [made.get("CUDA_VISIBLE_DEVICES") for made in cluster.worker_environments(3, 2, 1)]
    assert seen == ["4", "6", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [m["CUDA_VISIBLE_DEVICES"] for m in cluster.worker_environments(2, 2, 1)] == ["0", "1"]
    assert "CUDA_VISIBLE_DEVICES" not in cluster.worker_environments(1, 0, 3)[0]
