"""The kernels of the flow-matching policies: against float64, and compiled for an H200."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
GATES = Path(__file__).with_name("flow_gates.py")


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_engine_and_its_kernels_agree_with_the_plain_path(which):
    mode = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    run_alone(GATES, "-m", which, **mode)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the gates compile them")
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(which):
    run_alone(Path(__file__).with_name("kernel_compile.py"), "-m", which)


def run_alone(path: Path, *options: str, **mode: str) -> None:
    """Tests in a process of their own, where Triton is set up in another way."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(path)],
        env={**os.environ, **mode, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
