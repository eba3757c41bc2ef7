"""The benchmark of whole processes beside convexAdam."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "Benchmarks"


@pytest.fixture
def ratio(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ratio

    return ratio


def test_medians_and_ratios_of_known_times(ratio):
    own = [{"method": "mind", "run": n, "wall_s": w, "cpu_s": 2 * w, "peak_gb": 1.0} for n, w in enumerate((9, 10, 50))]
    peer = [
        {"method": "convexAdam", "run": n, "wall_s": w, "cpu_s": w, "affine_wall_s": 5.0, "affine_cpu_s": 5.0}
        for n, w in enumerate((50, 55, 55))
    ]
    failed = {"method": "mind", "run": 3, "wall_s": 1.0, "cpu_s": 1.0, "failed": "not enough memory"}
    mind, other = ratio.medians([*own, failed, *peer], ["mind", "convexAdam"])
    assert (mind["wall_s"], mind["cpu_s"], other["wall_s"]) == (10, 20, 55)
    assert mind["wall_ratio"] == pytest.approx(10 / 55, abs=1e-3)
    assert mind["wall_ratio_without_affine"] == pytest.approx(0.2)
    assert mind["cpu_ratio_without_affine"] == pytest.approx(0.4)


def test_without_convexadam_there_are_times_and_no_ratios(ratio):
    rows = [{"method": "mind", "run": 0, "wall_s": 4.0, "cpu_s": 6.0}]
    assert ratio.medians(rows, ["mind"]) == [{"method": "mind", "run": "median", "wall_s": 4.0, "cpu_s": 6.0}]


def test_a_whole_process_is_measured(ratio, tmp_path, capsys):
    case = [str(path) for path in ratio.synthetic_case(32, tmp_path)]
    row = ratio.one_run("mind", 0, case, SimpleNamespace(device="cpu", threads=1))
    assert "failed" not in row, row
    assert row["wall_s"] > 0 and row["cpu_s"] > 0 and row["busy"] > 0 and row["peak_gb"] > 0.1
    assert json.loads(json.dumps(row)) == row and "mind" in capsys.readouterr().out
