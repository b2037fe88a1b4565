"""The small model's shape and training options."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.openvla.config import PROMPTS
from vla_inference.options import Holds, option
from vla_sim_bridge.tasks import get_task
from vla_training.loader.sample_weights import SampleWeights
from vla_training.loop.schedule import LoopConfig, Schedule
from vla_training.small_model.thoughts import MOST

SMALL: dict[str, Any] = {
    "model_type": "openvla",
    "name": "stack-small",
    "arch_specifier": "no-align+gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "vision_towers": [
        {
            "key": "featurizer",
            "image_size": 224,
            "patch_size": 16,
            "embed_dim": 256,
            "depth": 2,
            "num_heads": 4,
            "mlp_hidden": 1024,
            "stem": "conv",
        }
    ],
    "text_config": {
        "hidden_size": 320,
        "intermediate_size": 896,
        "num_hidden_layers": 4,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "vocab_size": 832,
        "rms_norm_eps": 1e-5,
    },
    "action_head": {
        "type": "l1",
        "decoding": "parallel",
        "chunk": 8,
        "action_dim": 7,
        "slots_per_step": 1,
        "slots": "learned",
    },
    "n_action_bins": 256,
    "pad_to_multiple_of": 0,
    "empty_token_id": None,
    "bos_token_id": 1,
    "stop_token_id": 2,
}
# Enough for what is on a floor, of few colours; four times as fast to train on a CPU.
NARROW: dict[str, dict[str, int]] = {
    "encoder": {"embed_dim": 128, "mlp_hidden": 512},
    "text_config": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training options. With `minutes` the schedule follows the clock, else `steps`."""

    batch_size: int = option(1024, "Frames per step, over all devices.", low=1)
    steps: int = option(15_000, "Optimiser steps.", low=1)
    minutes: float | None = option(
        None, "Train for this many minutes instead of --steps.", above=0.0
    )
    learning_rate: float = option(1.5e-3, "Peak of the cosine schedule.", above=0.0)
    start: str | None = option(
        None,
        "Checkpoint to start from, where shapes agree; default: from scratch.",
        holds=Holds.PATH,
    )
    layers: int = option(
        SMALL["text_config"]["num_hidden_layers"], "Layers of the language model.", low=1
    )
    narrow: bool = option(
        False,
        "Layers of 128 numbers, rather than of 256 for images and 320 for words.",
    )
    name: str = option("stack-small", "Name of the model in its config.json.")
    cameras: tuple[str, ...] = option(
        (), "Cameras it is to see, separated by commas; default: agentview, or the first."
    )
    history: int = option(
        0, "Past images of each camera that it is to see as well.", low=0, high=16
    )
    history_interval: float = option(
        0.2, "Seconds between past images, whole steps of the datasets.", above=0.0, high=60.0
    )
    state: bool = option(False, "Whether the model takes the robot's state as well.")
    image_size: int = option(
        SMALL["vision_towers"][0]["image_size"], "Side of the images it sees, pixels.", low=32
    )
    wordings: int = option(
        64, "Sentences drawn for each recorded scene; 0: only the recorded ones.", low=0
    )
    other_order: float = option(
        0.5,
        "Share of the frames with an opposite order that get a sentence for it.",
        low=0.0,
        high=1.0,
    )
    scene_weight: float = option(
        1.0, "Weight of the auxiliary loss on the simulator's poses.", low=0.0
    )
    shift: int = option(
        12,
        "Most that images are shifted to any side, pixels of 224; not at all with --reasoning.",
        low=0,
        high=112,
    )
    reasoning: bool = option(
        False,
        "Whether the model writes what it sees and does before it acts (two-block tasks of "
        "`vla generate`).",
    )
    ema: float = option(0.999, "Decay of the average of weights.", low=0.0, high=1.0)
    validation: float = option(0.02, "Share of the episodes held out.", low=0.0, high=0.5)
    every: int = option(500, "Steps between validations and saved states.", low=1)
    save_minutes: float = option(10.0, "Minutes between saved states, too.", above=0.0)
    tensorboard: bool = option(True, "Write TensorBoard files.")
    shares: bool = option(
        False, "Each device holds its share of the datasets in memory, not all of them."
    )
    seed: int = option(0, "Seed of initial weights and of sampling.", low=0)
    compile: bool = option(False, "Use torch.compile.")
    weights: SampleWeights = field(default_factory=SampleWeights)
    weight_decay: float = 0.05
    warmup: float = 0.03  # share of the schedule
    brightness: float = 0.15
    channel: float = 0.05

    def model_json(self) -> dict[str, Any]:
        """config.json of the model, apart from the size of the state."""
        shape: dict[str, Any] = copy.deepcopy(SMALL)
        shape["name"] = self.name
        shape["text_config"]["num_hidden_layers"] = self.layers
        (encoder,) = shape["vision_towers"]
        if self.narrow:
            encoder |= NARROW["encoder"]
            shape["text_config"] |= NARROW["text_config"]
        if self.image_size % encoder["patch_size"]:
            raise VlaError(
                f"--image-size is {self.image_size}", f"give a multiple of {encoder['patch_size']}"
            )
        encoder["image_size"] = self.image_size
        if self.reasoning:
            self._check_reasoning()
            shape |= {"prompt": PROMPTS["openvla"] + " TASK:", "reasoning_tokens": MOST}
        head = shape["action_head"]
        head["num_images"] = max(1, len(self.cameras)) * (1 + self.history)
        if self.history:
            head |= {"history": self.history, "history_interval": self.history_interval}
        return shape

    def _check_reasoning(self) -> None:
        if self.shares:
            raise VlaError(
                "--reasoning with --shares: each process would have texts of its own",
                "leave one of them out",
            )
        if self.cameras and self.cameras[0] != "agentview":
            raise VlaError(
                f"--reasoning with camera {self.cameras[0]}: places are said in agentview's image",
                "name agentview first",
            )

    @property
    def loop(self) -> LoopConfig:
        schedule = Schedule(self.learning_rate, "cosine", self.warmup, 1e-3)
        return LoopConfig(schedule, self.batch_size, self.steps, self.minutes)


@dataclass(frozen=True)
class ResetImagesWanted:
    """The first `count` reset images of a task and seed."""

    task: str
    count: int
    seed: int

    @classmethod
    def parse(cls, text: str) -> ResetImagesWanted:
        """TASK:COUNT:SEED"""
        task, *numbers = text.split(":")
        if len(numbers) != 2 or not all(n.isdecimal() for n in numbers) or not int(numbers[0]):
            raise VlaError(f"--reset-images is {text!r}", "give TASK:COUNT:SEED")
        return cls(get_task(task).name, int(numbers[0]), int(numbers[1]))
