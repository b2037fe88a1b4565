"""The registry of engines: ways to run a model, by name.

An entry is "module:function"; the function takes the model (and what its options are) and returns
an `Engine`. It is imported only when it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from vla_inference.engines.base import Engine, Language, Vision
from vla_inference.errors import VlaError
from vla_inference.policies.openvla.model import VLA

ENGINES = {
    "plain": "vla_inference.engines.base:Engine",
    "torch": "vla_inference.engines.fast:make",
    "tvm": "vla_inference.engines.tvm.engine:make",
    "mlc": "vla_inference.engines.mlc.engine:make",
}
# What may take the place of the engine's own vision encoders and projector.
VISIONS = {
    "onnx": "vla_inference.engines.vision.onnx:make",
    "tensorrt": "vla_inference.engines.vision.tensorrt:make",
}
# Compiled parts of the model, and the tensors that then need not be loaded.
COMPILED = {
    "tvm": ("language_model.model.layers.", "language_model.model.norm."),
    "mlc": ("language_model.model.layers.", "language_model.model.norm."),
    "onnx": ("vision_backbone.", "projector."),
    "tensorrt": ("vision_backbone.", "projector."),
}


def make_engine(
    name: str,
    model: VLA,
    *,
    vision: str = "",
    checkpoint: str | os.PathLike | None = None,
    draft: bool = False,
    **options: Any,
) -> Engine:
    """The engine of that name around a model; an unknown name lists the known ones.

    name: of a compiled one with its folder, "tvm:FOLDER".
    vision: "onnx:FOLDER" or "tensorrt:FOLDER" for the vision encoders and the projector; "" for
        the engine's own.
    checkpoint: folder of the model's weights, which compiled parts must have been made from.
    draft: the last action's tokens are tried first (`draft.DraftEngine`); engine plain alone.
    """
    kind, folder = _split(name, ENGINES, "engine")
    if draft and kind != "plain":
        raise VlaError(f"engine {kind!r} takes no draft", "use engine plain, or leave it out")
    if kind in COMPILED:
        options |= {"folder": folder, "checkpoint": checkpoint}
    if vision:
        part, where = _split(vision, VISIONS, "vision")
        options["vision"] = _find(VISIONS, part)(model, where, checkpoint)
    if draft:
        from vla_inference.engines.draft import DraftEngine

        return DraftEngine(model, **options)
    return _find(ENGINES, kind)(model, **options)


def usual_engine(device: str, draft: bool = False) -> str:
    """The default: the fast engine if it can run here (on CUDA it needs Triton)."""
    cuda = device.startswith("cuda")
    if draft or (cuda and importlib.util.find_spec("triton") is None):
        return "plain"
    return "torch"


def left_out(name: str, vision: str = "") -> tuple[str, ...]:
    """Name prefixes of the tensors that these compiled parts replace."""
    kinds = [_split(name, ENGINES, "engine")[0]] if name else []
    kinds += [_split(vision, VISIONS, "vision")[0]] if vision else []
    return tuple(prefix for kind in kinds for prefix in COMPILED.get(kind, ()))


def _split(name: str, known: dict[str, str], what: str) -> tuple[str, str]:
    """ "tvm:FOLDER" -> its parts, checked."""
    kind, _, folder = name.partition(":")
    if kind not in known:
        raise VlaError(f"there is no {what} {kind!r}", f"known: {', '.join(known)}")
    if kind in COMPILED and not folder:
        raise VlaError(
            f"{what} {kind!r} needs a compiled folder",
            f"say {kind}:FOLDER; `vla compile --engine {kind}` makes one",
        )
    if folder and kind not in COMPILED:
        raise VlaError(f"{what} {kind!r} takes no folder", f"say {kind}")
    return kind, folder


def _find(known: dict[str, str], kind: str):
    module, function = known[kind].split(":")
    return getattr(importlib.import_module(module), function)


__all__ = ["ENGINES", "VISIONS", "Engine", "Language", "Vision", "left_out", "make_engine"]
