"""`FinetuneConfig`: the options of a fine-tuning run, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option
from vla_training.loader.online_config import Online
from vla_training.loop.schedule import SCHEDULES, LoopConfig, Schedule

if TYPE_CHECKING:
    from vla_training.loader.frame_index import Source
    from vla_training.lora.layers import LoraConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Options of a fine-tuning run. Batch sizes are per device; `identity` must match to
    resume.

    sources: the datasets. folder: the run's own. spike_factor: a gradient this many times the
    usual one is skipped.
    """

    vla_path: str = option(
        help="Checkpoint folder or Hub id to start from.", holds=Holds.NAME_OR_PATH
    )
    sources: tuple[Source, ...] = ()
    folder: str = ""
    lora_rank: int = option(32, "LoRA rank; 0: train all weights.", low=0)
    lora_alpha: float | None = option(None, "LoRA alpha; default: min(rank, 16).", above=0.0)
    quantize: str = option("", "Format of a frozen base, such as int4 (QLoRA).")
    freeze_vision: bool = option(False, "Do not train the vision encoders.")
    batch_size: int = option(16, "Samples per device and pass.", low=1)
    grad_accumulation_steps: int = option(1, "Passes per update.", low=1)
    learning_rate: float = option(5e-4, "Peak learning rate.", above=0.0)
    weight_decay: float = option(0.0, "Weight decay of AdamW.", low=0.0)
    warmup_steps: int = option(0, "Updates of linear warm-up.", low=0)
    lr_schedule: str = option("constant", "constant, cosine or linear.", choices=SCHEDULES)
    max_grad_norm: float = option(1.0, "Gradient norm to clip to.", above=0.0)
    spike_factor: float = 10.0
    epochs: float = option(1.0, "Passes over all frames.", above=0.0)
    max_steps: int | None = option(None, "Updates; overrides --epochs.", low=1)
    image_aug: bool = option(False, "Augment images: random crops and colours.")
    action_head: str = option("keep", "keep, tokens, parallel or l1 (OpenVLA-OFT).")
    chunk: int | None = option(None, "Actions per answer (OpenVLA-OFT).", low=1)
    num_images: int | None = option(None, "Number of cameras the model takes.", low=1)
    proprio_dim: int | None = option(
        None, "Size of the state vector the model takes; 0: none.", low=0
    )
    action_space: str | None = option(
        None,
        "One action space for all datasets: a new name, or one of the base's, whose bounds stay.",
    )
    precision: str = option("auto", "auto, bf16 or fp32.", choices=("auto", "bf16", "fp32"))
    gradient_checkpointing: float = option(
        0.0, "Share of layers recomputed to save memory, 0 to 1.", low=0.0, high=1.0
    )
    compile: bool = option(False, "Use torch.compile.")
    reshard: bool = option(True, "Give up gathered weights between passes; off: faster.")
    workers: int = option(4, "Data loading processes per device.", low=0)
    seed: int = option(0, "Seed of sampling, augmentation and new weights.")
    device: str | None = option(None, "cpu or cuda; default: CUDA if available.")
    save_steps: int = option(1000, "Updates between saved states; 0: only at the end.", low=0)
    log_steps: int = option(10, "Updates between reports.", low=1)
    val_split: float = option(0.05, "Share of episodes held out.", low=0.0, high=0.9)
    val_steps: int = option(0, "Updates between validations; 0: none.", low=0)
    val_batches: int = 20
    eval_steps: int = option(0, "Updates between closed-loop evaluations; 0: none.", low=0)
    eval_task: str = option("Stack_D2", "Task of the closed-loop evaluation.")
    eval_episodes: int = option(20, "Episodes of the closed-loop evaluation.", low=1)
    tensorboard: bool = option(True, "Write TensorBoard files.")
    wandb: str = option("", "Weights & Biases project to log to as well.", holds=Holds.LOCAL)
    merge: bool = option(True, "Merge the adapter into the base at the end.")
    online: Online = field(default_factory=Online)
    quiet: bool = False

    def check(self) -> None:
        check_options(self)
        if not (math.isfinite(self.spike_factor) and self.spike_factor > 0):
            raise VlaError(f"spike_factor is {self.spike_factor}", "give a number above 0")
        if self.quantize and not self.lora_rank:
            raise VlaError("a quantised base cannot be trained itself", "give --lora-rank")
        if not self.sources and not self.online.tasks:
            raise VlaError("no dataset was named", "give --dataset-name")
        if self.online.tasks and self.max_steps is None:
            raise VlaError("episodes made online have no end", "give --max-steps")
        self.online.check()
        if self.eval_steps:
            from vla_sim_bridge.tasks import get_task

            get_task(self.eval_task)

    def settings(self) -> dict[str, Any]:
        """All options as JSON, stored with the run."""
        return {k: v for k, v in asdict(self).items() if k != "quiet"}

    def identity(self, world: int) -> dict[str, Any]:
        """What a resumed run must have in common with the saved one, as JSON.

        All that changes samples, weights in effect or what outputs mean; the length only where
        the learning rate follows it. How fast it goes and what it tells is left out.
        """
        o, lora = self.online, self.lora
        ends = self.lr_schedule != "constant"
        alike = (
            "vla_path",
            "lora_rank",
            "quantize",
            "freeze_vision",
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
        from vla_training.lora.layers import LoraConfig

        return LoraConfig(self.lora_rank, self.lora_alpha, not self.freeze_vision)

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
