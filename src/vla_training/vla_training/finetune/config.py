"""`FinetuneConfig`: the options of a fine-tuning run, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks import get_task
from vla_training.finetune.schedule import SCHEDULES, LoopConfig, Schedule
from vla_training.loader.frame_index import Source
from vla_training.loader.online import Online
from vla_training.lora.layers import LoraConfig

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune. Batches count per device; what must be equal to resume is `identity`.

    lora_rank: 0 fine-tunes all weights. quantize: format of the frozen base (QLoRA), "" for none.
    gradient_checkpointing: share of layers that are computed twice to save memory, 0 to 1.
    precision: "bf16", "fp32", or "auto": bf16 on a GPU. save_steps: 0 saves at the end alone.
    spike_factor: a gradient this many times the usual one is skipped. wandb: a project's name.
    """

    vla_path: str
    sources: tuple[Source, ...]
    folder: str
    lora_rank: int = 32
    lora_alpha: float | None = None
    train_vision: bool = True
    quantize: str = ""
    batch_size: int = 16
    grad_accumulation_steps: int = 1
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    warmup_steps: int = 0
    lr_schedule: str = "constant"
    max_grad_norm: float = 1.0
    spike_factor: float = 10.0
    epochs: float = 1.0
    max_steps: int | None = None
    image_aug: bool = False
    action_head: str = "keep"
    chunk: int | None = None
    num_images: int | None = None
    proprio_dim: int | None = None
    action_space: str | None = None
    precision: str = "auto"
    gradient_checkpointing: float = 0.0
    compile: bool = False
    reshard: bool = True
    workers: int = 4
    seed: int = 0
    device: str | None = None
    save_steps: int = 1000
    log_steps: int = 10
    val_split: float = 0.05
    val_steps: int = 0
    val_batches: int = 20
    closed_loop_steps: int = 0
    closed_loop_task: str = ""
    closed_loop_episodes: int = 20
    tensorboard: bool = True
    wandb: str = ""
    merge: bool = True
    online: Online = field(default_factory=Online)
    quiet: bool = False

    def check(self) -> None:
        least = {
            "batch_size": 1,
            "grad_accumulation_steps": 1,
            "lora_rank": 0,
            "workers": 0,
            "warmup_steps": 0,
            "save_steps": 0,
            "log_steps": 1,
            "val_steps": 0,
            "closed_loop_steps": 0,
            "closed_loop_episodes": 1,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise VlaError(f"{name} is {getattr(self, name)}", f"give at least {low}")
        above = ("learning_rate", "epochs", "max_grad_norm", "spike_factor")
        for name in above:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise VlaError(f"{name} is {value}", "give a number above 0")
        if self.max_steps is not None and self.max_steps < 1:
            raise VlaError(f"max_steps is {self.max_steps}", "give at least 1")
        if not 0 <= self.gradient_checkpointing <= 1 or not 0 <= self.val_split < 1:
            raise VlaError("gradient_checkpointing and val_split are shares", "give 0 to 1")
        if self.lr_schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise VlaError(f"unknown schedule {self.lr_schedule!r}", f"known: {known}")
        if self.precision not in ("auto", *PRECISIONS):
            raise VlaError(f"unknown precision {self.precision!r}", "use auto, bf16 or fp32")
        if self.quantize and not self.lora_rank:
            raise VlaError("a quantised base cannot be trained itself", "give --lora-rank")
        if not self.sources and not self.online.tasks:
            raise VlaError("no dataset was named", "give --dataset-name")
        if self.online.tasks and self.max_steps is None:
            raise VlaError("episodes made online have no end", "give --max-steps")
        self.online.check()
        if self.closed_loop_steps:
            get_task(self.closed_loop_task)

    def settings(self) -> dict[str, Any]:
        """All of it as JSON has it, to be kept with the run."""
        return {k: v for k, v in asdict(self).items() if k != "quiet"}

    def identity(self, world: int) -> dict[str, Any]:
        """What a resumed run must have in common with the saved one, as JSON has it.

        All that changes samples, weights in effect or what outputs mean; the length only where
        the learning rate follows it. How fast it goes and what it tells is left out.
        """
        o, lora = self.online, self.lora
        ends = self.lr_schedule != "constant"
        alike = (
            "vla_path",
            "lora_rank",
            "quantize",
            "train_vision",
            "learning_rate",
            "weight_decay",
            "warmup_steps",
            "lr_schedule",
            "max_grad_norm",
            "spike_factor",
            "image_aug",
            "action_head",
            "chunk",
            "num_images",
            "proprio_dim",
            "action_space",
            "seed",
            "val_split",
        )
        return {
            "samples_per_step": self.batch_size * self.grad_accumulation_steps * world,
            **{name: getattr(self, name) for name in alike},
            "lora_alpha": lora.alpha_used if lora else None,
            "max_steps": self.max_steps if ends else None,
            "epochs": self.epochs if ends else None,
            "data": [[s.path, s.weight, list(s.cameras), s.options] for s in self.sources],
            "online": [list(o.tasks), o.episodes, o.steps, o.seed],
        }

    @property
    def lora(self) -> LoraConfig | None:
        if not self.lora_rank:
            return None
        return LoraConfig(self.lora_rank, self.lora_alpha, self.train_vision)

    def loop(self, steps: int, world: int) -> LoopConfig:
        """steps: updates of the run; world: devices"""
        warmup = self.warmup_steps / steps
        begin = 1 / self.warmup_steps if self.warmup_steps else 0.0
        return LoopConfig(
            Schedule(self.learning_rate, self.lr_schedule, warmup, begin),
            self.batch_size * self.grad_accumulation_steps * world,
            steps,
            accumulation=self.grad_accumulation_steps,
            max_grad_norm=self.max_grad_norm,
        )
