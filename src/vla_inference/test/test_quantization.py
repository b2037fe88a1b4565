"""Tests of quantisation: formats, packing, rounding error, quantised checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vla_inference.checkpoints.load import load_model
from vla_inference.checkpoints.quantize import quantize_checkpoint
from vla_inference.checkpoints.random_weights import SMALL, write_random_checkpoint
from vla_inference.cli.benchmark.speed import random_policy
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.openvla.calibration import Calibrator, LayerByLayer
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.policies.registry import describe_policy
from vla_inference.quantization import FORMATS, QuantLinear, get_format
from vla_inference.quantization.formats import ALIASES
from vla_inference.quantization.gptq import gptq_linear
from vla_inference.quantization.linear import interleave, pack, unpack
from vla_inference.quantization.rounding import quantize_linear, quantize_model
from vla_inference.serving.model_thread import ModelSettings
from vla_inference.types import Observation


def linear(n: int, k: int, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(k, n, bias=False)
    layer.weight.data = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    layer.requires_grad_(False)
    return layer


def error(layer: QuantLinear, weight: torch.Tensor) -> float:
    return float((layer.dequantize() - weight).norm() / weight.norm())


# -- formats ------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_int4_codes_survive_packing_and_the_kernels_order(n, words, seed):
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, 16, (n, 8 * words), np.uint8))
    assert torch.equal(unpack(pack(codes)), codes)
    mixed = unpack(interleave(pack(codes))).view(n, words, 4, 2)
    assert torch.equal(mixed[..., 0], codes.view(n, words, 8)[..., :4])  # low halves of the bytes
    assert torch.equal(mixed[..., 1], codes.view(n, words, 8)[..., 4:])


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 2**31), size=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=10)
def test_no_weight_is_further_off_than_its_step(name, seed, size):
    format, layer = get_format(name), linear(3, 256, seed)
    layer.weight.data *= size
    made = quantize_linear(layer, format, "rtn")
    off = (made.dequantize() - layer.weight).abs().view(3, format.groups(256), -1)
    step = made.scales.float()[..., None]
    if format.kind == "fp8":  # 3 bits of mantissa, or the smallest step below 2^-6
        allowed = torch.maximum(layer.weight.abs() / 16, step[..., 0] * 2**-10).view_as(off)
    else:  # half a step; a symmetric int4 group's top is half a step further out
        allowed = step * (0.5 if format.kind == "int8" or not format.symmetric else 1.0)
    # Scales and zeros of int4 are 16 bit numbers themselves.
    slack = 0.01 * step * 16 if format.kind == "int4" else 1e-4 * step
    assert (off <= allowed + slack).all()
    plain = made.dequantize()
    made.interleave_()
    assert torch.equal(made.dequantize(), plain)


@pytest.mark.parametrize("method", ["rtn", "hqq"])
@pytest.mark.parametrize("name", [n for n in FORMATS if n.startswith("int4")])
@given(
    size=st.floats(1e-3, 1e4),
    spread=st.sampled_from([0.0, 1e-7, 1e-5, 2e-4, 1e-3, 1e-2]),
    sign=st.sampled_from([-1, 1]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=15)
def test_groups_whose_range_is_nothing_beside_their_size_stay(
    name, method, size, spread, sign, seed
):
    """Their zero is beyond what float16 holds: weights that are all 0.1 came back as inf."""
    layer = linear(2, 128, seed)
    layer.weight.data = sign * size * (1 + spread * layer.weight.data.clamp(-3, 3))
    made = quantize_linear(layer, get_format(name), method)
    worst = (made.dequantize() - layer.weight).abs().max() / layer.weight.abs().max()
    symmetric = get_format(name).symmetric
    assert worst < (0.07 if symmetric else 1e-3 + spread)


def test_smaller_groups_and_error_aware_rounding_err_less():
    weight = linear(64, 512).weight.data
    weight[:, ::64] *= 4  # outliers, which a row's one scale suffers from
    layer = linear(64, 512)
    layer.weight.data = weight
    rounded = {n: error(quantize_linear(layer, get_format(n), "rtn"), weight) for n in FORMATS}
    assert (
        rounded["int4-g32"]
        < rounded["int4-g64"]
        < rounded["int4-g128"]
        < rounded["int4-g128-sym"]
        < rounded["int4-channel"]
    )
    assert rounded["int8"] < rounded["fp8"] < rounded["int4-g32"]
    for name in ("int4-channel", "int4-g128-sym"):
        assert error(quantize_linear(layer, get_format(name), "hqq"), weight) < rounded[name]


@pytest.mark.parametrize("name", ["int4-g64", "int4-g32-sym", "int4-channel", "int8"])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_halves_the_outputs_error_where_inputs_are_correlated(name, act_order):
    torch.manual_seed(0)
    k, layer, format = 256, linear(96, 256), get_format(name)
    mix = torch.randn(k, k) * torch.logspace(0, -2, k)
    x, unseen = (torch.randn(2048, k) @ mix.T for _ in range(2))
    y = unseen @ layer.weight.T
    nearest = quantize_linear(layer, format, "rtn")
    better = gptq_linear(layer, x.T @ x, format, act_order=act_order)
    off = [float((unseen @ q.dequantize().T - y).norm()) for q in (nearest, better)]
    assert off[1] < 0.6 * off[0]
    # Nothing to correlate: as good as to nearest.
    plain = gptq_linear(layer, torch.eye(k), format, act_order=act_order)
    assert error(plain, layer.weight) <= 1.001 * error(nearest, layer.weight)


def test_gptq_with_inputs_that_are_never_there():
    layer = linear(8, 64)
    x = torch.randn(32, 64)
    x[:, 5] = 0
    made = gptq_linear(layer, x.T @ x, get_format("int4-g32"))
    assert made.dequantize().isfinite().all()
    with pytest.raises(VlaError, match="not finite"):
        gptq_linear(layer, torch.full((64, 64), float("nan")), get_format("int8"))


def test_what_cannot_be_quantised_is_named():
    with pytest.raises(VlaError, match=r"no quantisation 'int3'; known: .*q4f16_ft.*fp16"):
        get_format("int3")
    with pytest.raises(VlaError, match="320 inputs, which int4-g128"):
        quantize_linear(linear(4, 320), get_format("int4"), name="x.weight")
    broken = linear(4, 64)
    broken.weight.data[0, 0] = float("inf")
    with pytest.raises(VlaError, match=r"x\.weight contains numbers that are not finite"):
        quantize_linear(broken, get_format("int8"), name="x.weight")
    with pytest.raises(VlaError, match="rounding method 'up'"):
        quantize_linear(linear(4, 128), get_format("int4"), "up")


@pytest.mark.parametrize("name", ALIASES)
def test_the_tutorials_names_are_understood(name):
    assert get_format(name.upper()) is get_format(ALIASES[name])


# -- checkpoints --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("q") / "ck", head="tokens")


def sample(policy: OpenVLAPolicy, seed: int = 0) -> Observation:
    size = policy.config.encoders[0].image_size
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return Observation({"image": image}, "go", np.zeros(policy.config.head.proprio_dim))


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-sym", "int8", "fp8"])
def test_a_quantised_checkpoint_is_the_model_quantised(folder, tmp_path, name):
    told = []
    quantize_checkpoint(
        folder, tmp_path / "q", get_format(name), progress=lambda *at: told.append(at)
    )
    assert told[-1][0] == told[-1][1] > 0
    whole = OpenVLAPolicy.from_pretrained(folder, device="cpu")
    quantize_model(whole.model, get_format(name))
    stored = load_model(tmp_path / "q")
    mine, theirs = stored.state_dict(), whole.model.state_dict()
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert mine[key].dtype == theirs[key].dtype
        assert torch.equal(mine[key].float(), theirs[key].float()), key
    # Written, rounded at load, and rounded in place: one model.
    seen = sample(whole)
    want = whole.predict_action(seen).tokens
    for policy in (
        OpenVLAPolicy.from_pretrained(tmp_path / "q", device="cpu"),
        OpenVLAPolicy.from_pretrained(folder, device="cpu", quantization=name),
        OpenVLAPolicy.from_pretrained(tmp_path / "q", device="cpu", quantization=name),
    ):
        assert policy.quantization == name
        assert np.array_equal(policy.predict_action(seen).tokens, want)
    about = json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]
    assert about["format"] == name and about["modules"] == ["language_model.model.layers"]
    told = describe_policy(tmp_path / "q")
    assert told.values["parameters"] == describe_policy(folder).values["parameters"]
    assert f"the language model's layers, {name}" in str(told)
    assert not [p for p in tmp_path.iterdir() if p.name != "q"]


def test_plain_arithmetic_on_the_cpu_takes_rounded_dense_weights(folder):
    policy = OpenVLAPolicy.from_pretrained(folder, device="cpu", quantization="int4-g32")
    assert not [m for m in policy.model.modules() if isinstance(m, QuantLinear)]
    plain = OpenVLAPolicy.from_pretrained(folder, device="cpu")
    weight = policy.model.language_model.model.layers[0].mlp.up_proj.weight
    other = plain.model.language_model.model.layers[0].mlp.up_proj.weight
    assert 0 < (weight - other).norm() / other.norm() < 0.2


def test_the_nodes_settings_reach_the_model(folder):
    options = LoadOptions(device="cpu", quantization="int8", draft=True)
    policy = ModelSettings(str(folder), options).load()
    assert policy.quantization == "int8" and policy.engine.drafted == 0
    assert policy.name == "ck:int8"
    policy.warm_up()
    policy.warm_up()
    assert policy.engine.drafted == 6


def test_mismatches_are_named(folder, tmp_path):
    quantize_checkpoint(folder, tmp_path / "q", get_format("int4-g32"))
    for asked in ("int8", "fp16"):
        with pytest.raises(CheckpointError, match=f"quantised to int4-g32.*{asked} was requested"):
            OpenVLAPolicy.from_pretrained(tmp_path / "q", device="cpu", quantization=asked)
    with pytest.raises(CheckpointError, match="quantised to int4-g32 already"):
        quantize_checkpoint(tmp_path / "q", tmp_path / "r", get_format("int8"))
    with pytest.raises(VlaError, match="'fp32' and dtype 'bfloat16' contradict"):
        OpenVLAPolicy.from_pretrained(folder, device="cpu", quantization="fp32", dtype="bfloat16")
    low = OpenVLAPolicy.from_pretrained(folder, device="cpu", quantization="bf16")
    assert low.dtype == torch.bfloat16 and not low.quantization
    # int4's usual groups of 128 don't fit a width of 32.
    for make in (
        lambda: OpenVLAPolicy.from_pretrained(folder, device="cpu", quantization="int4"),
        lambda: quantize_checkpoint(folder, tmp_path / "r", get_format("int4")),
    ):
        with pytest.raises(VlaError, match=r"q_proj.weight has 32 inputs, which int4-g128"):
            make()
    assert not (tmp_path / "r").exists()


def test_damaged_quantised_checkpoints_are_refused(folder, tmp_path):
    quantize_checkpoint(folder, tmp_path / "q", get_format("int4-g32"))
    path = tmp_path / "q" / "config.json"
    good = json.loads(path.read_text())

    def refusal(**changes) -> str:
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(CheckpointError) as caught:
            load_model(tmp_path / "q")
        return str(caught.value)

    assert "codes is not part of the model" in refusal(quantization=None)
    assert "[32, 4], the config says [32, 32]" in refusal(quantization={"format": "int8"})
    assert "zeros is not part" in refusal(quantization={"format": "int4-g32-sym"})
    assert "format is 'int3'" in refusal(quantization={"format": "int3"})
    assert "quantization is 'int4'" in refusal(quantization="int4")
    assert "modules" in refusal(quantization={"format": "int4-g32", "modules": ["projector"]})
    quantize_checkpoint(folder, tmp_path / "q", get_format("int8"), overwrite=True)
    assert "codes has dtype I8" in refusal(quantization={"format": "fp8"})


def test_nothing_is_overwritten_or_left_half(folder, tmp_path):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("keep")
    format = get_format("int8")
    with pytest.raises(VlaError, match="--overwrite"):
        quantize_checkpoint(folder, other, format)
    with pytest.raises(VlaError, match="is not a checkpoint folder"):
        quantize_checkpoint(folder, other, format, overwrite=True)
    with pytest.raises(VlaError, match="the checkpoint itself"):
        quantize_checkpoint(folder, folder, format, overwrite=True)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(folder, tmp_path / "q", format, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert (other / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("head", ["tokens", "l1"])
def test_gptq_of_a_model_errs_less_on_what_it_was_calibrated_for(tmp_path, head):
    folder = write_random_checkpoint(tmp_path / "ck", "tiny", head)
    format = get_format("int4-channel")
    calibrator = Calibrator(folder, "cpu", torch.float32)
    several = [sample(calibrator.policy, i) for i in range(6)]
    seen = calibrator(((o, np.zeros(7)) for o in several), "normalized")
    # What token by token decoding reads is among it: six of seven tokens.
    prompt = len(calibrator.policy.prompt("go"))
    extra = 6 if head == "tokens" else calibrator.policy.config.head.num_slots + 1
    assert {x.shape[1] for x in seen} == {calibrator.policy.config.num_patches + prompt + extra}
    by_layer = LayerByLayer(calibrator.policy.config, format, list(seen))
    quantize_checkpoint(folder, tmp_path / "g", format, "gptq", by_layer=by_layer)
    quantize_checkpoint(folder, tmp_path / "r", format, "rtn")
    plain = load_model(folder)
    off = {}
    for name in "gr":
        model = load_model(tmp_path / name)
        run = "encode" if head == "l1" else "prefill"
        pairs = [(getattr(model, run)(x), getattr(plain, run)(x)) for x in seen]
        if run == "prefill":
            pairs = [(a[0], b[0]) for a, b in pairs]
        off[name] = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    assert off["g"] < off["r"]


PEAK = """
import re, sys
from pathlib import Path
from vla_inference.quantization import get_format
from vla_inference.checkpoints.quantize import quantize_checkpoint
def kb(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
small, big, output = map(Path, sys.argv[1:])
quantize_checkpoint(small, output, get_format("int4-g32"), "rtn")  # what libraries take, once
Path("/proc/self/clear_refs").write_text("5")
before = kb("VmRSS")
quantize_checkpoint(big, output, get_format("int4-g32"), "rtn", overwrite=True)
print(kb("VmHWM") - before)
"""


def test_quantising_takes_the_memory_of_a_layer(tmp_path):
    folders = {}
    for layers in (2, 16):
        config = {**SMALL, "text_config": {**SMALL["text_config"], "num_hidden_layers": layers}}
        folders[layers] = write_random_checkpoint(tmp_path / str(layers), config)
    layer = 4 * (4 * 256**2 + 3 * 256 * 1024)
    size = (folders[16] / "model.safetensors").stat().st_size
    words = [sys.executable, "-c", PEAK, *map(str, folders.values()), str(tmp_path / "q")]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 4 * layer < size / 4


def test_a_random_policy_loses_little_by_int8():
    plain, low = (random_policy("tiny", "l1") for _ in range(2))
    quantize_model(low.model, get_format("int8"))
    seen = sample(plain)
    a, b = (p.predict_action(seen, action_space="normalized").actions for p in (plain, low))
    assert 0 < np.abs(a - b).max() < 0.05
