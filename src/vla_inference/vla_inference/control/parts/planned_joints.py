"""Joints whose output sends a whole motion at once: each command says what follows it.

What follows is what would be commanded if no more chunks came and the joints followed: within all
limits, and always up to a standstill, so that what executes it may be left alone at any time.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

from vla_inference.control.axis import Axis
from vla_inference.control.parts.joints import JointPart, JointSettings, JointTargets
from vla_inference.control.players.joint_player import Joints
from vla_inference.control.safety import Safety
from vla_inference.control.settings import Settings
from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk

LONGEST = 10_000  # periods in which every joint has come to a standstill


class PlannedJointPart(JointPart):
    """Its targets have `ahead`. While nothing new is known, it is that of the command before
    without its first; so an output knows when there is something to send.

    horizon: how far it plans before it brakes [s]. A longer chunk is planned on in time.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        joints: JointSettings,
        safety: Safety,
        horizon: float = 1.0,
    ):
        super().__init__(name, settings, joints, safety)
        if not all(joints.drift):
            raise VlaError(
                "max_drift is 0, so that each command starts from the measured joint",
                "set how far commands may be ahead of it, or use an output without plans",
            )
        self._far = max(1, round(horizon / self.period))
        self._plan: list[list[Axis]] = []  # states at the ends of the periods to come
        self._left = 0  # of its periods, until it brakes
        self._cut = False  # whether it brakes before the motion's end
        self._changed = True  # whether it may be out of date
        self._window = 0.0, 0.0

    def enabled(self, steady: float) -> None:
        super().enabled(steady)
        self._plan = []

    def rescale(self, scale: float) -> None:
        super().rescale(scale)
        self._plan = []

    def accept(self, chunk: ActionChunk, stamp: float, begin: float, now: float) -> bool:
        taken = super().accept(chunk, stamp, begin, now)
        self._changed = self._changed or taken
        return taken

    def drop(self) -> None:
        super().drop()
        self._changed = True

    def begins(self, now: float, steady: float, begin: float, end: float) -> float | None:
        self._skip(begin)
        self._window = begin, end
        return super().begins(now, steady, begin, end)

    def _skip(self, begin: float) -> None:
        """Periods that did not take place: what was sent went on."""
        missed = int(max(0.0, begin - self._window[1]) / self.period + 0.5)
        for axes in self._plan[:missed]:
            self.axes = axes
            self._sent(_positions(axes), tuple(axis.velocity for axis in axes))
        self._plan = self._plan[missed:]

    def halts(self, steady: float) -> None:
        super().halts(steady)
        self._plan = []

    def move(self, live: bool) -> JointTargets | None:
        targets = super().move(live)
        if targets is None or not live:
            self._plan = []
            return targets
        self._left -= 1
        as_planned = bool(self._plan) and targets.positions == _positions(self._plan[0])
        if self._changed or not as_planned or (self._cut and 2 * self._left <= self._far):
            # A joint that is waited for is not left behind.
            held_up = any(watch.waits for watch in self._watches)
            self._plan_ahead(0 if held_up else self._far)
        else:
            self._plan = self._plan[1:]
        return replace(targets, ahead=tuple(map(_positions, self._plan)))

    def _plan_ahead(self, steps: int) -> None:
        """Follows the player for so many periods, then brakes."""
        axes = [copy(axis) for axis in self.axes]
        goal, (_, end) = self._goal, self._window
        self._plan, self._left, self._changed, self._cut = [], steps, False, False
        for step in range(LONGEST):
            begin, end = end, end + self.period
            motion = self._planned(begin, end) if step < steps else None
            if motion is not None:
                goal = motion.values if self._absolute else None
            elif step >= steps:
                goal, self._cut = None, True
            for i, axis in enumerate(axes):
                going = motion.going[i] if motion is not None else 0.0
                if goal is None:
                    axis.follow_velocity(going)
                else:
                    axis.follow(goal[i], going)
            if motion is None and not any(axis.velocity for axis in axes):
                return
            self._plan.append([copy(axis) for axis in axes])


def _positions(axes: list[Axis]) -> Joints:
    return tuple(axis.position for axis in axes)
