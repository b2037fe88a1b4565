"""Tests of training components: sampler, batches, tokens, adapters, augmentation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vla_inference.checkpoints.random_weights import (
    STATISTICS,
    byte_tokenizer,
    random_config,
    random_model,
)
from vla_inference.errors import DataError, VlaError
from vla_inference.openvla.action_tokens import ActionTokens
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.preprocessing import center_crop
from vla_inference.types import eef_delta_spec
from vla_training.finetune.families.openvla.format import OpenVLAFormat
from vla_training.finetune.families.openvla.objective import OpenVLAObjective
from vla_training.finetune.families.openvla.train_modules import prepare
from vla_training.finetune.flops import forward_macs
from vla_training.loader.augment import NEUTRAL, NUMBERS, Pixels, augment, draw
from vla_training.loader.batch import Batch
from vla_training.loader.frame_index import DatasetSource, FrameIndex, index_frames
from vla_training.loader.frame_reader import FrameReader
from vla_training.loader.mixture import Samples, batches, mix
from vla_training.loader.sampler import BLOCK, Sampler
from vla_training.loop.precision import tensor_cores
from vla_training.loop.schedule import Schedule
from vla_training.lora.layers import LoraConfig, LoraLinear, add_lora


def tiny(head: str = "tokens") -> ModelConfig:
    return ModelConfig.from_json({**random_config("tiny", head), "norm_stats": STATISTICS})


def a_batch(config: ModelConfig, lengths: list[int], seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    b, head, width = len(lengths), config.head, max(lengths)
    ids = torch.randint(4, 200, (b, width), generator=g)
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = 0
    return Batch(
        torch.randint(0, 256, (b, head.num_images, 64, 64, 3), generator=g, dtype=torch.uint8),
        ids,
        torch.rand((b, head.chunk, 7), generator=g) * 2 - 1,
        torch.ones(b, head.chunk, dtype=torch.bool),
        lengths=torch.tensor(lengths) if len(set(lengths)) > 1 else None,
        proprio=torch.rand((b, head.proprio_dim), generator=g) if head.proprio_dim else None,
    )


# -- which frame comes when -------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 1)), min_size=1, max_size=4),
    st.integers(0, 9),
)
@settings(max_examples=20, deadline=None)
def test_each_set_is_gone_through_whole_and_keeps_its_share(sets, seed):
    sizes, weights = zip(*sets, strict=True)
    order = Sampler(sizes, weights, seed)
    drawn: list[list[int]] = [[] for _ in sizes]
    for position in range(BLOCK):
        source, frame = order(position)
        drawn[source].append(frame)
    for frames, size, weight in zip(drawn, sizes, weights, strict=True):
        assert abs(len(frames) - BLOCK * weight / sum(weights)) <= 1
        for begin in range(0, len(frames) - size + 1, size):
            assert sorted(frames[begin : begin + size]) == list(range(size))
    # Another order, asked from the middle, says the same: nothing depends on what came before.
    again = Sampler(sizes, weights, seed)
    assert again(BLOCK - 1) == order(BLOCK - 1) and again(BLOCK + 7) == order(BLOCK + 7)


def test_a_share_too_small_to_come_up_is_refused():
    with pytest.raises(VlaError, match="less than 1/1000"):
        Sampler([10, 10], [1.0, 1e-5], 0)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    from vla_inference.episodes.hdf5 import write_columns, write_header

    rng = np.random.default_rng(1)
    with h5py.File(tmp_path / "noise.hdf5", "w") as file:
        write_header(file, "noise", 3, {})
        for i in range(3):
            write_columns(
                file["data"].create_group(f"demo_{i}"),
                {
                    "actions": rng.uniform(-1, 1, (5, 7)),
                    "states": np.zeros((5, 8)),
                    "rewards": np.zeros(5),
                    "dones": np.zeros(5),
                    "instructions": ["lift the cube"] * 5,
                    "obs": {"agentview_image": rng.integers(0, 256, (5, 80, 64, 3), np.uint8)},
                },
            )
    return tmp_path / "noise.hdf5"


def form_of(config, mixture) -> OpenVLAFormat:
    return OpenVLAFormat(config, byte_tokenizer(), mixture.statistics, mixture.spaces)


def test_batches_are_the_same_for_any_number_of_devices_and_workers(noise, tmp_path):
    config = dataclasses.replace(tiny("l1"), center_crop=0.9)
    source = DatasetSource(str(noise))
    index = index_frames(source, tmp_path / "index")
    mixture, _ = mix([source], [index], 7)
    samples = Samples(mixture, form_of(config, mixture), 0, augmented=True)

    def everything(world: int, workers: int = 0) -> list[torch.Tensor]:
        parts = [
            list(batches(samples, 1, 3, 4 // world, workers, rank, world)) for rank in range(world)
        ]
        fields = ("images", "ids", "targets", "inside", "numbers")
        return [
            torch.cat([getattr(parts[r][k], f) for r in range(world)])
            for k in range(2)
            for f in fields
        ]

    one = everything(1)
    for other in (everything(2), everything(1, workers=1)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_index_is_made_once_and_anew_when_the_data_changes(noise, tmp_path):
    told: list[str] = []
    source = DatasetSource(str(noise))
    first = index_frames(source, tmp_path / "index", report=told.append)
    second = index_frames(source, tmp_path / "index", report=told.append)
    assert len(told) == 1 and np.array_equal(first.actions, second.actions)
    assert first.statistics == second.statistics and first.locate(7) == (1, 2)
    noise.touch()
    index_frames(source, tmp_path / "index", report=told.append)
    assert len(told) == 2


def test_formats_are_mixed_and_give_the_same_frames(noise, tmp_path):
    from vla_training.conversion.convert import convert

    config = tiny()
    sources = [DatasetSource(str(noise), 1.0)]
    for kind in ("rlds", "lerobot"):
        made = convert(noise, tmp_path / kind, kind, workers=1)
        sources.append(DatasetSource(str(made.path), 1.0))
    indices = [index_frames(s, tmp_path / "index") for s in sources]
    readers = [FrameReader(s.open(), (), 1) for s in sources]
    for index, reader in zip(indices, readers, strict=True):
        assert np.allclose(index.actions, indices[0].actions, atol=1e-6)
        assert np.array_equal(index.ends, indices[0].ends)
        for frame in (0, 7, 14):
            (image,), text = reader.read(*index.locate(frame))
            (expected,), sentence = readers[0].read(*indices[0].locate(frame))
            assert text == sentence and image.shape == expected.shape
    mixture, _ = mix(sources, indices, 7)
    samples = Samples(mixture, form_of(config, mixture), 0, augmented=False)
    drawn = torch.cat([b.source for b in batches(samples, 0, 15, 8)])
    assert torch.bincount(drawn, minlength=3).min() > 20


@pytest.mark.parametrize(
    "stored", [{"chunks": (2, 8, 8, 3), "compression": "gzip"}, {"compression": "lzf"}, {}]
)
def test_frames_of_hdf5_are_read_however_images_are_stored(noise, stored):
    with h5py.File(noise, "r+") as file:
        group = file["data/demo_1"]
        images, group["instructions"][3] = group["obs/agentview_image"][:], "another"
        del group["obs/agentview_image"]
        group.create_dataset("obs/agentview_image", data=images, **stored)
    reader = FrameReader(DatasetSource(str(noise)).open(), (), 1)
    for step in (3, 0, 3):
        (image,), text = reader.read(1, step)
        assert np.array_equal(image, images[step])
        assert text == ("another" if step == 3 else reader.read(0, 0)[1])


def test_a_damaged_frame_of_hdf5_is_told_with_its_place(noise):
    with h5py.File(noise, "r+") as file:
        file["data/demo_1/obs/agentview_image"].id.write_direct_chunk((2, 0, 0, 0), b"broken")
    reader = FrameReader(DatasetSource(str(noise)).open(), (), 1)
    reader.read(1, 1)
    with pytest.raises(DataError, match=r"noise\.hdf5: /data/demo_1/obs/agentview_image cannot"):
        reader.read(1, 2)


def test_actions_of_another_length_are_refused():
    index = FrameIndex("odd", np.zeros((4, 6), np.float32), np.array([4]), {}, eef_delta_spec())
    with pytest.raises(DataError, match="have 6 dimensions, the model's 7"):
        mix([DatasetSource("odd")], [index], 7)


# -- how the learning rate goes ---------------------------------------------------------------


@pytest.mark.parametrize(("kind", "half", "end"), [("constant", 1, 1), ("linear", 0.5, 0)])
def test_the_rate_rises_step_by_step_and_then_falls(kind, half, end):
    schedule = Schedule(2e-3, kind, warmup=4 / 20, begin=1 / 4)
    rising = [schedule.rate(step / 20) for step in range(5)]
    assert rising == pytest.approx([0.5e-3, 1e-3, 1.5e-3, 2e-3, 2e-3])
    assert schedule.rate(12 / 20) == pytest.approx(2e-3 * half)
    assert schedule.rate(1.0) == pytest.approx(2e-3 * end)


def test_a_cosine_is_half_way_down_in_the_middle():
    schedule = Schedule(1.0, "cosine")
    found = [schedule.rate(p) for p in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0])


# -- what the loss is taken of ----------------------------------------------------------------


@given(st.lists(st.floats(-1.5, 1.5, width=32), min_size=7, max_size=7))
def test_tokens_are_those_that_are_decoded_at_inference(values):
    objective = _OBJECTIVE
    config = objective.vla.config
    tokens = ActionTokens(config.action_vocab_end, config.n_action_bins)
    actions = np.array(values, np.float32)
    ids = objective.encode(torch.from_numpy(actions))
    assert np.array_equal(ids.numpy(), tokens.encode(actions))
    assert np.allclose(objective.decode(ids).numpy(), tokens.decode(ids.numpy()), atol=1e-6)


_OBJECTIVE = OpenVLAObjective(random_model(tiny()))


@pytest.mark.parametrize("head", ["tokens", "parallel", "l1", "l1-two-cameras", "l1-slots"])
def test_training_form_equals_inference_and_padding_changes_nothing(head):
    config = tiny(head)
    model = random_model(config)
    objective = OpenVLAObjective(model)
    batch = a_batch(config, [9, 6, 8])
    with torch.no_grad():
        loss, _ = objective(batch)
        alone = []
        for i, length in enumerate([9, 6, 8]):
            one = batch.map(lambda t, i=i: t[i : i + 1])
            one = dataclasses.replace(one, ids=one.ids[:, :length], lengths=None)
            alone.append(objective(one)[0])
    assert torch.allclose(loss, torch.stack(alone).mean(), atol=1e-5)
    add_lora(model, LoraConfig(4))
    prepare(model, recompute=0.5)
    model.train()
    again, _ = objective(batch)
    again.backward()
    assert torch.allclose(again, loss, atol=1e-5)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if config.head.decoding == "autoregressive":
        # What the model says by itself, given its own tokens back, is what it is most sure of.
        model.eval()
        one = batch.map(lambda t: t[:1])
        ids = model.generate_tokens(objective.context(one)[0])
        values = objective.decode(ids)[:, None]
        told = dataclasses.replace(one, targets=values, lengths=None)
        assert objective(told)[1]["accuracy"] == 1


def test_frames_beyond_an_episode_count_for_nothing():
    config = tiny("l1")
    objective = OpenVLAObjective(random_model(config))
    batch = a_batch(config, [7, 7])
    inside = batch.inside.clone()
    inside[0, 3:] = False
    spoilt = batch.targets.clone()
    spoilt[0, 3:] = 100.0
    with torch.no_grad():
        a = objective(dataclasses.replace(batch, inside=inside))[0]
        b = objective(dataclasses.replace(batch, inside=inside, targets=spoilt))[0]
    assert torch.equal(a, b)


# -- adapters and counts ----------------------------------------------------------------------


def test_lora_has_the_gradients_of_its_formula():
    torch.manual_seed(0)
    for bias in (True, False):
        layer = LoraLinear(nn.Linear(6, 5, bias=bias), LoraConfig(3), 0).double()
        nn.init.normal_(layer.lora_B)
        x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda t, m=layer: m(t), (x,))
        layer(x).square().sum().backward()
        got = [layer.lora_A.grad, layer.lora_B.grad, x.grad]
        a, b = (p.detach().requires_grad_() for p in (layer.lora_A, layer.lora_B))
        z = x.detach().requires_grad_()
        y = layer.base(z) + layer.scale * z @ a.T @ b.T
        y.square().sum().backward()
        for mine, true in zip(got, (a.grad, b.grad, z.grad), strict=True):
            assert torch.allclose(mine, true)


def test_weights_times_tokens_are_those_of_the_modules():
    config = tiny("l1-two-cameras")
    model, counted = random_model(config), {}

    def count(name):
        def hook(module, inputs, output):
            part = name.split(".")[0]
            rows = inputs[0].shape[1:-1].numel() if inputs[0].ndim > 2 else 1
            counted[part] = counted.get(part, 0) + rows * module.weight.numel()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count(name))
    with torch.no_grad():
        OpenVLAObjective(model)(a_batch(config, [9]))
    macs = forward_macs(config, 9)
    stem = sum(3 * t.patch_size**2 * t.embed_dim * t.num_patches for t in config.encoders) * 2
    assert counted["vision_backbone"] + stem == macs["vision"]
    assert counted["projector"] == macs["projector"]
    assert counted["language_model"] == macs["language"]


# -- images ---------------------------------------------------------------------------------


def test_central_crop_is_that_of_inference():
    config = dataclasses.replace(tiny(), center_crop=0.9)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    seen = Pixels(config)(torch.from_numpy(image)[None, None], None, torch.float32)
    encoder = config.encoders[0]
    expected = center_crop(image, 0.9, 64).astype(np.float32) / 255
    expected = (expected - np.array(encoder.mean, np.float32)) / np.array(encoder.std, np.float32)
    difference = np.abs(seen[0].permute(1, 2, 0).numpy() - expected).max() * max(encoder.std)
    assert difference < 1.01 / 255


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_augmented_images_stay_images(seed):
    numbers = torch.from_numpy(draw(np.random.default_rng(seed)))[None]
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    y = augment(x, numbers)
    assert y.shape == x.shape and float(y.min()) >= 0 and float(y.max()) <= 1 + 1e-6
    neutral = torch.full((1, NUMBERS), NEUTRAL)
    assert torch.allclose(augment(x, neutral, area=1.0), x, atol=1e-5)


def test_training_leaves_the_precision_of_products_as_it_was():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyboardInterrupt), tensor_cores(cuda=True):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyboardInterrupt
    assert torch.get_float32_matmul_precision() == before
    with tensor_cores(cuda=False):
        assert torch.get_float32_matmul_precision() == before
