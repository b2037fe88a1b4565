"""What the set-up removes from the environment that it made, and what it leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from workspace_setup import steps, trim

GONE = ("torch/test/atest", "torch/bin/test_api", "robosuite/models/assets/robots/ur5e/robot.xml")
KEPT = (
    "torch/testing/__init__.py",
    "torch/bin/torch_shm_manager",
    "robosuite/models/assets/robots/panda/robot.xml",
    "robosuite/models/assets/grippers/panda_gripper.xml",
    "robosuite/models/assets/grippers/meshes/panda_gripper/hand.stl",
)


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(trim, "VENV", tmp_path)
    monkeypatch.setattr(steps, "STATE", tmp_path / ".vla")
    folder = tmp_path / "lib/python3.11/site-packages"
    for name in (*GONE, *KEPT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def left(packages: Path) -> set[str]:
    return {str(p.relative_to(packages)) for p in packages.rglob("*") if p.is_file()}


def test_what_nothing_uses_goes_and_a_second_call_finds_nothing(packages):
    steps.mark("venv", "key", trim.MADE)
    trim.trim()
    assert left(packages) == set(KEPT) and not trim.unused(packages)


@pytest.mark.parametrize("owner", ["environment", "variable"])
def test_an_environment_of_its_owners_keeps_everything(packages, monkeypatch, owner):
    steps.mark("venv", "key", "" if owner == "environment" else trim.MADE)
    if owner == "variable":
        monkeypatch.setenv("VLA_UNTRIMMED", "1")
    trim.trim()
    assert left(packages) == {*GONE, *KEPT}
