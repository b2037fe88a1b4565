"""Tests of models of Octo's kind: diffusion, what sees what, and whole runs."""

from __future__ import annotations

import json
import math
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_runs import losses, settings, write_noise
from safetensors.torch import load_file
from torch import Tensor

from vla_inference.cli.main import run_subcommand
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.chunking import Continuation, RealTimeChunking
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.flow import Inputs
from vla_inference.policies.octo.config import OctoConfig, read_config
from vla_inference.policies.octo.diffusion import Schedule, denoise
from vla_inference.policies.octo.model import Octo
from vla_inference.policies.octo.untrained import begin
from vla_inference.policies.registry import describe_policy, load_policy
from vla_inference.types import Observation
from vla_training.finetune.finetune import Finetuner, finetune
from vla_training.loader.frame_index import DatasetSource
from vla_training.loop import distributed
from vla_training.loop.graceful_stop import StopRequest

CPU = LoadOptions(device="cpu")
TINY = OctoConfig(2, 8, 7, 3, (32, 32), 64, 2, 2, 128, 300, head_width=32, head_blocks=1)
NEW = EntryPoint("new", "vla_training.cli.new:new", "vla.commands")
SIZES = {"octo-image": 32, "octo-width": 64, "octo-layers": 1, "octo-vocabulary": 300, "chunk": 3}
SIZES_GIVEN = [f"--{name}={value}" for name, value in SIZES.items()]
GREY = np.full((64, 64, 3), 128, np.uint8)
SEEN = Observation(
    {"agentview": GREY, "robot0_eye_in_hand": GREY}, "lift the cube", np.zeros(8, np.float32)
)


# -- diffusion ------------------------------------------------------------------------------------


