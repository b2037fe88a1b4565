"""What Isaac Lab Arena and Isaac Sim send and take: forms, names and rates, without either.

Sources: isaac-sim/IsaacLab-Arena isaaclab_arena_openpi/policy/droid_adapter.py and
pi0_remote_policy.py (messages, horizons, reconnection), Isaac Sim's documentation of its ROS 2
bridge (topics /clock, /rgb and /joint_states).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rclpy
from graphs import domain, environment
from model_server import StubPolicy, connected, running, talk
from rclpy.executors import SingleThreadedExecutor
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from vla_inference.policies.base import Needs
from vla_inference.ros import qos
from vla_inference.ros.images import rgb_to_image
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_inference.types import ActionChunk
from vla_msgs.msg import CommandStatus, InferenceStatus

ROOT = Path(__file__).resolve().parent.parent
MAP = "droid_jointpos"
HORIZONS = {"pi05": 15, "pi0": 10}  # steps that Arena's client executes of each chunk
JOINTS = [f"panda_joint{i}" for i in range(1, 8)]
FINGERS = ["panda_finger_joint1", "panda_finger_joint2"]
HOME = np.array([0.0, -0.6, 0.0, -2.2, 0.0, 1.6, 0.8])
RNG = np.random.default_rng(0)
_numbers = itertools.count(7)


class JointPolicy(StubPolicy):
    """Wants the first joint `way` (rad) from HOME at each step, so that the arm comes there
    however often a chunk replaces another; `fault`: nan, shape or late."""

    def __init__(self, needs: Needs):
        super().__init__(needs, chunk=15, spec=ObservationMap.load(MAP).spec)
        self.way, self.fault = 0.3, ""

    def _chunk(self, observation):
        if self.fault == "late":
            time.sleep(2.0)
        steps = self.chunk - (self.fault == "shape")
        actions = np.zeros((steps, 8), np.float32)
        actions[:, :7] = HOME
        actions[:, 0] += self.way if self.fault != "nan" else np.nan
        if observation.state is not None:
            actions[:, 1] = observation.state[1]
        return ActionChunk(actions, self.spec, timing={"total": 1.0})


# -- Isaac Lab Arena's openpi client ----------------------------------------------------------


def request(environment: int) -> dict:
    """A request of Arena's DROID adapter for one of its parallel environments."""
    images = RNG.integers(0, 256, (2, 224, 224, 3), np.uint8)
    return {
        "observation/exterior_image_1_left": images[0],
        "observation/wrist_image_left": images[1],
        "observation/joint_position": np.full(7, environment, np.float32),
        "observation/gripper_position": np.zeros(1, np.float32),
        "prompt": "Pick up the Rubik's cube and place it in the bowl.",
    }


@pytest.fixture(scope="module")
def server():
    with running(JointPolicy(Needs(2, 8)), map=MAP) as found:
        yield found


def test_arenas_requests_are_answered_by_chunks_that_it_executes(server):
    """It asks for one environment after the other on one connection."""

    async def go():
        async with connected(server.url) as client:
            return [await client.ask(request(n)) for n in range(4)]

    for number, reply in enumerate(talk(go)):
        chunk = np.asarray(reply["actions"])
        assert chunk.ndim == 2 and chunk.shape[1] == 8 and len(chunk) >= max(HORIZONS.values())
        assert (chunk.astype(np.float32)[:, 1] == number).all()
        assert ((chunk[:, 7] >= 0) & (chunk[:, 7] <= 1)).all()  # 0 open, 1 closed


def test_the_metadata_says_what_arenas_numbers_are(server):
    async def go():
        async with connected(server.url) as client:
            return client.metadata

    metadata = talk(go)
    assert metadata["action_space"] == "joint_position" and metadata["embodiment"] == MAP
    assert metadata["actions"]["dt"] == pytest.approx(1 / 15)
    assert metadata["action_horizon"] == 15 and metadata["action_dim"] == 8


def test_arena_reconnects_to_a_server_that_came_back_and_asks_the_same_again():
    seen = request(3)

    async def go(url):
        async with connected(url) as client:
            return (await client.ask(seen))["actions"]

    with running(JointPolicy(Needs(2, 8)), map=MAP) as server:
        before = talk(go, server.url)
    with running(JointPolicy(Needs(2, 8)), map=MAP, port=server.port):
        np.testing.assert_array_equal(talk(go, server.url), before)


def test_a_request_without_its_wrist_camera_is_refused_by_name(server):
    seen = request(0)
    del seen["observation/wrist_image_left"]

    async def go():
        async with connected(server.url) as client:
            return await client.ask(seen)

    assert "observation/wrist_image_left is missing" in talk(go)


# -- Isaac Sim's ROS 2 bridge -----------------------------------------------------------------


