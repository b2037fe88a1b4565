"""Compares the kernels and the CUDA engine of the flow-matching policies with the plain path.

`test_kernels.py` runs this in its own process, as it does `kernel_gates.py`.
"""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from flow_models import engine_of, make
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DEVICE, EXACT, FEW, SEEDS, Draw, fenced, off, poison, rms, within
from torch import Tensor

from vla_inference.kernels import cached_attention, few_rows
from vla_inference.kernels.cached_attention import attend_cached
from vla_inference.kernels.few_rows import Launch, Normed, Parts
from vla_inference.policies.chunking import RealTimeChunking
from vla_inference.policies.lerobot.cuda.engine import round_up
from vla_inference.policies.lerobot.cuda.siglip import CudaSiglip
from vla_inference.policies.lerobot.flow import Inputs, sample
from vla_inference.policies.lerobot.network.siglip import VisionDims, VisionEncoder
from vla_inference.policies.lerobot.rtc import guide_to
from vla_inference.policies.pi05.model import Pi
from vla_inference.policies.smolvla.model import SmolVLA
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_model

__all__ = ["poison"]

AFTER = {
    "": lambda v: v,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
}


@pytest.fixture(scope="module")
def parts() -> Parts:
    room = Parts(torch.device(DEVICE), 1 << 18, 64)
    room.sums.fill_(float("nan"))
    return room


@pytest.mark.parametrize("after", AFTER)
@given(
    seed=SEEDS,
    m=st.sampled_from([1, 19, 70]),
    n=st.sampled_from([32, 45]),
    k=st.sampled_from([32, 144, 150]),
    splits=st.sampled_from([1, 3]),
    norm=st.booleans(),
    bias=st.booleans(),
    pair=st.booleans(),
    add=st.booleans(),
)
@settings(FEW, max_examples=3)
def test_few_rows(parts, after, seed, m, n, k, splits, norm, bias, pair, add):
    draw = Draw(seed)
    rows = 2 * n if pair else n
    x, weight = fenced(draw(m, k))[0], fenced(draw(rows, k) / k**0.5)[0]
    gains, shift = draw.positive(k), draw(rows)
    gain, residual = draw(n), draw(m, n)
    following = draw.positive(n)
    y = few_rows.few_rows_normed(
        normed(x, gains) if norm else x,
        weight,
        parts,
        following,
        eps=1e-5,
        bias=shift if bias else None,
        after=after,
        pair=pair,
        gain=gain if add else None,
        residual=residual if add else None,
        launch=Launch(16, 32, splits, 2, 2),
    )
    seen = rms(x, gains, 1e-5) if norm else x.double()
    wanted = seen @ weight.double().T + (shift.double() if bias else 0)
    wanted, up = (wanted[:, :n], wanted[:, n:]) if pair else (wanted, 1)
    wanted = AFTER[after](wanted) * up
    if add:
        wanted = residual.double() + gain.double() * wanted
    assert within(y.rows, wanted, 2 * EXACT) and not parts.arrived.any()
    assert within(y.scaled, wanted * following, 2 * EXACT)
    assert within(y.squares.sum(0), wanted.square().sum(1), 4 * EXACT)


def normed(x: Tensor, weights: Tensor) -> Normed:
    """As another product leaves rows, in three tiles."""
    tiles = (x * x).tensor_split(3, 1)
    squares = fenced(torch.stack([tile.sum(1) for tile in tiles]))[0]
    return Normed(x, fenced(x * weights)[0], squares)


