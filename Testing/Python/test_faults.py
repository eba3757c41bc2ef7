"""A part of the harness of faulty inputs (Testing/Benchmarks/faults.py); docs/reliability.md has all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[1] / "Benchmarks" / "faults.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness runs each input in a forked child")
def test_a_part_of_all_faulty_inputs_ends_as_it_should():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QT_")}
    command = [sys.executable, str(HARNESS), "--share", "0.05"]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert outcome.returncode == 0, outcome.stdout[-4000:] + outcome.stderr[-2000:]
    total = next(line for line in outcome.stdout.splitlines() if "**all**" in line)
    counts = [int(cell) for cell in total.split("|")[2:-1]]
    assert counts[0] >= 100 and sum(counts[1:3]) == counts[0] and not any(counts[3:])
