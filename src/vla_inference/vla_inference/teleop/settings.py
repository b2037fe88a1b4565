"""`TeleopSettings`: options of `vla teleop` and parameters of its node."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_inference.options import Holds, option

DEVICES = ("keyboard", "gamepad", "spacemouse", "twist", "leader")
AHEAD = 0.2  # s that a chunk goes on for where no other replaces it


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Of what a person moves. The command node's limits are beyond them, whatever they are."""

    linear_speed: float = option(
        0.1, "speed of an end effector moved by hand, at full deflection [m/s]", low=1e-3, high=2
    )
    angular_speed: float = option(
        0.5, "its angular speed at full deflection [rad/s]", low=1e-3, high=6.3
    )
    base_linear_speed: float = option(
        0.2, "speed of a base moved by hand, at full deflection [m/s]", low=1e-3, high=5
    )
    base_angular_speed: float = option(
        0.5, "its angular speed at full deflection, by hand [rad/s]", low=1e-3, high=6.3
    )


@dataclass(frozen=True, kw_only=True)
class TeleopSettings(Speeds):
    device: str = option(
        "keyboard",
        "what the person has in hand: the terminal's keyboard; a gamepad or SpaceMouse "
        "(sensor_msgs/Joy); twist (geometry_msgs/TwistStamped); a leader arm "
        "(sensor_msgs/JointState)",
        choices=DEVICES,
    )
    mapping: str = option(
        "",
        "what its keys, buttons, axes or joints mean: a YAML file, or the name of one in "
        "config/teleop; empty: the device's own",
        holds=Holds.NAME_OR_PATH,
    )
    part: str = option("", "end effector or base that is moved; empty: the robot's first one")
    gripper: str = option("", "its gripper; empty: the one of that arm, or the first one")
    axes: str = option(
        "model",
        "axes in which an end effector is moved: base, tool; model: those of the model's deltas",
        choices=("model", "base", "tool"),
    )
    rate: float = option(20.0, "chunks per second while the switch is held [Hz]", low=5, high=200)
    silence: float = option(
        0.2,
        "time without a sign of the device until the switch counts as let go [s]",
        low=0.05,
        high=1,
    )
    switch: str = option(
        "key",
        "dead man's switch of a leader arm: key (a key of the terminal, held) or joy (the "
        "mapping's button on topic joy, such as a pedal)",
        choices=("key", "joy"),
    )
    max_difference: float = option(
        0.1,
        "largest difference of leader and follower at which following begins [rad, m]",
        low=1e-3,
        high=6.3,
    )
    align_speed: float = option(
        0.0,
        "speed at which the follower first comes to a leader that is farther away [rad/s, m/s]; "
        "0: it does not, and this is refused",
        low=0,
        high=2,
    )
    terminal: bool = option(
        False, "whether keys of the terminal take over and give back beside another device"
    )

    @property
    def steps(self) -> int:
        """Of a chunk."""
        return max(2, math.ceil(AHEAD * self.rate))
