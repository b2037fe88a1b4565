"""The registry of engines: ways to run a model, by name.

An entry is "module:object", imported only when it is asked for. An engine's is called with the
model and its options; a compiled part's with its folder, the device, the model's config and the
checkpoint that it must have been made from.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from vla_inference.engines.base import Engine, Language, Vision
from vla_inference.engines.compiled import REPLACED
from vla_inference.errors import VlaError
from vla_inference.openvla.model import VLA

ENGINES = {
    "plain": "vla_inference.engines.base:Engine",
    "torch": "vla_inference.engines.base:Engine",  # of a device that `TORCH` lacks
    "tvm": "vla_inference.engines.base:Engine",
    "mlc": "vla_inference.engines.mlc.engine:MlcEngine",
}
# Engine torch by the kind of device.
TORCH = {
    "cpu": "vla_inference.engines.cpu.engine:make",
    "cuda": "vla_inference.engines.cuda.engine:CudaEngine",
}
# Compiled parts of an engine: of some its `language`, of others, the `vision` encoders.
LANGUAGES = {
    "tvm": "vla_inference.engines.tvm.engine:TvmLanguage",
    "mlc": "vla_inference.engines.mlc.engine:MlcLanguage",
}
VISIONS = {
    "onnx": "vla_inference.engines.vision.onnx:OnnxVision",
    "tensorrt": "vla_inference.engines.vision.tensorrt:TensorrtVision",
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
    device = model.language_model.model.embed_tokens.weight.device
    if vision:
        part, where = _split(vision, VISIONS, "vision")
        options["vision"] = _find(VISIONS[part])(where, device, model.config, checkpoint)
    if kind in LANGUAGES:
        language = _find(LANGUAGES[kind])
        options["language"] = language(folder, device, model.config, checkpoint)
    if draft:
        from vla_inference.engines.draft import DraftEngine

        return DraftEngine(model, **options)
    entry = TORCH.get(device.type, ENGINES[kind]) if kind == "torch" else ENGINES[kind]
    engine = _find(entry)(model, **options)
    if kind in LANGUAGES:
        engine.name = kind
    return engine


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
    return tuple(prefix for kind in kinds for prefix in REPLACED.get(kind, ()))


def _split(name: str, known: dict[str, str], what: str) -> tuple[str, str]:
    """ "tvm:FOLDER" -> its parts, checked."""
    kind, _, folder = name.partition(":")
    if kind not in known:
        raise VlaError(f"there is no {what} {kind!r}", f"known: {', '.join(known)}")
    if kind in REPLACED and not folder:
        raise VlaError(
            f"{what} {kind!r} needs a compiled folder",
            f"say {kind}:FOLDER; `vla compile --engine {kind}` makes one",
        )
    if folder and kind not in REPLACED:
        raise VlaError(f"{what} {kind!r} takes no folder", f"say {kind}")
    return kind, folder


def _find(entry: str) -> Any:
    module, name = entry.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise VlaError(
            f"{module} cannot be imported ({error})",
            "install what is missing (on CUDA: Triton), or use engine plain",
        ) from error


__all__ = ["ENGINES", "VISIONS", "Engine", "Language", "Vision", "left_out", "make_engine"]
