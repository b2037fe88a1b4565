"""The node of `vla teleop`: what a person's device says, as `human_action` at a fixed rate.

Limits and watchdogs are the command node's, as for a model. Here is the dead man's switch: while
it is held chunks go out, when it is let go one of no motion, and then nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rclpy.clock import Clock, ClockType

from vla_inference.errors import VlaError
from vla_inference.ros.diagnostics import OK, WARN, Report
from vla_inference.ros.lifecycle import ManagedNode, configured, spin_node
from vla_inference.ros.teleop.human import HumanAction
from vla_inference.ros.teleop.inputs import Inputs
from vla_inference.teleop.settings import TeleopSettings
from vla_inference.teleop.wish import GIVE_BACK, HAND_OVER, TAKE_OVER, Wish
from vla_msgs.msg import CommandSource

QUIET = 5.0  # s between two lines about the same error
NAMES = {CommandSource.MODEL: "the model commands", CommandSource.HUMAN: "you command"}


class TeleopNode(ManagedNode):
    TASK = "teleoperation"
    UNLOCKED = frozenset({"use_sim_time"})  # its clock is the command node's

    def __init__(self, name: str = "teleop", **kwargs: Any):
        super().__init__(name, TeleopSettings, **kwargs)
        self._human: HumanAction | None = None
        self._inputs: Inputs | None = None
        self._timer: Any = None
        self._held = False
        self._acts: tuple[str, ...] = ()  # that no chunk has told yet
        self._problem, self._complaint, self._told = "", "", 0.0

    # -- lifecycle ----------------------------------------------------------------------------

    def do_configure(self) -> None:
        self._settings = self.read(TeleopSettings)
        self._human = HumanAction(self, self._settings, self._settings.device, self._commands)

    def do_activate(self) -> None:
        human = configured(self._human)
        human.open()
        self._inputs = Inputs(self, human, self._settings, self._heard)
        # Steady: where simulated time waits for a person, the person must not wait for it.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(1 / self._settings.rate, self._tick, clock=steady)

    def do_deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        if self._human is not None:
            self._human.leave()
        self._held = False

    def do_cleanup(self) -> None:
        if self._human is not None:
            self._human.close()
            self._human = None

    # -- the person ---------------------------------------------------------------------------

    def _heard(self) -> None:
        """A device has spoken: a switch that was let go is told at once."""
        if self._held:
            self._tick(release_only=True)

    def _tick(self, release_only: bool = False) -> None:
        human, inputs = self._human, self._inputs
        if human is None or inputs is None:
            return
        human.look()
        wish = Wish()
        try:
            wish = inputs.wish(time.monotonic())
            self._acts = (*self._acts, *wish.acts) if wish.held else ()
            if wish.held and not release_only:
                human.send(replace(wish, acts=self._acts))
                self._acts = ()
            self._problem = ""
        except VlaError as error:
            wish = Wish()
            self._complain(str(error))
        if not wish.held:
            human.halt()
        self._held = wish.held
        for act in inputs.acts:
            self._act(act)

    def callback_failed(self, where: str, reason: str) -> None:
        """Whatever was wrong: nothing moves on."""
        if self._human is not None:
            self._human.halt()

    def _complain(self, problem: str) -> None:
        now = time.monotonic()
        if problem != self._complaint or now - self._told > QUIET:
            self._told = now
            self.get_logger().error(f"nothing moves: {problem}")
        self._problem = self._complaint = problem

    # -- who commands -------------------------------------------------------------------------

    def _act(self, act: str) -> None:
        human = configured(self._human)
        if act in (TAKE_OVER, GIVE_BACK):
            human.take_over(act == TAKE_OVER, self._answered)
        elif act == HAND_OVER:
            human.take_over(human.source != CommandSource.HUMAN, self._answered)

    def _answered(self, agreed: bool, message: str) -> None:
        if not agreed:
            self.get_logger().error(f"who commands stays as it is: {message}")

    def _commands(self, source: str) -> None:
        self.get_logger().info(NAMES.get(source, f"{source} commands"))

    def diagnose(self) -> Report:
        human = self._human
        problem = self._problem or (human.problem if human else "")
        values = {
            "device": self.value("device"),
            "commands": human.source if human else "",
            "switch": "held" if self._held else "let go",
            "chunks": human.sent if human else 0,
        }
        return (WARN, problem, values) if problem else (OK, self.state, values)


def main(args: Sequence[str] | None = None) -> int:
    return spin_node(TeleopNode, args)


if __name__ == "__main__":
    sys.exit(main())
