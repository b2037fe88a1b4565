"""Tests that launch files behave the same under ROS's own launch and the stand-in.

Each file is launched with recorders in place of the nodes: what they were given, and the exit
status, is compared. ROS's own launch is the installed one, or those in VLA_LAUNCH_SOURCES: a list
of folders (":" between them), each with one release's checkouts of ros2/launch and
ros2/launch_ros, such as Humble's, Jazzy's and Rolling's. Without either its tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "launch").glob("*.launch.xml"))
BOOLEANS = {"lock_step", "summary", "play", "wait", "camera", "stamped", "draft", "browser"}
BOOLEANS |= {"state", "studio"}

# Writes what it was given; ends with its status in ENDS, else at SIGINT.
RECORDER = """\
#!{python} -S
import json, os, signal, sys, time
def node():
    files = [open(a).read() for f, a in zip(sys.argv, sys.argv[1:]) if f == "--params-file"]
    seen = {{"argv": sys.argv[1:], "files": files, "environment": dict(os.environ)}}
    name = os.path.basename(sys.argv[0])
    path = os.path.join(os.environ["RECORDS"], name + "-%d.json" % os.getpid())
    with open(path + ".part", "w") as file:
        json.dump(seen, file)
    os.replace(path + ".part", path)
    if name in os.environ.get("ENDS", ""):
        count = int(os.environ["COUNT"])
        while len([f for f in os.listdir(os.environ["RECORDS"]) if f.endswith("json")]) < count:
            time.sleep(0.05)
        return int(os.environ["ENDS"].split("=")[1])
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    time.sleep(60)
sys.exit(node())
"""

# file, arguments, nodes; each also ends with a status.
CASES: list[tuple[str, dict[str, str], list[str]]] = [
    ("sim_eval", {}, ["inference_node", "sim_node"]),
    (
        "sim_eval",
        {"lock_step": "false", "namespace": "/", "output": "a b"},
        ["inference_node", "sim_node"],
    ),
    ("robosuite", {}, ["command_node", "inference_node", "sim_node"]),
    (
        "robosuite",
        {"lock_step": "false", "path": "pose"},
        ["command_node", "inference_node", "sim_node"],
    ),
    (
        "robosuite",
        {"lock_step": "false", "real_time_factor": "0.5"},
        ["command_node", "inference_node", "sim_node"],
    ),
    (
        "robosuite",
        {"path": "joint_velocities"},
        ["chunk_ik_node", "command_node", "inference_node", "sim_node"],
    ),
    ("two_arms", {"output": "joint_trajectory"}, ["command_node", "robot_sim_node"]),
    ("base", {"stamped": "true"}, ["command_node", "robot_sim_node"]),
    ("rover", {"model": "m"}, ["command_node", "inference_node", "sim_node"]),
    ("bag_validation", {"bag": "b", "play": "false"}, ["inference_node", "validation_node"]),
    ("training", {"root": "/tmp"}, ["training_node"]),
    ("studio", {}, ["command_node", "inference_node", "sim_node", "studio_node"]),
    ("crisp", {"scale": "1"}, ["command_node"]),
    ("fzi_cartesian", {}, ["command_node"]),
    ("moveit_servo", {}, ["command_node"]),
    ("joint_trajectory", {"robot": "r.urdf"}, ["command_node", "ik_node"]),
    ("ros2_control_trajectory", {"robot": "r.urdf"}, ["command_node"]),
    ("follow_joint_trajectory", {"robot": "r.urdf"}, ["command_node"]),
    ("ros2_control_position", {"robot": "r.urdf"}, ["command_node"]),
    ("aloha", {"robot": "r.urdf", "scale": "1"}, ["command_node"]),
    ("so101", {"robot": "r.urdf"}, ["command_node"]),
    ("diff_drive", {}, ["command_node"]),
    ("isaac_franka", {"robot": "r.urdf", "model": "m"}, ["command_node", "inference_node"]),
    ("jetson", {"model": "m", "robot": "crisp"}, ["command_node", "inference_node"]),
    ("jetson", {"model": "m", "robot": "diff_drive"}, ["command_node", "inference_node"]),
    (
        "jetson",
        {"model": "m", "camera": "true", "instruction": "stack: it"},
        ["camera_node", "command_node", "inference_node"],
    ),
]
IDS = [" ".join([name, *(f"{k}:={v}" for k, v in given.items())]) for name, given, _ in CASES]

Launch = Callable[..., subprocess.Popen]


@pytest.fixture
def prefix(tmp_path) -> Path:
    """Our packages, installed with recorders for nodes."""
    root = tmp_path / "prefix"
    index = root / "share/ament_index/resource_index/packages"
    index.mkdir(parents=True)
    for package in (
        "vla_bringup",
        "vla_inference",
        "vla_sim_bridge",
        "vla_training",
        "vla_studio",
    ):
        (index / package).touch()
        (root / "share" / package).mkdir()
        for folder in ("launch", "config"):
            (root / "share" / package / folder).symlink_to(ROOT / "src" / package / folder)
        (root / "lib" / package).mkdir(parents=True)
        setup = ROOT / "src" / package / "setup.py"
        said = setup.read_text() if setup.exists() else ""
        for name in re.findall(r'"(\w+_node) = ', said):
            program = root / "lib" / package / name
            program.write_text(RECORDER.format(python=sys.executable))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return root


@pytest.fixture
def launch(prefix, tmp_path) -> Launch:
    """Start a launch of words; `more` are environment variables."""

    def launch(*words: str, **more: str) -> subprocess.Popen:
        records = tmp_path / f"records{len(list(tmp_path.glob('records*')))}"
        records.mkdir()
        environment = {
            **os.environ,
            "AMENT_PREFIX_PATH": str(prefix),
            "RECORDS": str(records),
            "ROS_LOG_DIR": str(tmp_path / "log"),
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "vla_inference.cli.main", "launch", *words],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        process.records = records
        return process

    return launch


def value_of(text: str) -> Any:
    return yaml.safe_load(text)


def seen(path: Path) -> dict[str, Any]:
    """What a recorder was given, as ROS would read it: the last value of a parameter wins."""
    record = json.loads(path.read_text())
    files, parameters, rules, rest = iter(record["files"]), {}, [], []
    words = iter(w for w in record["argv"] if w != "--ros-args")
    for word in words:
        if word == "--params-file":
            next(words)
            for node in yaml.safe_load(next(files)).values():
                parameters.update(node["ros__parameters"])
        elif word in ("-p", "--param"):
            name, _, value = next(words).partition(":=")
            parameters[name] = value_of(value)
        elif word in ("-r", "--remap"):
            rules.append(next(words))
        else:
            rest.append(word)
    # Each launch makes names of its own.
    hidden = re.compile(r"_\d+_\d+")
    rules = sorted(hidden.sub("_N", rule) for rule in rules)
    parameters = {hidden.sub("_N", name): value for name, value in parameters.items()}
    ours = {k: v for k, v in record["environment"].items() if k.startswith("FAST")}
    return {"parameters": parameters, "rules": rules, "rest": rest, "environment": ours}


def outcome(process: subprocess.Popen) -> tuple[int, dict[str, Any]]:
    """Exit status, and what each node was given."""
    out, _ = process.communicate(timeout=60)
    found = {p.name.split("-")[0]: seen(p) for p in process.records.glob("*.json")}
    assert process.returncode is not None, out
    return process.returncode, found


def run(
    launch: Launch,
    path: Path,
    given: Mapping[str, str],
    nodes: list[str],
    *more: str,
    **environment: str,
) -> tuple[int, dict[str, Any]]:
    words = [f"{k}:={v}" for k, v in given.items()]
    required = next((n for n in nodes if n != "inference_node"), nodes[0])
    ends = {"ENDS": f"{required}=3", "COUNT": str(len(nodes))}
    return outcome(launch(str(path), *words, *more, **ends, **environment))


# -- the stand-in -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "given", "nodes"), CASES, ids=IDS)
def test_each_file_starts_its_nodes_and_ends_as_the_required_one_did(launch, name, given, nodes):
    if given.get("camera") == "true":
        nodes = nodes[1:] + nodes[:1]  # the camera would come back
    path = ROOT / f"launch/{name}.launch.xml"
    status, found = run(launch, path, given, nodes, "--stand-in")
    assert status == 3 and sorted(found) == sorted(nodes)
    if name == "robosuite":
        simulated = given.get("lock_step") != "false" or "real_time_factor" in given
        for node in ("inference_node", "command_node"):
            assert found[node]["parameters"]["use_sim_time"] is simulated


def test_nothing_in_them_is_unknown_to_humbles_launch():
    """Its parser (1.0) refuses attributes that came later; on_exit was ported back in 2025."""
    node = {
        "pkg",
        "exec",
        "name",
        "namespace",
        "args",
        "ros_args",
        "output",
        "respawn",
        "respawn_delay",
        "cwd",
        "if",
        "unless",
        "launch-prefix",
        "on_exit",
    }
    for path in FILES:
        for element in ET.parse(path).iter():
            if element.tag in ("node", "executable"):
                assert set(element.attrib) <= node | {"cmd", "shell"}, path.name


def test_one_rule_for_all_booleans(launch):
    """true or false, in every file, told at once: 1, yes and True are read differently by each
    place of a launch file and each release."""
    found = set()
    for path in FILES:
        for argument in ET.parse(path).getroot().iter("arg"):
            if argument.get("default") in ("true", "false"):
                found.add(argument.get("name"))
                choices = [c.get("value") for c in argument.iter("choice")]
                assert choices == ["true", "false"], (path.name, argument.get("name"))
    assert found == BOOLEANS
    for word in ("True", "1", "yes"):
        process = launch(
            str(ROOT / "launch/robosuite.launch.xml"), f"lock_step:={word}", "--stand-in"
        )
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 2 and len(out.splitlines()) == 1
        assert f"'lock_step' is '{word}'; it may be true, false" in out


# -- ROS's own launch -------------------------------------------------------------------------


def releases() -> list[str]:
    named = [f for f in os.environ.get("VLA_LAUNCH_SOURCES", "").split(os.pathsep) if f]
    return [*(["installed"] if importlib.util.find_spec("launch_ros") else []), *named]


@pytest.fixture(scope="session", params=releases() or ["none"])
def real(request, tmp_path_factory) -> dict[str, str]:
    """Environment in which `import launch` finds one release."""
    if request.param == "none":
        pytest.skip("no `launch` is installed, and VLA_LAUNCH_SOURCES names no checkouts of it")
    if request.param == "installed":
        return {}
    site = tmp_path_factory.mktemp("launch")
    names = ("launch", "launch_xml", "launch_yaml", "launch_ros", "osrf_pycommon")
    folders = [p.parent for p in sorted(Path(request.param).rglob("setup.py"))]
    sources = [str(f) for f in folders if f.name in names]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            str(site),
            *sources,
        ],
        check=True,
    )
    if importlib.util.find_spec("composition_interfaces") is None:
        # launch_ros imports its services by name, for components, of which we have none.
        (site / "composition_interfaces").mkdir()
        (site / "composition_interfaces/__init__.py").touch()
        (site / "composition_interfaces/srv.py").write_text("LoadNode = None\n")
    return {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize(("name", "given", "nodes"), CASES, ids=IDS)
def test_the_same_plan_and_the_same_end(launch, real, name, given, nodes):
    path = ROOT / f"launch/{name}.launch.xml"
    if given.get("camera") == "true":
        nodes = nodes[1:] + nodes[:1]
    ours = run(launch, path, given, nodes, "--stand-in")
    assert run(launch, path, given, nodes, **real) == ours


def started(process: subprocess.Popen, count: int) -> list[int]:
    """Process numbers of the nodes, as soon as all have written down what they were given."""
    end = time.monotonic() + 30
    while len(list(process.records.glob("*.json"))) < count:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    return [int(p.stem.split("-")[1]) for p in process.records.glob("*.json")]


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whatever_stops_it_no_node_is_left(launch, real, number):
    process = launch(str(ROOT / "launch/sim_eval.launch.xml"), **real)
    nodes = started(process, 2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number, out
    assert not any(map(alive, nodes)) and "escalating" not in out


def test_an_undeclared_argument_is_refused_there_too(launch, real):
    process = launch(str(ROOT / "launch/sim_eval.launch.xml"), "episods:=3", **real)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "has no argument 'episods'; it has: " in out
    assert not list(process.records.iterdir())
