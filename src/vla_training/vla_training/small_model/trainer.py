"""One training run of the small model: its parts, its loop, its state on disk."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from vla_inference.checkpoints.load import load_config
from vla_inference.checkpoints.save import save_checkpoint, save_tensors
from vla_inference.errors import VlaError
from vla_inference.policies.normalisation import Normalisation
from vla_inference.policies.openvla.config import ModelConfig, words_of
from vla_inference.policies.openvla.model import VLA
from vla_training.finetune.identity import check_identity
from vla_training.small_model.batches import Batches
from vla_training.small_model.config import SMALL, TrainConfig
from vla_training.small_model.frames import Frames, action_statistics
from vla_training.small_model.instruction_following import instruction_following
from vla_training.small_model.model import SceneHead, begin_with, initialise
from vla_training.small_model.tokenizer import known_tokenizer, task_sentences, train_tokenizer


class Trainer:
    """Holds what a training run consists of; `run` goes on from wherever it stands."""

    def __init__(self, frames: Frames, config: TrainConfig, device: str, model_json=SMALL):
        self.frames, self.config, self.device = frames, config, device
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        if config.batch_size % self.world:
            raise VlaError(
                f"batch size {config.batch_size} cannot be shared by {self.world} devices",
                "choose a multiple",
            )
        self.model_json = model_json
        self.model_config = ModelConfig.from_json(model_json)
        words = self.model_config.action_vocab_end - self.model_config.n_action_bins
        # Embeddings that are begun with mean what they mean in their own tokenizer.
        self.tokenizer = known_tokenizer(config.start, words) if config.start else None
        if self.tokenizer is None:
            if config.start:
                warnings.warn(
                    f"{config.start} has no tokenizer of at most {words} ids: a new one is made, "
                    "in which its embeddings stand for other words",
                    stacklevel=2,
                )
            self.tokenizer = train_tokenizer(task_sentences(), words)
        torch.manual_seed(config.seed)
        model = VLA(self.model_config)
        initialise(model)
        if config.start:
            begin_with(model, config.start)
        self.model = model.to(device)
        self.scene_head = SceneHead(self.model_config.llm.hidden_size).to(device)
        self.trained = nn.ModuleDict({"model": self.model, "scene_head": self.scene_head})
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        matrices = [p for p in self.trained.parameters() if p.ndim >= 2]
        others = [p for p in self.trained.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=device.startswith("cuda"),
        )
        self.statistics = {frames.name: self._statistics(frames)}
        self.batches = self.batches_of(frames)
        self.mean = torch.tensor(self.model_config.encoders[0].mean, device=device)[:, None, None]
        self.std = torch.tensor(self.model_config.encoders[0].std, device=device)[:, None, None]
        last = self._held_out(frames)
        self.training = torch.nonzero(~last).flatten().to(device)
        self.held_out = torch.nonzero(last).flatten().to(device)
        if not len(self.training):
            raise VlaError("no frame is left to train on", "generate more episodes")
        self.step, self.elapsed = 0, 0.0
        self._forward = torch.compile(self._loss) if config.compile else self._loss

    def _statistics(self, frames: Frames) -> dict:
        """Of all processes' frames, where each holds a share of its own."""
        if self.world == 1 or not self.config.shares:
            return action_statistics(frames)
        actions = [None] * self.world
        episodes = [None] * self.world
        dist.all_gather_object(actions, frames.actions[: frames.recorded].numpy())
        dist.all_gather_object(episodes, frames.episodes)
        everything = torch.from_numpy(np.concatenate(actions))
        statistics = action_statistics(
            replace(frames, actions=everything, recorded=len(everything))
        )
        return {**statistics, "num_trajectories": sum(episodes)}

    def _held_out(self, frames: Frames) -> Tensor:
        """Every k-th episode is for validation: bool [N]."""
        if not self.config.validation:
            return torch.zeros(len(frames), dtype=torch.bool)
        every = max(2, round(1 / self.config.validation))
        return frames.episode % every == every - 1

    def batches_of(self, frames: Frames) -> Batches:
        """Frames, their actions normalised as those that are trained on."""
        statistics = self.statistics[self.frames.name]["action"]
        actions = frames.actions.numpy().astype(np.float64)
        targets = Normalisation.from_statistics(statistics).normalise(actions)
        targets = torch.from_numpy(targets).float()
        return Batches(
            frames, targets, self.config, self.model_config, self.tokenizer, self.device
        )

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The frames at `index`; with a generator, shifted, recoloured and worded at random."""
        return self.batches.batch(index, generator)

    def _predict(self, images, gain, lift, ids, lengths) -> tuple[Tensor, Tensor]:
        """Normalised actions [B, T, D], scene (`SceneHead`)."""
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        pixels = (images.permute(0, 3, 1, 2).float() / 255 * gain + lift).clamp(0, 1)
        pixels = (pixels - self.mean) / self.std
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            context = self.model.context(ids, pixels)
            hidden = self.model.action_hidden(context, lengths + self.model_config.num_patches)
            return self.model.action_head(hidden), self.scene_head(hidden)

    def _loss(self, targets, inside, scene, **inputs) -> tuple[Tensor, Tensor]:
        """Mean L1 of the actions that are known, and of the scenes that are."""
        predicted, seen = self._predict(**inputs)
        error = (predicted.float() - targets).abs() * inside
        action = error.sum() / (inside.sum() * targets.shape[-1]).clamp(min=1)
        return action, self.scene_head.loss(seen.float(), scene)

    # -- the loop -----------------------------------------------------------------------------

    def progress(self) -> float:
        """Share of the schedule that is done, in [0, 1]."""
        if self.config.minutes:
            return min(1.0, self.elapsed / (60 * self.config.minutes))
        return min(1.0, self.step / self.config.steps)

    def learning_rate(self) -> float:
        p, warm = self.progress(), self.config.warmup
        if p < warm:
            return self.config.learning_rate * (p / warm + 1e-3)
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * (p - warm) / (1 - warm)))

    def run(
        self,
        report: Callable[[dict], None] = lambda _: None,
        every: int = 500,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """Train until the schedule ends; `save` is called with every report."""
        generator = torch.Generator(self.device)
        share = self.config.batch_size // self.world
        begun = last = time.perf_counter()
        before, losses = self.elapsed, []
        while self.progress() < 1.0:
            # Each step draws from its own seed, so a resumed run sees the data of an unbroken one.
            number = (self.config.seed << 32) + self.step * self.world + self.rank
            generator.manual_seed(number)
            pick = torch.randint(
                len(self.training), (share,), device=self.device, generator=generator
            )
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            action, scene = self._forward(**self.batch(self.training[pick], generator))
            self.optimizer.zero_grad(set_to_none=True)
            (action + self.config.scene_weight * scene).backward()
            self._average_gradients()
            torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self._update_average()
            losses.append(torch.stack([action.detach(), scene.detach()]))
            if self.step % 10 == 0 or self.config.minutes is None:
                self.elapsed = self._agree(before + time.perf_counter() - begun)
            stop = self.progress() >= 1.0
            if self.step % every == 0 or stop:
                mean = torch.stack(losses).mean(0).tolist()
                if not all(map(math.isfinite, mean)):
                    raise VlaError(f"the loss is {mean[0]} at step {self.step}", "lower the rate")
                rate = len(losses) * self.config.batch_size / (time.perf_counter() - last)
                report(
                    {
                        "step": self.step,
                        "loss": round(mean[0], 5),
                        "scene": round(mean[1], 5),
                        "validation": self._validation(),
                        "instruction_following": self.instruction_following(),
                        "samples_per_s": round(rate),
                        "progress": round(self.progress(), 4),
                        "learning_rate": self.learning_rate(),
                        "seconds": round(self.elapsed, 1),
                    }
                )
                save()
                losses, last = [], time.perf_counter()

    def _agree(self, elapsed: float) -> float:
        """The first process's clock, so that all share one schedule and stop together."""
        if self.world == 1:
            return elapsed
        clock = torch.tensor([elapsed], dtype=torch.float64, device=self.device)
        dist.broadcast(clock, 0)
        return clock.item()

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        gradients = [p.grad for p in self.trained.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(part.view_as(g))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        mine = list(self.model.state_dict().values())
        torch._foreach_lerp_(list(self.average.values()), mine, 1 - decay)

    def _validation(self) -> list[float] | None:
        found = self.validate()
        return None if found is None else [round(v, 5) for v in found]

    @torch.no_grad()
    def validate(self, most: int = 4096) -> tuple[float, float] | None:
        """Mean L1 (actions, scene) on held-out episodes with the current weights, if any are."""
        if not len(self.held_out):
            return None
        stride = max(1, len(self.held_out) // most)
        total, count = torch.zeros(2), 0
        for part in self.held_out[::stride].split(512):
            total += torch.stack(self._loss(**self.batch(part))).cpu() * len(part)
            count += len(part)
        return tuple((total / count).tolist())

    def instruction_following(self, index: Tensor | None = None) -> dict[str, list[float]]:
        """Whether the sentence decides, on held-out frames or those named (`obedience.py`)."""

        def predict(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            inputs = ("images", "gain", "lift", "ids", "lengths")
            return self._predict(**{name: batch[name] for name in inputs})

        return instruction_following(
            self.batches, self.held_out if index is None else index, predict
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common, as JSON has it: all but speed and reports."""
        config = asdict(self.config)
        for name in ("every", "compile"):
            del config[name]
        (statistics,) = self.statistics.values()
        counts = {k: v for k, v in statistics.items() if k.startswith("num_")}
        return {**config, "devices": self.world, **counts}

    # -- saving -------------------------------------------------------------------------------

    def export(self, folder: str | Path, dtype=torch.bfloat16) -> Path:
        """Write the averaged weights as a checkpoint folder."""
        tensors = {k: v.to(dtype) for k, v in self.average.items()}
        words = {word for sentence in self.frames.sentences for word in words_of(sentence)}
        if self.config.start:
            words |= load_config(Path(self.config.start)).words
        raw = {**self.model_json, "trained_words": sorted(words)}
        return save_checkpoint(folder, raw, tensors, self.tokenizer, self.statistics)

    def save(self, path: Path) -> None:
        """Write everything needed to go on; the file appears whole or not at all."""
        tensors = {f"trained.{k}": v for k, v in self.trained.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        about = {"step": self.step, "elapsed": self.elapsed, "identity": self.identity}
        save_tensors(path, tensors, {"about": json.dumps(about)})

    def load(self, path: str | Path) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        check_identity(Path(path), about.get("identity", {}), self.identity)
        tensors = load_file(path, self.device)

        def part(prefix):
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.trained.load_state_dict(part("trained."))
        average = part("average.")  # the file is sorted; updates go by the model's own order
        self.average = {k: average[k] for k in self.model.state_dict()}
        state: dict[int, dict] = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.elapsed = about["step"], about["elapsed"]
