"""The simulation node: publishes images and an instruction, executes actions, counts success.

All work is done in one thread. What there is to see and count is `Episodes`'; what moves the arm,
and when, is a `Drive`'s: chunks by themselves, or commands as a robot's controller takes them.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence

from vla_inference.errors import VlaError
from vla_inference.ros.diagnostics import Diagnostics, Report
from vla_inference.ros.guard import GuardedNode
from vla_inference.ros.parameters import declare, fields_of
from vla_sim_bridge.envs.protocol import make_world
from vla_sim_bridge.ros.episodes import Episodes
from vla_sim_bridge.ros.executor import ChunkDrive
from vla_sim_bridge.ros.robot.robot_executor import RobotDrive
from vla_sim_bridge.ros.sim_process import run
from vla_sim_bridge.ros.sim_services import SimServices
from vla_sim_bridge.ros.sim_settings import SimSettings

UNNAMED = "_NODE_NAME_UNKNOWN_"  # rmw: the node of an endpoint, before it is known


class SimNode(GuardedNode):
    """See config/sim.yaml for the parameters."""

    def __init__(self, **kwargs):
        super().__init__("sim", **kwargs)
        # Loosely typed: an integer for a double, say, is taken; the settings refuse the rest.
        declare(self, SimSettings, read_only=True, dynamic_typing=True)
        values = {name: self.get_parameter(name).value for name in fields_of(SimSettings)}
        self.settings = SimSettings.from_values(values)
        self.folder = self.settings.output_folder()
        self.stop: Callable[[], bool] = lambda: False  # asked between control steps
        self.begun = False
        self._created = time.monotonic()

    def load(self) -> None:
        """Build the simulation, make sure that no other one is there, publish the first frame."""
        s = self.settings
        world = make_world(s.task, s.cameras, s.width, s.height, s.language)
        world.render(s.camera)  # the first image takes a second
        self._refuse_company()
        self._make_folder()
        self.episodes = Episodes(self, s, self.folder, world, self.stop)
        kind = ChunkDrive if s.driven_by == "chunks" else RobotDrive
        self.drive = kind(self, self.episodes)
        SimServices(self, self.drive)
        Diagnostics(self, "simulation", self._diagnose)
        self.drive.start()
        self.episodes.say(
            f"{s.task}, {s.episodes} episodes of seed {s.seed}; results: {self.folder}"
        )
        self.begun = True
        self.drive.begin_episode()
        self.create_timer(1.0, self.episodes.publish_status)

    def _refuse_company(self) -> None:
        """Two simulations on the same topics would each execute what the other's model said."""
        topic = self.resolve_topic_name("image")
        end = self._created + self.settings.discovery_time
        while True:
            others = self.get_publishers_info_by_topic(topic)
            # What a node is called is told later than what it publishes.
            known = others and all(o.node_name != UNNAMED for o in others)
            if known or time.monotonic() >= end or self.stop():
                break
            time.sleep(0.05)
        if others:
            names = {f"{o.node_namespace.rstrip('/')}/{o.node_name}" for o in others}
            raise VlaError(
                f"{topic} has a publisher already ({', '.join(sorted(names))})",
                "end the other simulation or camera, or give this one a namespace of its own "
                "(a killed one takes up to 20 s to be forgotten)",
            )

    def _make_folder(self) -> None:
        """Before the first step rather than after a hundred episodes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".writable").touch()
            (self.folder / ".writable").unlink()
        except OSError as error:
            raise VlaError(
                f"cannot write into {self.folder} ({error.strerror})",
                "choose another output folder",
            ) from None

    def _diagnose(self) -> Report:
        level, message, values = self.episodes.diagnose()
        return level, message, {**values, **self.fault_values()}

    def tick(self) -> None:
        """Called between callbacks: whatever time has brought, progress lines."""
        if self.episodes.paused or self.episodes.finished:
            return
        self.drive.poll()
        self.episodes.progress()

    def finish(self, ended: str, error: bool = False) -> None:
        """Write all that was measured; `ended` says why the run is over."""
        if self.begun:
            self.episodes.end(ended, error)
            return
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # nothing is in it


def main(args: Sequence[str] | None = None) -> int:
    return run(SimNode, args)


if __name__ == "__main__":
    sys.exit(main())
