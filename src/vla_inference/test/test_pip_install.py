"""Tests of the package as pip installs it: what it declares, and that it runs without ROS."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
# Distributions by module, where the names differ.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml", "rerun": "rerun-sdk"}
# Engines, second implementations and ROS: asked for where they are needed, with their remedy.
OPTIONAL = {"mlc_llm", "onnx", "onnxruntime", "onnxscript", "ray", "tensorrt", "transformers"}
OPTIONAL |= {"triton", "tvm", "tvm_ffi"}
ROS = re.compile(r"rclpy|ament_\w+|launch\w*|ros2\w+|rosidl\w*|\w+_msgs|std_srvs|\w+_interfaces")


# Of the other packages: optional, LIBERO's own environment, and what they declare for another:
# robosuite's OpenCV, PyTorch's TensorBoard.
OPTIONAL |= {"ctranslate2", "faster_whisper", "libero", "robocasa", "sounddevice"}
FOR_OTHERS = {"vla_sim_bridge": {"opencv-python"}, "vla_training": {"tensorboard"}}


def imported(package: str) -> set[str]:
    """Top modules that a package imports anywhere, without our own and Python's."""
    found = set()
    for path in (PACKAGE.parent / package / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return {m for m in found - set(sys.stdlib_module_names) if not m.startswith("vla_")}


@pytest.mark.parametrize("package", ["vla_inference", "vla_sim_bridge", "vla_training"])
def test_every_import_is_declared(package):
    said = {re.split(r"[^\w-]", text)[0] for text in metadata.requires(package) or ()}
    wanted = {m for m in imported(package) if not ROS.fullmatch(m)} - OPTIONAL
    names = {DISTRIBUTIONS.get(m, m.replace("_", "-")) for m in wanted}
    assert names | FOR_OTHERS.get(package, set()) == {name.replace("_", "-") for name in said}


@pytest.mark.slow
def test_it_runs_in_an_environment_of_its_own_without_ros(tmp_path):
    """Its dependencies are those of this environment; rclpy cannot be imported."""
    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env/bin/python3"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    build = ["--no-build-isolation", "--no-index", "--quiet", str(source)]
    packages = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    (packages / "those_of_the_workspace.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    (packages / "rclpy.py").write_text("raise ImportError('there is no ROS')\n")
    hidden = ("PYTHONPATH", "AMENT_PREFIX_PATH", "VIRTUAL_ENV", "VLA_WORKSPACE")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment["PATH"] = "/usr/bin:/bin"
    subprocess.run([*pip, *build], check=True, env=environment)

    def output(*words: object) -> str:
        return subprocess.run(
            list(map(str, words)),
            env=environment,
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    command = tmp_path / "env/bin/vla"
    models = json.loads(output(command, "models", "--json"))["models"]
    assert {m["name"] for m in models} == {"rover-small", "stack-small"}
    model = next(m for m in models if m["name"] == "stack-small")
    assert Path(model["folder"]).is_relative_to(tmp_path)
    script = (
        "import vla_inference, numpy\n"
        "print(vla_inference.__file__)\n"
        f"policy = vla_inference.load_policy({model['folder']!r}, engine='plain')\n"
        "print(policy.act(numpy.full((64, 64, 3), 90, numpy.uint8), 'stack the red block'))\n"
    )
    told = output(python, "-c", script).splitlines()
    assert told[0].startswith(str(packages)) and told[1].startswith("<ActionChunk 8 steps")
