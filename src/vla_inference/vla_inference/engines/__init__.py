"""Engines by name: one place where a way of running a model is looked up.

An entry is "module:function"; the function takes the model (and what its options are) and returns
an `Engine`. It is imported only when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from vla_inference.engines.base import Engine, Language, Vision
from vla_inference.errors import VlaError
from vla_inference.model import VLA

ENGINES = {
    "plain": "vla_inference.engines.base:Engine",
    "torch": "vla_inference.engines.fast:make",
}
# What may take the place of the engine's own vision towers and projector.
VISIONS: dict[str, str] = {}


def make_engine(name: str, model: VLA, **options: Any) -> Engine:
    """The engine of that name around a model; an unknown one lists what there is."""
    return _find(ENGINES, name, "engine")(model, **options)


def _find(known: dict[str, str], name: str, what: str):
    if name not in known:
        raise VlaError(f"there is no {what} {name!r}", f"known: {', '.join(known)}")
    module, function = known[name].split(":")
    return getattr(importlib.import_module(module), function)


__all__ = ["ENGINES", "VISIONS", "Engine", "Language", "Vision", "make_engine"]
