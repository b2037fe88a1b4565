"""The studio's node: what the graph says goes to the pages, and what they ask goes to it.

ROS runs in the process's main thread, the server in one of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import sys
import threading
import webbrowser
from collections.abc import Sequence
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Float64MultiArray, String

from vla_inference.options import options
from vla_inference.ros import qos
from vla_inference.ros.diagnostics import OK, Report
from vla_inference.ros.lifecycle import ManagedNode, configured, spin_node
from vla_inference.ros.teleop.human import HumanAction
from vla_inference.teleop.settings import Speeds, TeleopSettings
from vla_msgs.msg import (
    ActionChunk,
    CommandSource,
    CommandStatus,
    InferenceStatus,
    JobStatus,
    ModelInfo,
    Reasoning,
    SimStatus,
    TaskEstimate,
)
from vla_studio.ros.calls import RosGraph
from vla_studio.settings import StudioSettings
from vla_studio.web.plain import plain
from vla_studio.web.server import StudioServer

LOOK = 1.0  # s between looks for the command node


class StudioNode(ManagedNode):
    TASK = "studio"

    def __init__(self, name: str = "studio", **kwargs: Any):
        super().__init__(name, StudioSettings, **kwargs)
        self._graph = RosGraph(self)
        self._server: StudioServer | None = None
        self._thread: threading.Thread | None = None
        self._diagnosed: dict[str, Any] = {}
        self._hearing: list[Any] = []
        self._looking: Any = None
        self.url = ""

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        self._server = StudioServer(self.read(StudioSettings), self._graph)

    def do_activate(self) -> None:
        server = configured(self._server)
        port: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._serve, args=(server, port), name="studio", daemon=True
        )
        self._thread.start()
        self.url = server.url(port.result(60.0))
        # Not to the log, which is a topic: the link lets in anyone who has it.
        print(f"the studio is at {self.url}", flush=True)
        self._listen(server.settings)
        if server.settings.browser:
            with contextlib.suppress(webbrowser.Error):
                webbrowser.open(self.url)

    def do_deactivate(self) -> None:
        for subscription in self._hearing:
            self.destroy_subscription(subscription)
        self._hearing.clear()
        if self._server is not None:
            self._server.stop()
        if self._thread is not None:
            self._thread.join(3.0)
            self._thread = None
        if self._looking is not None:
            self.destroy_timer(self._looking)
            self._looking = None
        if self._graph.human is not None:
            self._graph.human.close()
            self._graph.human = None

    def do_cleanup(self) -> None:
        self._server = None

    def diagnose(self) -> Report:
        return OK, self.url.partition("?")[0] or self.state, {}

    def _serve(self, server: StudioServer, port: concurrent.futures.Future[int]) -> None:
        try:
            asyncio.run(server.run(port.set_result))
        except BaseException as error:  # raised again by `do_activate`
            if port.done():
                raise
            port.set_exception(error)

    # -- what is heard ------------------------------------------------------------------------

    def _listen(self, settings: StudioSettings) -> None:
        compressed = settings.image_transport == "compressed"
        for camera in configured(self._server).cameras:
            topic = f"{camera}/compressed" if compressed else camera
            kind = CompressedImage if compressed else Image
            self._hear(kind, topic, partial(self._on_image, camera), qos.IMAGE_INPUT)
        for name, kind, topic in (
            ("inference", InferenceStatus, "inference/status"),
            ("model", ModelInfo, "inference/model"),
            ("reasoning", Reasoning, "inference/reasoning"),
            ("command", CommandStatus, "command/status"),
            ("sim", SimStatus, "sim/status"),
            ("job", JobStatus, "training/status"),
        ):
            self._hear(kind, topic, partial(self._on_value, name), qos.LATCHED)
        self._hear(TaskEstimate, "estimate", partial(self._on_value, "estimate"), qos.CHUNK)
        self._by_hand(settings)
        self._hear(String, "inference/active_instruction", self._on_instruction, qos.LATCHED)
        self._hear(ActionChunk, "action", self._on_chunk, qos.CHUNK)
        self._hear(TwistStamped, "delta_twist", self._on_twist, qos.CHUNK)
        self._hear(Float64MultiArray, "gripper", self._on_gripper, qos.CHUNK)
        self._hear(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.CHUNK)

    def _hear(self, kind: Any, topic: str, callback: Any, profile: Any) -> None:
        self._hearing.append(
            self.create_subscription(kind, topic, callback, **qos.overridable(profile))
        )

    def _by_hand(self, settings: StudioSettings) -> None:
        """What the operator moves by hand, and who commands."""
        speeds = {f.name: getattr(settings, f.name) for f, _ in options(Speeds)}
        human = HumanAction(self, TeleopSettings(**speeds), "studio", self._on_source)
        self._graph.human = human
        self._looking = self.create_timer(LOOK, human.look)

    def _now(self) -> float:
        return 1e-9 * self.get_clock().now().nanoseconds

    def _on_image(self, camera: str, msg: Any) -> None:
        configured(self._server).show(camera, msg)

    def _on_value(self, name: str, msg: Any) -> None:
        configured(self._server).tell(name, plain(msg))

    def _on_source(self, source: str) -> None:
        if source != CommandSource.HUMAN and self._graph.human is not None:
            self._graph.human.leave()  # for another device to be found alone
        configured(self._server).tell("source", source)

    def _on_instruction(self, msg: String) -> None:
        configured(self._server).tell("instruction", msg.data)

    def _on_chunk(self, msg: ActionChunk) -> None:
        self._graph.chunk = msg
        configured(self._server).sample("chunk", plain(msg))

    def _on_twist(self, msg: TwistStamped) -> None:
        twist = msg.twist
        values = [getattr(v, axis) for v in (twist.linear, twist.angular) for axis in "xyz"]
        self._executed("twist", values)

    def _on_gripper(self, msg: Float64MultiArray) -> None:
        self._executed("gripper", list(msg.data))

    def _executed(self, what: str, values: list[float]) -> None:
        sample = {"what": what, "time": self._now(), "values": plain(values)}
        configured(self._server).sample("executed", sample)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            level = plain(status.level)
            self._diagnosed[status.name] = {"level": level, "message": status.message}
        configured(self._server).tell("diagnostics", dict(self._diagnosed))


def main(args: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] [studio]: %(message)s")
    return spin_node(StudioNode, args)


if __name__ == "__main__":
    sys.exit(main())
