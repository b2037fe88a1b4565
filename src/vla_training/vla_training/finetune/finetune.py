"""Fine-tuning of any family's checkpoint: LoRA, QLoRA, an expert alone or all weights.

A run's folder holds `state/` (to go on from), `adapter/` (LoRA, as peft has it), `checkpoint/`
(the finished model, merged), metrics.jsonl, TensorBoard's files and, in finetune.json, its
settings.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_inference.errors import VlaError
from vla_inference.system.files import only_one, write_whole
from vla_training.finetune.config import FinetuneConfig
from vla_training.finetune.errors import explained
from vla_training.finetune.evaluation import closed_loop, make_closed_loop, validate
from vla_training.finetune.families.base import find_trainable
from vla_training.finetune.online import OnlineRounds
from vla_training.loader.batch import Batch
from vla_training.loader.frame_index import FrameIndex, index_frames
from vla_training.loader.mixture import Mixture, Samples, batches
from vla_training.loop import distributed
from vla_training.loop.graceful_stop import StopRequest
from vla_training.loop.logger import Rate, RunLog, Since, SpikeGuard, memory_gb
from vla_training.loop.objective import PRECISIONS, Objective
from vla_training.loop.precision import tensor_cores
from vla_training.loop.training_loop import TrainingLoop, TrainingProgress
from vla_training.loop.training_state import find_states


class Finetuner:
    """The parts of a run; `run` continues from the current position."""

    def __init__(self, config: FinetuneConfig, place: distributed.Place):
        config.check()
        self.trainable = find_trainable(config)
        self.config = config = self.trainable.config
        self.place, self.folder = place, Path(config.folder)
        self.log = RunLog(
            self.folder,
            0,
            place.first,
            config.quiet,
            config.tensorboard,
            config.wandb,
            config.settings(),
        )
        o = config.online
        rounds = math.ceil(config.max_steps / o.steps) if o.tasks and config.max_steps else 0
        self.stream = OnlineRounds(o, self.folder / "online", place, rounds) if o.tasks else None
        train, held = self._mix(0)
        self.samples = self._samples(train, config.image_aug)
        self.samples.check()
        self.held = self._samples(held, False) if len(held) else None
        self._frames = [len(train), len(held)]
        self.objective = self._objective()
        self.trained = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            lr=self.config.loop(1, 1).schedule.peak,
            betas=self.trainable.betas,
            weight_decay=config.weight_decay or 0.0,
            fused=True,
        )
        self.total = config.max_steps or math.ceil(config.epochs * len(train) / self.per_step)
        self.training = TrainingLoop(
            config.loop(self.total, place.world),
            self.objective,
            self.optimizer,
            place,
            guard=SpikeGuard(config.spike_factor),
        )
        self.loop = make_closed_loop(self) if config.eval_steps else None
        self._saved = Since(0)
        self._norms: list[float] = []  # of gradients, since the last report
        self.log.total = self.total
        self.log.say(
            f"{len(train)} frames to train on, {len(held)} held out; {self.total} steps of "
            f"{self.per_step}; {sum(p.numel() for p in self.trained):,} weights are trained"
        )

    @property
    def precision(self) -> str:
        """The compute dtype, by name."""
        usual = "bf16" if self.place.device.startswith("cuda") else "fp32"
        return usual if self.config.precision == "auto" else self.config.precision

    @property
    def per_step(self) -> int:
        c = self.config
        return c.batch_size * c.grad_accumulation_steps * self.place.world

    @property
    def identity(self) -> dict[str, Any]:
        """The settings' (`FinetuneConfig.identity`), and how many frames there are."""
        return {**self.config.identity(self.place.world), "frames": self._frames}

    def _mix(self, number: int) -> tuple[Mixture, Mixture]:
        """The data of round `number` of online training, and its held-out part.

        The first process makes the indices that are missing, the others read them.
        """
        c, where = self.config, self.folder.parent / "statistics"
        sources = list(c.sources)
        if self.stream:
            sources = self.stream.sources(number, c.sources)
        sources = [replace(s, cameras=self.trainable.cameras(s)) for s in sources]

        def read() -> list[FrameIndex]:
            states = self.trainable.takes_state
            found = [index_frames(s, where, states, self.log.say) for s in sources]
            return [index.weighted(c.weights) for index in found]

        indices = read() if self.place.first else []
        self.place.barrier()
        return self.trainable.mix(sources, indices or read())

    def _samples(self, mixture: Mixture, augmented: bool) -> Samples:
        return Samples(mixture, self.trainable.form(mixture), self.config.seed, augmented)

    def _objective(self) -> Objective:
        low, device = PRECISIONS[self.precision], self.place.device
        sharded = self.trainable.sharded and torch.distributed.is_initialized()
        objective = self.trainable.objective(device, low, sharded)
        if sharded:
            distributed.shard(objective, self.place, self.config.reshard, low=low)
        return objective

    def _groups(self) -> list[dict[str, Any]]:
        """The trained weights for the optimiser, those with shares of the learning rate last."""
        shares: dict[float, list[Tensor]] = {1.0: []}
        for name, parameter in self.objective.named_parameters():
            if parameter.requires_grad:
                share = self.trainable.share(name.removeprefix("model."))
                shares.setdefault(share, []).append(parameter)
        everything = shares.pop(1.0)
        return [
            {"params": everything},
            *({"params": some, "share": share} for share, some in shares.items()),
        ]

    @property
    def progress(self) -> TrainingProgress:
        return self.training.progress

    # -- the loop -----------------------------------------------------------------------------

    def resume(self) -> None:
        """Resumes from the newest state in the run's folder."""
        self.training.resume(self.folder / "state", self.identity)
        self.log.rewind(self.progress.step)
        self.log.say(f"going on from step {self.progress.step}")

    def _batches(self) -> Iterator[Batch]:
        c, place = self.config, self.place
        begin = self.progress.samples // (c.batch_size * place.world)
        end = begin + (self.total - self.progress.step) * c.grad_accumulation_steps
        pin, length = place.device.startswith("cuda"), c.online.steps * c.grad_accumulation_steps
        while begin < end:
            upto = end
            if self.stream:
                number = begin // length
                upto = min(end, (number + 1) * length)
                if number:
                    self.samples = self._samples(self._mix(number)[0], c.image_aug)
                    self.log.say(f"round {number}: {len(self.samples.mixture)} frames")
            yield from batches(
                self.samples, begin, upto, c.batch_size, c.workers, place.rank, place.world, pin
            )
            begin = upto

    @property
    def _guard(self) -> SpikeGuard:
        assert self.training.guard is not None  # this run always has one
        return self.training.guard

    def run(self, stop: StopRequest) -> bool:
        """Trains to the end; returns False if stopped early. Saves in both cases."""
        rate, skipped = Rate(self.total, self.progress.step), self._guard.skipped
        self._saved.restart(self.progress.step)

        def after(norm: Tensor) -> bool:
            nonlocal skipped
            if self._guard.skipped > skipped:
                self._tell_skipped(norm)
            skipped = self._guard.skipped
            self._norms.append(norm.item())
            self._look(rate, norm)
            return self._goes_on(stop, norm)

        if not self.training.run(self._batches(), after):
            return False
        self.save()
        return True

    def _look(self, rate: Rate, norm: Tensor) -> None:
        """What is reported and tried out now and then."""
        c, step = self.config, self.progress.step
        if step % c.log_steps == 0 or step == self.total:
            self._report(rate, norm.item())
        if c.val_steps and step % c.val_steps == 0:
            validate(self)
        if c.eval_steps and step % c.eval_steps == 0:
            closed_loop(self)

    def _goes_on(self, stop: StopRequest, norm: Tensor) -> bool:
        """Whether there is to be a next step; saves where it is time to."""
        c, step, guard = self.config, self.progress.step, self._guard
        late = self._saved.seconds() >= 60 * c.save_minutes
        agreed = self.place.agree(2.0 if stop.asked else float(late))  # the most that one wants
        asked, late = agreed >= 2, agreed >= 1
        if guard.hopeless:
            self.save()
            raise VlaError(
                f"{guard.in_a_row} steps in a row had gradients out of bounds (the last "
                f"{norm.item():g}); step {step} is saved",
                "lower the learning rate, or look for broken data",
            )
        if asked and step < self.total:
            why = stop.why or "asked elsewhere"
            self.log.say(f"stopping after step {step} ({why})")
            self.log.write("event", step, {"stopped": why})
            self.save()
            return False
        if (late or (c.save_steps and step % c.save_steps == 0)) and step < self.total:
            self.save()
        return True

    def _tell_skipped(self, norm: Tensor) -> None:
        self.log.say(f"step {self.progress.step}: gradient of {norm.item():g}, skipped")
        self.log.write("event", self.progress.step, {"skipped_gradient": str(norm.item())})

    def _report(self, rate: Rate, norm: float) -> None:
        means = self.training.meter.means()
        error = [self.place.agree(e, "avg") for e in means.pop("error")]
        values = {
            **{k: self.place.agree(v, "avg") for k, v in means.items()},
            "l1": sum(error) / len(error),
            "error": error,
            "gradient_norm": norm,
            **self._gradients(),
            "skipped": self._guard.skipped,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **rate.since(self.progress.step, self.per_step),
            "memory_gb": memory_gb(self.place.device),
        }
        self.log.train(self.progress.step, values)

    def _gradients(self) -> dict[str, float]:
        """The largest norm since the last report, and the share of updates that were clipped."""
        norms, self._norms = [n for n in self._norms if math.isfinite(n)], []
        most = self.config.max_grad_norm or math.inf
        clipped = sum(n > most for n in norms) / max(1, len(norms))
        found = {"gradient_norm_max": max(norms, default=0.0), "clipped": clipped}
        if self.stream:
            found["round"] = (self.progress.step - 1) // self.config.online.steps
        return found

    def save(self) -> None:
        self.training.save(self.folder / "state", self.identity)
        self._saved.restart(self.progress.step)
        self.log.write("event", self.progress.step, {"saved": True})

    def export(self) -> Path:
        """Writes what a policy loads, and returns where."""
        return self.trainable.export(self.folder, self.place, self.log.say)

    def close(self) -> None:
        self.log.close()
        if self.stream:
            self.stream.close()


