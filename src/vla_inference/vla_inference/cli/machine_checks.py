"""The checks of `vla doctor`, each finding with its remedy. Does not need rclpy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.system.workspace import REMEDY, is_outdated

OK, WARN, ERROR = "ok", "warning", "error"

DISTROS = ("humble", "jazzy", "kilted")
IMAGE = 3 * 1280 * 720  # bytes of a large raw image


@dataclass(frozen=True)
class Finding:
    """level: "ok", "warning" or "error"; remedy: what to do, where it isn't "ok"."""

    name: str
    level: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


def examine(model: str = "", root: Path = Path("/")) -> list[Finding]:
    """All findings. model: a checkpoint folder to check as well; root: of /proc, /dev, /sys."""
    found = []
    for name, check in CHECKS.items():
        try:
            found.append(check(name, root))
        except Exception as error:  # a doctor must not fall ill
            found.append(
                Finding(name, WARN, f"cannot be determined ({error})", "check it yourself")
            )
    if model:
        found.append(_model(model))
    return found


# -- ROS --------------------------------------------------------------------------------------


def _ros(name: str, root: Path) -> Finding:
    if importlib.util.find_spec("rclpy") is None:
        remedy = "source /opt/ros/<distro>/setup.bash, or run `make setup`"
        if not (root / "colcon.meta").exists():
            return Finding(
                name, WARN, "rclpy is not installed: no nodes, only the library", remedy
            )
        return Finding(name, ERROR, "rclpy is not installed", remedy)
    distro = os.environ.get("ROS_DISTRO", "")
    if distro not in DISTROS:
        remedy = f"tested with {', '.join(DISTROS)}: source one of them"
        return Finding(name, WARN, f"ROS_DISTRO is {distro!r}", remedy)
    return Finding(name, OK, f"{distro}, Python {sys.version_info.major}.{sys.version_info.minor}")


def _rmw(name: str, root: Path) -> Finding:
    rmw = os.environ.get("RMW_IMPLEMENTATION", "")
    if not rmw:
        return Finding(name, OK, "the distribution's default")
    if rmw != "rmw_fastrtps_cpp":
        remedy = "all processes of a robot must use the same one"
        return Finding(name, WARN, f"{rmw}, which is not tested here", remedy)
    return Finding(name, OK, rmw)


def _messages(name: str, root: Path) -> Finding:
    if importlib.util.find_spec("vla_msgs") is None:
        if importlib.util.find_spec("rclpy") is None:
            return Finding(name, OK, "not needed without ROS")
        return Finding(name, ERROR, "vla_msgs is not built", "run `make setup`, or colcon build")
    if is_outdated():
        return Finding(name, WARN, "the workspace has changed since it was built", REMEDY)
    return Finding(name, OK, "vla_msgs is built")


def _domain(name: str, root: Path) -> Finding:
    text = os.environ.get("ROS_DOMAIN_ID", "0") or "0"
    if not text.isdigit() or int(text) > 232:
        return Finding(name, ERROR, f"ROS_DOMAIN_ID is {text!r}", "set it to 0 to 101")
    number = int(text)
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    if number > 101:
        remedy = "ports of domains above 101 may be taken by others (Linux): choose 0 to 101"
        return Finding(name, WARN, f"ROS_DOMAIN_ID is {number}", remedy)
    if number == 0 and reach == "SUBNET" and not os.environ.get("ROS_LOCALHOST_ONLY"):
        remedy = "anyone in this network can drive the robot: set ROS_DOMAIN_ID, or "
        remedy += "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST, or use SROS 2"
        return Finding(name, WARN, "ROS_DOMAIN_ID is 0, and the subnet is searched", remedy)
    return Finding(name, OK, f"domain {number}, range {reach}")


# -- the machine ------------------------------------------------------------------------------


def _torch(name: str, root: Path) -> Finding:
    try:
        import torch

        from vla_inference.engines import usual_engine
    except ImportError as error:
        remedy = "install requirements/torch.txt, on a Jetson NVIDIA's own build"
        return Finding(name, ERROR, f"PyTorch cannot be imported ({error})", remedy)
    gpu = (root / "proc/driver/nvidia").exists() or (root / "etc/nv_tegra_release").exists()
    if torch.cuda.is_available():
        found = f"PyTorch {torch.__version__}, {torch.cuda.get_device_name(0)}"
        if usual_engine("cuda") == "plain":
            remedy = "install triton: without it models run by the plain engine, far slower"
            return Finding(name, WARN, f"{found}, no Triton", remedy)
        return Finding(name, OK, found)
    if gpu:
        remedy = "install a CUDA build (Jetson: NVIDIA's index, not PyPI)"
        return Finding(
            name, ERROR, f"there is a GPU, PyTorch {torch.__version__} has none", remedy
        )
    return Finding(name, OK, f"PyTorch {torch.__version__}, CPU (no GPU here)")


