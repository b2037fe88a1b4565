"""ACT against the original code on reference cases (data/act/README.md)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot_reference import DATA, act_weight, error_of, write_checkpoint
from safetensors.numpy import load_file, save_file

from vla_inference.control.players.chunk_player import Player
from vla_inference.engines.cpu import conv
from vla_inference.errors import CheckpointError, ObservationError, VlaError
from vla_inference.policies.act.backbone import VARIANTS, FrozenBatchNorm, ResNet
from vla_inference.policies.act.config import ACTConfig, read_config
from vla_inference.policies.act.cpu import CpuACT
from vla_inference.policies.act.model import ACT, DecoderLayer, EncoderLayer, map_positions
from vla_inference.policies.act.weights import load_network
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.registry import check_policy, describe_policy, load_policy
from vla_inference.types import Observation

CASES = np.load(DATA / "act" / "cases.npz")
CPU = LoadOptions(device="cpu")
CAMERAS = ("top", "left_wrist")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("act") / "model", "act", act_weight)


@pytest.fixture(scope="module")
def policy(folder):
    return load_policy(folder, LoadOptions(device="cpu", engine="plain"))


@pytest.fixture(scope="module")
def fast(folder):
    return load_policy(folder, CPU)


def observation(case: str) -> Observation:
    images = {name: CASES[f"{case}/image.{name}"] for name in CAMERAS}
    return Observation(images, "passed over", CASES[f"{case}/state"])


@pytest.mark.parametrize("case", "0123")
def test_the_inputs_are_those_of_the_original(policy, case):
    images, state = policy.inputs([observation(case)])
    for name, image in zip(CAMERAS, images, strict=True):
        wanted = CASES[f"{case}/pixels.{name}"]
        np.testing.assert_allclose(image[0, :, ::3, ::3], wanted, atol=2e-6)
    np.testing.assert_allclose(state[0], CASES[f"{case}/state_normalized"], atol=2e-6)


@torch.inference_mode()
@pytest.mark.parametrize("case", "0123")
def test_the_encoder_and_the_decoder_are_those_of_the_original(policy, case):
    model, (images, state) = policy.model, policy.inputs([observation(case)])
    for name, image in zip(CAMERAS, images, strict=True):
        features = model.backbone(image)[0, ::16]
        assert error_of(features, CASES[f"{case}/features.{name}"]) < 2e-5
    tokens, positions = model.embed(images, state, torch.zeros(1, 32))
    wanted = CASES[f"{case}/encoder_position"]
    np.testing.assert_allclose(positions[::2], wanted, atol=5e-6)
    assert error_of(tokens[0, ::2], CASES[f"{case}/encoder_input"]) < 2e-5
    read = model.encoder(tokens, positions)
    assert error_of(read[0, ::2], CASES[f"{case}/encoder_output"]) < 2e-5
    steps = model.decode(read, positions)
    assert error_of(steps[0, ::5], CASES[f"{case}/decoder_output"]) < 3e-5
    actions = model.action_head(steps)[0]
    assert error_of(actions, CASES[f"{case}/actions_normalized"]) < 3e-5


@pytest.mark.parametrize("case", "0123")
def test_the_actions_are_those_of_the_original(policy, fast, case):
    assert policy.placement == "cpu by engine plain" and fast.placement == "cpu by engine torch"
    for by in (policy, fast):
        assert error_of(by.act(observation(case)).actions, CASES[f"{case}/actions"]) < 3e-5


def test_a_batch_gives_what_its_observations_give_one_by_one(fast):
    seen = observation("1")
    other = Observation(
        {name: image[::-1].copy() for name, image in seen.images.items()}, "", -seen.state
    )
    for chunk, alone in zip(fast.predict([seen, other]), [seen, other], strict=True):
        assert error_of(chunk.actions, fast.act(alone).actions) < 1e-5
    mixed = fast.predict([seen, observation("2")])  # of other sizes
    assert error_of(mixed[1].actions, CASES["2/actions"]) < 3e-5


@pytest.mark.parametrize("coefficient", ["0.01", "-0.05"])
def test_temporal_ensembling_is_that_of_the_original(coefficient):
    order = CASES["ensemble/order"]
    chunks = np.stack([CASES[f"{case}/actions_normalized"] for case in order]).astype(float)
    found = ensembled(chunks, float(coefficient))
    np.testing.assert_allclose(found, CASES[f"ensemble/{coefficient}"], atol=1e-6)


@given(st.integers(2, 110), st.floats(-0.1, 0.5))
@settings(max_examples=10, deadline=None)
def test_temporal_ensembling_goes_back_as_far_as_a_chunk_reaches(length, coefficient):
    """Against the weighted mean of all that was ever said of a step."""
    chunks = np.random.default_rng(0).normal(size=(length + 3, length, 1))
    found = ensembled(chunks, coefficient)
    for t, action in enumerate(found):
        about = np.array([chunks[i, t - i] for i in range(max(0, t - length + 1), t + 1)])
        weights = np.exp(-coefficient * np.arange(len(about)))
        np.testing.assert_allclose(action, weights @ about / weights.sum(), atol=1e-9)


def ensembled(chunks: np.ndarray, coefficient: float) -> np.ndarray:
    """What the player makes of chunks [n, T, D] that come one a step: [n, D]"""
    player: Player = Player(ensemble=coefficient)
    found = []
    for i, chunk in enumerate(chunks):
        player.accept(i * 0.02, 0.02, list(chunk), begin=i * 0.02)
        now = (i + 0.5) * 0.02
        found.append(sum(w * s.steps[s.index(now)] for s, w in player.due(now)))
    return np.array(found)


# -- training -------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_latent_of_a_demonstration_is_that_of_the_original(folder):
    model = load_network(LeRobotCheckpoint.read(folder), "cpu", torch.float32, vae=True).eval()
    state, actions, padding = (
        torch.from_numpy(CASES[f"train/{k}"])
        for k in ("state_normalized", "action_normalized", "action_is_pad")
    )
    latent = model.infer_latent(state, actions, padding)
    assert error_of(latent.mean, CASES["train/mu"]) < 3e-5
    assert error_of(latent.log_variance, CASES["train/log_sigma_x2"]) < 3e-5


# -- the CPU engine -------------------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        {"pre_norm": True, "decoder_layers": 2, "activation": "gelu", "state_dim": 0},
        {"backbone": "resnet50", "dilated": True, "encoder_layers": 1},
        {"backbone": "resnet34", "encoder_layers": 1},
    ],
)
def test_the_cpu_engine_answers_as_the_network_does(monkeypatch, packs, change):
    if not packs:
        monkeypatch.setattr(conv, "packs_convolutions", lambda: False)
    torch.manual_seed(0)
    usual = {"state_dim": 6, "width": 64, "heads": 4, "mlp": 96, "chunk": 10}
    model = ACT(ACTConfig(**{"cameras": 2, "action_dim": 7, **usual, **change}))
    model.eval().requires_grad_(False)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    images = [torch.randn(3, 3, h, w) for h, w in ((70, 99), (64, 96))]
    state = torch.randn(3, 6) if model.config.state_dim else None
    for seen in (images, [images[0], images[0].flip(0)]):
        assert error_of(CpuACT(model)(seen, state), model(seen, state)) < 1e-5


@torch.inference_mode()
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2), st.integers(1, 13), st.integers(1, 13), st.integers(1, 5))
def test_winograds_form_is_the_convolution(batch, height, width, channels):
    layer = torch.nn.Conv2d(channels, 3, 3, padding=1, bias=False)
    x, other = torch.randn(batch, channels, height, width), torch.randn(batch, 3, height, width)
    scale, shift = torch.rand(3) + 0.5, torch.randn(3)
    wanted = layer(x) * scale[:, None, None] + shift[:, None, None]
    found = conv.WinogradConv(layer, scale, shift)
    torch.testing.assert_close(found(x), wanted.relu(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.join(x, other), (wanted + other).relu(), atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_near_float32(folder):
    chunk = load_policy(folder, LoadOptions(device="cpu", dtype="bfloat16")).act(observation("1"))
    assert error_of(chunk.actions, CASES["1/actions"]) < 3e-2


def test_an_engine_that_the_family_has_not_is_refused(folder):
    with pytest.raises(VlaError, match="family act have no engine 'tvm:x'; known: plain, torch"):
        check_policy(folder, LoadOptions(engine="tvm:x"))


# -- the network's variants -----------------------------------------------------------------------


@torch.inference_mode()
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_layers_without_positions_are_those_of_pytorch(pre_norm, activation):
    config = ACTConfig(
        1, 0, 3, width=32, heads=4, mlp=48, activation=activation, pre_norm=pre_norm
    )
    same = {"activation": activation, "norm_first": pre_norm, "batch_first": True}
    encoder = torch.nn.TransformerEncoderLayer(32, 4, 48, **same).eval()
    decoder = torch.nn.TransformerDecoderLayer(32, 4, 48, **same).eval()
    x, read, nowhere = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.zeros(1, 32)
    ours = EncoderLayer(config).eval()
    ours.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(ours(x, nowhere), encoder(x))
    padding = torch.arange(5)[None] > torch.tensor([[2], [4]])
    torch.testing.assert_close(
        ours(x, nowhere, padding), encoder(x, src_key_padding_mask=padding), atol=2e-6, rtol=2e-5
    )
    ours = DecoderLayer(config).eval()
    ours.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(ours(x, nowhere, read, nowhere), decoder(x, read))


@torch.inference_mode()
def test_a_frozen_batch_norm_is_pytorchs_with_stored_statistics():
    norm, x = FrozenBatchNorm(6).train(), torch.randn(2, 6, 3, 4)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2)
    wanted = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x), wanted)


@torch.inference_mode()
@settings(max_examples=20, deadline=None)
@given(st.integers(33, 130), st.integers(33, 130), st.booleans())
def test_any_size_of_image_gives_a_position_for_each_feature(height, width, dilated):
    with torch.device("meta"):
        backbone = ResNet(VARIANTS["resnet50"], dilated)
        x = backbone(torch.empty(1, 3, height, width))
    by = 16 if dilated else 32
    assert x.shape == (1, 2048, math.ceil(height / by), math.ceil(width / by))
    positions = map_positions(*x.shape[2:], 64, torch.device("cpu"))
    assert positions.shape == (x.shape[2] * x.shape[3], 64)
    rows, columns = positions.view(*x.shape[2:], 2, 32).unbind(2)
    assert (rows == rows[:, :1]).all() and (columns == columns[:1]).all()
    last = 2 * math.pi * torch.tensor(1 - 1e-6 / x.shape[2])
    torch.testing.assert_close(
        rows[-1, 0, :2], torch.stack([last.sin(), last.cos()]), atol=1e-5, rtol=0
    )


def test_a_model_without_state_and_with_more_layers(folder, tmp_path):
    """Of a network that the original's default is a case of: it runs, and nothing is left out."""
    copy = changed(
        folder,
        tmp_path,
        vision_backbone="resnet50",
        replace_final_stride_with_dilation=True,
        n_decoder_layers=2,
        pre_norm=True,
        use_vae=False,
        feedforward_activation="gelu",
    )
    raw = json.loads((copy / "config.json").read_text())
    del raw["input_features"]["observation.state"], raw["input_features"]["observation.images.top"]
    (copy / "config.json").write_text(json.dumps(raw))
    checkpoint = LeRobotCheckpoint.read(copy)
    torch.manual_seed(0)
    model = ACT(read_config(checkpoint))
    weights = {f"model.{k}": v.numpy() for k, v in model.state_dict().items()}
    save_file(weights, copy / "model.safetensors")
    policy = load_policy(copy, CPU)
    assert policy.needs.cameras == ("left_wrist",) and policy.needs.state == 0
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    first = policy.act(Observation({"left_wrist": image}, "")).actions
    again = policy.act(Observation({"left_wrist": image[:, ::-1].copy()}, "")).actions
    assert first.shape == (100, 14) and np.abs(first - again).max() > 1e-4


