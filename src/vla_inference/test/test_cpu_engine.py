"""Tests of `engine: torch` on CPU against the plain path: all heads and vision encoders."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_inference.checkpoints.random_weights import (
    HEADS,
    STATISTICS,
    TINY,
    byte_tokenizer,
    random_config,
    random_model,
)
from vla_inference.engines import Engine, make_engine
from vla_inference.engines.cpu import engine as cpu
from vla_inference.engines.cpu.engine import CpuEngine
from vla_inference.engines.cpu.linear import PackedLinear, packs
from vla_inference.policies.normalisation import unit_statistics
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.quantization import QuantLinear, get_format
from vla_inference.types import Observation

STACK_SMALL = Path(__file__).parents[3] / "models" / "stack-small"
ENCODER = TINY["vision_towers"][0]
SIZES = {
    "tiny": TINY,
    "conv stem, grouped heads": {
        **TINY,
        "vision_towers": [{**ENCODER, "stem": "conv", "embed_dim": 64}],
        "text_config": {
            **TINY["text_config"],
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    },
    "two vision encoders": {  # as OpenVLA has them
        **TINY,
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_towers": [
            {
                **ENCODER,
                "cls_token": True,
                "reg_tokens": 4,
                "layer_scale": True,
                "mean": [0.48, 0.45, 0.4],
                "std": [0.23, 0.22, 0.2],
            },
            {**ENCODER, "key": "fused_featurizer", "embed_dim": 48, "mlp_hidden": 70},
        ],
    },
}


def both(size: str, head: str, **options) -> tuple[OpenVLAPolicy, OpenVLAPolicy]:
    model = random_model({**random_config(SIZES[size], head), "norm_stats": STATISTICS})
    made = [Engine(model), CpuEngine(model, **options)]
    return tuple(
        OpenVLAPolicy(model, byte_tokenizer(), "cpu", torch.float32, engine=e) for e in made
    )


def observations(policy: OpenVLAPolicy, count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    head, size = policy.config.head, policy.config.encoders[0].image_size
    several = []
    for i in range(count):
        cells = rng.integers(0, 256, (head.num_images, 4, 4, 3), np.uint8)
        images = cells.repeat(size // 4, 1).repeat(size // 4, 2)
        state = rng.uniform(-1, 1, 8).astype(np.float32) if head.proprio_dim else None
        text = "lift it" + " now" * (i % 2)
        several.append(Observation({f"c{k}": p for k, p in enumerate(images)}, text, state))
    return several


def assert_alike(plain: OpenVLAPolicy, ours: OpenVLAPolicy, count: int = 6) -> None:
    space = {**STATISTICS["random"], "action": unit_statistics(7)}
    several, arguments = observations(plain, count), {"action_space": space}
    wanted = [plain.predict_action(o, **arguments) for o in several]
    one_by_one = [ours.predict_action(o, **arguments) for o in several]
    for answers in (one_by_one, ours.predict_batch(several, **arguments)):
        for got, want in zip(answers, wanted, strict=True):
            np.testing.assert_allclose(got.actions, want.actions, rtol=0, atol=1e-4)
            np.testing.assert_array_equal(got.tokens, want.tokens)
    assert np.ptp([w.actions for w in wanted], axis=0).max() > 0.01  # the images matter


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("packed", [None, False])
def test_it_answers_as_the_plain_engine_does(size, head, packed):
    assert_alike(*both(size, head, packed=packed))


def test_the_shipped_model_answers_alike_and_is_run_by_it():
    plain, ours = (
        OpenVLAPolicy.from_pretrained(STACK_SMALL, device="cpu", engine=e)
        for e in ("plain", "torch")
    )
    assert isinstance(ours.engine, CpuEngine)
    assert_alike(plain, ours)


def test_bfloat16_is_no_farther_off_than_the_plain_engine_in_bfloat16():
    if not packs(torch.bfloat16):
        pytest.skip("this processor does not multiply bfloat16")
    exact, plain, ours = (
        OpenVLAPolicy.from_pretrained(STACK_SMALL, device="cpu", engine=engine, dtype=dtype)
        for engine, dtype in (("plain", None), ("plain", "bfloat16"), ("torch", "bfloat16"))
    )
    assert isinstance(ours.engine, CpuEngine)
    several = observations(exact, 12)
    wanted, theirs, mine = (
        np.stack([p.predict_action(o, action_space="normalized").actions for o in several])
        for p in (exact, plain, ours)
    )
    assert np.sqrt(np.mean((mine - wanted) ** 2)) < 1.5 * np.sqrt(np.mean((theirs - wanted) ** 2))


def test_contexts_of_several_lengths_in_one_batch():
    plain, ours = both("tiny", "l1")
    torch.manual_seed(0)
    context, lengths = torch.randn(3, 30, 32), torch.tensor([30, 21, 26])
    got, want = (p.engine.predict_chunk(context, lengths) for p in (ours, plain))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_a_cache_that_is_full_goes_on():
    plain, ours = both("conv stem, grouped heads", "tokens")
    torch.manual_seed(0)
    words = torch.randn(2, 20, 64)
    caches = [p.engine.prefill(words[:, :5]) for p in (plain, ours)]
    for i in range(5, 20):
        (want, a), (got, b) = (
            p.engine.decode(words[:, i : i + 1], cache)
            for p, (_, cache) in zip((plain, ours), caches, strict=True)
        )
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        caches = [(want, a), (got, b)]


@pytest.mark.parametrize("packed", [None, False])
def test_quantised_layers_multiply_by_what_their_codes_stand_for(packed):
    torch.manual_seed(0)
    layers = []
    for n in (16, 24):
        layer = QuantLinear(get_format("int8"), n, 32)
        layer.codes.random_(-127, 128)
        layer.scales.uniform_(0.01, 0.02)
        layers.append(layer)
    x, scale = torch.randn(5, 32), torch.rand(32)
    product = PackedLinear(layers, 5, torch.float32, reads=scale, packed=packed)
    want = torch.cat([layer(x * scale) for layer in layers], dim=1)
    torch.testing.assert_close(product(x), want, rtol=1e-5, atol=1e-4)
    other = torch.randn_like(want)
    torch.testing.assert_close(product.join(x, other, "mul"), want * other, rtol=1e-4, atol=1e-4)


def test_what_it_does_not_take_is_run_plainly(monkeypatch):
    model = random_model(random_config("tiny", "l1"))
    half = copy.deepcopy(model).half()
    assert type(make_engine("torch", half)) is Engine
    monkeypatch.setattr(cpu, "COPIED", 1000)
    assert type(make_engine("torch", model)) is Engine