def test_the_schedule_is_the_cosine():
    schedule = Schedule.cosine(20)
    wanted = [math.cos((t / 20 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(21)]
    kept = torch.tensor([x / wanted[0] for x in wanted[1:-1]])
    torch.testing.assert_close(schedule.kept[:-1], kept)
    assert schedule.beta.max() == pytest.approx(0.999)


def test_a_network_that_knows_the_noise_leads_back_to_the_actions():
    schedule, random = Schedule.cosine(20), torch.Generator().manual_seed(0)
    wanted = torch.rand(2, 4, 7, generator=random) * 2 - 1

    def find_noise(x: Tensor, step: Tensor) -> Tensor:
        a, b = schedule.shares(step)
        return (x - a * wanted) / b

    found = denoise(find_noise, torch.randn(2, 4, 7, generator=random), schedule, random)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)
    for t in (0, 10, 19):
        step, noise = torch.tensor([t, t]), torch.randn(2, 4, 7, generator=random)
        back = schedule.actions(schedule.add_noise(wanted, noise, step), noise, step)
        torch.testing.assert_close(back, wanted, atol=1e-3, rtol=0)


# -- the network ----------------------------------------------------------------------------------


@pytest.fixture
def network() -> Octo:
    torch.manual_seed(0)
    model = Octo(TINY)
    begin(model)
    return model.requires_grad_(False)


def inputs(words: list[int], padded: int = 0) -> Inputs:
    ids = torch.tensor([words + [0] * padded])
    mask = torch.arange(ids.shape[1])[None] < len(words)
    random = torch.Generator().manual_seed(1)
    images = torch.rand(1, 2, 3, 32, 32, generator=random) * 2 - 1
    return Inputs(images, ids, mask, torch.randn(1, 8, generator=random))


def test_the_readout_depends_on_all_that_is_seen_but_padding(network):
    given = inputs([5, 6, 7])
    read = network.read(given)
    torch.testing.assert_close(network.read(inputs([5, 6, 7], padded=5)), read, rtol=0, atol=1e-5)
    images = given.images.clone()
    images[:, 1, :, 0, 0] += 1
    for other in (
        inputs([5, 7, 6]),
        given._replace(images=images),
        given._replace(state=given.state + 1),
    ):
        assert (network.read(other) - read).abs().max() > 1e-3


def test_nothing_sees_the_readouts_and_the_instruction_sees_itself_alone(network):
    x, sees = network.embed(inputs([5, 6, 7]))
    assert x.shape == (1, 3 + 2 * 4 + 1 + 1, 64)
    assert sees[0, 0, -1].all() and not sees[0, 0, :-1, -1].any()
    assert sees[0, 0, :3, :3].all() and not sees[0, 0, :3, 3:].any()
    assert sees[0, 0, 3:, :-1].all()


def test_an_untrained_network_keeps_the_size_of_what_it_sees(network):
    x, _ = network.embed(inputs([5, 6, 7]))
    assert 0.3 < x.std() < 3 and 0.3 < network.read(inputs([5])).std() < 3
    assert (
        (network.head(network.read(inputs([5])), torch.randn(1, 3, 7), torch.tensor([4])))
        .eq(0)
        .all()
    )


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("octo")
    write_noise(home / "noise.hdf5")
    command = ["octo", str(home / "base"), "--dataset", str(home / "noise.hdf5")]
    assert run_subcommand(NEW, [*command, *SIZES_GIVEN]) == 0
    return home


def config_of(home: Path, folder: Path, **changes):
    cameras = ("agentview", "robot0_eye_in_hand")
    source = DatasetSource(str(home / "noise.hdf5"), cameras=cameras)
    return settings(home, folder, "base", **{"lora_rank": None, "sources": (source,), **changes})


def started(config) -> Finetuner:
    return Finetuner(config, distributed.start("cpu"))


@pytest.fixture(scope="module")
def trained(home) -> Path:
    run = started(config_of(home, home / "run", max_steps=50, learning_rate=1e-3))
    assert run.run(StopRequest())
    found = losses(home / "run")
    assert found[1] == pytest.approx(1, abs=0.2)  # of noise that is not found
    early, late = (np.mean([found[s] for s in r]) for r in (range(1, 11), range(41, 51)))
    assert late < 0.8 * early
    policy = run.trainable.policy(run.objective.model.eval(), "cpu", torch.float32)
    wanted = policy.act(SEEN).actions
    checkpoint = run.export()
    np.testing.assert_allclose(load_policy(checkpoint, CPU).act(SEEN).actions, wanted, atol=1e-5)
    return checkpoint


def test_it_answers_alike_from_one_seed_and_otherwise_from_another(trained):
    policy = load_policy(trained, CPU)
    assert policy.chunk == 3 and policy.needs.cameras == tuple(SEEN.images)
    first = policy.act(SEEN).actions
    assert first.shape == (3, 7) and not np.allclose(policy.act(SEEN).actions, first)
    policy.seed(0)
    np.testing.assert_array_equal(policy.act(SEEN).actions, first)
    assert "20 of diffusion" in str(describe_policy(trained))


def test_an_old_chunk_is_not_continued(trained):
    policy = load_policy(trained, CPU)
    after = Continuation(np.zeros((2, 7), np.float32), 1, RealTimeChunking())
    with pytest.raises(VlaError, match="takes no chunking"):
        policy.continue_chunk(SEEN, after)


def test_a_stopped_run_goes_on_bit_for_bit(home, tmp_path):
    whole = started(config_of(home, tmp_path / "whole", max_steps=4))
    assert whole.run(StopRequest())
    first = started(config_of(home, tmp_path / "parts", max_steps=2))
    assert first.run(StopRequest())
    first.save()
    second = started(config_of(home, tmp_path / "parts", max_steps=4))
    second.resume()
    assert second.run(StopRequest())
    for (name, a), (_, b) in zip(
        whole.objective.model.state_dict().items(),
        second.objective.model.state_dict().items(),
        strict=True,
    ):
        assert a.equal(b), name


def test_the_head_alone_is_trained_where_asked(home, tmp_path):
    run = started(config_of(home, tmp_path / "run", train="expert"))
    names = {n for n, p in run.objective.model.named_parameters() if p.requires_grad}
    assert names and all(name.startswith("head.") for name in names)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": [30, 32]},
        {"n_heads": 5},
        {"diffusion_steps": 0},
        {"head_blocks": None},
        {"dim_model": 128},
    ],
)
def test_a_broken_configuration_is_refused_by_name(trained, tmp_path, change):
    folder = Path(shutil.copytree(trained, tmp_path / "broken"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError):
        load_policy(folder, CPU)


def test_sizes_are_read_back_as_they_were(home):
    checkpoint = LeRobotCheckpoint.read(home / "base", fitted=False)
    sizes = read_config(checkpoint)
    assert (sizes.cameras, sizes.state_dim, sizes.action_dim, sizes.chunk) == (2, 8, 7, 3)
    assert (sizes.image_size, sizes.width, sizes.layers, sizes.heads) == ((32, 32), 64, 1, 1)


def test_weights_are_stored_as_asked_and_stay_so(home, tmp_path):
    given = ["--dataset", str(home / "noise.hdf5"), *SIZES_GIVEN, "--stored=bfloat16"]
    assert run_subcommand(NEW, ["octo", str(tmp_path / "base"), *given]) == 0
    source = DatasetSource(str(home / "noise.hdf5"))
    base = {"vla_path": str(tmp_path / "base"), "sources": (source,)}
    made = finetune(config_of(home, tmp_path / "run", max_steps=1, **base))
    for folder in (tmp_path / "base", made):
        kinds = {t.dtype for t in load_file(folder / "model.safetensors").values()}
        assert kinds == {torch.bfloat16}


@pytest.mark.parametrize("wrong", ["--octo-image 30", "--octo-width 100", "--width 64"])
def test_sizes_that_do_not_fit_are_refused(home, tmp_path, wrong):
    command = ["octo", str(tmp_path / "x"), "--dataset", str(home / "noise.hdf5")]
    with pytest.raises(VlaError, match=wrong.split()[0]):
        run_subcommand(NEW, [*command, *wrong.split()])
    assert not (tmp_path / "x").exists()
