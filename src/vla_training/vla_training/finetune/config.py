"""The options of a fine-tuning run, checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option
from vla_training.loader.sample_weights import SampleWeights
from vla_training.loop.schedule import SCHEDULES, LoopConfig, Schedule

if TYPE_CHECKING:
    from vla_training.loader.frame_index import DatasetSource
    from vla_training.lora.layers import LoraConfig


@dataclass(frozen=True, kw_only=True)
class Online:
    """Options of online generation: rounds of episodes, of seed `seed` + r in round r."""

    tasks: tuple[str, ...] = option(
        (), "Tasks to generate while training, separated by commas.", names=("--online-tasks",)
    )
    episodes: int = option(
        50, "Episodes of each task in each round.", low=1, names=("--online-episodes",)
    )
    steps: int = option(500, "Updates per round.", low=1, names=("--online-steps",))
    parallel: int = option(
        -1, "Generation workers; -1: one per core.", low=-1, names=("--online-parallel",)
    )
    fresh: float | None = option(
        None,
        "Share of the samples that is of the newest round, the others share the rest alike; "
        "default: every frame counts alike.",
        above=0.0,
        high=1.0,
        names=("--online-fresh",),
    )
    warmup: int = option(
        0,
        "Updates over which the learning rate rises again at the beginning of each round.",
        low=0,
        names=("--online-warmup",),
    )
    seed: int = 0
    ray_address: str = option("", "Ray cluster for generation.", holds=Holds.LOCAL)
    GROUPS = {"Episodes generated while training": ()}

    def check(self) -> None:
        check_options(self)
        if self.warmup >= self.steps:
            raise VlaError(
                f"--online-warmup is {self.warmup}, a round has {self.steps} updates",
                "give fewer",
            )

    def check_shares(self, given: Sequence[DatasetSource], updates: int) -> None:
        """Refuses a share of the newest round by which a dataset would come too short.

        `Sampler` gives none less than 1/BLOCK of the samples. The older ones share what is left,
        so they have least in the last round.
        """
        from vla_training.loader.sampler import BLOCK

        rounds = math.ceil(updates / self.steps)
        weights = [1.0 if s.weight is None else s.weight for s in given]
        weights += [1.0] * ((rounds - 1) * len(self.tasks))  # the older ones of the last round
        if self.fresh is None or not weights:
            return
        low, high = len(self.tasks) / BLOCK, 1 - sum(weights) / min(weights) / BLOCK
        if low - 1e-9 <= self.fresh <= high + 1e-9:
            return
        fewer = "make fewer rounds, with more --online-steps in each"
        allowed = f"give {low:g} to {math.floor(1e4 * high + 1e-4) / 1e4:g}, or {fewer}"
        raise VlaError(
            f"--online-fresh is {self.fresh:g}: in {rounds} rounds, a dataset would have less "
            f"than 1/{BLOCK} of the samples",
            allowed if low <= high else f"leave it out, or {fewer}",
        )

    def identity(self) -> list[Any]:
        """What a resumed run must have in common, as JSON."""
        known = [list(self.tasks), self.episodes, self.steps, self.seed]
        calm = [self.fresh, self.warmup]
        return known if calm == [None, 0] else [*known, *calm]

    def mixed(self, older: Sequence[DatasetSource], newest: Sequence[DatasetSource]) -> list:
        """All datasets of a round, with the newest round's share of the samples.

        Weights that older ones were given say how they share the rest.
        """
        if self.fresh is None or not older:
            return [*older, *newest]
        given = [1.0 if s.weight is None else s.weight for s in older]
        rest = (1.0 - self.fresh) / sum(given)
        return [
            *(replace(s, weight=rest * w) for s, w in zip(older, given, strict=True)),
            *(replace(s, weight=self.fresh / len(newest)) for s in newest),
        ]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Options of a fine-tuning run. Batch sizes are per device; `identity` must match to
    resume.

    sources: the datasets. folder: the run's own. spike_factor: a gradient this many times the
    usual one is skipped.
    """

    vla_path: str = option(
        help="Checkpoint folder or Hub id to start from.",
        names=("--vla-path", "--model"),
        holds=Holds.NAME_OR_PATH,
    )
    sources: tuple[DatasetSource, ...] = ()
    folder: str = ""
    train: str | None = option(
        None,
        "all, or expert: the vision-language model stays frozen (LeRobot's families); default: as "
        "the checkpoint says.",
        choices=("all", "expert"),
    )
    lora_rank: int | None = option(
        None, "LoRA rank; 0: the weights themselves; default: 32 for OpenVLA, else 0.", low=0
    )
    lora_alpha: float | None = option(None, "LoRA alpha; default: min(rank, 16).", above=0.0)
    quantize: str = option("", "Format of a frozen base, such as int4 (QLoRA).")
    freeze_vision: bool = option(False, "Do not train the vision encoders.")
    batch_size: int = option(16, "Samples per device and pass.", low=1)
    grad_accumulation_steps: int = option(1, "Passes per update.", low=1)
    learning_rate: float | None = option(
        None, "Peak learning rate; default: 5e-4, or what the checkpoint says.", above=0.0
    )
    weight_decay: float | None = option(
        None, "Weight decay of AdamW; default: 0, or what the checkpoint says.", low=0.0
    )
    warmup_steps: int = option(0, "Updates of linear warm-up.", low=0)
    lr_schedule: str = option("constant", "constant, cosine or linear.", choices=SCHEDULES)
    max_grad_norm: float | None = option(
        None, "Gradient norm to clip to; default: 1, or what the checkpoint says.", above=0.0
    )
    spike_factor: float = 10.0
    epochs: float = option(1.0, "Passes over all frames.", above=0.0)
    max_steps: int | None = option(None, "Updates; overrides --epochs.", low=1)
    image_aug: bool = option(False, "Augment images: random crops and colours.")
    action_head: str = option("keep", "keep, tokens, parallel or l1 (OpenVLA-OFT).")
    chunk: int | None = option(None, "Actions per answer (OpenVLA-OFT).", low=1)
    num_images: int | None = option(None, "Number of cameras the model takes.", low=1)
    history: int | None = option(
        None, "Past images of each camera that the model takes as well; 0: none.", low=0, high=16
    )
    history_interval: float | None = option(
        None, "Seconds between past images; default: 0.2.", above=0.0, high=60.0
    )
    proprio_dim: int | None = option(
        None, "Size of the state vector the model takes; 0: none.", low=0
    )
    action_dim: int | None = option(
        None, "Numbers of an action, where they are not the checkpoint's (LeRobot's).", low=1
    )
    action_space: str | None = option(
        None,
        "One action space for all datasets: a new name, or one of the base's, whose bounds stay.",
        names=("--unnorm-key", "--action-space"),
    )
    precision: str = option("auto", "auto, bf16 or fp32.", choices=("auto", "bf16", "fp32"))
    gradient_checkpointing: float = option(
        0.0, "Share of layers recomputed to save memory, 0 to 1.", low=0.0, high=1.0
    )
    compile: bool = option(False, "Use torch.compile.")
    reshard: bool = option(True, "Give up gathered weights between passes; off: faster.")
    workers: int = option(4, "Data loading processes per device.", low=0)
    seed: int = option(0, "Seed of sampling, augmentation and new weights.")
    device: str | None = option(None, "cpu, cuda or cuda:N; default: CUDA if available.")
    save_steps: int = option(1000, "Updates between saved states; 0: only at the end.", low=0)
    save_minutes: float = option(30.0, "Minutes between saved states, too.", above=0.0)
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
    weights: SampleWeights = field(default_factory=SampleWeights)
    quiet: bool = False
    GROUPS = {
        "Model": (
            "vla_path",
            "train",
            "lora_rank",
            "lora_alpha",
            "quantize",
            "freeze_vision",
            "action_head",
            "chunk",
            "num_images",
            "history",
            "history_interval",
            "proprio_dim",
            "action_dim",
            "action_space",
            "merge",
        ),
        "Speed and memory": (
            "precision",
            "gradient_checkpointing",
            "compile",
            "reshard",
            "workers",
            "device",
        ),
        "Reports, validation and saved states": (
            "save_steps",
            "save_minutes",
            "log_steps",
            "val_split",
            "val_steps",
            "eval_steps",
            "eval_task",
            "eval_episodes",
            "tensorboard",
            "wandb",
        ),
        "Training": (),
    }

    def check(self) -> None:
        check_options(self)
        if not (math.isfinite(self.spike_factor) and self.spike_factor > 0):
            raise VlaError(f"spike_factor is {self.spike_factor}", "give a number above 0")
        if self.quantize and self.lora_rank == 0:
            raise VlaError("a quantised base cannot be trained itself", "give --lora-rank")
        if not self.sources and not self.online.tasks:
            raise VlaError("no dataset was named", "give --dataset-name")
        if self.online.tasks and self.max_steps is None:
            raise VlaError("episodes made online have no end", "give --max-steps")
        self.online.check()
        if self.online.tasks and self.max_steps:
            self.online.check_shares(self.sources, self.max_steps)
        self.weights.check()
        if self.eval_steps:
            from vla_sim_bridge.tasks import get_task

            get_task(self.eval_task)

    def refuse(self, family: str, *names: str) -> None:
        """Refuses options that were given and that models of this family do not take."""
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in names and value != f.default:
                option = f.name.replace("_", "-")
                raise VlaError(
                    f"models of family {family} take no --{option} ({value!r} was given)",
                    "leave it out",
                )

    def filled(self, **defaults: Any) -> FinetuneConfig:
        """The same with a family's defaults in place of what was left open (None)."""
        return replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})

    def settings(self) -> dict[str, Any]:
        """All options as JSON, stored with the run."""
        return {k: v for k, v in asdict(self).items() if k != "quiet"}

    def identity(self, world: int) -> dict[str, Any]:
        """What a resumed run must have in common with the saved one, as JSON.

        All that changes samples, weights in effect or what outputs mean; the length only where
        the learning rate follows it. How fast it goes and what it tells is left out.
        """
        lora = self.lora
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
        names = ("train", "action_dim", "history", "history_interval")
        chosen = {name: getattr(self, name) for name in names}
        return {
            **{name: value for name, value in chosen.items() if value is not None},
            **self.weights.identity(),
            "samples_per_step": self.batch_size * self.grad_accumulation_steps * world,
            **{name: getattr(self, name) for name in alike},
            "lora_alpha": lora.alpha_used if lora else None,
            "max_steps": self.max_steps if ends else None,
            "epochs": self.epochs if ends else None,
            "data": [[s.path, s.weight, list(s.cameras), s.options] for s in self.sources],
            "online": self.online.identity(),
        }

    @property
    def lora(self) -> LoraConfig | None:
        if not self.lora_rank:
            return None
        from vla_training.lora.layers import LoraConfig

        return LoraConfig(self.lora_rank, self.lora_alpha, not self.freeze_vision)

    def loop(self, steps: int, world: int) -> LoopConfig:
        """steps: updates of the run; world: devices"""
        assert self.learning_rate and self.max_grad_norm  # the family filled them in
        warmup = self.warmup_steps / steps
        begin = 1 / self.warmup_steps if self.warmup_steps else 0.0
        return LoopConfig(
            Schedule(self.learning_rate, self.lr_schedule, warmup, begin),
            self.batch_size * self.grad_accumulation_steps * world,
            steps,
            accumulation=self.grad_accumulation_steps,
            max_grad_norm=self.max_grad_norm,
            round_steps=self.online.steps if self.online.tasks else 0,
            round_warmup=self.online.warmup,
        )
