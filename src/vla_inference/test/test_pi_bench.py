"""The benchmark of pi0 and pi0.5 runs at a tiny size on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "bench" / "inference" / "pi.py"


@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_the_benchmark_times_each_stage(family, tmp_path):
    output = tmp_path / "pi.json"
    command = [sys.executable, SCRIPT, "--family", family, "--size", "tiny", "--device", "cpu"]
    command += ["--dtype", "float32", "--cameras", "1", "2", "--repeats", "2", "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    report = json.loads(output.read_text())
    assert list(report["cameras"]) == ["1", "2"] and report["provenance"]["command"]
    for row in report["cameras"].values():
        found = row["plain"]
        assert 0 < found["prefix_ms"] < found["total_ms"] and found["steps_ms"] > 0
        assert found["error"] == 0