# -- the door, and what is refused ----------------------------------------------------------------


def test_the_family_is_found_described_and_checked(folder):
    contract = check_policy(folder, CPU)
    assert contract.needs.cameras == CAMERAS and contract.needs.state == 14
    assert contract.needs.image_size == (480, 640)
    assert contract.chunk == 100 and len(contract.spec) == 14
    assert contract.spec.parts[0].kind == "unknown"  # the checkpoint does not say
    told = describe_policy(folder)
    assert told.values["family"] == "act" and "top, left_wrist" in str(told)


def test_a_checkpoint_made_for_temporal_ensembling_says_so(folder, tmp_path):
    told = describe_policy(changed(folder, tmp_path, temporal_ensemble_coeff=0.01))
    assert "set ensemble to 0.01" in str(told)


def test_statistics_in_the_weights_of_older_checkpoints_are_read(folder, tmp_path):
    copy = changed(folder, tmp_path)
    for path in copy.glob("policy_*"):
        path.unlink()
    weights = load_file(copy / "model.safetensors")
    for feature in ("observation.state", *(f"observation.images.{c}" for c in CAMERAS), "action"):
        outputs = ("normalize_targets", "unnormalize_outputs")
        for place in outputs if feature == "action" else ("normalize_inputs",):
            for name in ("mean", "std"):
                key = f"{place}.buffer_{feature.replace('.', '_')}.{name}"
                weights[key] = CASES[f"stats/{feature}.{name}"]
    save_file(weights, copy / "model.safetensors")
    policy = load_policy(copy, CPU)
    assert error_of(policy.act(observation("0")).actions, CASES["0/actions"]) < 3e-5


