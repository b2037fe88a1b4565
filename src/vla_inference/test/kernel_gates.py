"""Compares every Triton kernel with float64; `test_kernels.py` runs this in its own process.

On the CPU by Triton's interpreter, on a GPU compiled. Outputs are poisoned: what a kernel doesn't
write is NaN, what it must not write or read is as well.
"""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DEVICE, EXACT, FEW, SEEDS, Draw, fenced, poison, rms, within
from torch import Tensor, nn

from vla_inference.cli.benchmark.speed import random_policy
from vla_inference.engines.cuda.batch import BatchLlama
from vla_inference.engines.cuda.head import CudaHead
from vla_inference.engines.cuda.llama import CudaLlama
from vla_inference.engines.cuda.text import TextDecoder
from vla_inference.engines.cuda.vision import CudaVisionEncoder
from vla_inference.kernels.activation_quant import encode
from vla_inference.kernels.attention import Attend, attend, attend_batch, attention
from vla_inference.kernels.gemv import Launch, gemv
from vla_inference.kernels.gemv_w4a8 import CodedLaunch, gemv_coded
from vla_inference.kernels.layers import (
    Product,
    choose,
    gate_mul,
    gelu_,
    layer_norm,
    quantize_rows,
    rms_norm,
    split_heads,
)
from vla_inference.openvla.heads import L1ActionHead
from vla_inference.openvla.llama import rotate
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_linear, quantize_model

__all__ = ["poison"]  # used by pytest


def half_steps(x: Tensor, kind: str) -> Tensor:
    """How far x [K] may be off once it is rounded to 8 bits, 32 (int8: 16) numbers a scale."""
    span = 32 if kind.startswith("int4") else 16
    return (x.view(-1, span).abs().amax(1) / 127).repeat_interleave(span).double() / 2


def rounded(x: Tensor, kind: str) -> Tensor:
    step = 2 * half_steps(x, kind).float()
    return torch.floor(x / step + 0.5).double() * step.double()


def spans(kind: str, k: int) -> bool:
    """Whether the kernel rounds its input by spans."""
    return kind.startswith("int4") or (kind == "int8" and k % 16 == 0)


KINDS = ["dense", "int8", "fp8", "int4-g32", "int4-g64-sym", "int4-channel"]


@pytest.mark.parametrize("kind", KINDS)
@given(
    seed=SEEDS,
    n=st.sampled_from([5, 48]),
    k=st.sampled_from([128, 320]),
    norm=st.booleans(),
    pair=st.booleans(),
    add=st.booleans(),
    odd=st.booleans(),
    width=st.sampled_from([0, 72, 88]),
)
@FEW
def test_gemv(kind, seed, n, k, norm, pair, add, odd, width):
    if not kind.startswith("int4"):  # which are in groups of 32
        k = width or k
    draw = Draw(seed)
    layer = nn.Linear(k, 2 * n if pair else n, bias=False)
    layer.weight = nn.Parameter(draw(*layer.weight.shape), requires_grad=False)
    more: dict = {}
    if kind == "dense":
        weight, exact = fenced(layer.weight.data)[0], layer.weight.double()
    else:
        made = quantize_linear(layer, get_format(kind), "rtn")
        exact = made.dequantize().double()
        made.interleave_()
        f = made.format
        weight, more = made.codes, {"kind": f.kind, "scales": made.scales, "group": f.group}
        more["zeros"] = made.zeros
    x, gains, residual = fenced(draw(k))[0], draw.positive(k), draw(n)
    y, whole = fenced(torch.zeros(n, device=DEVICE))
    y.fill_(float("nan"))
    launch = None
    if odd and not spans(kind, k):
        launch = Launch(2, 256, 2)
    elif odd:  # a launch whose blocks divide nothing
        launch = Launch(2, 0, 2, 0, 3)
    gemv(
        x,
        weight,
        y,
        norm=gains if norm else None,
        eps=1e-5,
        pair=pair,
        residual=residual if add else None,
        launch=launch,
        **more,
    )
    plain = x * gains if norm else x
    gain = torch.rsqrt(x.double().square().mean() + 1e-5) if norm else 1.0
    seen = rounded(plain, kind) if spans(kind, k) else plain.double()
    wanted = gain * (exact @ seen)
    if spans(kind, k):  # no further from the unrounded than half steps of x allow
        apart = (wanted - gain * (exact @ plain.double())).abs()
        assert (apart <= 1.001 * gain * (exact.abs() @ half_steps(plain, kind))).all()
    spread = 0.0
    if pair:  # an error of one factor is multiplied by the other
        gate, up = wanted[:n], wanted[n:]
        spread = gate.norm() * up.abs().amax() + gate.abs().amax() * up.norm()
        wanted = F.silu(gate) * up
    if add:
        wanted = wanted + residual.double()
    assert (y - wanted).norm() < EXACT * max(wanted.norm(), spread)  # False for NaN
    assert int(whole.isnan().sum()) == len(whole) - n


