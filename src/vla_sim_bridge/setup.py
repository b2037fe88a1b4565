from __future__ import annotations

import os

from setuptools import find_packages, setup

PACKAGE = "vla_sim_bridge"


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
    description="Tasks, simulation, demonstrations, generation, rollouts and the simulation node.",
    license="Apache-2.0",
    maintainer="VLA for ROS 2 maintainers",
    maintainer_email="maintainers@vla-ros2.invalid",
    python_requires=">=3.10",
    # For pip, without our own packages, which no index has: name all folders in one call. A
    # workspace installs the versions that are tested (requirements/ at its top).
    install_requires=[
        "av",
        "h5py",
        "mujoco==3.3.7",
        "numpy<2",
        "opencv-python<4.12",
        "pillow",
        "pyyaml",
        "rich",
        "robosuite==1.5.2",
        "scipy",
        "torch",
        "typer",
    ],
    extras_require={"gymnasium": ["gymnasium"]},
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={
        PACKAGE: [
            "py.typed",
            "envs/*.xml",
            "envs/rover/*.xml",
            "mimicgen/demonstrations/*",
            "libero/*.txt",
        ]
    },
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + PACKAGE]),
        ("share/" + PACKAGE, ["package.xml"]),
        *installed("launch", "config"),
    ],
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "robot_sim_node = vla_sim_bridge.ros.executables:robot_sim_node",
            "sim_node = vla_sim_bridge.ros.executables:sim_node",
        ],
        "vla.commands": [
            "compare = vla_sim_bridge.cli.compare:compare",
            "generate = vla_sim_bridge.cli.generate:generate",
            "rollout = vla_sim_bridge.cli.rollout:rollout",
            "tasks = vla_sim_bridge.cli.tasks:tasks",
            "demo = vla_sim_bridge.cli.rollout:demo",
        ],
    },
)
