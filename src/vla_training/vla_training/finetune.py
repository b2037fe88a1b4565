"""Fine-tuning: LoRA, QLoRA or all weights, of openvla-7b or of the small model alike.

A run's folder holds `state/` (to go on from), `adapter/` (LoRA, as peft has it), `checkpoint/`
(the finished model, merged), metrics.jsonl, TensorBoard's files and, in finetune.json, its
settings.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vla_inference.checkpoint import load_config, load_tokenizer
from vla_inference.errors import VlaError
from vla_inference.hub import resolve
from vla_training import parallel
from vla_training.finetune_export import export
from vla_training.frame_index import Source, index_frames
from vla_training.lora import LoraConfig, add_lora
from vla_training.mixture import Samples, batches, mix
from vla_training.model_setup import choose_head, open_model
from vla_training.objective import Batch, Objective
from vla_training.run_log import Meter, Rate, RunLog, SpikeGuard, memory_gb
from vla_training.stopping import Stop
from vla_training.training_forms import prepare
from vla_training.training_state import find_states, load_state, read_about, save_state

SCHEDULES = ("constant", "cosine", "linear")
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune. Batches count per device; what must be equal to resume is `identity`.

    lora_rank: 0 fine-tunes all weights. quantize: format of the frozen base (QLoRA), "" for none.
    gradient_checkpointing: share of layers that are computed twice to save memory, 0 to 1.
    precision: "bf16", "fp32", or "auto": bf16 on a GPU. save_steps: 0 saves at the end alone.
    spike_factor: a gradient this many times the usual one is skipped.
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
    merge: bool = True
    quiet: bool = False

    def check(self) -> None:
        least = {"batch_size": 1, "grad_accumulation_steps": 1, "lora_rank": 0, "workers": 0,
                 "warmup_steps": 0, "save_steps": 0, "log_steps": 1, "val_steps": 0}  # fmt: skip
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
        if not self.sources:
            raise VlaError("no data set was named", "give --dataset-name")

    def identity(self, world: int) -> dict[str, Any]:
        """What a resumed run must have in common with the saved one."""
        return {
            "samples_per_step": self.batch_size * self.grad_accumulation_steps * world,
            "lora_rank": self.lora_rank, "quantize": self.quantize, "seed": self.seed,
            "data": [str(s.path) for s in self.sources], "image_aug": self.image_aug,
            "vla_path": self.vla_path,
        }  # fmt: skip


@dataclass
class Progress:
    """How far a run has come; saved with its state."""

    step: int = 0
    samples: int = 0
    guard: SpikeGuard = field(default_factory=SpikeGuard)


class Finetuner:
    """Holds what a run consists of; `run` goes on from wherever it stands."""

    def __init__(self, config: FinetuneConfig, place: parallel.Place):
        config.check()
        self.config, self.place, self.folder = config, place, Path(config.folder)
        self.log = RunLog(self.folder, 0, place.first, config.quiet, config.tensorboard)
        self.base = resolve(config.vla_path)
        given = load_config(self.base)
        head = choose_head(
            given.head, config.action_head, config.chunk, config.num_images, config.proprio_dim
        )
        crop = 0.9 if config.image_aug else given.center_crop
        shape = dataclasses.replace(given, head=head, center_crop=crop)
        indices = self._index(head.proprio_dim > 0)
        train, held = mix(config.sources, indices, shape, config.val_split, config.action_space)
        self.statistics = train.statistics
        tokenizer = load_tokenizer(self.base)
        text, self.tokenizer = tokenizer.to_str(), tokenizer
        self.samples = Samples(train, shape, text, config.seed, config.image_aug)
        self.samples.check()
        self.held = Samples(held, shape, text, config.seed, False) if len(held) else None
        self.objective, self.model_json = self._model(head)
        self.model = self.objective.vla
        self.trained = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.progress = Progress(guard=SpikeGuard(config.spike_factor))
        self.total = config.max_steps or math.ceil(config.epochs * len(train) / self.per_step)
        self.log.total = self.total
        self.log.say(
            f"{len(train)} frames to train on, {len(held)} held out; {self.total} steps of "
            f"{self.per_step}; {sum(p.numel() for p in self.trained):,} weights are trained"
        )

    @property
    def per_step(self) -> int:
        c = self.config
        return c.batch_size * c.grad_accumulation_steps * self.place.world

    @property
    def lora(self) -> LoraConfig | None:
        c = self.config
        return LoraConfig(c.lora_rank, c.lora_alpha, c.train_vision) if c.lora_rank else None

    def _index(self, proprio: bool) -> list:
        """Each data set's index: the first process makes what is missing, the others read it."""
        where = self.folder.parent / "statistics"

        def read() -> list:
            return [index_frames(s, where, proprio, self.log.say) for s in self.config.sources]

        if self.place.first:
            indices = read()
        self.place.barrier()
        return indices if self.place.first else read()

    def _model(self, head) -> tuple[Objective, dict]:
        c, device = self.config, self.place.device
        cuda = device.startswith("cuda")
        precision = c.precision if c.precision != "auto" else ("bf16" if cuda else "fp32")
        sharded = not self.lora and torch.distributed.is_initialized()
        # A float32 copy of all weights exists only where they are trained on one device.
        dtype = PRECISIONS[precision] if self.lora or sharded else torch.float32
        model, raw = open_model(
            self.base, head, self.statistics, c.image_aug, device, dtype, c.seed
        )
        if c.quantize:
            from vla_inference.quantization import get_format
            from vla_inference.quantization.rounding import quantize_model

            quantize_model(model, get_format(c.quantize), "rtn")
        if self.lora:
            add_lora(model, self.lora, c.seed)
        else:
            model.requires_grad_(True)
            if not c.train_vision:
                model.vision_backbone.requires_grad_(False)
        prepare(model, c.compile, c.gradient_checkpointing)
        objective = Objective(model, model.config.center_crop > 0).train()
        if sharded:
            parallel.shard(objective, self.place, c.reshard, low=PRECISIONS[precision])
        elif not self.lora and precision == "bf16":
            objective.autocast = torch.bfloat16
        return objective, raw

    # -- the loop -----------------------------------------------------------------------------

    def learning_rate(self, step: int) -> float:
        c = self.config
        if step < c.warmup_steps:
            return c.learning_rate * (step + 1) / c.warmup_steps
        done = (step - c.warmup_steps) / max(1, self.total - c.warmup_steps)
        factor = {
            "constant": 1.0,
            "cosine": 0.5 * (1 + math.cos(math.pi * min(1.0, done))),
            "linear": max(0.0, 1 - done),
        }[c.lr_schedule]
        return c.learning_rate * factor

    def resume(self) -> None:
        """Go on from the newest state in the run's folder."""
        states = find_states(self.folder / "state")
        if not states:
            raise VlaError(
                f"{self.folder} holds no saved state to go on from", "start without --resume"
            )
        saved = read_about(states[-1]).get("identity", {})
        mine = self.config.identity(self.place.world)
        for key, value in mine.items():
            if saved.get(key) != value:
                raise VlaError(
                    f"{states[-1]} was saved with {key} {saved.get(key)!r}, now it is {value!r}",
                    "resume with what it was saved with (batch x accumulation x devices alike)",
                )
        about = load_state(states[-1], self.objective, self.optimizer)
        self.progress.step, self.progress.samples = about["step"], about["samples"]
        self.progress.guard.load(about["guard"])
        self.log.say(f"going on from step {self.progress.step}")

    def _batches(self) -> Iterator[Batch]:
        c, place = self.config, self.place
        micro = c.batch_size * place.world
        begin = self.progress.samples // micro
        end = begin + (self.total - self.progress.step) * c.grad_accumulation_steps
        pin = place.device.startswith("cuda")
        return batches(
            self.samples, begin, end, c.batch_size, c.workers, place.rank, place.world, pin
        )

    def run(self, stop: Stop) -> bool:
        """Train to the end; returns False where it was stopped early. Either way it is saved."""
        c, p, place = self.config, self.progress, self.place
        meter, rate, loader = Meter(), Rate(self.total, p.step), self._batches()
        while p.step < self.total:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(p.step)
            norm = self._step(loader, meter)
            p.step += 1
            p.samples += self.per_step
            if p.step % c.log_steps == 0 or p.step == self.total:
                self._report(meter, rate, norm)
            if c.val_steps and p.step % c.val_steps == 0:
                self.validate()
            if c.closed_loop_steps and p.step % c.closed_loop_steps == 0:
                self.closed_loop()
            asked = place.agree(float(stop.asked)) > 0
            if p.guard.hopeless:
                self.save()
                raise VlaError(
                    f"{p.guard.in_a_row} steps in a row had gradients out of bounds (the last "
                    f"{norm:g}); step {p.step} is saved",
                    "lower the learning rate, or look for broken data",
                )
            if asked and p.step < self.total:
                self.log.say(f"stopping after step {p.step} ({stop.why or 'asked elsewhere'})")
                self.log.write("event", p.step, {"stopped": stop.why or "asked elsewhere"})
                self.save()
                return False
            if c.save_steps and p.step % c.save_steps == 0 and p.step < self.total:
                self.save()
        self.save()
        return True

    def _step(self, loader: Iterator[Batch], meter: Meter) -> float:
        """One update; the gradient's norm. The norm is all that is read back from the device."""
        c, count = self.config, self.config.grad_accumulation_steps
        for i in range(count):
            batch = next(loader).to(self.place.device)
            parallel.communicate(self.objective, i == count - 1)
            loss, measured = self.objective(batch)
            (loss / count).backward()
            meter.add({"loss": loss, **measured})
        if not parallel.is_sharded(self.objective):
            parallel.average_gradients(self.trained, self.place)
        total = parallel.gradient_norm(self.trained)
        norm = total.item()
        if self.progress.guard.skips(norm):
            self.log.say(f"step {self.progress.step + 1}: gradient of {norm:g}, skipped")
            self.log.write("event", self.progress.step + 1, {"skipped_gradient": str(norm)})
        else:
            if norm > c.max_grad_norm:
                parallel.scale_gradients(self.trained, c.max_grad_norm / (norm + 1e-6))
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _report(self, meter: Meter, rate: Rate, norm: float) -> None:
        means = meter.means()
        error = [self.place.agree(e, "avg") for e in means.pop("error")]
        values = {
            **{k: self.place.agree(v, "avg") for k, v in means.items()},
            "l1": sum(error) / len(error), "error": error, "gradient_norm": norm,
            "skipped": self.progress.guard.skipped,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **rate.since(self.progress.step, self.per_step),
            "memory_gb": memory_gb(self.place.device),
        }  # fmt: skip
        self.log.train(self.progress.step, values)

    # -- now and then -------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self) -> dict[str, Any] | None:
        """Loss and errors on held-out episodes, the same frames each time."""
        c, place = self.config, self.place
        if self.held is None:
            return None
        meter = Meter()
        self.objective.eval()
        frames = len(self.held.mixture)
        count = min(c.val_batches, math.ceil(frames / (c.batch_size * place.world)))
        for batch in batches(self.held, 0, count, c.batch_size, 0, place.rank, place.world):
            loss, measured = self.objective(batch.to(place.device))
            meter.add({"loss": loss, **measured})
        self.objective.train()
        values = meter.means()
        error = [place.agree(e, "avg") for e in values.pop("error")]
        values = {k: place.agree(v, "avg") for k, v in values.items()}
        values |= {"l1": sum(error) / len(error), "error": error}
        self.log.write("validation", self.progress.step, values)
        self.log.say(f"validation  loss {values['loss']:.4f}  L1 {values['l1']:.4f}")
        return values

    def closed_loop(self) -> dict[str, Any] | None:
        from vla_training.closed_loop import evaluate

        c = self.config
        if parallel.is_sharded(self.objective) or not self.place.first:
            return None
        self.objective.eval()
        values = evaluate(
            self.model, self.tokenizer, self.place.device, self.objective.dtype,
            c.closed_loop_task, c.closed_loop_episodes,
        )  # fmt: skip
        self.objective.train()
        self.log.write("closed_loop", self.progress.step, values)
        self.log.say(f"closed loop  {values['successes']} of {values['episodes']}")
        return values

    def save(self) -> None:
        p = self.progress
        about = {
            "samples": p.samples, "guard": p.guard.state(),
            "identity": self.config.identity(self.place.world),
        }  # fmt: skip
        save_state(
            self.folder / "state", p.step, self.objective, self.optimizer, about, self.place
        )
        self.log.write("event", p.step, {"saved": True})


