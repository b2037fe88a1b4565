from __future__ import annotations

import os

from setuptools import find_packages, setup

PACKAGE = "vla_inference"


def installed(*folders: str) -> list[tuple[str, list[str]]]:
    """Every file below these folders, for share/<package>."""
    found = []
    for folder in folders:
        for path, _, names in os.walk(folder):
            files = [os.path.join(path, n) for n in sorted(names) if not n.startswith(".")]
            # colcon keeps links to files that were deleted since: leave those out
            files = [f for f in files if os.path.isfile(f)]
            if files:
                found.append((os.path.join("share", PACKAGE, path), files))
    return found


setup(
    name=PACKAGE,
    version="0.1.0",
    description="Vision-language-action models as ROS 2 nodes.",
    license="Apache-2.0",
    maintainer="VLA for ROS 2 maintainers",
    maintainer_email="maintainers@vla-ros2.invalid",
    python_requires=">=3.10",
    # For pip; a workspace installs the versions that are tested (requirements/ at its top).
    install_requires=[
        "aiohttp",
        "av",
        "deflate",
        "h5py",
        "huggingface_hub",
        "matplotlib",
        "msgpack",
        "numpy>=1.26",
        "opencv-python",
        "pillow",
        "pyyaml",
        "safetensors",
        "scipy",
        "tokenizers",
        "torch",
        "typer",
    ],
    extras_require={"kinematics": ["mujoco"], "sentencepiece": ["sentencepiece"]},
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={PACKAGE: ["py.typed", "serving/openpi/maps/*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + PACKAGE]),
        ("share/" + PACKAGE, ["package.xml"]),
        *installed("models"),
        ("bin", ["scripts/vla"]),  # colcon puts <prefix>/bin on PATH
    ],
    zip_safe=False,
    entry_points={
        "ros2doctor.checks": ["VlaCheck = vla_inference.ros.doctor_check:VlaCheck"],
        "console_scripts": [
            "chunk_ik_node = vla_inference.ros.executables:chunk_ik_node",
            "command_node = vla_inference.ros.executables:command_node",
            "estimate_node = vla_inference.ros.executables:estimate_node",
            "ik_node = vla_inference.ros.executables:ik_node",
            "inference_node = vla_inference.ros.executables:inference_node",
            "camera_node = vla_inference.ros.executables:camera_node",
            "teleop_node = vla_inference.ros.executables:teleop_node",
        ],
        "vla.commands": [
            "launch = vla_inference.cli.launch:launch",
            "doctor = vla_inference.cli.doctor:doctor",
            "info = vla_inference.cli.info:info",
            "infer = vla_inference.cli.infer:infer",
            "bench = vla_inference.cli.bench:bench",
            "compile = vla_inference.cli.compile:compile_model",
            "completion = vla_inference.cli.completion:completion",
            "serve = vla_inference.cli.serve:serve",
            "teleop = vla_inference.cli.teleop:teleop",
            "models = vla_inference.cli.listing:models",
            "robots = vla_inference.cli.listing:robots",
            "run = vla_inference.ros.cli.node:run",
            "node = vla_inference.ros.cli.node:node",
            "param = vla_inference.ros.cli.node:param",
            "lifecycle = vla_inference.ros.cli.node:lifecycle",
            "topic = vla_inference.ros.cli.topic:topic",
            "service = vla_inference.ros.cli.service:service",
            "action = vla_inference.ros.cli.service:action",
        ],
    },
)
