"""One training run of the small model: its parts, its evaluation, its checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vla_inference.checkpoints.load import load_config
from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.errors import VlaError
from vla_inference.openvla.config import ModelConfig, words_of
from vla_inference.openvla.model import VLA
from vla_inference.policies.normalisation import Normalisation
from vla_training.loader.augment import Augmentation
from vla_training.loader.batch import Batch
from vla_training.loader.frame_index import held_out
from vla_training.loop.distributed import Place
from vla_training.loop.graceful_stop import StopRequest
from vla_training.loop.logger import Since
from vla_training.loop.training_loop import CLOCK, Average, TrainingLoop
from vla_training.small_model.batches import Batches
from vla_training.small_model.config import SMALL, TrainConfig
from vla_training.small_model.frames import TrainingFrames, action_statistics
from vla_training.small_model.instruction_following import instruction_following
from vla_training.small_model.model import SceneObjective, begin_with, initialise
from vla_training.small_model.tokenizer import (
    known_tokenizer,
    prompts,
    task_sentences,
    train_tokenizer,
)


class Trainer:
    """The parts of a training run; `run` continues from the current position."""

    def __init__(self, frames: TrainingFrames, config: TrainConfig, device: str, model_json=SMALL):
        self.frames, self.config, self.device = frames, config, device
        self.place = Place(device=device)
        if dist.is_initialized():
            self.place = Place(dist.get_rank(), dist.get_world_size(), device)
        if config.batch_size % self.place.world:
            raise VlaError(
                f"batch size {config.batch_size} cannot be shared by {self.place.world} devices",
                "choose a multiple",
            )
        self.model_json = model_json
        self.model_config = ModelConfig.from_json(model_json)
        self.sentences = self._sentences(frames)
        self.tokenizer = self._make_tokenizer()
        self.objective = self._make_objective()
        self.model = self.objective.vla
        self.loop = TrainingLoop(
            config.loop,
            self.objective,
            self._make_optimizer(),
            self.place,
            forward=torch.compile(self.objective) if config.compile else None,
            average=Average(self.model, config.ema),
        )
        self.statistics = {frames.name: self._statistics(frames)}
        self.words = self._words()
        self.batches = self.batches_of(frames)
        last = held_out(frames.episode, config.validation)
        drawn = torch.ones_like(last) if frames.weight is None else frames.weight > 0
        self.training = torch.nonzero(~last & drawn).flatten().to(device)
        self.held_out = torch.nonzero(last & drawn).flatten().to(device)
        if not len(self.training):
            raise VlaError("no frame is left to train on", "generate more episodes")

    def _make_tokenizer(self):
        """The tokenizer; given embeddings need their own."""
        start = self.config.start
        size = self.model_config.action_vocab_end - self.model_config.n_action_bins
        known = known_tokenizer(start, size) if start else None
        if start and known is None:
            warnings.warn(
                f"{start} has no tokenizer of at most {size} ids: a new one is made, in which its "
                "embeddings stand for other words",
                stacklevel=3,
            )
        said = [*prompts(self.sentences), *self.frames.thoughts]
        return known or train_tokenizer([*task_sentences(), *said], size)

    def _make_objective(self) -> SceneObjective:
        c = self.config
        torch.manual_seed(c.seed)
        model = VLA(self.model_config)
        initialise(model)
        if c.start:
            begin_with(model, c.start)
        # Boxes and positions that a model writes are the image's: it must not be moved then.
        shift = (
            0
            if c.reasoning
            else round(c.shift * c.image_size / SMALL["vision_towers"][0]["image_size"])
        )
        changes = Augmentation(shift, 0.5 * c.brightness, c.brightness, c.channel)
        objective = SceneObjective(model, c.scene_weight, changes).to(self.device).train()
        if self.device.startswith("cuda"):
            objective.autocast = torch.bfloat16
        return objective

    def _make_optimizer(self) -> torch.optim.AdamW:
        parameters = list(self.objective.parameters())
        groups = [
            {
                "params": [p for p in parameters if p.ndim >= 2],
                "weight_decay": self.config.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        fused = self.device.startswith("cuda")
        rate = self.config.learning_rate
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=fused)

    def _statistics(self, frames: TrainingFrames) -> dict:
        """Statistics of all processes' frames, if each holds a share."""
        if self.place.world == 1 or not self.config.shares:
            return action_statistics(frames)
        actions: list[Any] = [None] * self.place.world
        episodes: list[Any] = [None] * self.place.world
        dist.all_gather_object(actions, frames.actions[: frames.recorded].numpy())
        dist.all_gather_object(episodes, frames.episodes)
        everything = torch.from_numpy(np.concatenate(actions))
        statistics = action_statistics(
            replace(frames, actions=everything, recorded=len(everything))
        )
        return {**statistics, "num_trajectories": sum(episodes)}

    def _sentences(self, frames: TrainingFrames) -> list[str]:
        """All that the model is trained with, of all processes."""
        sentences: list[Any] = [frames.sentences]
        if self.place.world > 1 and self.config.shares:
            sentences = [None] * self.place.world
            dist.all_gather_object(sentences, frames.sentences)
        return sorted({sentence for each in sentences for sentence in each})

    def _words(self) -> set[str]:
        """Words of all sentences that the model has been trained with."""
        words = {word for sentence in self.sentences for word in words_of(sentence)}
        if self.config.start:
            words |= load_config(Path(self.config.start)).words
        return words

    def batches_of(self, frames: TrainingFrames) -> Batches:
        """Batches of frames, with actions normalised like the training ones."""
        statistics = self.statistics[self.frames.name]["action"]
        actions = frames.actions.numpy().astype(np.float64)
        normalised = Normalisation.from_statistics(statistics).normalise(actions)
        targets, states = torch.from_numpy(normalised).float(), frames.states
        if states is not None:
            proprio = self.statistics[self.frames.name]["proprio"]
            values = states.numpy().astype(np.float64)
            scaled = Normalisation.from_statistics(proprio).normalise(values)
            states = torch.from_numpy(scaled).float()
        return Batches(
            frames, targets, self.config, self.model_config, self.tokenizer, self.device, states
        )

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The frames at `index`; with a generator, changed and worded at random."""
        return self.batches.batch(index, generator)

    @property
    def step(self) -> int:
        return self.loop.progress.step

    @property
    def average(self) -> dict[str, Tensor]:
        """The weights to keep."""
        assert self.loop.average is not None  # this trainer always keeps one
        return self.loop.average.tensors

    def run(
        self,
        report: Callable[[dict], None] = lambda _: None,
        every: int = 500,
        save: Callable[[], None] = lambda: None,
        *,
        glance: float = math.inf,
        save_minutes: float = math.inf,
        stop: StopRequest | None = None,
    ) -> bool:
        """Trains until the schedule ends, or until it is asked to stop, and returns False then.

        `report` is called every `every` steps, and shortly every `glance` seconds; `save` every
        `every` steps, every `save_minutes` and at the end.
        """
        stop = stop or StopRequest()
        reported, told, saved = (Since(self.step) for _ in range(3))

        def after(_: Tensor) -> bool:
            ended = self.loop.done() >= 1.0
            asked = look = late = False
            if self.place.world == 1 or self.step % CLOCK == 0:  # agreeing costs a little
                asked = self.place.agree(float(stop.asked)) > 0
                look = self.place.agree(float(told.seconds() >= glance)) > 0
                late = self.place.agree(float(saved.seconds() >= 60 * save_minutes)) > 0
            whole = self.step % every == 0 or ended
            if whole:
                report(self._report(self.loop.meter.means(), reported) | self._evaluation())
                reported.restart(self.step)
            elif look or asked:
                report(self._report(self.loop.meter.recent(), told))
            if whole or look:
                told.restart(self.step)
            if asked and not ended:
                report({"message": f"stopping after step {self.step} ({stop.why or 'asked'})"})
            if whole or late or asked:
                save()
                saved.restart(self.step)
            return not asked

        return self.loop.run(self.batches.stream(self.training, self.step, self.place), after)

    def _report(self, means: dict[str, float], since: Since) -> dict[str, Any]:
        if not math.isfinite(means["loss"]):
            raise VlaError(f"the loss is {means['loss']} at step {self.step}", "lower the rate")
        samples = (self.step - since.step) * self.config.batch_size
        return {
            "step": self.step,
            "loss": round(means["action"], 5),
            "scene": round(means["scene"], 5),
            **({"text": round(means["text"], 5)} if "text" in means else {}),
            "samples_per_s": round(samples / max(1e-9, since.seconds())),
            "progress": round(self.loop.done(), 4),
            "learning_rate": self.loop.rate(),
            "seconds": round(self.loop.progress.elapsed, 1),
        }

    def _evaluation(self) -> dict[str, Any]:
        """What is found on held-out episodes."""
        return {
            "validation": self._validation(),
            "instruction_following": self.instruction_following(),
        }

    def _validation(self) -> list[float] | None:
        found = self.validate()
        return None if found is None else [round(v, 5) for v in found]

    @torch.no_grad()
    def validate(self, most: int = 4096) -> tuple[float, float] | None:
        """Mean L1 (actions, scene) on held-out episodes with the current weights, if there are
        any."""
        if not len(self.held_out):
            return None
        stride = max(1, len(self.held_out) // most)
        total, count = torch.zeros(2), 0
        for part in self.held_out[::stride].split(512):
            _, measured = self.objective(self.batch(part))
            total += torch.stack([measured["action"], measured["scene"]]).cpu() * len(part)
            count += len(part)
        return tuple((total / count).tolist())

    def instruction_following(self, index: Tensor | None = None) -> dict[str, list[float]]:
        """Instruction following on held-out frames or the given ones."""
        index = self.held_out if index is None else index
        return instruction_following(self.batches, index, self.objective.predict)

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common, as JSON: everything but speed and reports."""
        config = asdict(self.config)
        for name in ("every", "compile", "save_minutes", "tensorboard", "weights"):
            del config[name]
        if not self.config.history:  # as before there was any
            del config["history"], config["history_interval"]
        for name in ("narrow", "reasoning"):  # likewise
            if not config[name]:
                del config[name]
        config |= self.config.weights.identity()
        if shares := self.config.weights.dataset_weights:
            config["dataset_weights"] = shares
        (statistics,) = self.statistics.values()
        counts = {k: v for k, v in statistics.items() if k.startswith("num_")}
        return {**config, "devices": self.place.world, **counts}

    # -- saving -------------------------------------------------------------------------------

    def export(self, folder: str | Path, dtype=torch.bfloat16) -> Path:
        """Write the averaged weights as a checkpoint folder."""
        tensors = {k: v.to(dtype) for k, v in self.average.items()}
        raw = {**self.model_json, "trained_words": sorted(self.words)}
        return save_checkpoint(folder, raw, tensors, self.tokenizer, self.statistics)

    def save(self, folder: Path) -> None:
        """Saves everything needed to resume in `folder`; all processes call it together."""
        self.loop.save(folder, self.identity)

    def load(self, folder: str | Path) -> None:
        """Resumes from the newest state in `folder`."""
        self.loop.resume(Path(folder), self.identity)