class IsaacSim:
    """Its topics: /clock and /joint_states at 60 Hz, /rgb at 15 Hz; and a controller that reaches
    each point of its trajectories."""

    def __init__(self, number: int):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=number)
        self.node = rclpy.create_node("isaac_sim", context=self.context)
        make = self.node.create_publisher
        self.clock, self.rgb = make(Clock, "/clock", 10), make(Image, "/rgb", 10)
        self.states = make(JointState, "/joint_states", 10)
        self.heard: list[JointTrajectory] = []
        self.command, self.inference = CommandStatus(), InferenceStatus()
        subscribe = self.node.create_subscription
        controller = "/joint_trajectory_controller/joint_trajectory"
        subscribe(JointTrajectory, controller, self._hear, 10)
        subscribe(CommandStatus, "/command/status", partial(setattr, self, "command"), qos.LATCHED)
        subscribe(
            InferenceStatus, "/inference/status", partial(setattr, self, "inference"), qos.LATCHED
        )
        self.enabler = self.node.create_client(SetBool, "/command/enable")
        self.q = HOME.copy()
        self.steps = itertools.count(60)
        self.node.create_timer(1 / 60, self._step)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def _hear(self, message: JointTrajectory) -> None:
        self.heard.append(message)
        assert message.joint_names == JOINTS
        self.q = np.array(message.points[0].positions)

    def _step(self) -> None:
        number = next(self.steps)
        stamp = Time(nanoseconds=number * 16_666_667).to_msg()
        self.clock.publish(Clock(clock=stamp))
        joints = JointState(name=[*JOINTS, *FINGERS], position=[*self.q, 0.04, 0.04])
        joints.header.stamp = stamp
        joints.velocity = joints.effort = [0.0] * 9
        self.states.publish(joints)
        if number % 4 == 0:
            image = RNG.integers(0, 256, (480, 640, 3), np.uint8)
            self.rgb.publish(rgb_to_image(image, stamp, "sim_camera"))

    def until(self, condition, what: str) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}; {self.command}"
            self.executor.spin_once(timeout_sec=0.02)

    def move_to(self, policy: JointPolicy) -> None:
        """Enables the command node until the model's way is gone."""
        while abs(self.q[0] - policy.way) > 0.1:
            self.until(self.enable, "a chunk to begin with")
            self.until(lambda: self.command.state == CommandStatus.ENABLED, "its status")
            self.until(
                lambda: (
                    abs(self.q[0] - policy.way) < 0.1
                    or self.command.state == CommandStatus.STOPPED
                ),
                "motion",
            )

    def idle(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def enable(self) -> bool:
        future = self.enabler.call_async(SetBool.Request(data=True))
        self.until(future.done, "the answer to enable")
        return future.result().success

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


def urdf() -> str:
    limit = '<limit lower="-2.9" upper="2.9" effort="1" velocity="2"/>'
    links = "".join(f'<link name="l{i}"/>' for i in range(8))
    joints = ""
    for i, name in enumerate(JOINTS):
        between = f'<parent link="l{i}"/><child link="l{i + 1}"/>'
        joints += f'<joint name="{name}" type="revolute">{between}{limit}</joint>'
    return f'<robot name="panda">{links}{joints}</robot>'


@contextlib.contextmanager
def launched(url: str, folder: Path) -> Iterator[IsaacSim]:
    """The launch file, as a user starts it, with a served model."""
    (folder / "panda.urdf").write_text(urdf())
    words = ["launch", str(ROOT / "launch/isaac_franka.launch.xml"), "scale:=1.0"]
    words += [f"model:=openpi:{url}?timeout=1", f"robot:={folder / 'panda.urdf'}"]
    words += ["instruction:=pick up the cube"]
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    number = domain(next(_numbers))
    command = [sys.executable, "-m", "vla_inference.cli.main", *words]
    process = subprocess.Popen(command, env=environment(number))
    sim = IsaacSim(number)
    try:
        sim.until(sim.enabler.service_is_ready, "the command node")
        yield sim
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        sim.close()


def test_isaac_sims_topics_drive_the_model_and_its_joints_follow(tmp_path):
    policy = JointPolicy(Needs(1))
    with running(policy) as server, launched(server.url, tmp_path) as sim:
        sim.move_to(policy)  # again where a busy machine's silence stopped it
    first = [message.points[0].positions[0] for message in sim.heard]
    assert np.abs(np.diff(first)).max() <= 0.5 / 50 + 1e-6  # rad: the speed limit, a period
    assert all(np.allclose(m.points[0].positions[1:], HOME[1:], atol=1e-4) for m in sim.heard)


@pytest.mark.slow
def test_a_served_model_that_fails_stops_the_arm_by_its_watchdog_until_it_is_enabled(tmp_path):
    policy = JointPolicy(Needs(1))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(policy))
        sim = stack.enter_context(launched(server.url, tmp_path))
        for fault, told in (
            ("nan", "the model failed"),
            ("shape", "the model failed"),
            ("late", "no answer within 1 s"),
            ("lost", f"server 127.0.0.1:{server.port}"),
        ):
            sim.move_to(policy)
            policy.fault = fault
            if fault == "lost":
                server.stop()
            sim.until(lambda: sim.command.state == CommandStatus.STOPPED, f"the stop by {fault}")
            assert sim.command.stop_kind in ("image_age", "inference_stall"), sim.command
            sim.until(lambda told=told: told in sim.inference.last_refusal, f"the reason: {told}")
            sim.idle(0.5)  # what was on its way
            heard = len(sim.heard)
            sim.idle(0.5)
            assert len(sim.heard) == heard  # nothing moves it
            policy.fault, policy.way = "", -policy.way
            if fault == "lost":
                stack.enter_context(running(policy, port=server.port))
        sim.move_to(policy)
