"""Compatibility with lerobot: it loads the checkpoints that fine-tuning writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from elsewhere import elsewhere, skip_older_lerobot
from finetune_runs import settings, write_noise
from lerobot_reference import error_of, write_small_smolvla

from vla_inference.policies.act.config import ACTConfig
from vla_inference.policies.act.untrained import write_untrained
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import ACTION
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation
from vla_training.finetune.families.act import ACTObjective
from vla_training.finetune.families.lerobot.flow import FlowObjective
from vla_training.finetune.finetune import Finetuner, finetune
from vla_training.loader.frame_index import DatasetSource
from vla_training.loop import distributed
from vla_training.loop.graceful_stop import StopRequest

PYTHON = "VLA_LEROBOT_PYTHON"
CAMERAS = ("agentview", "robot0_eye_in_hand")
# lerobot asks the Hub for the vision-language model's sizes and tokenizer: both lie in the folder.
SMOLVLA = """
import json, sys
from types import SimpleNamespace
import numpy as np, torch
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig
folder, path = sys.argv[1:]
sizes = json.load(open(f"{folder}/vlm_config.json"))
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="<pad>")
special = SimpleNamespace(fake_image_token_id=0, global_image_token_id=0)
AutoConfig.from_pretrained = lambda *_, **__: SmolVLMConfig.from_dict(dict(sizes))
AutoProcessor.from_pretrained = lambda *_, **__: SimpleNamespace(tokenizer=special)
AutoTokenizer.from_pretrained = lambda *_, **__: tokenizer
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
torch.set_num_threads(2)
policy = SmolVLAPolicy.from_pretrained(folder).eval()
before, after = make_pre_post_processors(policy.config, pretrained_path=folder)
given = np.load(path)
batch = {"task": [str(t) for t in given["task"]]}
for name in given:
    if name.startswith("observation.images."):
        batch[name] = torch.from_numpy(given[name]).permute(0, 3, 1, 2).float() / 255
    elif name in ("observation.state", "action", "action_is_pad"):
        batch[name] = torch.from_numpy(given[name])
ready = before(batch)
noise, time = torch.from_numpy(given["noise"]), torch.from_numpy(given["time"])
with torch.no_grad():
    loss, _ = policy.forward(dict(ready), noise=noise, time=time)
    seen = {k: v for k, v in ready.items() if not k.startswith("action")}
    actions = after(policy.predict_action_chunk(seen, noise=noise))
print(json.dumps({"actions": actions.tolist(), "loss": loss.item()}))
"""
# The latent is drawn inside: the numbers it is made of are put in its place.
ACT = """
import json, sys
import numpy as np, torch
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
folder, path = sys.argv[1:]
torch.set_num_threads(2)
policy = ACTPolicy.from_pretrained(folder)
before, after = make_pre_post_processors(policy.config, pretrained_path=folder)
given = np.load(path)
batch = {}
for name in given:
    if name.startswith("observation.images."):
        batch[name] = torch.from_numpy(given[name]).permute(0, 3, 1, 2).float() / 255
    elif name in ("observation.state", "action", "action_is_pad"):
        batch[name] = torch.from_numpy(given[name])
ready = before(batch)
with torch.no_grad():
    seen = {k: v for k, v in ready.items() if not k.startswith("action")}
    actions = after(policy.eval().predict_action_chunk(seen))
    noise = torch.from_numpy(given["noise"])
    torch.randn_like = lambda like: noise
    loss, parts = policy.train().forward(dict(ready))
print(json.dumps({"actions": actions.tolist(), "loss": loss.item()}))
"""


@pytest.fixture(scope="module", autouse=True)
def lerobot(tmp_path_factory) -> None:
    """Checkpoints are of the newest version's layout; Python below 3.12 has an older one."""
    skip_older_lerobot(PYTHON, tmp_path_factory.mktemp("version"))