def test_actions_within_bounds_are_brought_to_their_range(folder, tmp_path):
    copy = changed(folder, tmp_path)
    for path in (copy / "policy_preprocessor.json", copy / "policy_postprocessor.json"):
        path.write_text(path.read_text().replace('"ACTION": "MEAN_STD"', '"ACTION": "MIN_MAX"'))
    chunk = load_policy(copy, CPU).act(observation("0"))
    low, high = (CASES[f"stats/action.{k}"] for k in ("min", "max"))
    wanted = (CASES["0/actions_normalized"] + 1) / 2 * (high - low) + low
    assert error_of(chunk.actions, wanted) < 3e-5


def test_the_single_camera_of_a_dataset_without_names_is_called_image(folder, tmp_path):
    copy = changed(folder, tmp_path)
    for path in copy.glob("*.json"):
        path.write_text(path.read_text().replace("observation.images.top", "observation.image"))
    for path in copy.glob("policy_*.safetensors"):
        renamed = {
            k.replace("observation.images.top", "observation.image"): v
            for k, v in load_file(path).items()
        }
        save_file(renamed, path)
    assert check_policy(copy, CPU).needs.cameras == ("image", "left_wrist")


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"vision_backbone": "vit_b_16"}, "vision_backbone is 'vit_b_16'; supported: "),
        ({"feedforward_activation": "glu"}, "feedforward_activation is 'glu'; supported: relu"),
        ({"n_obs_steps": 2}, "n_obs_steps is 2; supported: 1"),
        ({"replace_final_stride_with_dilation": True}, "resnet18 has no dilated form"),
        ({"n_heads": 7}, "dim_model is 256, n_heads 7"),
        ({"n_encoder_layers": -1}, "n_encoder_layers is -1; give a count"),
        ({"chunk_size": "many"}, "chunk_size is 'many'; give a count"),
        ({"latent_dim": None}, "latent_dim is None; give a count"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused_by_name(
    folder, tmp_path, change, problem
):
    with pytest.raises(CheckpointError, match=problem):
        check_policy(changed(folder, tmp_path, **change), CPU)


def test_a_state_of_the_world_is_refused(folder, tmp_path):
    copy = changed(folder, tmp_path)
    raw = json.loads((copy / "config.json").read_text())
    raw["input_features"]["observation.environment_state"] = {"type": "ENV", "shape": [3]}
    (copy / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="which no robot can tell"):
        check_policy(copy, CPU)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"model.action_head.bias": None}, "lacks 1 tensors, such as action_head.bias"),
        ({"model.action_head.bias": np.zeros(3)}, r"action_head.bias is \[3\], the config"),
        ({"model.action_head.bias": np.full(14, np.nan)}, "numbers that are not finite"),
        ({"model.tail.weight": np.zeros(3)}, "holds model.tail.weight, which this family"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, tmp_path, change, problem):
    copy = changed(folder, tmp_path)
    change_weights(copy, change)
    with pytest.raises(CheckpointError, match=problem):
        load_policy(copy, CPU)


def test_observations_that_do_not_fit_are_refused(policy):
    good = observation("1")
    with pytest.raises(ObservationError, match="takes 14 numbers of state, 5 came"):
        policy.act(Observation(good.images, "", good.state[:5]))
    with pytest.raises(ObservationError, match="left_wrist is missing"):
        policy.act(Observation({"top": good.images["top"]}, "", good.state))


def changed(folder: Path, tmp_path: Path, **change) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    return copy


def change_weights(folder: Path, change: dict[str, np.ndarray | None]) -> None:
    weights = {**load_file(folder / "model.safetensors"), **change}
    kept = {k: np.asarray(v, np.float32) for k, v in weights.items() if v is not None}
    save_file(kept, folder / "model.safetensors")