@pytest.mark.parametrize("quant", ["", "int8", "fp8"])
@given(seed=SEEDS, n=st.integers(1, 5), k=st.sampled_from([33, 96]), scaled=st.booleans())
@FEW
def test_norms_and_activations(quant, seed, n, k, scaled):
    if quant == "fp8" and DEVICE == "cpu":
        pytest.skip("the interpreter rounds to FP8 its own way")
    draw = Draw(seed)
    x, y, weight = draw(n, k), draw(n, k), draw.positive(k)
    rows, columns = (draw.positive(n, 1), draw.positive(2 * k)) if scaled else (None, None)

    def agree(out: Tensor, scales: Tensor | None, wanted: Tensor) -> bool:
        if scales is None:
            return within(out, wanted, EXACT)
        top = 127 if quant == "int8" else 448
        assert within(scales, wanted.abs().amax(1, keepdim=True) / top, EXACT)
        # Half a step off at most; of FP8 that is a 16th of the value, or of the smallest normal.
        steps = scales if quant == "int8" else (wanted.abs() / 8).clamp(min=scales * 2**-9)
        return bool(((out.double() * scales.double() - wanted).abs() <= 0.5001 * steps).all())

    def real(p: Tensor) -> Tensor:
        width = p.shape[1]
        return p.double() * rows.double() * columns[:width].double() if scaled else p.double()

    product = Product(y, rows, columns[:k].contiguous() if scaled else None)
    residual = x.clone()
    out = rms_norm(residual, product, weight, 1e-5, quant)
    assert within(residual, x.double() + real(y), EXACT)
    assert agree(*out, rms(x.double() + real(y), weight, 1e-5))
    assert agree(*rms_norm(x.clone(), None, weight, 1e-5, quant), rms(x, weight, 1e-5))

    both = draw(n, 2 * k)
    out = gate_mul(Product(both, rows, columns), torch.float32, quant)
    gates, ups = real(both).split(k, 1)
    assert agree(*out, F.silu(gates) * ups)
    if quant:
        assert agree(*quantize_rows(x, quant), x.double())


