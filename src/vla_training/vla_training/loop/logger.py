"""Logs a run: a terminal line, metrics.jsonl, TensorBoard, W&B."""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_inference.cli.output import plain
from vla_inference.errors import VlaError
from vla_inference.system import progress
from vla_inference.system.files import write_whole


class Meter:
    """Means of step measurements, kept on the device until they are read."""

    def __init__(self):
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._seen: dict[str, Tensor] = {}
        self._seen_count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for key, value in values.items():
            value = value.detach().float()
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._count += 1

    def means(self, clear: bool = True) -> dict[str, Any]:
        found = {k: (v / max(1, self._count)).tolist() for k, v in self._sums.items()}
        if clear:
            self._clear()
        return found

    def recent(self) -> dict[str, Any]:
        """Means since this was asked last, or `means` cleared; those stay as they were."""
        count = max(1, self._count - self._seen_count)
        before = self._seen
        found = {
            k: ((v - before[k] if k in before else v) / count).tolist()
            for k, v in self._sums.items()
        }
        self._seen, self._seen_count = dict(self._sums), self._count
        return found


class SpikeGuard:
    """Decides which gradients to use and which to skip.

    A step is skipped where the norm is not finite, or `factor` times above the median of the last
    ones; `limit` in a row end the run, as nothing more would come of it.
    """

    def __init__(self, factor: float = 10.0, limit: int = 20, memory: int = 100):
        self.factor, self.limit = factor, limit
        self.norms: deque[float] = deque(maxlen=memory)
        self.skipped = self.in_a_row = 0

    def skips(self, norm: float) -> bool:
        usual = sorted(self.norms)[len(self.norms) // 2] if len(self.norms) >= 10 else None
        finite = norm == norm and norm != float("inf")
        bad = not finite or (usual is not None and norm > self.factor * max(usual, 1e-12))
        if finite:
            self.norms.append(norm)  # a new level becomes the usual one, and training goes on
        self.skipped += bad
        self.in_a_row = self.in_a_row + 1 if bad else 0
        return bad

    @property
    def hopeless(self) -> bool:
        return self.in_a_row >= self.limit

    def state(self) -> dict[str, Any]:
        return {"norms": list(self.norms), "skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        self.norms.extend(state.get("norms", ()))
        self.skipped = state.get("skipped", 0)


class RunLog:
    """The log of a run in `folder`, written by the first of several processes.

    wandb: project of Weights & Biases that is told as well, with `settings`; "" for none.
    """

    def __init__(
        self,
        folder: Path,
        total: int,
        first: bool,
        quiet: bool,
        tensorboard: bool = True,
        wandb: str = "",
        settings: Mapping[str, Any] | None = None,
    ):
        self.folder, self.total, self.first, self.quiet = folder, total, first, quiet
        self.writer = self.wandb = None
        self._tensorboard = first and tensorboard
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            if wandb:
                self.wandb = open_wandb(wandb, folder, plain(settings or {}))

    def rewind(self, step: int) -> None:
        """Removes log entries after `step`, which a resumed run writes again."""
        path = self.folder / "metrics.jsonl"
        if not self.first or not path.is_file():
            return
        kept = [line for line in path.read_text().splitlines() if _told_by(line, step)]
        write_whole(path, "".join(f"{line}\n" for line in kept))
        if self._tensorboard:
            self.writer = self._writer(purge_step=step + 1)

    def _writer(self, purge_step: int | None = None):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say("no TensorBoard here (pip install tensorboard); metrics.jsonl has all of it")
            return None
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge_step)

    def say(self, text: str) -> None:
        if self.first and not self.quiet:
            print(text, flush=True)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Logs values of a step; kind: "train", "validation", "closed_loop" or "event"."""
        if not self.first:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain({"kind": kind, "step": step, **values})) + "\n")
        scalars: dict[str, float] = {}
        for key, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                scalars[f"{kind}/{key}"] = value
            elif isinstance(value, list) and value and isinstance(value[0], float):
                scalars |= {f"{kind}/{key}_{i}": v for i, v in enumerate(value)}
        if self._tensorboard and self.writer is None:  # not before there is something to tell
            self.writer = self._writer()
            self._tensorboard = self.writer is not None
        if self.writer is not None:
            for key, value in scalars.items():
                self.writer.add_scalar(key, value, step)
        if self.wandb is not None and scalars:
            self.wandb.log({"step": step, **scalars})

    def train(self, step: int, values: dict[str, Any]) -> None:
        self.write("train", step, values)
        left = values["seconds_left"]
        accuracy = f"  accuracy {100 * values['accuracy']:.1f} %" if "accuracy" in values else ""
        self.say(
            f"step {step} of {self.total}  loss {values['loss']:.4f}{accuracy}  "
            f"L1 {values['l1']:.4f}  gradient {values['gradient_norm']:.2f}  "
            f"{values['samples_per_s']:.1f} samples/s  {_clock(left)} left"
        )
        if self.first:
            progress.report(
                step,
                self.total,
                f"loss {values['loss']:.4f}",
                seconds_left=left,
                rate=values["steps_per_s"],
            )

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.wandb is not None:
            self.wandb.finish()


def _told_by(line: str, step: int) -> bool:
    """Whether a line of metrics.jsonl belongs to a step up to `step`; False for a truncated
    line."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError):
        return False


def open_wandb(project: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    """The run in Weights & Biases; a resumed run continues the same one."""
    try:
        import wandb
    except ImportError as error:
        raise VlaError(
            f"Weights & Biases cannot be imported ({error})",
            "pip install -r requirements/wandb.txt, or leave --wandb out",
        ) from error
    name = folder / "wandb_id"
    if not name.is_file():
        name.write_text(uuid.uuid4().hex[:12])
    try:
        run = wandb.init(
            project=project,
            name=folder.name,
            id=name.read_text(),
            dir=str(folder),
            resume="allow",
            config=dict(settings),
        )
        # By our own count: a resumed run tells the steps since its last state once more.
        run.define_metric("*", step_metric="step")
    except Exception as error:  # the library raises its own and bare ones
        raise VlaError(
            f"Weights & Biases did not begin ({' '.join(str(error).split())[:200]})",
            "wandb login, or WANDB_MODE=offline, or leave --wandb out",
        ) from error
    return run


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class Since:
    """A step, and the seconds since it was done."""

    def __init__(self, step: int):
        self.restart(step)

    def restart(self, step: int) -> None:
        self.step, self._begun = step, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._begun


class Rate:
    """Samples per second since the last report, and the time left."""

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.perf_counter):
        self.total, self.clock = total, clock
        self.begun = self.last = clock()
        self.first = self.last_step = done

    def since(self, step: int, samples_per_step: int) -> dict[str, float]:
        now = self.clock()
        steps_per_s = (step - self.last_step) / max(1e-9, now - self.last)
        overall = (step - self.first) / max(1e-9, now - self.begun)
        self.last, self.last_step = now, step
        return {
            "samples_per_s": steps_per_s * samples_per_step,
            "steps_per_s": steps_per_s,
            "seconds_left": (self.total - step) / max(1e-9, overall),
        }


def memory_gb(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else None
