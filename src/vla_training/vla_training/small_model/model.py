"""Builds the small model with new or given weights, and its auxiliary scene head."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vla_inference.errors import VlaError
from vla_inference.openvla.model import VLA
from vla_training.finetune.families.openvla.objective import OpenVLAObjective
from vla_training.loader.augment import Augmentation
from vla_training.loader.batch import Batch
from vla_training.small_model.auxiliary_targets import COLOURS, NAMED, NUMBERS

COLOUR_WEIGHT = 1.0  # of naming colours, beside the L1 of places


class SceneHead(nn.Module):
    """Auxiliary head that predicts the simulator's targets from the mean of the action slots;
    training only.

    hidden [B, slots, H] -> the numbers of `auxiliary_targets.scene_numbers`, then logits of the
    colours of what is lifted and of where it goes [B, NUMBERS + 2 * colours]
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        size = NUMBERS + NAMED * len(COLOURS)
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden.mean(1))

    @staticmethod
    def loss(seen: Tensor, scene: Tensor) -> Tensor:
        """Mean L1 of the numbers and cross-entropy of the colours; NaN targets are ignored."""
        known = ~scene.isnan()
        scene = scene.nan_to_num(0.0)
        numbers = (seen[:, :NUMBERS] - scene[:, :NUMBERS]).abs() * known[:, :NUMBERS]
        logits = seen[:, NUMBERS:].unflatten(1, (NAMED, len(COLOURS)))
        likely = logits.log_softmax(-1).gather(2, scene[:, NUMBERS:, None].long())[..., 0]
        named = known[:, NUMBERS:]
        numbers = numbers.sum() / known[:, :NUMBERS].sum().clamp(min=1)
        return numbers - COLOUR_WEIGHT * (likely * named).sum() / named.sum().clamp(min=1)


class SceneObjective(OpenVLAObjective):
    """Mean L1 of the known actions plus `weight` times the loss of the auxiliary head."""

    def __init__(self, vla: VLA, weight: float, augmentation: Augmentation):
        super().__init__(vla, augmentation)
        self.weight = weight
        self.scene_head = SceneHead(vla.config.llm.hidden_size)
        if vla.config.reasoning_tokens:
            vla.language_model.lm_head.requires_grad_(True)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """With what the model is to write, its cross-entropy is added ("text")."""
        loss, measured = super().forward(batch)
        if batch.asked is None:
            return loss, measured
        with self.low_precision():
            text = self._text(batch, batch.asked)
        return loss + text, {**measured, "text": text.detach()}

    def _text(self, batch: Batch, asked: Tensor) -> Tensor:
        """Mean cross-entropy of the tokens behind the prompts', each seeing the past alone."""
        vla, ids = self.vla, batch.ids
        context, _ = self.context(batch)
        begin = context.shape[1] - ids.shape[1]  # of ids[:, 0], if images did not come between
        hidden = vla.language_model.model(context)[0][:, begin:-1]
        logits = vla.language_model.lm_head(hidden).float()
        position = torch.arange(1, ids.shape[1], device=ids.device)
        assert batch.lengths is not None  # as `Batches` makes them
        own = (position >= asked[:, None]) & (position < batch.lengths[:, None])
        each = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        return (each * own).sum() / own.sum().clamp(min=1)

    def _regression(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        action, measured = super()._regression(hidden, batch)
        assert batch.scene is not None  # as `Batches` makes them
        scene = self.scene_head.loss(self.scene_head(hidden).float(), batch.scene)
        told = {"action": action.detach(), "scene": scene.detach()}
        return action + self.weight * scene, {**measured, **told}

    @torch.no_grad()
    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normalised actions [B, T, D], scene (`SceneHead`)."""
        with self.low_precision():
            hidden = self.vla.action_hidden(*self.context(batch))
            return self.vla.action_head(hidden), self.scene_head(hidden)


def initialise(model: VLA) -> None:
    """Unit variance through every layer; residual branches scaled down by depth.

    Patch positions start as sines and cosines as loud as the features: where a thing is must be
    readable from the first step on.
    """
    depth = len(model.language_model.model.layers) + model.config.encoders[0].layers
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
    """Copies a checkpoint's weights by name where shapes agree; returns the names of the
    others.

    Layers that the checkpoint does not have begin as if they were not there: their output is 0.
    """
    path = Path(checkpoint) / "model.safetensors"
    if not path.exists():
        raise VlaError(f"there is no {path}", "name the folder of a checkpoint in one file")
    there, state = load_file(path), model.state_dict()
    taken = {
        k: v.to(state[k]) for k, v in there.items() if k in state and state[k].shape == v.shape
    }
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
