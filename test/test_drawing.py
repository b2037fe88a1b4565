"""Tests of headless rendering with every backend that works here; others are refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from graphs import domain, environment

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli import machine_checks
from vla_inference.system.offscreen import WAYS, why_not, working_ways

# Let go of by nobody: when Python ends, a cycle holds one and a module the other.
LEFT_OPEN = """
import numpy as np
from vla_sim_bridge.envs.robosuite_sim import Simulation

for size in (32, 48):
    kept = Simulation("Stack_D0", width=size, height=size)
    kept.reset(np.random.default_rng(0))
    assert kept.render("agentview").std() > 10
    kept.itself = kept
print("the last line", flush=True)
"""
NOISE = ("Traceback", "Exception ignored", "EGLError", "GLError")


def run(way: str, *words: object, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, words)]
    env = {**environment(domain(60)), "MUJOCO_GL": way}
    env.pop("DISPLAY", None)
    env.pop("PYOPENGL_PLATFORM", None)  # MuJoCo sets it where it is imported, as in this process
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, **more)


def quiet(done: subprocess.CompletedProcess) -> bool:
    assert done.returncode == 0, done.stderr
    return not [word for word in NOISE if word in done.stdout + done.stderr]


def test_without_any_setting_it_draws_if_anything_does_and_triton_loads_after_it():
    code = LEFT_OPEN + "import torch._dynamo\nprint('loaded', flush=True)"
    env = {**environment(domain(60))}
    for name in ("MUJOCO_GL", "DISPLAY", "PYOPENGL_PLATFORM"):
        env.pop(name, None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "loaded"), done.stderr


def test_this_machine_draws():
    assert working_ways(), {way: why_not(way) for way in WAYS}


@pytest.mark.parametrize("way", working_ways() or WAYS)
def test_nothing_is_printed_after_the_last_line(way, tmp_path):
    model = write_random_checkpoint(tmp_path / "model", head="l1")
    small = ("--episodes", 1, "--record", 1, "--width", 64, "--height", 64, "--horizon", 8)
    subcommands = ("-m", "vla_inference.cli.main")
    left_open = run(way, "-c", LEFT_OPEN)
    assert quiet(left_open) and left_open.stderr == ""
    rollout = run(way, *subcommands, "rollout", "--model", model, *small, cwd=tmp_path)
    assert quiet(rollout) and "results.json" in rollout.stdout.splitlines()[-1]
    made = ("generate", "--task", "Stack_D0", "--episodes", 2, "--parallel", 2)
    assert quiet(run(way, *subcommands, *made, "--output", tmp_path / "made"))


@pytest.mark.parametrize("way", ["glfw", "off", "nothing"])
def test_a_way_that_does_not_draw_here_is_refused_in_a_line(way, tmp_path):
    made = ("generate", "--task", "Stack_D0", "--episodes", 1, "--output", tmp_path / "made")
    done = run(way, "-m", "vla_inference.cli.main", *made)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and "set MUJOCO_GL=egl or MUJOCO_GL=osmesa" in line
    assert f"cannot draw with MUJOCO_GL={way}" in line and "no display" in line


def test_the_doctor_draws_a_frame(monkeypatch):
    check = machine_checks.CHECKS["drawing"]
    monkeypatch.setenv("MUJOCO_GL", working_ways()[0])
    assert check("drawing", None).level == machine_checks.OK
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    found = check("drawing", None)
    assert (
        found.level == machine_checks.ERROR
        and found.remedy == f"set MUJOCO_GL={working_ways()[0]}"
    )
    assert os.environ["MUJOCO_GL"] == "glfw"
