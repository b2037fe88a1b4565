"""Training the small model from scratch on generated demonstrations.

The recipe: all frames live on the device; random shift and colour jitter; a chunk of 8 actions
with L1 loss (OpenVLA-OFT); where the simulator's own poses were recorded, a second head has to
read them off the picture, which teaches the model early where to look; AdamW, warm-up then cosine;
an exponential moving average of the weights is what is kept.

Several devices share a batch (`world`): each holds all frames and computes its part, gradients are
averaged.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla_inference.actions import Normalisation
from vla_inference.errors import VlaError
from vla_inference.model import VLA, ModelConfig
from vla_inference.preprocess import PromptTokenizer
from vla_inference.saving import save_checkpoint
from vla_training.episode_frames import frames_from_paths
from vla_training.frames import Frames, action_statistics
from vla_training.vocabulary import task_sentences, train_tokenizer

SMALL = {
    "model_type": "openvla",
    "name": "stack-small",
    "arch_specifier": "no-align+gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "vision_towers": [
        {
            "key": "featurizer", "image_size": 224, "patch_size": 16, "embed_dim": 256,
            "depth": 2, "num_heads": 4, "mlp_hidden": 1024, "stem": "conv",
        }
    ],
    "text_config": {
        "hidden_size": 320, "intermediate_size": 896, "num_hidden_layers": 4,
        "num_attention_heads": 5, "num_key_value_heads": 5, "vocab_size": 832,
        "rms_norm_eps": 1e-5,
    },
    "action_head": {
        "type": "l1", "decoding": "parallel", "chunk": 8, "action_dim": 7,
        "slots_per_step": 1, "slots": "learned",
    },
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
    steps: int = 15_000
    minutes: float | None = None
    learning_rate: float = 1.5e-3
    scene_weight: float = 0.3  # of the loss on the simulator's own poses
    weight_decay: float = 0.05
    warmup: float = 0.03  # share of the schedule
    ema: float = 0.999
    shift: int = 12  # pixels
    brightness: float = 0.15
    channel: float = 0.05
    validation: float = 0.02  # share of the episodes
    seed: int = 0
    compile: bool = False
    layers: int = SMALL["text_config"]["num_hidden_layers"]  # of the language model
    shares: bool = False  # each device holds its share of the data sets, not all of them
    start: str | None = None  # checkpoint whose weights are begun with, where shapes agree


class SceneHead(nn.Module):
    """Reads what the simulator knows off the mean of the action slots. Only training has it."""

    def __init__(self, hidden_size: int, size: int = 9):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden.mean(1))


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
        normalisation = Normalisation.from_statistics(self.statistics[frames.name]["action"])
        normal = normalisation.normalise(frames.actions.numpy().astype(np.float64))
        self.targets = torch.from_numpy(normal).float().to(device)
        self.end, self.text = frames.end.to(device), frames.text.to(device)
        self.scene = None if frames.scene is None else frames.scene.to(device)
        self.ids, self.lengths = self._tokenise()
        self.mean = torch.tensor(self.model_config.towers[0].mean, device=device)[:, None, None]
        self.std = torch.tensor(self.model_config.towers[0].std, device=device)[:, None, None]
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
        dist.all_gather_object(actions, frames.actions.numpy())
        dist.all_gather_object(episodes, int(frames.episode.max()) + 1)
        everything = torch.from_numpy(np.concatenate(actions))
        statistics = action_statistics(replace(frames, actions=everything))
        return {**statistics, "num_trajectories": sum(episodes)}

    def _held_out(self, frames: Frames) -> Tensor:
        """Every k-th episode is for validation: bool [N]."""
        if not self.config.validation:
            return torch.zeros(len(frames), dtype=torch.bool)
        every = max(2, round(1 / self.config.validation))
        return frames.episode % every == every - 1

    # -- batches ------------------------------------------------------------------------------

    def _tokenise(self) -> tuple[Tensor, Tensor]:
        prompt = PromptTokenizer(self.model_config, self.tokenizer)
        rows = [prompt(s) for s in self.frames.sentences]
        width = 8 * math.ceil(max(map(len, rows)) / 8)  # few widths: each is compiled anew
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=self.device)
        return ids, torch.tensor([len(r) for r in rows], device=self.device)

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The frames at `index`; with a generator, shifted and recoloured at random."""
        c, b = self.config, len(index)
        h, w = self.frames.pictures.shape[1:3]
        gain, lift = torch.ones(1, device=self.device), torch.zeros(1, device=self.device)
        if generator is None:
            pictures = self.frames.pictures[index]
        else:
            options = {"device": self.device, "generator": generator}
            offset = torch.randint(-c.shift, c.shift + 1, (2, b, 1), **options)
            rows = (torch.arange(h, device=self.device) + offset[0]).clamp(0, h - 1)
            columns = (torch.arange(w, device=self.device) + offset[1]).clamp(0, w - 1)
            pictures = self.frames.pictures[
                index[:, None, None], rows[:, :, None], columns[:, None, :]
            ]
            noise = torch.rand((2, b, 3, 1, 1), **options) * 2 - 1
            gain = 1 + c.brightness * noise[0, :, :1] + c.channel * noise[0]
            lift = 0.5 * c.brightness * noise[1, :, :1]
        future = index[:, None] + torch.arange(self.model_config.head.chunk, device=self.device)
        inside = future < self.end[index][:, None]
        text = self.text[index]
        return {
            "pictures": pictures,
            "gain": gain,
            "lift": lift,
            "ids": self.ids[text],
            "lengths": self.lengths[text],
            "targets": self.targets[torch.where(inside, future, index[:, None])],
            "inside": inside[..., None],
            "scene": self.scene[index] if self.scene is not None else torch.zeros(0),
        }

    def _loss(self, pictures, gain, lift, ids, lengths, targets, inside, scene):
        """Mean L1 of the chunk, and of the scene."""
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        pixels = (pictures.permute(0, 3, 1, 2).float() / 255 * gain + lift).clamp(0, 1)
        pixels = (pixels - self.mean) / self.std
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            context = self.model.context(ids, pixels)
            hidden = self.model.action_hidden(context, lengths + self.model_config.num_patches)
            predicted = self.model.action_head(hidden)
            seen = self.scene_head(hidden)
        error = (predicted.float() - targets).abs() * inside
        action = error.sum() / (inside.sum() * targets.shape[-1])
        if not scene.numel():
            return action, action.detach() * 0
        return action, (seen.float() - scene).abs().mean()

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
                        "step": self.step, "loss": round(mean[0], 5), "scene": round(mean[1], 5),
                        "validation": [round(v, 5) for v in self.validate()],
                        "samples_per_s": round(rate), "progress": round(self.progress(), 4),
                        "learning_rate": self.learning_rate(), "seconds": round(self.elapsed, 1),
                    }
                )  # fmt: skip
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

    @torch.no_grad()
    def validate(self, most: int = 4096) -> tuple[float, float]:
        """Mean L1 (actions, scene) on held-out episodes with the current weights."""
        if not len(self.held_out):
            return float("nan"), float("nan")
        stride = max(1, len(self.held_out) // most)
        total, count = torch.zeros(2), 0
        for part in self.held_out[::stride].split(512):
            total += torch.stack(self._loss(**self.batch(part))).cpu() * len(part)
            count += len(part)
        return tuple((total / count).tolist())

    # -- saving -------------------------------------------------------------------------------

    def export(self, folder: str | Path, dtype=torch.bfloat16) -> Path:
        """Write the averaged weights as a checkpoint folder."""
        tensors = {k: v.to(dtype) for k, v in self.average.items()}
        return save_checkpoint(folder, self.model_json, tensors, self.tokenizer, self.statistics)

    def save(self, path: str | Path) -> None:
        """Write everything needed to go on; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"trained.{k}": v for k, v in self.trained.state_dict().items()}
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


def initialise(model: VLA) -> None:
    """Unit variance through every layer; residual branches scaled down by depth.

    Patch positions start as sines and cosines as loud as the features: where a thing is must be
    readable from the first step on.
    """
    depth = len(model.language_model.model.layers) + model.config.towers[0].layers
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 4:
            nn.init.kaiming_normal_(parameter)
        elif "pos_embed" in name:
            parameter.data.copy_(grid_positions(*parameter.shape[1:]))
        elif "embed_tokens" in name or "action_slots" in name:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 2:
            std = parameter.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
                std /= math.sqrt(2 * depth)
            nn.init.normal_(parameter, std=std)


def begin_with(model: VLA, checkpoint: str | Path) -> list[str]:
    """Take over a checkpoint's weights by name where shapes agree; returns what was not there.

    Layers that the checkpoint does not have begin as if they were not there: their output is 0.
    """
    path = Path(checkpoint) / "model.safetensors"
    if not path.exists():
        raise VlaError(f"there is no {path}", "name the folder of a checkpoint in one file")
    there, state = load_file(path), model.state_dict()
    taken = {k: v.to(state[k]) for k, v in there.items()
             if k in state and state[k].shape == v.shape}  # fmt: skip
    if not taken:
        raise VlaError(f"{path} has no weight of this model's shape", "name another checkpoint")
    new = [k for k in state if k not in taken]
    for name in new:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            taken[name] = torch.zeros_like(state[name])
    model.load_state_dict({**state, **taken})
    return new


def grid_positions(patches: int, dim: int) -> Tensor:
    """Sines and cosines of row and column at dim/4 frequencies each: [1, patches, dim]"""
    side = math.isqrt(patches)
    steps = torch.arange(side).float() / side
    frequencies = torch.pi * side ** torch.linspace(0, 1, dim // 4)
    angles = steps[:, None] * frequencies  # [side, dim / 4]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, patches, dim)


def train(
    data: list[str],
    output: str | Path,
    config: TrainConfig,
    devices: int | None = None,
    resume: bool = False,
    report: Callable[[dict], None] = print,
) -> Path:
    """Train on data sets of any format; state and checkpoint go into `output`.

    Returns the checkpoint.
    devices: GPUs to use, None for all there are, 0 for the CPU. `report` must be a function of a
    module where there are several.
    """
    available = torch.cuda.device_count()
    devices = available if devices is None else devices
    if devices > available:
        raise VlaError(f"{devices} GPUs were asked for, there are {available}", "ask for fewer")
    world = max(1, devices)
    args = (world, devices > 0, data, str(output), config, resume, report)
    if world == 1:
        _train_rank(0, *args)
    else:
        torch.multiprocessing.spawn(_train_rank, args, nprocs=world)
    return Path(output) / "checkpoint"


def _train_rank(rank, world, cuda, data, output, config, resume, report) -> None:
    device = f"cuda:{rank}" if cuda else "cpu"
    if cuda:
        torch.cuda.set_device(rank)
    if world > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29511")
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world)
    if rank:
        report = _quiet
    torch.set_float32_matmul_precision("high")
    size = SMALL["vision_towers"][0]["image_size"]
    if config.shares and world > 1:
        if len(data) < world:
            raise VlaError(
                f"{len(data)} data sets cannot be shared by {world} devices", "give more"
            )
        data = data[rank::world]
    frames = frames_from_paths(data, size, device, lambda text: report({"message": text}))
    text_config = {**SMALL["text_config"], "num_hidden_layers": config.layers}
    trainer = Trainer(frames, config, device, {**SMALL, "text_config": text_config})
    state, checkpoint = Path(output) / "state.safetensors", Path(output) / "checkpoint"
    if resume and state.exists():
        trainer.load(state)

    def save() -> None:
        if rank == 0:
            trainer.save(state)
            trainer.export(checkpoint)

    trainer.run(report, save=save)
    if world > 1:
        dist.destroy_process_group()


def _quiet(_: dict) -> None:
    pass