@pytest.mark.parametrize("kind", ["int8", "int4-g32"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_rounding_hides_no_number_that_is_not_finite(kind, bad):
    draw = Draw(3)
    layer = nn.Linear(128, 8, bias=False).to(DEVICE)
    made = quantize_linear(layer, get_format(kind), "rtn")
    made.interleave_()
    x, f = draw(128), made.format
    x[70] = bad
    more = {"kind": f.kind, "scales": made.scales, "zeros": made.zeros, "group": f.group}
    y = gemv(x, made.codes, torch.zeros(8, device=DEVICE), residual=draw(8), **more)
    assert not y.isfinite().any()

    rows = draw(2, 40)
    rows[1, 7] = bad
    codes, scales = quantize_rows(rows, "int8")
    product = codes.float().sum(1, keepdim=True) * scales
    assert product[0].isfinite() and not scales[1].isfinite()


@given(seed=SEEDS, n=st.integers(1, 4), k=st.sampled_from([40, 96]))
@FEW
def test_layer_norm_and_gelu(seed, n, k):
    draw = Draw(seed)
    x, y, gamma, weight, bias = draw(n, k), draw(n, k), draw(k), draw(k), draw(k)
    for add, scale in ((None, None), (y, None), (y, gamma)):
        wanted = x.double()
        if add is not None:
            wanted = wanted + (add if scale is None else add * scale).double()
        residual = x.clone()
        out = layer_norm(residual, add, scale, weight, bias, 1e-6)
        assert within(residual, wanted, EXACT)
        normed = F.layer_norm(wanted, (k,), weight.double(), bias.double(), 1e-6)
        assert within(out, normed, EXACT)
    view, whole = fenced(draw(n, k))
    wanted = F.gelu(view.double())
    assert within(gelu_(view), wanted, EXACT)
    assert int(whole.isnan().sum()) == len(whole) - n * k


@pytest.mark.parametrize("slots, dim", [(7, 7), (1, 8), (14, 14)])
def test_the_head_of_a_chunk(slots, dim):
    draw = Draw(dim)
    head = L1ActionHead(32, dim, slots).to(DEVICE).requires_grad_(False)
    for p in head.parameters():
        p.copy_(draw(*p.shape) / p.shape[-1] ** 0.5)
    hidden = draw(slots * 3, 32)
    ours = CudaHead(head)
    found, broken = ours(hidden), hidden.clone()
    broken[0, 0] = float("nan")
    answer = ours(broken)
    assert answer[0].isnan().all() and torch.equal(answer[1:], found[1:])
    assert within(found, head.double()(hidden.double()[None])[0], EXACT)


@given(
    seed=SEEDS,
    n=st.integers(1, 70),
    shape=st.sampled_from([(4, 1), (4, 2), (4, 4), (14, 2)]),
    scaled=st.booleans(),
    biased=st.booleans(),
)
@FEW
def test_heads_and_attention(seed, n, shape, scaled, biased):
    (heads, kv), draw, d, s = shape, Draw(seed), 16, 80
    qkv, angles = draw(n, (heads + 2 * kv) * d), draw(s, d // 2)
    rotary = angles.cos(), angles.sin()
    rows, columns = (draw.positive(n, 1), draw.positive(qkv.shape[1])) if scaled else (None, None)
    keys = torch.full((kv, s, d), float("nan"), device=DEVICE)
    values = keys.clone()
    bias = draw(qkv.shape[1]) if biased else None
    q = split_heads(Product(qkv, rows, columns), rotary, keys, values, heads, bias=bias)
    real = qkv * rows * columns if scaled else qkv
    real = real + bias if biased else real
    parts = real.split([heads * d, kv * d, kv * d], 1)
    plain = [p.view(n, -1, d).transpose(0, 1).double() for p in parts]
    cos, sin = (torch.cat([t, t], -1)[:n].double() for t in rotary)
    wanted = rotate(plain[0], cos, sin), rotate(plain[1], cos, sin), plain[2]
    for found, right in zip((q, keys[:, :n], values[:, :n]), wanted, strict=True):
        assert within(found, right, EXACT)
    assert keys[:, n:].isnan().all() and values[:, n:].isnan().all()
    # The last position once more, on its own, over a cache that lacks it and poison beyond.
    keys[:, n - 1 :], values[:, n - 1 :] = float("nan"), float("nan")
    y = attend(real[n - 1].contiguous(), rotary, keys, values, n - 1, heads)
    right = F.scaled_dot_product_attention(
        wanted[0][None, :, n - 1 :], wanted[1][None], wanted[2][None], enable_gqa=heads != kv
    )
    assert within(y, right.flatten(), 1e-5)
    assert within(keys[:, :n], wanted[1], EXACT) and keys[:, n:].isnan().all()
    # And by several programs a head.
    keys[:, n - 1 :], values[:, n - 1 :] = float("nan"), float("nan")
    shared = Attend(heads, d, s, DEVICE, (16, 2))
    for _ in range(2):
        y = shared(real[n - 1].contiguous(), rotary, keys, values, n - 1)
        assert within(y, right.flatten(), 1e-5) and not shared.arrived.any()
    assert within(keys[:, :n], wanted[1], EXACT) and keys[:, n:].isnan().all()


@given(
    seed=SEEDS,
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    kv=st.sampled_from([1, 2, 4]),
    d=st.sampled_from([16, 32]),
)
@FEW
def test_heads_and_attention_of_a_batch(seed, lengths, kv, d):
    """One more position of each context, over a cache with poison beyond it."""
    draw, heads, s, step, b = Draw(seed), 4, 48, 2, len(lengths)
    qkv, angles = draw(b, (heads + 2 * kv) * d), draw(s, d // 2)
    rotary = angles.cos(), angles.sin()
    rows, columns = draw.positive(b, 1), draw.positive(qkv.shape[1])
    keys = torch.full((b, kv, s, d), float("nan"), device=DEVICE)
    values = keys.clone()
    past = [n + step for n in lengths]
    for i, n in enumerate(past):
        keys[i, :, :n], values[i, :, :n] = draw(kv, n, d), draw(kv, n, d)
    alone = [(keys[i].clone(), values[i].clone()) for i in range(b)]
    counts = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    product = Product(qkv, rows, columns)
    q = split_heads(product, rotary, keys, values, heads, counts, step)
    y = attend_batch(q, keys, values, counts, step, 16)
    real = (qkv * rows * columns).split([heads * d, kv * d, kv * d], 1)
    for i, n in enumerate(past):
        new = [p[i].view(-1, 1, d).double() for p in real]
        cos, sin = (torch.cat([t, t], -1)[n].double() for t in rotary)
        query, key = rotate(new[0], cos, sin), rotate(new[1], cos, sin)
        found = torch.cat([alone[i][0][:, :n].double(), key], 1)
        others = torch.cat([alone[i][1][:, :n].double(), new[2]], 1)
        wanted = F.scaled_dot_product_attention(
            query[None], found[None], others[None], enable_gqa=heads != kv
        )
        assert within(y[i], wanted.flatten(), 1e-5)
        assert within(keys[i, :, : n + 1], found, EXACT)
        assert keys[i, :, n + 1 :].isnan().all() and values[i, :, n + 1 :].isnan().all()


@given(seed=SEEDS, broken=st.sampled_from([None, "nan", "inf", "-inf"]))
@FEW
def test_choice_of_a_token(seed, broken):
    draw = Draw(seed)
    words, logits = draw(300, 72), draw(256)
    token = torch.full((1,), -5, device=DEVICE)
    x = torch.full((72,), float("nan"), device=DEVICE)
    if broken:
        logits[seed % 256] = float(broken)
    choose(logits, words, token, x, 20)
    if broken:
        assert int(token) == -1
    else:
        assert int(token) == int(logits.argmax()) + 20
        assert torch.equal(x, words[int(token)])


@pytest.mark.parametrize(
    ("size", "quantisation", "many"),
    [
        ("tiny", "", "dense"),
        ("tiny", "int8", "int8"),
        ("tiny", "int4-g32", "dense"),
        ("tiny-qwen", "", "dense"),
        pytest.param("tiny-qwen", "int8", "int8", marks=pytest.mark.slow),
        pytest.param("tiny", "int8wo", "dense", marks=pytest.mark.slow),
        pytest.param("tiny", "int4-g32-sym", "int8", marks=pytest.mark.slow),
        pytest.param("tiny-qwen", "int4-g32", "dense", marks=pytest.mark.slow),
    ],
)
def test_the_fused_llama_is_the_plain_one(size, quantisation, many):
    model = random_policy(size, "tokens", DEVICE).model
    wide = model.config.llm.hidden_size
    if quantisation:
        quantize_model(model, get_format(quantisation))
    bound = 2e-5 if not quantisation else 3e-2
    x = Draw(1)(1, 9, wide)
    with torch.inference_mode():
        plain = [(int(t), h[0].clone()) for t, h in model.generate(x)]
        steps = plain[: 2 if quantisation else 4]  # the interpreter takes its time
        encoded = model.encode(x)[0]
        llama = CudaLlama(model, 32, many)
        token = torch.zeros(1, dtype=torch.long, device=DEVICE)
        hidden, word = torch.zeros(2, wide, device=DEVICE)
        state = llama.prefill(x[0].clone())
        for i, (wanted, right) in enumerate(steps):
            llama.read_token(state, token, hidden, word)
            assert within(hidden, right, bound), i
            if not quantisation:
                assert int(token) == wanted
            # From here on as the plain one went on, so that every step is compared.
            word = model.embed_tokens(torch.tensor([wanted], device=DEVICE))[0].clone()
            if i < len(steps) - 1:
                state = llama.decode(word, 9 + i)
        assert within(llama.encode(x[0].clone()), encoded, bound)
        # The plain modules still work, on the engine's own weights.
        again = [int(t) for t, _ in model.generate(x)]
        assert again == [t for t, _ in plain]


@pytest.mark.parametrize(
    ("size", "quantisation", "many"),
    [
        ("tiny", "", "dense"),
        ("tiny", "int8", "int8"),
        pytest.param("tiny-qwen", "", "dense", marks=pytest.mark.slow),
    ],
)
def test_the_fused_llama_of_a_batch_is_the_plain_one(size, quantisation, many):
    """Three contexts of several lengths, padded by poison that is not seen."""
    model = random_policy(size, "tokens", DEVICE).model
    wide = model.config.llm.hidden_size
    if quantisation:
        quantize_model(model, get_format(quantisation))
    bound = 2e-5 if not quantisation else 3e-2
    draw, lengths = Draw(3), [9, 4, 7]
    contexts = [draw(1, n, wide) for n in lengths]
    x = torch.full((3, 9, wide), 1e3, device=DEVICE)
    for i, (n, context) in enumerate(zip(lengths, contexts, strict=True)):
        x[i, :n] = context[0]
    with torch.inference_mode():
        plain = [list(model.generate(context)) for context in contexts]
        decoder = BatchLlama(CudaLlama(model, 32, many), 4, 32)
        hidden = decoder.prefill(x.clone(), torch.tensor(lengths, device=DEVICE))
        for step in range(3):
            wanted = torch.cat([steps[step][1] for steps in plain])
            tokens = torch.cat([steps[step][0] for steps in plain])
            assert within(hidden, wanted, bound), step
            found, words = decoder.choose(hidden)
            if not quantisation:
                assert (found == tokens).all()
                assert (words == model.embed_tokens(tokens)).all()
            # From here on as the plain one went on, so that every step is compared.
            hidden = decoder.decode(model.embed_tokens(tokens), step)
        poisoned = hidden.clone()
        poisoned[1, 3] = float("nan")
        assert (decoder.choose(poisoned)[0] < 0).tolist() == [False, True, False]


def test_text_is_that_of_the_plain_decoder():
    """Over two blocks of the one graph's work, which begins where the cache is filled to."""
    model, ran = random_policy("tiny", "tokens", DEVICE).model, []

    def graph(key, work):
        if not ran:  # as a graph is run once before it is captured
            work()
        ran.append(key)
        work()

    x = Draw(2)(1, 5, 32)
    with torch.inference_mode():
        plain = list(model.generate_text(x, 5))
        llama = CudaLlama(model, 16, "dense")
        text = TextDecoder(llama, graph, model.language_model.output, block=2)
        state = llama.prefill(x[0].clone())
        found = [int(t) for t, _ in islice(text.generate(state, 5), 5)]
    assert found == plain and len(set(plain)) > 1 and ran == [("text", 0)] * 2


@given(
    seed=SEEDS,
    n=st.sampled_from([1, 17, 40]),
    d=st.sampled_from([16, 24]),
    groups=st.sampled_from([1, 2]),
    causal=st.booleans(),
    together=st.booleans(),
)
@settings(FEW, max_examples=8)
def test_attention(seed, n, d, groups, causal, together):
    draw, heads = Draw(seed), 2
    if together and groups == 1:  # one tensor of all three, as a vision encoder has it
        whole, _ = fenced(draw(n, 3 * heads * d))
        q, k, v = whole.view(n, 3, heads, d).permute(1, 2, 0, 3)
    else:  # keys and values in a cache that is longer, and full of poison
        q = draw(n, heads, d).transpose(0, 1)
        cache = torch.full((2, heads // groups, n + 9, d), float("nan"), device=DEVICE)
        cache[:, :, :n] = draw(2, heads // groups, n, d)
        k, v = cache[:, :, :n]
    wanted = F.scaled_dot_product_attention(
        q.double(), *(t.double().repeat_interleave(groups, 0) for t in (k, v)), is_causal=causal
    )
    wanted = wanted.transpose(0, 1).reshape(n, -1)
    assert within(attention(q, k, v, causal, (16, 16, 2, 2)), wanted, EXACT)
    # The same twice, as a batch.
    both = (torch.stack([t, t]) if together else t.expand(2, -1, -1, -1) for t in (q, k, v))
    found = attention(*both, causal, (16, 16, 2, 2))
    assert within(found, torch.cat([wanted, wanted]), EXACT)


def test_the_fused_encoder_is_the_plain_one():
    encoder = random_policy("tiny", "tokens", DEVICE).model.vision_backbone.featurizer
    draw = Draw(2)
    images = draw(3, 3, 64, 64)
    with torch.inference_mode():
        for block in encoder.blocks:  # gains and shifts that change something
            for norm in (block.norm1, block.norm2):
                norm.weight.copy_(draw.positive(len(norm.weight)))
                norm.bias.copy_(draw(len(norm.bias)))
        assert within(CudaVisionEncoder(encoder)(images), encoder(images), 1e-5)


@pytest.mark.parametrize("kind", ["int8", "int4-g32", "int4-g64-sym", "int4-channel"])
@given(seed=SEEDS, k=st.sampled_from([128, 320, 1088]), pair=st.booleans(), wide=st.booleans())
@FEW
def test_codes_made_by_the_kernel_ahead_change_nothing(kind, seed, k, pair, wide):
    if kind == "int4-g64-sym" and k == 1088:
        k = 1152
    draw, n = Draw(seed), 64
    x, norms, residual = draw(k), (draw.positive(k), draw.positive(n)), draw(n)
    f = get_format(kind)
    made = []
    for rows, columns in ((2 * n if pair else n, k), (48, n)):
        layer = nn.Linear(columns, rows, bias=False)
        layer.weight = nn.Parameter(draw(rows, columns), requires_grad=False)
        made.append(quantize_linear(layer, f, "rtn"))
        made[-1].interleave_()
    more = [{"scales": m.scales, "zeros": m.zeros, "group": f.group, "kind": f.kind} for m in made]
    wanted = torch.empty(n, device=DEVICE)
    gemv(
        x, made[0].codes, wanted, norm=norms[0], eps=1e-5, pair=pair, residual=residual, **more[0]
    )
    wanted_next = torch.empty(48, device=DEVICE)
    gemv(wanted, made[1].codes, wanted_next, norm=norms[1], eps=1e-5, **more[1])
    launch = CodedLaunch(64, 4, 3) if wide else CodedLaunch(32, 2, 2)
    y, codes = torch.empty(n, device=DEVICE), encode(x, f.kind, norms[0])
    codes = gemv_coded(
        codes,
        k,
        made[0].codes,
        y,
        normed=True,
        eps=1e-5,
        pair=pair,
        residual=residual,
        code=True,
        norm=norms[1],
        launch=launch,
        **more[0],
    )
    assert within(y, wanted, EXACT)
    following = torch.empty(48, device=DEVICE)  # of rows that no block divides
    gemv_coded(codes, n, made[1].codes, following, normed=True, eps=1e-5, launch=launch, **more[1])
    # A last bit of y may round a code the other way.
    assert within(following, wanted_next, 2e-3)
