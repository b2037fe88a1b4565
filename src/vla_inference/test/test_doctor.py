"""Tests of `vla doctor` on simulated machines."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from vla_inference.cli import machine_checks
from vla_inference.cli.machine_checks import ERROR, OK, WARN, examine


def level(findings, name: str) -> tuple[str, str]:
    (found,) = [f for f in findings if f.name == name]
    assert found.level == OK or found.remedy
    return found.level, str(found)


@pytest.fixture
def machine(tmp_path):
    """A root of /proc and /dev in which all is well."""
    for folder in ("proc/sys/net/core", "proc/12", "dev/shm"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   16777216 kB\n")
    (tmp_path / "proc/sys/net/core/rmem_max").write_text("33554432\n")
    (tmp_path / "proc/12/comm").write_text("chronyd\n")
    return tmp_path


def test_a_machine_in_order(machine, monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", "17")
    findings = examine(root=machine)
    assert {f.name for f in findings} == set(machine_checks.CHECKS)
    assert [f for f in findings if f.level != OK] == []


def test_what_is_amiss_is_named_with_its_remedy(machine, monkeypatch):
    (machine / "proc/meminfo").write_text("MemAvailable: 1024 kB\n")
    (machine / "proc/sys/net/core/rmem_max").write_text("212992\n")
    (machine / "proc/12/comm").unlink()
    (machine / "dev/shm").rmdir()
    (machine / "proc/driver/nvidia").mkdir(parents=True)
    monkeypatch.setenv("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")
    monkeypatch.setenv("ROS_DISTRO", "foxy")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    findings = examine(root=machine)
    for name, words in {
        "ROS": "'foxy'",
        "middleware": "rmw_cyclonedds_cpp",
        "shared memory": "--ipc=host",
        "UDP": "sysctl",
        "memory": "0.0 GB",
        "clock": "chrony",
    }.items():
        found, text = level(findings, name)
        assert found == WARN and words in text
    assert level(findings, "PyTorch")[0] == ERROR


def test_a_gpu_without_triton_is_named(machine, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "a GPU")
    for engine, wanted in (("plain", WARN), ("torch", OK)):
        monkeypatch.setattr("vla_inference.engines.usual_engine", lambda device, e=engine: e)
        found, text = level(examine(root=machine), "PyTorch")
        assert found == wanted and "a GPU" in text and ("triton" in text) == (wanted == WARN)


@pytest.mark.parametrize(
    ("number", "wanted"), [("0", WARN), ("233", ERROR), ("x", ERROR), ("150", WARN), ("42", OK)]
)
def test_domains(machine, monkeypatch, number, wanted):
    monkeypatch.setenv("ROS_DOMAIN_ID", number)
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    monkeypatch.delenv("ROS_LOCALHOST_ONLY", raising=False)
    assert level(examine(root=machine), "domain")[0] == wanted


def test_what_cannot_be_read_is_no_reason_to_fall_ill(tmp_path):
    assert level(examine(root=tmp_path), "memory")[0] == WARN
    assert level(examine("/nowhere/model", tmp_path), "model")[0] == ERROR


def test_ros2_doctor_is_told_the_same(monkeypatch):
    """With its API as `ros2 doctor` of Humble and Jazzy has it, where that isn't installed."""

    class Result:
        def __init__(self):
            self.error = self.warning = 0

        def add_error(self):
            self.error += 1

        def add_warning(self):
            self.warning += 1

    said: list[str] = []
    package, api, form = (ModuleType(f"ros2doctor{n}") for n in ("", ".api", ".api.format"))
    api.DoctorCheck, api.Result = object, Result
    form.doctor_error = form.doctor_warn = said.append
    for module in (package, api, form):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "vla_inference.ros.doctor_check", raising=False)
    monkeypatch.setenv("ROS_DOMAIN_ID", "x")
    from vla_inference.ros.doctor_check import VlaCheck

    result = VlaCheck().check()
    assert VlaCheck().category() == "vla" and result.error == 1
    assert len(said) == result.error + result.warning
    assert any("ROS_DOMAIN_ID is 'x'" in text for text in said)
