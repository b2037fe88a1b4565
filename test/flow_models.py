"""Small flow-matching models with numbers in all of their weights, and their CUDA engine."""

from __future__ import annotations

from typing import Any

import torch
from kernel_cases import DEVICE, Draw

from vla_inference.engines.cuda.graphs import Graphs
from vla_inference.policies.lerobot.cuda.engine import FlowEngine, room
from vla_inference.policies.lerobot.flow import FlowSizes
from vla_inference.policies.lerobot.network.siglip import VisionDims
from vla_inference.policies.pi05.config import GemmaDims, PiConfig
from vla_inference.policies.pi05.cuda import CudaPi
from vla_inference.policies.pi05.model import Pi
from vla_inference.policies.smolvla.config import ExpertDims, SmolVLAConfig, TextDims
from vla_inference.policies.smolvla.cuda import CudaSmolVLA
from vla_inference.policies.smolvla.model import SmolVLA

VISION = VisionDims(32, 1, 2, 48, 32, 16)  # 4 patches an image


def make(family: str) -> SmolVLA | Pi:
    """A small model with numbers in all of its weights."""
    if family.startswith("smolvla"):
        text, every = TextDims(48, 2, 4, 2, 8, 80, 300), 0 if "," in family else 2
        expert = ExpertDims(40, 2, 56, 1, every)
        model: SmolVLA | Pi = SmolVLA(
            SmolVLAConfig(VISION, text, expert, 2, 5, 6, 7, 2, 20, image_size=(32, 32))
        )
    else:
        text, own = GemmaDims(48, 2, 80, 2, 1, 16), GemmaDims(40, 2, 56, 2, 1, 16)
        if family == "pi05":
            own = GemmaDims(40, 2, 56, 2, 1, 16, condition=40)
        state = 5 if family == "pi0" else 0
        model = Pi(PiConfig(VISION, text, own, 300, state, 6, 7, 2, 20))
    draw = Draw(len(family))
    for p in model.to(DEVICE).eval().requires_grad_(False).parameters():
        p.copy_(draw(*p.shape) / (p.shape[-1] ** 0.5 if p.ndim > 1 else 5))
    return model


def engine_of(
    model: SmolVLA | Pi, images: int, by: str = "int8", replay=None, dtype=torch.float32
) -> FlowEngine:
    c = model.config
    sizes = FlowSizes(c.chunk, c.steps, c.state_dim or 5, c.action_dim, c.image_size, c.words)
    most = room(images, sizes, torch.device(DEVICE), dtype)
    kind: Any = CudaSmolVLA if isinstance(model, SmolVLA) else CudaPi
    network = kind(model, images, most.words.shape[1], by)
    usual = Graphs(9).replay if DEVICE == "cuda" else (lambda key, work: work())
    return FlowEngine(model, network, most, replay or usual)