@pytest.mark.parametrize("changes", [{}, {"train": "all", "lora_rank": 4}])
def test_it_answers_as_we_do_by_a_smolvla_that_we_fine_tuned(tmp_path, changes):
    source = DatasetSource(str(write_noise(tmp_path / "noise.hdf5")), cameras=CAMERAS)
    write_small_smolvla(tmp_path / "smolvla")
    config = settings(
        tmp_path,
        tmp_path / "run",
        "smolvla",
        sources=(source,),
        proprio_dim=8,
        action_dim=7,
        **{"lora_rank": None, **changes},
    )
    folder = finetune(config)
    policy = load_policy(folder, LoadOptions(device="cpu"))
    rng, steps = np.random.default_rng(0), policy.chunk
    images = {c: rng.integers(0, 256, (2, 48, 80, 3), np.uint8) for c in CAMERAS}
    states = rng.standard_normal((2, 8)).astype(np.float32)
    tasks = ["lift the cube", "stack the red block on the green one"]
    actions = rng.uniform(-1, 1, (2, steps, 7)).astype(np.float32)
    inside = np.array([[True] * steps, [True] * (steps - 1) + [False]])
    noise = rng.standard_normal((2, steps, 32), np.float32)
    times = np.array([0.2, 0.7], np.float32)
    np.savez(
        tmp_path / "given.npz",
        **{f"observation.images.{c}": x for c, x in images.items()},
        **{"observation.state": states, "action": actions, "action_is_pad": ~inside},
        task=np.array(tasks),
        noise=noise,
        time=times,
    )
    theirs = elsewhere(PYTHON, tmp_path, SMOLVLA, folder, tmp_path / "given.npz")
    seen = [
        Observation({c: x[i] for c, x in images.items()}, tasks[i], states[i]) for i in range(2)
    ]
    ours = [c.actions for c in policy.predict_batch(seen, noise=noise)]
    assert error_of(np.stack(ours), theirs["actions"]) < 2e-5
    with torch.no_grad():
        loss, _ = FlowObjective(policy, policy.model).loss(
            policy.inputs(seen),
            torch.from_numpy(policy.checkpoint.normalisers[ACTION].normalise(actions)),
            torch.from_numpy(inside),
            torch.from_numpy(noise),
            torch.from_numpy(times),
        )
    assert error_of(loss, theirs["loss"]) < 2e-5


@pytest.mark.parametrize("vae_layers", [4, 0])
def test_it_answers_as_we_do_by_an_act_that_we_trained(tmp_path, vae_layers):
    sizes = ACTConfig(2, 8, 7, 6, width=64, heads=4, mlp=96, dropout=0.0, vae_layers=vae_layers)
    names = ("front", "wrist")  # other ones than the dataset's
    write_untrained(tmp_path / "act", sizes, names, (64, 64))
    source = DatasetSource(
        str(write_noise(tmp_path / "noise.hdf5", side=(48, 80))), cameras=CAMERAS
    )
    config = settings(tmp_path, tmp_path / "run", "act", sources=(source,), lora_rank=None)
    run = Finetuner(config, distributed.start("cpu"))
    assert run.run(StopRequest())
    folder = run.export()
    policy = load_policy(folder, LoadOptions(device="cpu"))
    rng, steps = np.random.default_rng(0), policy.chunk
    images = {c: rng.integers(0, 256, (2, 48, 80, 3), np.uint8) for c in CAMERAS}
    states = rng.standard_normal((2, 8)).astype(np.float32)
    actions = rng.uniform(-1, 1, (2, steps, 7)).astype(np.float32)
    inside = np.array([[True] * steps, [True] * (steps - 1) + [False]])
    noise = rng.standard_normal((2, sizes.latent), np.float32)
    np.savez(
        tmp_path / "given.npz",
        **{f"observation.images.{c}": x for c, x in images.items()},
        **{"observation.state": states, "action": actions, "action_is_pad": ~inside},
        noise=noise,
    )
    theirs = elsewhere(PYTHON, tmp_path, ACT, folder, tmp_path / "given.npz")
    seen = [Observation({c: x[i] for c, x in images.items()}, "", states[i]) for i in range(2)]
    ours = [c.actions for c in policy.predict(seen)]
    assert error_of(np.stack(ours), theirs["actions"]) < 3e-5
    pixels, state = policy.inputs(seen)
    objective = run.objective
    assert isinstance(objective, ACTObjective)
    with torch.no_grad():
        loss, _ = objective.train().loss(
            pixels,
            state,
            torch.from_numpy(policy.checkpoint.normalisers[ACTION].normalise(actions)),
            torch.from_numpy(inside),
            torch.from_numpy(noise),
        )
    assert error_of(loss, theirs["loss"]) < 3e-5
