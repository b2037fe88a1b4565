"""The small model's shape and training options."""

from __future__ import annotations

from dataclasses import dataclass

from vla_training.finetune.loop import LoopConfig, Schedule
from vla_training.loader.augment import Augmentation

SMALL = {
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


@dataclass(frozen=True)
class TrainConfig:
    """How to train. With `minutes` the schedule follows the clock, else `steps`."""

    batch_size: int = 1024
    steps: int = 15_000
    minutes: float | None = None
    learning_rate: float = 1.5e-3
    scene_weight: float = 1.0  # of the loss on the simulator's own poses
    other_order: float = 0.5  # share of the frames that have one and are asked about it
    wordings: int = 64  # sentences drawn for a scene; 0: the recorded ones alone
    weight_decay: float = 0.05
    warmup: float = 0.03  # share of the schedule
    ema: float = 0.999
    shift: int = 12  # pixels
    brightness: float = 0.15
    channel: float = 0.05
    validation: float = 0.02  # share of the episodes
    seed: int = 0
    every: int = 500  # steps from one report, and save, to the next
    compile: bool = False
    layers: int = SMALL["text_config"]["num_hidden_layers"]  # of the language model
    shares: bool = False  # each device holds its share of the datasets, not all of them
    start: str | None = None  # checkpoint whose weights are begun with, where shapes agree

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.shift, 0.5 * self.brightness, self.brightness, self.channel)

    @property
    def loop(self) -> LoopConfig:
        schedule = Schedule(self.learning_rate, "cosine", self.warmup, 1e-3)
        return LoopConfig(schedule, self.batch_size, self.steps, self.minutes)
