"""From action chunks to commands that may be sent to a robot. Pure Python, no clock of its own.

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
