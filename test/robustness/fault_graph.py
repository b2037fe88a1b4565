"""The graph in which faults.py injects faults: a camera or the simulator, a model, commands.

A process each; a node of this process hears their commands and statuses.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.ros import qos
from vla_msgs.msg import CommandStatus, InferenceStatus

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from domains import claim
from six_axes import urdf

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = str(Path(__file__).with_name("fault_processes.py"))
WATCHDOG, SAME = 0.5, 0.3  # seconds
IK_RATE, JOINT_SPEED = 50.0, 1.0  # Hz, rad/s
PATIENCE = 60.0


class Failed(Exception):
    """A graph that did not come up, did not become safe or did not recover."""


@contextlib.contextmanager
def without_shared_memory() -> Iterator[None]:
    """For a node that outlives killed peers: Fast DDS 2.14 can crash where it closes shared
    memory then (`SharedMemChannelResource::release` locks a port that is gone)."""
    name = "FASTDDS_BUILTIN_TRANSPORTS"
    before = os.environ.get(name)
    os.environ[name] = "UDPv4"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


class Graph:
    """The processes, and who watches them.

    kind: camera; sim (the simulator instead of it); clock (simulated time); pose (beside the
    camera an arm that tells its pose, which the command node needs); joints (the same by the IK
    node, of an arm that tells its joints).
    """

    def __init__(self, folder: Path, kind: str = "camera", watchdog: float = WATCHDOG):
        self.folder, self.kind, self.watchdog = folder, kind, watchdog
        self.sim_time = kind == "clock"
        self.camera = "sim" if kind == "sim" else "camera"
        domain = claim()
        self.environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "FASTRTPS_DEFAULT_PROFILES_FILE": str(ROOT / "config/fastdds/quick_discovery.xml"),
            "OMP_NUM_THREADS": "1",
        }
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        self.context = rclpy.Context()
        with without_shared_memory():
            rclpy.init(context=self.context, domain_id=domain)
            self.node = rclpy.create_node("watcher", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.processes: dict[str, subprocess.Popen] = {}
        self.dead: set[str] = set()  # killed, and not started again
        self.moved = self.heard = 0.0  # when a moving command, and any, came last (monotonic)
        self.command, self.inference = CommandStatus(), InferenceStatus()
        self.stopped_at, self.delivery = 0.0, math.nan
        make = self.node.create_subscription
        make(TwistStamped, "delta_twist", self._twist, 10)
        make(CommandStatus, "command/status", self._command_status, qos.LATCHED)
        make(InferenceStatus, "inference/status", self._inference_status, qos.LATCHED)
        self.faults = {
            name: self.node.create_publisher(String, f"{name}/fault", qos.LATCHED)
            for name in ("camera", "model", "arm")
        }
        self.enabler = self.node.create_client(SetBool, "command/enable")
        self.ahead, self.clock_runs = 0.0, True  # the simulated clock
        self.joints: np.ndarray | None = None  # commanded last
        self.joint_speed = 0.0  # the highest commanded [rad/s]
        make(JointTrajectory, "joint_trajectory", self._trajectory, 10)
        if self.sim_time:
            self.clock = self.node.create_publisher(Clock, "/clock", 10)
            self.node.create_timer(0.01, self.tell_time)

    # -- what is heard ------------------------------------------------------------------------

    def _twist(self, msg: TwistStamped) -> None:
        self.heard = time.monotonic()
        if msg.twist != TwistStamped().twist:
            self.moved = self.heard

    def _trajectory(self, msg: JointTrajectory) -> None:
        joints = np.array(msg.points[0].positions)
        if self.joints is not None:
            speed = float(np.abs(joints - self.joints).max()) * IK_RATE
            self.joint_speed = max(self.joint_speed, speed)
        self.joints = joints

    def _command_status(self, msg: CommandStatus) -> None:
        if msg.state == CommandStatus.STOPPED and self.command.state != CommandStatus.STOPPED:
            self.stopped_at = time.monotonic()
            if not self.sim_time:
                self.delivery = time.time() - 1e-9 * Time.from_msg(msg.stop_time).nanoseconds
        self.command = msg

    def _inference_status(self, msg: InferenceStatus) -> None:
        self.inference = msg

    def tell_time(self) -> None:
        if not self.clock_runs:
            return
        now = time.time_ns() + int(1e9 * self.ahead)
        msg = Clock()
        msg.clock.sec, msg.clock.nanosec = divmod(now, 10**9)
        self.clock.publish(msg)

    # -- what is done -------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Start one of camera, model, command, sim, arm, ik; again where it was before."""
        model = {
            "model": str(self.folder / "model"),
            "instruction": "stack it",
            "num_threads": 1,
            "max_image_age": WATCHDOG,
            "max_same_image": SAME if name == "model" else 0.0,
        }
        watchdogs = dict.fromkeys(("max_image_age", "stall_timeout"), self.watchdog)
        watchdogs["max_period"] = WATCHDOG
        watchdogs["clock_timeout"] = watchdogs["frozen_pose_timeout"] = self.watchdog
        if self.kind in ("pose", "joints"):  # a box that needs a pose and is never reached
            watchdogs |= {"workspace": [-1e3] * 3 + [1e3] * 3, "pose_timeout": self.watchdog}
        if self.kind == "joints":
            watchdogs["scale"] = 0.005  # the arm must not get to its limits
        results = tempfile.mkdtemp(dir=self.folder)
        sim = {
            "episodes": 1000,
            "horizon": 1000,
            "record_episodes": 0,
            "lock_step": False,
            "width": 64,
            "height": 64,
            "discovery_time": 0.5,
            "output": results + "/r",
        }
        if self.camera == "sim":
            model["max_same_image"] = 0.0  # an arm that stands still is no frozen camera
        command, parameters = {
            "camera": ([PROCESSES, "camera"], {}),
            "model": ([PROCESSES, "model"], model),
            "command": (["-m", "vla_inference.ros.command.node"], watchdogs),
            "sim": (["-m", "vla_sim_bridge.ros.sim_node"], sim),
            "arm": ([PROCESSES, "joints" if self.kind == "joints" else "arm"], {}),
            "ik": (
                ["-m", "vla_inference.ros.ik.node"],
                {
                    "robot": str(self.folder / "arm.urdf"),
                    "rate": IK_RATE,
                    "max_joint_velocity": JOINT_SPEED,
                },
            ),
        }[name]
        if self.sim_time:
            parameters = {**parameters, "use_sim_time": True}
        words = [w for k, v in parameters.items() for w in ("-p", f"{k}:={json.dumps(v)}")]
        log = (self.folder / f"{name}.log").open("a")
        self.processes[name] = subprocess.Popen(
            [sys.executable, *command, "--ros-args", *words],
            env=self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        self.dead.discard(name)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self.dead.add(name)

    def running(self, name: str) -> bool:
        return name not in self.dead and self.processes[name].poll() is None

    def fault(self, name: str, what: str) -> None:
        self.faults[name].publish(String(data=what))

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def until(
        self, condition: Callable[[], object], what: str, patience: float = PATIENCE
    ) -> None:
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                raise Failed(
                    f"waited in vain for {what}; command: {self.command.state} "
                    f"{self.command.stop_reason or self.command.message}; inference: "
                    f"{self.inference.state} {self.inference.message}"
                )
            self.executor.spin_once(timeout_sec=0.02)

    def run(self) -> None:
        """Enable, as soon as that is accepted, and wait until commands have flowed a while."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.command.state != CommandStatus.ENABLED:
                self._enable()
            begun = time.monotonic()
            with contextlib.suppress(Failed):
                self.until(lambda: self.command.state == CommandStatus.STOPPED, "", 0.6)
            if self.command.state == CommandStatus.ENABLED and self.moved > begun + 0.4:
                return
        raise Failed(f"does not run: {self.command.stop_reason}; {self.inference.message}")

    def _enable(self) -> None:
        if not self.enabler.service_is_ready():
            self.spin(0.1)
            return
        answer = self.enabler.call_async(SetBool.Request(data=True))
        with contextlib.suppress(Failed):
            self.until(answer.done, "an answer", 2.0)
            if answer.result().success:
                self.until(lambda: self.command.state == CommandStatus.ENABLED, "enabling", 1.0)
            else:
                self.spin(0.2)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@contextlib.contextmanager
def graph_for(kind: str, watchdog: float = WATCHDOG) -> Iterator[Graph]:
    folder = Path(tempfile.mkdtemp(prefix="vla_faults_"))
    write_random_checkpoint(folder / "model", head="parallel")  # keeps within its bounds
    (folder / "arm.urdf").write_text(urdf())
    graph = Graph(folder, kind, watchdog)
    more = {"pose": ["arm"], "joints": ["arm", "ik"]}.get(kind, [])
    try:
        for name in (graph.camera, "model", "command", *more):
            graph.start(name)
        yield graph
    finally:
        graph.close()
        shutil.rmtree(folder, ignore_errors=True)
