"""Turns action chunks into safe robot commands. Pure Python; time is passed in.

`Commander` is all of it in one: chunks in, at every command period one `Command` or silence out.
"""

from vla_inference.control.commander import Command, Commander, Settings
from vla_inference.control.limits import SafetyLimits
from vla_inference.control.safety import DISABLED, ENABLED, STOPPED, Safety, Watchdogs

__all__ = [
    "DISABLED",
    "ENABLED",
    "STOPPED",
    "Command",
    "Commander",
    "Safety",
    "SafetyLimits",
    "Settings",
    "Watchdogs",
]
