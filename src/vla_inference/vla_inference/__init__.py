"""Vision-language-action (VLA) models as ROS 2 nodes, and as a library without ROS.

from vla_inference import load_policy
load_policy("models/stack-small").act("table.jpg", "stack the red block on the green one")
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

# OpenMP's threads wait for each other by spinning; with a busy neighbour on the same cores that
# makes a model 10 to 100 times slower. Read when PyTorch is imported, so it must be set before.
TOO_LATE = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from vla_inference.errors import VlaError
    from vla_inference.policies.base import LoadOptions, Policy
    from vla_inference.policies.registry import load_policy
    from vla_inference.types import ActionChunk, ActionSpec, Observation

# Where each name is; imported when it is asked for, so that no part waits for another.
_HOMES = {
    "ActionChunk": "types",
    "ActionSpec": "types",
    "LoadOptions": "policies.base",
    "Observation": "types",
    "Policy": "policies.base",
    "VlaError": "errors",
    "load_policy": "policies.registry",
}
__all__ = [
    "ActionChunk",
    "ActionSpec",
    "LoadOptions",
    "Observation",
    "Policy",
    "VlaError",
    "load_policy",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
