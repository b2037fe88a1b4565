"""Compatibility with lerobot: our plug-in makes our checkpoints policies of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import elsewhere, interpreter, skip_older_lerobot
from finetune_runs import settings, write_noise

from vla_inference.policies.act.config import ACTConfig
from vla_inference.policies.act.untrained import write_untrained
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation
from vla_training.finetune.finetune import finetune
from vla_training.loader.frame_index import DatasetSource

PYTHON = "VLA_LEROBOT_PYTHON"
ROOT = Path(__file__).resolve().parents[2]
CAMERAS = ("agentview", "robot0_eye_in_hand")
LOAD = """
import json, sys
import numpy as np, torch
site, source, checkpoint, path = sys.argv[1:]
sys.path[:0] = [site, source]
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_policy_vla.__main__ import write_pretrained
folder = write_pretrained(checkpoint, __import__("pathlib").Path("wrapped"), engine="plain")
config = PreTrainedConfig.from_pretrained(folder)
policy = get_policy_class(config.type).from_pretrained(folder, config=config)
before, after = make_pre_post_processors(config, pretrained_path=str(folder))
"""
ACT = """
torch.set_num_threads(1)
given = dict(np.load(path))
def seen(i):
    images = {k: torch.from_numpy(v[i]).permute(2, 0, 1).float() / 255
              for k, v in given.items() if "images" in k}
    state = torch.from_numpy(given["observation.state"][i])
    return before({**images, "observation.state": state, "task": str(given["task"][i])})
actions = [after(policy.select_action(seen(i)))[0].tolist() for i in range(len(given["task"]))]
policy.reset()
again = after(policy.select_action(seen(1)))[0].tolist()
print(json.dumps({"actions": actions, "again": again, "type": config.type,
                  "inputs": sorted(config.input_features), "steps": policy.steps}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The plug-in as pip installs it."""
    folder = tmp_path_factory.mktemp("site")
    skip_older_lerobot(PYTHON, folder)
    command = [interpreter(PYTHON), "-m", "pip", "install", "--no-deps", "--no-index", "-q"]
    command += ["--no-build-isolation", "--target", folder / "site"]
    subprocess.run([*command, ROOT / "src" / "lerobot_policy_vla"], check=True)
    return folder / "site"


def ask(site: Path, folder: Path, checkpoint: Path, seen: list[Observation]) -> dict:
    """What lerobot's `select_action` gives for observations, one after the other."""
    images = {c: np.stack([o.images[c] for o in seen]) for c in seen[0].images}
    np.savez(
        folder / "given.npz",
        **{f"observation.images.{c}": x for c, x in images.items()},
        **{"observation.state": np.stack([o.state for o in seen])},
        task=np.array([o.instruction for o in seen]),
    )
    source = ROOT / "src" / "vla_inference"
    arguments = (site, source, checkpoint, folder / "given.npz")
    return elsewhere(PYTHON, folder, LOAD + ACT, *arguments)


def observations(cameras: tuple[str, ...], size: tuple[int, int], count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    return [
        Observation(
            {c: rng.integers(0, 256, (*size, 3), np.uint8) for c in cameras},
            "stack the red block on the green one",
            rng.standard_normal(8).astype(np.float32),
        )
        for _ in range(count)
    ]


def test_lerobot_selects_the_actions_of_an_act_that_we_trained(site, tmp_path):
    sizes = ACTConfig(2, 8, 7, 3, width=32, heads=4, mlp=48, encoder_layers=1, vae_layers=1)
    write_untrained(tmp_path / "act", sizes, CAMERAS, (64, 64))
    source = DatasetSource(str(write_noise(tmp_path / "noise.hdf5")), cameras=CAMERAS)
    config = settings(
        tmp_path, tmp_path / "run", "act", sources=(source,), lora_rank=None, max_steps=1
    )
    checkpoint = finetune(config)
    seen = observations(CAMERAS, (64, 64), 5)
    found = ask(site, tmp_path, checkpoint, seen)
    assert (found["type"], found["steps"]) == ("vla", 3)
    assert found["inputs"] == [f"observation.images.{c}" for c in CAMERAS] + ["observation.state"]
    policy = load_policy(checkpoint, LoadOptions(device="cpu", engine="plain"))
    chunks = [policy.act(o).actions for o in seen]
    # A chunk is executed to its end, whatever is seen meanwhile; after `reset` there is a new one.
    np.testing.assert_allclose(found["actions"], [*chunks[0], *chunks[3][:2]], atol=1e-4)
    np.testing.assert_allclose(found["again"], chunks[1][0], atol=1e-4)


def test_lerobot_selects_the_actions_of_the_shipped_model(site, tmp_path):
    checkpoint = ROOT / "models" / "stack-small"
    policy = load_policy(checkpoint, LoadOptions(device="cpu", engine="plain"))
    cameras = policy.needs.cameras or tuple(f"camera{i}" for i in range(policy.needs.images))
    seen = observations(cameras, (224, 224), 2)
    found = ask(site, tmp_path, checkpoint, seen)
    with torch.inference_mode():
        chunk = policy.act(seen[0]).actions
    np.testing.assert_allclose(found["actions"], chunk[:2], atol=1e-3)