@given(
    seed=SEEDS,
    m=st.sampled_from([1, 19]),
    k=st.sampled_from([32, 96]),
    splits=st.sampled_from([1, 2]),
    d=st.sampled_from([8, 12, 32]),
)
@FEW
def test_few_rows_of_heads_that_turn(parts, seed, m, k, splits, d):
    draw, heads, kv = Draw(seed), 3, 2
    weight, bias = draw((heads + 2 * kv) * d, k) / k**0.5, draw((heads + 2 * kv) * d)
    x, angles = draw(m, k), draw(m, d // 2)
    y = few_rows.few_rows(
        x,
        few_rows.neighbours(weight, d),
        parts,
        bias=few_rows.neighbours(bias, d),
        rotary=(angles.cos(), angles.sin()),
        turned=(heads + kv) * d,
        launch=Launch(16, 32, splits, 2, 2),
    )
    wanted = (x.double() @ weight.double().T + bias.double()).view(m, -1, d)
    wanted[:, : heads + kv] = turned(wanted[:, : heads + kv], angles[:, None])
    assert within(y, wanted.flatten(1), 2 * EXACT)


def test_the_room_for_parts_is_kept(parts):
    draw = Draw(0)
    with pytest.raises(Exception, match="do not fit the room"):
        few_rows.few_rows(draw(64, 2048), draw(512, 2048), parts, launch=Launch(16, 32, 32))


@given(
    seed=SEEDS,
    m=st.sampled_from([1, 21]),
    kv=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    d=st.sampled_from([16, 24]),
    own=st.sampled_from(cached_attention.OWN),
    length=st.integers(1, 30),
    splits=st.sampled_from([1, 3]),
)
@settings(FEW, max_examples=8)
def test_attention_to_a_cache(parts, seed, m, kv, group, d, own, length, splits):
    draw, heads, resumes, n, room = Draw(seed), kv * group, 32, 37, 41
    cache = torch.full((2, kv, room, d), float("nan"), device=DEVICE)
    cache[:, :, :n] = draw(2, kv, n, d)
    keys, values = cache[:, :, :n]
    qkv = fenced(draw(m, (heads + 2 * kv) * d))[0]
    seen = torch.ones(m, n, dtype=torch.bool, device=DEVICE)
    seen[:, length:resumes] = False
    q, k, v = (
        p.view(m, -1, d).transpose(0, 1).double()
        for p in qkv.split([heads * d, kv * d, kv * d], 1)
    )
    k, v = torch.cat([keys.double(), k], 1), torch.cat([values.double(), v], 1)
    mine = torch.full((m, m), bool(own), device=DEVICE)
    seen = torch.cat([seen, mine.tril() if own == "causal" else mine], 1)
    wanted = F.scaled_dot_product_attention(q[None], k[None], v[None], seen, enable_gqa=True)[0]
    found = attend_cached(
        qkv,
        keys,
        values,
        torch.tensor([length], dtype=torch.int32, device=DEVICE),
        parts,
        heads=heads,
        resumes=resumes,
        own=own,
        launch=cached_attention.Launch(16, 16, splits, 2, 2),
    )
    assert within(found, wanted.transpose(0, 1).flatten(1), 2 * EXACT)
    assert not parts.arrived.any()


@given(seed=SEEDS, length=st.integers(1, 19))
@FEW
def test_attention_among_a_prefix_whose_last_slot_only_it_sees(parts, seed, length):
    draw, heads, kv, d, n = Draw(seed), 4, 2, 16, 21
    q, keys, values = draw(n, heads * d), draw(kv, n, d), draw(kv, n, d)
    seen = torch.ones(n, n, dtype=torch.bool, device=DEVICE)
    seen[:, length : n - 1] = False
    seen[:-1, -1] = False
    wanted = F.scaled_dot_product_attention(
        q.view(1, n, heads, d).transpose(1, 2).double(),
        keys[None].double(),
        values[None].double(),
        seen,
        enable_gqa=True,
    )
    found = attend_cached(
        q,
        keys,
        values,
        torch.tensor([length], dtype=torch.int32, device=DEVICE),
        parts,
        heads=heads,
        resumes=n - 1,
        last_alone=True,
        launch=cached_attention.Launch(16, 16, 1, 2, 2),
    )
    assert within(found, wanted[0].transpose(0, 1).flatten(1), 2 * EXACT)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = cast("Tensor", angles.double().cos()), angles.double().sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


# -- the engine -------------------------------------------------------------------------------

FAMILIES = [
    "smolvla",
    pytest.param("smolvla, every layer sees the chunk", marks=pytest.mark.slow),
    pytest.param("pi0", marks=pytest.mark.slow),
    "pi05",
]


def observation(draw: Draw, images: int, words: int) -> Inputs:
    ids = (draw(1, words).abs() * 99).long() % 300
    mask = torch.ones(1, words, dtype=torch.bool, device=DEVICE)
    return Inputs(draw(1, images, 3, 32, 32), ids, mask, draw(1, 5))


def plain(model: SmolVLA | Pi, inputs: Inputs):
    images, words, mask, state = inputs
    if isinstance(model, SmolVLA):
        prefix = model.prefix(*model.embed(images, words, mask, state))
    else:
        prefix = model.read_state(state, model.prefix(*model.embed(images, words, mask)))
    return prefix, lambda x, time: model.velocity(x, time, prefix)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_engine_answers_as_the_plain_model_does(family):
    model, draw = make(family), Draw(1)
    engine, steps = engine_of(model, 2), model.config.steps
    # The second has fewer images than there is room for, and a prompt shorter than the last one
    for images, words in ((2, 20), (1, 5)):
        inputs, noise = observation(draw, images, words), draw(1, 7, 6)
        prefix, velocity = plain(model, inputs)
        solve = engine.begin(inputs)
        found = engine.network.prefix(images, round_up(words))
        for ours, theirs in ((found.keys, prefix.keys), (found.values, prefix.values)):
            for a, b in zip(ours, theirs, strict=True):
                assert within(a[:, :, found.mask[0]], b, 1e-5)
    assert within(solve(noise, None, None), sample(velocity, noise, steps), 1e-5)
    previous = draw(1, 5, 6)
    guide = guide_to(previous, 2, 7, RealTimeChunking())
    assert within(solve(noise, guide, None), sample(velocity, noise, steps, guide), 2e-5)
    held = previous[:, :3]
    assert within(solve(noise, None, held), sample(velocity, noise, steps, None, held), 1e-5)
    assert engine.fits(inputs)
    assert not engine.fits(observation(draw, 3, 5)) and not engine.fits(observation(draw, 2, 33))
    assert not engine.fits(Inputs(*(torch.cat([t, t]) for t in inputs)))


def test_every_length_of_a_prompt_is_captured_before_it_comes():
    captured = []

    def replay(key, work):
        captured.append(key)
        return torch.zeros(7, 6, device=DEVICE)

    engine = engine_of(make("smolvla"), 2, replay=replay)
    engine.warm_up()
    assert captured == [(kind, 2, n) for n in (16, 32) for kind in ("read", "sample")]
    captured.clear()
    engine.begin(observation(Draw(0), 1, 17))(torch.zeros(1, 7, 6, device=DEVICE), None, None)
    assert captured == [("read", 1, 32), ("sample", 1, 32)]


@torch.inference_mode()
def test_the_engine_multiplies_quantised_weights():
    model, draw = make("smolvla"), Draw(2)
    quantize_model(model, get_format("int8"), where="language.layers")
    inputs, noise = observation(draw, 2, 5), draw(1, 7, 6)
    wanted = sample(plain(model, inputs)[1], noise, model.config.steps)
    found = engine_of(model, 2, "int8").begin(inputs)(noise, None, None)
    assert 1e-5 < off(found, wanted) < 0.05  # as the inputs are rounded too


@torch.inference_mode()
def test_the_fused_siglip_is_the_plain_one():
    encoder, draw = VisionEncoder(VisionDims(32, 2, 2, 40, 30, 14)).to(DEVICE), Draw(2)
    for p in encoder.parameters():
        p.copy_(draw(*p.shape) / (p.shape[-1] ** 0.5 if p.ndim > 1 else 3))
    images = draw(2, 3, 30, 30)
    assert within(CudaSiglip(encoder)(images), encoder(images), 1e-5)
