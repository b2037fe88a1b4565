"""Compiles what the CUDA engines launch for an H200, without having one.

`test_flow_kernels.py` runs this in its own process. Triton's interpreter, which runs the gates
where there is no GPU, takes programs that its compiler refuses; that one needs no GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
from flow_models import engine_of, make
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from vla_inference.checkpoints.random_weights import TINY, random_config, random_model
from vla_inference.engines.cuda.llama import CudaLlama
from vla_inference.kernels import (
    attention,
    cached_attention,
    few_rows,
    gemv,
    gemv_w4a8,
    launch_settings,
    layers,
)
from vla_inference.policies.lerobot.flow import Inputs
from vla_inference.policies.pi05.config import published
from vla_inference.policies.pi05.model import Pi
from vla_inference.policies.smolvla.config import SmolVLAConfig
from vla_inference.policies.smolvla.model import SmolVLA
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_model

SHARED = {90: 227 * 1024, 89: 99 * 1024}  # bytes that a program may have, by the chip
PRODUCTS = ("_few_rows", "_attend_cached")


class Chip:
    """What Triton asks its driver."""

    def __init__(self, number: int):
        self.number = number

    def get_current_device(self) -> int:
        return self.number  # what is compiled for each device is kept apart

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.number, 32)


class Compiled(list[Any]):
    """Kernels that were compiled in place of being launched, each time they were: name, kernel."""

    def __init__(self, chip: int):
        super().__init__()
        self.most = SHARED[chip]

    def fits(self, wanted: tuple[str, ...] = PRODUCTS) -> bool:
        return {*wanted} <= {n for n, _ in self} and all(
            kernel.metadata.shared <= self.most for _, kernel in self
        )


@pytest.fixture
def compile_for(monkeypatch):
    """chip -> what is compiled for it from now on."""

    def begin(chip: int) -> Compiled:
        made, run, early = Compiled(chip), JITFunction.run, chip >= 90

        def only_compile(kernel, *args, grid, warmup, **options):
            made.append(
                (kernel.fn.__name__, run(kernel, *args, grid=grid, warmup=True, **options))
            )

        triton.runtime.driver.set_active(Chip(chip))
        monkeypatch.setattr(JITFunction, "run", only_compile)
        monkeypatch.setattr(launch_settings, "chip", lambda: f"sm_{chip}")
        launch_settings.tuned.cache_clear()
        given = {"early_launch": early, "early": {"launch_pdl": True} if early else {}}
        for module in (few_rows, cached_attention, layers, gemv, gemv_w4a8, attention):
            for name, value in given.items():
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, lambda value=value: value)
        return made

    return begin


def answer(model: Any, images: int, dtype: torch.dtype, by: str = "") -> None:
    c, size = model.config, model.config.image_size
    words = torch.zeros(1, 20, dtype=torch.long)
    state = torch.zeros(1, c.state_dim or 5, dtype=dtype)
    seen = torch.zeros(1, images, 3, *size, dtype=dtype)
    engine = engine_of(model, images, by or "dense", lambda key, work: work(), dtype)
    solve = engine.begin(Inputs(seen, words, words == words, state))
    solve(torch.zeros(1, c.chunk, c.action_dim), None, None)


@pytest.mark.parametrize("family", ["smolvla", "pi0", "pi05"])
@torch.inference_mode()
def test_small_models_in_float32(compile_for, family):
    compiled = compile_for(90)
    answer(make(family), 2, torch.float32)
    assert compiled.fits()


@pytest.mark.parametrize(
    "family, form", [("smolvla", ""), ("smolvla", "fp8"), ("pi05", ""), ("pi05", "int8")]
)
@torch.inference_mode()
def test_published_widths_in_bfloat16(compile_for, family, form):
    compiled = compile_for(90)
    model = of_two_layers(family)
    if form:
        quantize_model(model, get_format(form), where="language.layers")
    answer(model, 1, torch.bfloat16, get_format(form).activations if form else "")
    assert compiled.fits()
    products = [kernel for name, kernel in compiled if name in PRODUCTS]
    assert any("wgmma" in kernel.asm["ptx"] for kernel in products)


@pytest.mark.parametrize("family", ["smolvla", "pi05"])
@torch.inference_mode()
def test_published_widths_on_a_chip_with_less_room(compile_for, family):
    """An RTX 4090: nobody has measured launch settings for it."""
    compiled = compile_for(89)
    answer(of_two_layers(family), 1, torch.bfloat16)
    assert compiled.fits()


@pytest.mark.slow
@pytest.mark.parametrize("form, chip", [("", 90), ("int8", 89), ("int4", 90)])
@torch.inference_mode()
def test_minivla_of_the_published_widths(compile_for, form, chip):
    """Prefill and decode of Qwen2.5-0.5B: 14 heads of 64 on 2, with biases; 729 patches."""
    compiled = compile_for(chip)
    raw = random_config("minivla-384px")
    few = {"num_hidden_layers": 2, "vocab_size": 320}
    raw |= {"text_config": {**raw["text_config"], **few}, "pad_to_multiple_of": 15}
    raw |= {"vision_towers": [{**TINY["vision_towers"][0]}], "stop_token_id": 2}
    model = random_model(raw, "cpu", torch.bfloat16)
    if form:
        quantize_model(model, get_format(form), "rtn")
    llama = CudaLlama(model, 1024, "dense")
    llama.prefill(torch.zeros(780, 896, dtype=torch.bfloat16))
    token, (hidden, word) = torch.zeros(1, dtype=torch.long), torch.zeros(2, 896).bfloat16()
    state = llama.decode(word, 780)
    llama.read_token(state, token, hidden, word)
    product = "_gemv_int" if form else "_gemv"
    assert compiled.fits(("_split_heads", "_rms_norm", "_gate_mul", "_choose", product))


def of_two_layers(family: str) -> SmolVLA | Pi:
    c: Any = SmolVLAConfig() if family == "smolvla" else published(family)
    few = {n: replace(getattr(c, n), layers=2) for n in ("vision", "text", "expert")}
    if family == "smolvla":
        few["text"] = replace(few["text"], vocabulary=300)
        model: SmolVLA | Pi = SmolVLA(replace(c, steps=2, **few))
    else:
        model = Pi(replace(c, steps=2, vocabulary=300, **few))
    return model.to(torch.bfloat16).eval().requires_grad_(False)
