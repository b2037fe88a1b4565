"""A studio and a command node in a real ROS graph, with stand-ins for model, simulation, jobs."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
from geometry_msgs.msg import TwistStamped
from graphs import NodeGraph
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool

from vla_inference.ros import qos
from vla_inference.ros.command.node import CommandNode
from vla_inference.ros.images import rgb_to_image
from vla_inference.ros.messages import chunk_to_msg
from vla_inference.types import ActionChunk, eef_delta_spec
from vla_msgs.msg import ActionChunk as ActionChunkMsg
from vla_msgs.msg import EpisodeStatus, InferenceStatus, JobStatus, SimStatus
from vla_msgs.srv import (
    CancelJob,
    GetJobLog,
    ListJobs,
    LoadModel,
    ResetEpisode,
    SetInstruction,
    StartJob,
    StepSim,
)
from vla_studio.ros.node import StudioNode

PERIOD = 0.1  # s between two images, each with its chunk
# A busy machine must not stop the robot: the watchdogs have tests of their own.
CALM = {"max_period": 5.0, "stall_timeout": 30.0, "max_image_age": 30.0, "align": "arrival"}


class World:
    """What stands in for the other nodes. calls: what services were asked, by name."""

    def __init__(self, node: Node):
        self.node, self.calls = node, Counter[str]()
        self.asked: dict[str, object] = {}
        self.instruction, self.paused, self.step = "", False, 0
        self.index, self.outcome = 3, "running"  # of the episode
        self.log = "episode 1 of 4"
        self.jobs: dict[str, JobStatus] = {}
        make = node.create_publisher
        self._image = make(Image, "image", qos.IMAGE_OUTPUT)
        self._chunk = make(ActionChunkMsg, "action", qos.CHUNK)
        self._active = make(String, "inference/active_instruction", qos.LATCHED)
        self._inference = make(InferenceStatus, "inference/status", qos.LATCHED)
        self._sim = make(SimStatus, "sim/status", qos.LATCHED)
        for kind, name in (
            (SetInstruction, "inference/set_instruction"),
            (LoadModel, "inference/load_model"),
            (ResetEpisode, "sim/reset"),
            (SetBool, "sim/pause"),
            (StepSim, "sim/step"),
            (SetBool, "recorder/record"),
            (ListJobs, "training/list"),
            (GetJobLog, "training/log"),
            (StartJob, "training/start"),
            (CancelJob, "training/cancel"),
        ):
            node.create_service(kind, name, self._answer(name))
        node.create_timer(PERIOD, self._publish)

    def _answer(self, name: str):
        act = getattr(self, "_" + name.replace("/", "_"), None)

        def answer(request, response):
            self.calls[name] += 1
            self.asked[name] = request
            if hasattr(response, "success"):
                response.success = True
            if act is not None:
                act(request, response)
            return response

        return answer

    def _inference_set_instruction(self, request, response):
        self.instruction = request.instruction
        self._active.publish(String(data=request.instruction))

    def _sim_pause(self, request, response):
        self.paused = request.data

    def _training_start(self, request, response):
        job = JobStatus(job_id="j1", kind=request.kind, arguments=request.arguments)
        job.state, job.step, job.total, job.fraction = "running", 1, 4, 0.25
        self.jobs["j1"] = job
        response.accepted, response.job_id = True, "j1"

    def _training_list(self, request, response):
        response.jobs = list(self.jobs.values())

    def _training_log(self, request, response):
        response.text = self.log

    def _training_cancel(self, request, response):
        self.jobs[request.job_id].state = "cancelled"

    def _publish(self) -> None:
        self.step += 1
        now = self.node.get_clock().now().to_msg()
        y, x = np.mgrid[:224, :224]
        image = np.stack([x, y, np.full_like(x, self.step % 256)], -1).astype(np.uint8)
        self._image.publish(rgb_to_image(image, now, "camera"))
        ahead = 0.02 * np.sin(0.2 * self.step)
        rows = np.tile([ahead, 0.001, 0, 0, 0, 0.01, self.step // 20 % 2], (8, 1))
        chunk = ActionChunk(rows, eef_delta_spec("rotvec", "base", 0.05))
        msg = chunk_to_msg(chunk, now, frame_id="base_link", model="stack-small")
        msg.produced, msg.sequence = now, self.step
        self._chunk.publish(msg)
        status = InferenceStatus(state="active", model="stack-small", rate=10.0, latency_ms=35.0)
        status.instruction = self.instruction
        status.stage_names, status.stage_ms = ["preprocess", "vision", "decode"], [2.0, 18.0, 15.0]
        self._inference.publish(status)
        episode = EpisodeStatus(
            task="Stack_D0", seed=7, index=self.index, step=self.step, horizon=400
        )
        episode.outcome, episode.done = self.outcome, self.outcome != "running"
        episode.success = self.outcome == "success"
        sim = SimStatus(episode=episode, episodes_done=3, episodes_total=10, successes=2)
        sim.state, sim.action_rate = ("paused" if self.paused else "running"), 20.0
        self._sim.publish(sim)


class StudioGraph(NodeGraph):
    """studio: of the node's parameters. twists: (monotonic time, speed) sent to the robot."""

    def __init__(self, **studio):
        super().__init__(StudioNode, {"port": 0, **studio})
        where = {"context": self.context, "namespace": self.node.get_namespace()}
        overrides = {"heartbeat_timeout": 0.25, **CALM}
        self.command = CommandNode(
            parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()], **where
        )
        self.twists: list[tuple[float, float]] = []
        self.client.create_subscription(TwistStamped, "delta_twist", self._twist, 100)
        self.world = World(self.client)
        self.executor.add_node(self.command)
        assert self.command.start(), self.command.failure
        assert self.start_node(), self.node.failure
        self._running = True
        self._others = threading.Thread(target=self._spin_others)
        self._others.start()
        self.url = self.node.url

    def _twist(self, msg: TwistStamped) -> None:
        stamp = msg.header.stamp  # when it was sent: a busy machine may be late to hear it
        sent = stamp.sec + 1e-9 * stamp.nanosec - time.time() + time.monotonic()
        self.twists.append((sent, abs(msg.twist.linear.x)))

    def _spin_others(self) -> None:
        assert isinstance(self.executor, SingleThreadedExecutor)
        while self._running:
            self.executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        self._running = False
        self._others.join()
        self.command.trigger_shutdown()
        self.command.destroy_node()
        super().close()

    @property
    def enabled(self) -> bool:
        commander = self.command.commander
        return commander is not None and commander.safety.enabled