def _drawing(name: str, root: Path) -> Finding:
    if importlib.util.find_spec("mujoco") is None:
        return Finding(name, OK, "MuJoCo is not installed, nothing is simulated here")
    from vla_inference.system.offscreen import why_not, working_ways

    way = os.environ.get("MUJOCO_GL", "")
    reason = why_not(way)
    if not reason:
        return Finding(name, OK, f"a frame was drawn, MUJOCO_GL={way}")
    ways = working_ways()
    remedy = f"set MUJOCO_GL={ways[0]}" if ways else "install libosmesa6, or libegl1 and a driver"
    return Finding(name, ERROR, f"no frame can be drawn, MUJOCO_GL={way} ({reason})", remedy)


def _wheels(name: str, root: Path) -> Finding:
    wanted = ("numpy", "safetensors", "tokenizers", "pillow", "pyyaml", "scipy", "typer")
    lacking = []
    for package in wanted:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(package)
    if lacking:
        remedy = "install requirements/runtime.txt"
        return Finding(name, ERROR, f"{', '.join(lacking)} not installed", remedy)
    return Finding(name, OK, f"{len(wanted)} packages installed")


def _memory(name: str, root: Path) -> Finding:
    lines = (root / "proc/meminfo").read_text().splitlines()
    free = int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) / 1024**2
    if free < 2:
        remedy = "the small model takes 0.5 GB, a 7B one 16 GB (INT4: 5 GB): end something"
        return Finding(name, WARN, f"{free:.1f} GB available", remedy)
    return Finding(name, OK, f"{free:.1f} GB available")


def _disk(name: str, root: Path) -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < 2:
        remedy = "results, bags and datasets are written here: make room"
        return Finding(name, WARN, f"{free:.1f} GB free in this folder", remedy)
    return Finding(name, OK, f"{free:.0f} GB free in this folder")


def _shared_memory(name: str, root: Path) -> Finding:
    folder = root / "dev/shm"
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        remedy = "in a container: --ipc=host or --shm-size=1g"
        return Finding(name, WARN, "there is no writable /dev/shm, DDS falls back to UDP", remedy)
    free = shutil.disk_usage(folder).free
    if free < 64e6:
        remedy = "remove stale fastrtps_* files there, or give the container --shm-size=1g"
        return Finding(name, WARN, f"{free / 1e6:.0f} MB free in /dev/shm", remedy)
    return Finding(name, OK, f"{free / 1e6:.0f} MB free in /dev/shm")


def _buffers(name: str, root: Path) -> Finding:
    size = int((root / "proc/sys/net/core/rmem_max").read_text())
    if size < IMAGE:
        remedy = f"raw images from other machines get lost: sysctl -w net.core.rmem_max={2**25}"
        return Finding(name, WARN, f"UDP receive buffers of {size // 1024} KiB at most", remedy)
    return Finding(name, OK, f"UDP receive buffers of up to {size // 1024} KiB")


def _clock(name: str, root: Path) -> Finding:
    if time.time() < 1_700_000_000:
        return Finding(name, ERROR, f"the clock says {time.ctime()}", "set it; use chrony or PTP")
    tick = time.get_clock_info("monotonic").resolution
    if tick > 1e-3:
        return Finding(name, WARN, f"the clock ticks every {tick:g} s", "choose another source")
    daemons = ("chronyd", "systemd-timesyn", "ntpd", "ptp4l", "phc2sys")
    running = set()
    for path in (root / "proc").glob("[0-9]*/comm"):
        try:
            running.add(path.read_text().strip())
        except OSError:
            continue
    found = [d for d in daemons if d in running]
    if not found:
        remedy = "with cameras on other machines run chrony or PTP: stamps are compared"
        return Finding(name, WARN, "nothing seems to keep the clock", remedy)
    return Finding(name, OK, f"kept by {found[0]}")


def _model(model: str) -> Finding:
    from vla_inference.policies.registry import describe_policy

    try:
        found = describe_policy(model).values
    except VlaError as error:
        return Finding("model", ERROR, error.problem, error.remedy or "")
    about = f"{found['name']}, a policy of family {found['family']}"
    if "parameters" in found:
        about += f", {found['parameters'] / 1e6:.1f} M parameters"
    return Finding("model", OK, about)


CHECKS: Mapping[str, Callable[[str, Path], Finding]] = {
    "ROS": _ros,
    "middleware": _rmw,
    "messages": _messages,
    "domain": _domain,
    "shared memory": _shared_memory,
    "UDP": _buffers,
    "PyTorch": _torch,
    "packages": _wheels,
    "drawing": _drawing,
    "memory": _memory,
    "disk": _disk,
    "clock": _clock,
}
