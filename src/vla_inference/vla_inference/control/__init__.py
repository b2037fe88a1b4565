"""Turns action chunks into safe robot commands. Pure Python; time is passed in.

`RobotCommander` is all of it in one: chunks in, at every command period commands of the robot's
parts or silence out. `Commander` is the same for one arm and its gripper.
"""

from vla_inference.control.commander import Commander, RobotCommander
from vla_inference.control.commands import Command
from vla_inference.control.limits import SafetyLimits
from vla_inference.control.safety import DISABLED, ENABLED, STOPPED, Safety, Watchdogs
from vla_inference.control.settings import Settings
from vla_inference.control.takeover import HUMAN, MODEL, Takeover

__all__ = [
    "DISABLED",
    "ENABLED",
    "HUMAN",
    "MODEL",
    "STOPPED",
    "Command",
    "Commander",
    "RobotCommander",
    "Safety",
    "SafetyLimits",
    "Settings",
    "Takeover",
    "Watchdogs",
]
