"""Small fine-tuning runs for the tests of several modules."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import h5py
import numpy as np

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.episodes.hdf5 import write_columns, write_header
from vla_training.finetune.config import FinetuneConfig
from vla_training.loader.frame_index import DatasetSource

# Of a corrected episode, whether a person acted in each step of 0.05 s
ACTED = np.repeat([False, True, False, True, False], [6, 4, 3, 2, 5])
SENTENCES = ("stack the red block on the green one", "lift the cube")


def write_noise(
    path: Path,
    episodes: int = 4,
    length: int = 8,
    spoil: str = "",
    seed: int = 0,
    side: tuple[int, int] = (64, 64),
) -> Path:
    """Images whose brightness tells the action, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        write_header(file, "noise", episodes, {})
        for i in range(episodes):
            light = rng.uniform(-1, 1, length)
            images = np.full((length, *side, 3), 128, np.uint8)
            images += (light * 100).astype(np.int8).view(np.uint8)[:, None, None, None]
            actions = np.repeat(light[:, None], 7, 1)
            if spoil == "nan" and i == 2:
                actions[3, 1] = np.nan
            data = {
                "actions": actions,
                "states": np.zeros((length, 8)),
                "rewards": np.zeros(length),
                "dones": np.zeros(length),
                "instructions": [SENTENCES[i % 2]] * length,
                "obs": {
                    "agentview_image": images,
                    "robot0_eye_in_hand_image": images[::-1],
                    "robot0_state": rng.standard_normal((length, 8)).astype(np.float32),
                },
            }
            write_columns(file["data"].create_group(f"demo_{i}"), data)
    return path


def write_corrected(path: Path, side: int = 64) -> Path:
    """One episode in which a person acted as ACTED says, and one that says nothing."""
    rng, n = np.random.default_rng(0), len(ACTED)
    with h5py.File(path, "w") as file:
        write_header(file, "noise", 2 * n, {})
        for i in range(2):
            data = {
                "actions": rng.uniform(-1, 1, (n, 7)),
                "states": np.zeros((n, 8)),
                "rewards": np.zeros(n),
                "dones": np.zeros(n),
                "instructions": [SENTENCES[0]] * n,
                "obs": {"agentview_image": rng.integers(0, 256, (n, side, side, 3), np.uint8)},
            }
            group = file["data"].create_group(f"demo_{i}")
            write_columns(group, data)
            if i == 0:
                group.create_dataset("intervention", data=ACTED.astype(np.uint8))
    return path


def make_home(folder: Path) -> Path:
    """A dataset and two models, of tokens and of chunks, that runs begin with."""
    write_noise(folder / "noise.hdf5")
    for head in ("tokens", "l1"):
        write_random_checkpoint(folder / head, "tiny", head)
    return folder


def settings(home: Path, folder: Path, base: str = "tokens", **changes) -> FinetuneConfig:
    usual = {
        "lora_rank": 4,
        "batch_size": 4,
        "max_steps": 4,
        "log_steps": 1,
        "val_split": 0.0,
        "workers": 0,
        "device": "cpu",
        "learning_rate": 3e-3,
        "tensorboard": False,
        "quiet": True,
    }
    sources = changes.pop("sources", (DatasetSource(str(home / "noise.hdf5")),))
    given = {"vla_path": str(home / base), **usual, **changes}
    return FinetuneConfig(sources=sources, folder=str(folder), **given)


def losses(folder: Path) -> dict[int, float]:
    """Loss by step; a step that was done twice counts as it was last done."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {e["step"]: e["loss"] for e in lines if e["kind"] == "train"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
