"""The training loop: updates of any model by any objective and batches, until its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_inference.errors import VlaError
from vla_training.loader.batch import Batch
from vla_training.loop import distributed
from vla_training.loop.identity import check_identity
from vla_training.loop.logger import Meter, SpikeGuard
from vla_training.loop.schedule import LoopConfig
from vla_training.loop.training_state import find_states, load_state, read_about, save_state

CLOCK = 10  # steps after which all processes agree on the time, where the schedule follows it


@dataclass
class TrainingProgress:
    """Progress of a run, saved with its state. elapsed: seconds spent in training."""

    step: int = 0
    samples: int = 0
    elapsed: float = 0.0


class Average:
    """Exponential moving average of a model's weights, which follows faster at the start."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.tensors = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        mine = list(self.model.state_dict().values())
        torch._foreach_lerp_(list(self.tensors.values()), mine, 1 - decay)


class TrainingLoop:
    """The loop of every training run; `run` continues from `progress`.

    forward: calls the objective, compiled perhaps. guard: tells gradients that are skipped, at
    the price of reading the norm back from the device each time; without one all are stepped with.
    average: of weights, brought up to date after each step.
    optimizer: a group of its parameters may have a "share" of the learning rate.
    """

    def __init__(
        self,
        config: LoopConfig,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        place: distributed.Place,
        *,
        forward: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]] | None = None,
        guard: SpikeGuard | None = None,
        average: Average | None = None,
    ):
        self.config, self.objective, self.optimizer = config, objective, optimizer
        self.place, self.guard, self.average = place, guard, average
        self.forward = objective if forward is None else forward
        self.trained = [p for p in objective.parameters() if p.requires_grad]
        self.progress, self.meter = TrainingProgress(), Meter()

    def done(self) -> float:
        """Completed share of the run, 0 to 1."""
        c, p = self.config, self.progress
        return min(1.0, p.elapsed / (60 * c.minutes) if c.minutes else p.step / c.steps)

    def rate(self) -> float:
        """The learning rate of the next update."""
        c = self.config
        return c.schedule.rate(self.done()) * c.rising(self.progress.step)

    def run(self, batches: Iterator[Batch], after: Callable[[Tensor], bool]) -> bool:
        """Updates until the end; returns False if it ended early.

        after: called with each update's gradient norm; ends the run early by returning False.
        """
        p = self.progress
        begun, before = time.perf_counter(), p.elapsed
        while self.done() < 1.0:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate() * group.get("share", 1.0)
            norm = self._update(batches)
            p.step += 1
            p.samples += self.config.samples
            if self.average is not None:
                self.average.update(p.step)
            if self.config.minutes is None:
                p.elapsed = before + time.perf_counter() - begun
            elif self.place.world == 1 or p.step % CLOCK == 0:
                p.elapsed = self.place.agree(before + time.perf_counter() - begun)
            if not after(norm):
                return False
        return True

    def _update(self, batches: Iterator[Batch]) -> Tensor:
        """The gradient's norm, on the device."""
        count, limit = self.config.accumulation, self.config.max_grad_norm
        for i in range(count):
            batch = next(batches).to(self.place.device)
            distributed.communicate(self.objective, i == count - 1)
            loss, measured = self.forward(batch)
            (loss / count).backward()
            self.meter.add({"loss": loss, **measured})
        if not distributed.is_sharded(self.objective):
            distributed.average_gradients(self.trained, self.place)
        norm = distributed.gradient_norm(self.trained)
        if self.guard is None or not self.guard.skips(norm.item()):
            distributed.scale_gradients(self.trained, (limit / (norm + 1e-6)).clamp(max=1.0))
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    # -- its state on disk --------------------------------------------------------------------

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Saves everything needed to resume in `folder`; all processes call it together."""
        p = self.progress
        about = {"samples": p.samples, "elapsed": p.elapsed, "identity": dict(identity)}
        if self.guard is not None:
            about["guard"] = self.guard.state()
        average = self.average.tensors if self.average else None
        save_state(folder, p.step, self.objective, self.optimizer, about, self.place, average)

    def resume(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Resumes from the newest state in `folder`."""
        states = find_states(folder)
        if not states:
            raise VlaError(
                f"{folder.parent} has no saved state to continue from", "start without --resume"
            )
        check_identity(states[-1], read_about(states[-1]).get("identity", {}), identity)
        average = self.average.tensors if self.average else None
        about = load_state(states[-1], self.objective, self.optimizer, average)
        self.progress = TrainingProgress(about["step"], about["samples"], about["elapsed"])
        if self.guard is not None:
            self.guard.load(about["guard"])
