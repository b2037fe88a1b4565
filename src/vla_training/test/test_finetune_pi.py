"""Tests of fine-tuning pi0 and pi0.5: the original's loss and gradients, and whole runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetune_runs import losses, settings, write_noise
from lerobot_reference import DATA, error_of, pi_weight, write_checkpoint
from safetensors.numpy import load_file

from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import ACTION
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation
from vla_training.finetune.families.lerobot.flow import FlowObjective
from vla_training.finetune.finetune import Finetuner
from vla_training.loader.frame_index import DatasetSource
from vla_training.loop import distributed
from vla_training.loop.graceful_stop import StopRequest

CPU = LoadOptions(device="cpu")
CAMERAS = ("agentview", "robot0_eye_in_hand")


@pytest.fixture(scope="module", params=["pi05", "pi0"])
def reference(request, tmp_path_factory) -> SimpleNamespace:
    """A family's checkpoint folder and cases, and a dataset."""
    home = tmp_path_factory.mktemp(request.param)
    write_checkpoint(home / "model", request.param, pi_weight, bos=True)
    write_noise(home / "noise.hdf5", episodes=2)
    return SimpleNamespace(home=home, cases=np.load(DATA / request.param / "cases.npz"))


def new_run(home: Path, folder: Path, **changes) -> Finetuner:
    source = DatasetSource(str(home / "noise.hdf5"), cameras=CAMERAS)
    given = {"lora_rank": None, "batch_size": 2, "sources": (source,), **changes}
    return Finetuner(settings(home, folder, "model", **given), distributed.start("cpu"))


def test_the_loss_and_its_gradients_are_those_of_the_original(reference, tmp_path):
    cases = reference.cases
    observations = [
        Observation(
            {
                key.removeprefix("train/image."): cases[key][i]
                for key in cases
                if key.startswith("train/image.")
            },
            str(cases["train/instruction"][i]),
            cases["train/state"][i],
        )
        for i in range(2)
    ]
    policy = load_policy(reference.home / "model", CPU)
    family = new_run(reference.home, tmp_path / "run").trainable
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_(family.trained(name))
    targets = policy.checkpoint.normalisers[ACTION].normalise(cases["train/action"])
    np.testing.assert_allclose(targets, cases["train/action_normalized"], rtol=1e-6, atol=1e-6)
    loss, _ = FlowObjective(policy, policy.model).loss(
        policy.inputs(observations),
        torch.from_numpy(targets.astype(np.float32)),
        torch.ones(targets.shape[:2], dtype=torch.bool),  # the original's looks at no padding
        torch.from_numpy(cases["train/noise"]),
        torch.from_numpy(cases["train/time"]),
    )
    assert error_of(loss.detach(), cases["train/loss"]) < 2e-5
    loss.backward()
    mine = dict(policy.model.named_parameters())
    names = [family.our_name(str(n)) for n in cases["train/grad_names"]]
    norms = {n: norm for n, norm in zip(names, cases["train/grad_norms"], strict=True) if norm}
    assert set(norms) == {n for n in mine if family.trained(n)}
    for name, norm in norms.items():
        # Keys' biases change nothing: their gradient is rounding.
        assert mine[name].grad.norm() == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    for key in (k for k in cases if k.startswith("train/grad/")):
        gradient = mine[family.our_name(key.removeprefix("train/grad/"))].grad[:, ::4]
        assert error_of(gradient, cases[key]) < 1e-3, key


@pytest.mark.parametrize("changes", [{"train": "expert"}, {"lora_rank": 4}])
def test_a_run_ends_in_the_checkpoint_of_the_trained_model(reference, tmp_path, changes):
    run = new_run(reference.home, tmp_path / "run", max_steps=2, **changes)
    assert run.run(StopRequest())
    assert np.isfinite(list(losses(tmp_path / "run").values())).all()
    folder = run.export()
    before = load_file(reference.home / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert {n for n in changed if "gemma_expert" in n and "q_proj" in n}
    assert any("language_model" in n for n in changed) == ("lora_rank" in changes)
    policy = load_policy(folder, CPU)
    trained = run.trainable.policy(run.trainable.model.eval(), "cpu", torch.float32)
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (64, 64, 3), np.uint8) for c in CAMERAS}
    seen = Observation(images, "lift the cube", rng.standard_normal(8).astype(np.float32))
    assert error_of(policy.act(seen).actions, trained.act(seen).actions) < 1e-5
