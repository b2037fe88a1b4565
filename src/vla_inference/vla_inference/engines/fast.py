"""`engine: torch`: the CPU or the CUDA engine, chosen by the model's device."""

from __future__ import annotations

from typing import Any

from vla_inference.engines.base import Engine
from vla_inference.errors import VlaError
from vla_inference.policies.openvla.model import VLA


def make(model: VLA, **options: Any) -> Engine:
    """The CUDA engine for a model on CUDA, the CPU engine for one on the CPU.

    Raises VlaError where Triton is missing on CUDA.
    """
    device = model.language_model.model.embed_tokens.weight.device
    if device.type == "cpu":
        from vla_inference.engines.cpu import engine

        return engine.make(model, **options)
    if device.type != "cuda":
        return Engine(model, **options)
    try:
        from vla_inference.engines.cuda.engine import CudaEngine
    except ImportError as error:
        raise VlaError(
            f"the torch engine on CUDA needs Triton ({error})",
            "pip install triton, or use the plain engine",
        ) from error
    return CudaEngine(model, **options)