def finetune(config: FinetuneConfig, resume: bool = False) -> Path:
    """Run to the end, or until asked to stop; returns the finished checkpoint (or the adapter)."""
    config.check()
    folder = Path(config.folder)
    if not resume and (folder / "finetune.json").exists():
        raise VlaError(
            f"{folder} holds an earlier run", "go on with --resume, or choose another folder"
        )
    cuda = torch.cuda.is_available() and config.device != "cpu"
    place = parallel.start(config.device, sharded=cuda and not config.lora_rank)
    try:
        torch.set_float32_matmul_precision("high")
        if config.closed_loop_steps and not config.lora_rank and place.world > 1:
            raise VlaError("no closed loop while weights are sharded", "use vla rollout after")
        run = Finetuner(config, place)
        if resume:
            run.resume()
        if place.first:
            settings = {k: v for k, v in asdict(config).items() if k != "quiet"}
            (folder / "finetune.json").write_text(json.dumps(settings, indent=2))
        with Stop().watching() as stop:
            try:
                run.run(stop)
            except torch.cuda.OutOfMemoryError as error:
                raise VlaError(
                    f"the GPU's memory is too small for {config.batch_size} samples "
                    f"({str(error).split('. ')[0]})",
                    "lower --batch-size, or raise --gradient-checkpointing; --resume goes on",
                ) from error
            run.log.close()
            return export(run)
    finally:
        parallel.stop()
