"""Tests of node processes: they end in time, with the right status, without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SCRIPT = """
import sys, threading, time
from rclpy.exceptions import InvalidParameterValueException
from vla_inference.errors import VlaError
from vla_inference.ros.lifecycle import ManagedNode, spin_node

def say(text):
    print(text, flush=True)

class Probe(ManagedNode):
    def __init__(self):
        super().__init__("probe")
        self.declare_parameter("size", 1.0)
        {on_init}
    def do_configure(self):
        say("configuring")
        {on_configure}
    def do_activate(self):
        say("activating")
        {on_activate}
    def do_deactivate(self):
        say("deactivated")
    def do_cleanup(self):
        say("cleaned")
        {on_cleanup}

sys.exit(spin_node(Probe))
"""
END = 20.0  # seconds until a test gives up; those that mustn't be waited for take 60


@contextmanager
def probe(*arguments: str, **code: str) -> Iterator[subprocess.Popen]:
    """A process with a node whose callbacks run this code."""
    code = {
        k: code.get(k, "pass") for k in ("on_init", "on_configure", "on_activate", "on_cleanup")
    }
    environment = {
        **os.environ,
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).format(**code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen, line: str) -> None:
    for said in process.stdout:
        if said.strip() == line:
            return
    pytest.fail(f"the node ended without saying {line!r}: {process.stderr.read()}")


def end(process: subprocess.Popen, timeout: float = END) -> tuple[list[str], str]:
    out, err = process.communicate(timeout=timeout)
    return out.split(), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_active_node_cleanly(number):
    with probe() as process:
        wait_for(process, "activating")
        process.send_signal(number)
        out, err = end(process)
    assert process.returncode == 0 and err == ""
    assert out == ["deactivated", "cleaned"]


def test_a_second_ctrl_c_does_not_disturb_the_end():
    with probe(on_cleanup="time.sleep(0.5); say('through')") as process:
        wait_for(process, "activating")
        process.send_signal(signal.SIGINT)
        wait_for(process, "cleaned")
        process.send_signal(signal.SIGINT)
        out, err = end(process)
    assert process.returncode == 0 and err == "" and out == ["through"]


def test_nor_does_one_while_python_itself_ends():
    late = "import atexit; atexit.register(lambda: (say('ending'), time.sleep(0.5)))"
    with probe(on_init=late) as process:
        wait_for(process, "activating")
        process.send_signal(signal.SIGINT)
        wait_for(process, "ending")
        process.send_signal(signal.SIGINT)
        _, err = end(process)
    assert process.returncode == 0 and err == ""


def test_ctrl_c_while_configuring_ends_it_and_cleans_up():
    with probe(on_configure="time.sleep(60)") as process:
        wait_for(process, "configuring")
        process.send_signal(signal.SIGINT)
        out, err = end(process)
    assert process.returncode == 0 and err == "" and out == ["cleaned"]


def test_a_busy_thread_does_not_hold_up_the_end():
    busy = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    with probe(on_activate=busy) as process:
        wait_for(process, "activating")
        process.send_signal(signal.SIGINT)
        end(process)
    assert process.returncode == 0


@pytest.mark.parametrize("where", ["on_configure", "on_activate"])
def test_a_refused_start_is_one_line_and_status_2(where):
    with probe(**{where: "raise VlaError('no camera', 'plug one in')"}) as process:
        out, err = end(process, 20)
    assert process.returncode == 2
    subcommand = where.removeprefix("on_")
    assert err.strip().endswith(f"cannot {subcommand}: no camera; plug one in")
    assert len(err.strip().splitlines()) == 1
    assert out[-1] == "cleaned" and ("deactivated" in out) == (subcommand == "activate")


def test_a_node_that_is_to_stay_tells_once_why_it_does_not_start():
    failing = "say('configuring'); raise VlaError('no camera', 'plug one in')"
    with probe("--ros-args", "-p", "end_on_failure:=false", on_configure=failing) as process:
        wait_for(process, "configuring")
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = end(process, 20)
    assert process.returncode == 0 and err.count("cannot configure: no camera") == 1


def test_a_fault_of_ours_shows_where_and_ends_it():
    with probe(on_configure="1 / 0") as process:
        _, err = end(process, 20)
    assert process.returncode == 2
    assert "ZeroDivisionError" in err and "please report it" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "size:=5"], "'size'"),
        (["-p", "autostart:=maybe"], "'autostart'"),
        (["--params-file", "/nowhere.yaml"], "/nowhere.yaml"),
        (["-p", "locked:=1"], "'locked'"),
        (["-p", "sise:=0.05"], "/probe has no parameter 'sise'; did you mean size instead of"),
        (["-p", "limits:=[1.0]"], "no parameter 'limits'; it has autostart, end_on_failure,"),
        (["-p", "qos_override./x.depth:=1"], "'qos_override./x.depth'"),
    ],
)
def test_refused_parameters_are_named_and_status_2(arguments, words):
    with probe("--ros-args", *arguments) as process:
        _, err = end(process, 20)
    assert process.returncode == 2
    assert words in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("section", "refusal"),
    [
        ("/**", "no parameter 'sise'; did you mean size instead of sise?"),
        ("probe", "no parameter 'sise'"),
        ("/arm/*", "no parameter 'sise'"),
        ("prob", "has nothing for node /arm/probe, but for /prob; did you mean /arm/probe"),
        ("probe_", "but for /probe_; did you mean"),
        ("/other/probe", "but for /other/probe; did you mean /arm/probe (or /**)"),
    ],
)
def test_what_a_parameter_file_tells_nobody_is_refused(tmp_path, section, refusal):
    given = tmp_path / "robot.yaml"
    given.write_text(f"{section}:\n  ros__parameters:\n    sise: 0.05\n")
    name = "/arm" if section != "probe" else "/"
    with probe("--ros-args", "-r", f"__ns:={name}", "--params-file", str(given)) as process:
        out, err = end(process, 20)
    assert process.returncode == 2 and "configuring" not in out
    assert refusal in err and len(err.strip().splitlines()) == 1


def test_parameters_that_rclpy_itself_or_another_node_takes_are_left_alone(tmp_path):
    given = tmp_path / "all.yaml"
    given.write_text(
        "/**:\n  ros__parameters:\n    use_sim_time: true\n"
        "    qos_overrides./x.publisher.depth: 3\n    start_type_description_service: false\n"
        "camera:\n  ros__parameters:\n    rate: 3.0\n"
    )
    strange = tmp_path / "strange.yaml"
    strange.write_text("gripper_driver:\n  ros__parameters:\n    force: 3.0\n")
    files = ["--params-file", str(given), "--params-file", str(strange)]
    with probe("--ros-args", *files) as process:
        wait_for(process, "activating")
        process.send_signal(signal.SIGINT)
        _, err = end(process)
    assert process.returncode == 0
    (line,) = err.strip().splitlines()
    assert "strange.yaml has nothing for node /probe, but for /gripper_driver" in line


def test_a_node_that_cannot_be_made_is_one_line():
    with probe(on_init="raise VlaError('no arm', 'buy one')") as process:
        _, err = end(process, 20)
    assert process.returncode == 2 and err == "error: no arm; buy one\n"


def test_without_autostart_nothing_is_configured():
    with probe("--ros-args", "-p", "autostart:=false", on_init="say('made')") as process:
        wait_for(process, "made")
        process.send_signal(signal.SIGINT)
        out, _ = end(process)
    assert process.returncode == 0 and "configuring" not in out


def test_a_node_may_end_itself_with_its_own_status():
    with probe(on_activate="self.exit_status = 7") as process:
        end(process, 20)
    assert process.returncode == 7