def finetune(config: FinetuneConfig, resume: bool = False) -> Path:
    """Runs to the end or until a stop is requested; returns the finished checkpoint (or
    adapter)."""
    return train(config, resume)[0]


def can_resume(folder: Path) -> bool:
    """Whether a run's folder has a state to go on from."""
    return bool(find_states(folder / "state"))


def train(config: FinetuneConfig, resume: bool = False) -> tuple[Path, bool]:
    """The same, and whether the end was reached."""
    config.check()
    folder = Path(config.folder)
    if not resume and (folder / "finetune.json").exists():
        raise VlaError(
            f"{folder} contains an earlier run", "continue with --resume, or choose another folder"
        )
    cuda = torch.cuda.is_available() and config.device != "cpu"
    place = distributed.start(config.device, sharded=cuda and find_trainable(config).sharded)
    run = None
    try:
        with contextlib.ExitStack() as stack, tensor_cores(cuda), explained(config, place):
            if place.first:
                stack.enter_context(only_one(folder, "vla finetune"))
            run = Finetuner(config, place)
            if resume:
                run.resume()
            if place.first:
                write_whole(folder / "finetune.json", json.dumps(run.config.settings(), indent=2))
            with StopRequest().watching() as stop:
                finished = run.run(stop)
                return run.export(), finished
    finally:
        if run is not None:
            run.close()
        with contextlib.suppress(OSError):
            folder.rmdir()  # it is empty where nothing came of it
        distributed.stop()
