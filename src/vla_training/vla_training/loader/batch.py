"""The training batch, shared by all models and loaders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

WIDTH = 8  # prompts are padded to a multiple, so that few shapes occur


@dataclass(frozen=True)
class Batch:
    """A batch of training samples.

    images: uint8 [B, cameras, H, W, 3]; ids: int64 [B, n], short prompts padded with 0;
    lengths: int64 [B], None where all are n; targets: normalised actions float32 [B, T, D];
    inside: bool [B, T], False beyond an episode's end; numbers: float32 [B, 12] of
    `augment.draw`, None for no change; proprio: normalised float32 [B, P], or None; source:
    number of the dataset [B]; scene: float32 [B, S], what else the simulator knew, or None;
    noise, time: what a generative loss begins from, float32 [B, ...] and [B], or None; seed: of
    what it draws on the device, such as dropout, int64 [B], or None; asked: how many of the ids
    are the prompt's, int64 [B], where the others are what the model is to write; or None.
    """

    images: Tensor
    ids: Tensor
    targets: Tensor
    inside: Tensor
    lengths: Tensor | None = None
    numbers: Tensor | None = None
    proprio: Tensor | None = None
    source: Tensor | None = None
    scene: Tensor | None = None
    noise: Tensor | None = None
    time: Tensor | None = None
    seed: Tensor | None = None
    asked: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def map(self, function) -> Batch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {k: v if v is None else function(v) for k, v in values.items()}
        return replace(self, **changed)

    def to(self, device: str | torch.device) -> Batch:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self.map(lambda t: t.pin_memory())


def pad(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of several lengths -> int64 [B, n], padded with 0 at the end, and lengths [B]."""
    lengths = torch.tensor([len(p) for p in prompts])
    ids = torch.zeros(len(prompts), math.ceil(int(lengths.max()) / WIDTH) * WIDTH).long()
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    return ids, lengths
