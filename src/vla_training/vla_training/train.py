"""Training the small model from scratch on generated demonstrations.

The recipe: all frames live on the device; random shift and colour jitter; a chunk of 8 actions
with L1 loss (OpenVLA-OFT); AdamW, warm-up then cosine; an exponential moving average of the
weights is what is kept.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from vla_inference.actions import Normalisation
from vla_inference.checkpoint import save_checkpoint
from vla_inference.errors import VlaError
from vla_inference.model import VLA, ModelConfig
from vla_inference.preprocess import PromptTokenizer
from vla_training.frames import Frames, action_statistics, load_frames
from vla_training.vocabulary import task_sentences, train_tokenizer

SMALL = {
    "model_type": "openvla",
    "name": "stack-small",
    "arch_specifier": "no-align+gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "vision_towers": [
        {
            "key": "featurizer", "image_size": 224, "patch_size": 16, "embed_dim": 256,
            "depth": 5, "num_heads": 4, "mlp_hidden": 1024, "stem": "conv",
        }
    ],
    "text_config": {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 768,
        "rms_norm_eps": 1e-5,
    },
    "action_head": {"type": "l1", "decoding": "parallel", "chunk": 8, "action_dim": 7},
    "n_action_bins": 256,
    "pad_to_multiple_of": 0,
    "empty_token_id": None,
    "bos_token_id": 1,
    "stop_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """How to train. With `minutes` the schedule follows the clock, else `steps`."""

    batch_size: int = 1024
    steps: int = 10_000
    minutes: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.03  # share of the schedule
    ema: float = 0.999
    shift: int = 12  # pixels
    brightness: float = 0.15
    channel: float = 0.05
    validation: float = 0.02  # share of the episodes
    seed: int = 0
    compile: bool = False


class Trainer:
    """Holds what a training run consists of; `run` goes on from wherever it stands."""

    def __init__(self, frames: Frames, config: TrainConfig, device: str, model_json=SMALL):
        self.frames, self.config, self.device = frames, config, device
        self.model_json = model_json
        self.tokenizer = train_tokenizer(task_sentences())
        torch.manual_seed(config.seed)
        self.model_config = ModelConfig.from_json(model_json)
        self.model = VLA(self.model_config)
        initialise(self.model)
        self.model.to(device)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=device.startswith("cuda"),
        )
        self.statistics = {"generated": action_statistics(frames)}
        normalisation = Normalisation.from_statistics(self.statistics["generated"]["action"])
        normal = normalisation.normalise(frames.actions.numpy().astype(np.float64))
        self.targets = torch.from_numpy(normal).float().to(device)
        self.end = frames.end.to(device)
        self.text = frames.text.to(device)
        self.ids, self.lengths = self._tokenise()
        self.mean = torch.tensor(self.model_config.towers[0].mean, device=device)[:, None, None]
        self.std = torch.tensor(self.model_config.towers[0].std, device=device)[:, None, None]
        episodes = int(frames.episode.max()) + 1
        held = max(1, round(config.validation * episodes)) if config.validation else 0
        last = frames.episode >= episodes - held
        self.training = torch.nonzero(~last).flatten().to(device)
        self.held_out = torch.nonzero(last).flatten().to(device)
        if not len(self.training):
            raise VlaError("no frame is left to train on", "generate more episodes")
        self.step, self.elapsed = 0, 0.0
        self._forward = torch.compile(self._loss) if config.compile else self._loss

    # -- batches ------------------------------------------------------------------------------

    def _tokenise(self) -> tuple[torch.Tensor, torch.Tensor]:
        prompt = PromptTokenizer(self.model_config, self.tokenizer)
        rows = [prompt(s) for s in self.frames.sentences]
        width = max(map(len, rows))
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=self.device)
        return ids, torch.tensor([len(r) for r in rows], device=self.device)

    def batch(self, index: torch.Tensor, augment: bool, generator=None):
        """Pixels [B, 3, S, S], token ids, lengths, targets [B, T, 7] and their mask [B, T, 1]."""
        c = self.config
        b, (h, w) = len(index), self.frames.pictures.shape[1:3]
        if augment:
            offset = torch.randint(
                -c.shift, c.shift + 1, (2, b, 1), device=self.device, generator=generator
            )
            rows = (torch.arange(h, device=self.device) + offset[0]).clamp(0, h - 1)
            columns = (torch.arange(w, device=self.device) + offset[1]).clamp(0, w - 1)
            where = (index[:, None, None], rows[:, :, None], columns[:, None, :])
            pictures = self.frames.pictures[where]
        else:
            pictures = self.frames.pictures[index]
        pixels = pictures.permute(0, 3, 1, 2).float() / 255
        if augment:
            noise = torch.rand((2, b, 3, 1, 1), device=self.device, generator=generator) * 2 - 1
            gain = 1 + c.brightness * noise[0, :, :1] + c.channel * noise[0]
            pixels = (pixels * gain + 0.5 * c.brightness * noise[1, :, :1]).clamp(0, 1)
        pixels = (pixels - self.mean) / self.std
        steps = torch.arange(self.model_config.head.chunk, device=self.device)
        future = index[:, None] + steps
        inside = future < self.end[index][:, None]
        targets = self.targets[torch.where(inside, future, index[:, None])]
        text = self.text[index]
        return pixels, self.ids[text], self.lengths[text], targets, inside[..., None]

    def _loss(self, pixels, ids, lengths, targets, inside):
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            context = self.model.context(ids, pixels)
            predicted = self.model.predict_chunk(
                context, lengths + self.model_config.num_patches
            )
        error = (predicted.float() - targets).abs() * inside
        return error.sum() / (inside.sum() * targets.shape[-1])

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
        seconds: float | None = None,
        report: Callable[[dict], None] = lambda _: None,
        every: int = 200,
    ) -> None:
        """Train until the schedule ends, or for at most `seconds` more."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed + 1 + self.step)
        begun = last = time.perf_counter()
        before = self.elapsed
        losses = []
        while self.progress() < 1.0:
            pick = torch.randint(
                len(self.training), (self.config.batch_size,), device=self.device,
                generator=generator,
            )  # fmt: skip
            batch = self.batch(self.training[pick], True, generator)
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            loss = self._forward(*batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self._update_average()
            losses.append(loss.detach())
            if self.step % 20 == 0:
                losses[-1].item()  # wait for the device, so that the clock is honest
            now = time.perf_counter()
            self.elapsed = before + now - begun
            stop = self.progress() >= 1.0 or (seconds is not None and now - begun > seconds)
            if self.step % every == 0 or stop:
                mean = torch.stack(losses).mean().item()
                if not math.isfinite(mean):
                    raise VlaError(f"the loss is {mean} at step {self.step}", "lower the rate")
                rate = len(losses) * self.config.batch_size / (now - last)
                report(
                    {
                        "step": self.step, "loss": mean, "samples_per_s": rate,
                        "progress": self.progress(), "validation": self.validate(),
                        "learning_rate": self.learning_rate(), "seconds": self.elapsed,
                    }
                )  # fmt: skip
                losses, last = [], time.perf_counter()
            if stop:
                return

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        mine = list(self.model.state_dict().values())
        torch._foreach_lerp_(list(self.average.values()), mine, 1 - decay)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean L1 on held-out episodes with the current weights; NaN where none were held out."""
        if not len(self.held_out):
            return float("nan")
        total = count = 0
        for part in self.held_out.split(1024):
            total += self._loss(*self.batch(part, False)).item() * len(part)
            count += len(part)
        return total / count

    # -- saving -------------------------------------------------------------------------------

    def export(self, folder: str | Path, dtype=torch.bfloat16) -> Path:
        """Write the averaged weights as a checkpoint folder."""
        tensors = {k: v.to(dtype) for k, v in self.average.items()}
        return save_checkpoint(folder, self.model_json, tensors, self.tokenizer, self.statistics)

    def save(self, path: str | Path) -> None:
        """Write everything needed to go on; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        about = {"step": self.step, "elapsed": self.elapsed, "config": asdict(self.config)}
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, {"about": json.dumps(about)})
        os.replace(temporary, path)

    def load(self, path: str | Path) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
        tensors = load_file(path, self.device)

        def part(prefix):
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average = part("average.")
        state: dict[int, dict] = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.elapsed = about["step"], about["elapsed"]


def initialise(model: VLA) -> None:
    """Small normal weights; residual branches scaled down by depth."""
    depth = len(model.language_model.model.layers) + model.config.towers[0].layers
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter)
                continue
            std = 0.02
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
                std /= math.sqrt(2 * depth)
            torch.nn.init.normal_(parameter, std=std)
        elif name.endswith(".bias"):
            torch.nn.init.zeros_(parameter)
    # Linear layers between normed widths keep their variance.
    for module in (model.projector, getattr(model, "action_head", None)):
        for layer in module.modules() if module is not None else ():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.xavier_uniform_(layer.weight)


def train(
    data: list[str],
    output: str | Path,
    config: TrainConfig,
    device: str | None = None,
    seconds: float | None = None,
    resume: bool = False,
    report: Callable[[dict], None] = lambda _: None,
) -> Path:
    """Train on HDF5 data sets, write state and checkpoint into `output`; returns the checkpoint."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    frames = load_frames(data, device=device, report=lambda text: report({"message": text}))
    trainer = Trainer(frames, config, device)
    state = Path(output) / "state.safetensors"
    if resume and state.exists():
        trainer.load(state)
    trainer.run(seconds, report)
    trainer.save(state)
    return trainer.export(Path(output) / "checkpoint")
