"""Batches of frames on the device: a sentence drawn, images shifted and recoloured at random."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vla_inference.policies.openvla.config import ModelConfig
from vla_inference.policies.openvla.preprocessing import PromptTokenizer
from vla_training.small_model.auxiliary_targets import SIZE
from vla_training.small_model.config import TrainConfig
from vla_training.small_model.frames import Frames


class Batches:
    """All frames on the device, their actions normalised and their sentences as tokens."""

    def __init__(
        self,
        frames: Frames,
        targets: Tensor,
        config: TrainConfig,
        model: ModelConfig,
        tokenizer,
        device: str,
    ):
        """targets: normalised actions, float32 [M, 7]"""
        self.config, self.device = config, device
        self.images = frames.images
        self.targets = targets.to(device)
        self.chunk = torch.arange(model.head.chunk, device=device)
        self.wordings = frames.wordings.to(device)
        self.ids, self.lengths = self._tokenise(
            PromptTokenizer(model, tokenizer), frames.sentences
        )
        scene = frames.scene
        if scene is None:
            scene = torch.full((len(frames), SIZE), torch.nan)
        asked = (frames.text, scene, frames.start, frames.end)
        self.asked = [t.to(device) for t in asked]
        self.other = None
        if frames.other is not None:
            o = frames.other
            self.other = [t.to(device) for t in (o.text, o.scene, o.start, o.end)]

    def _tokenise(self, prompt: PromptTokenizer, sentences: list[str]) -> tuple[Tensor, Tensor]:
        rows = [prompt(s) for s in sentences]
        width = 8 * math.ceil(max(map(len, rows)) / 8)  # few widths: each is compiled anew
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=self.device)
        return ids, torch.tensor([len(r) for r in rows], device=self.device)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None, other: bool = False
    ) -> dict[str, Tensor]:
        """The frames at `index`; with a generator, everything random about a batch.

        other: without a generator, ask for the other order of every frame that has one.
        """
        b = len(index)
        options = {"device": self.device, "generator": generator}
        text, scene, start, end = (t[index] for t in self.asked)
        if self.other is not None:
            turned = self.other[0][index] >= 0
            if generator is not None:
                turned &= torch.rand(b, **options) < self.config.other_order
            elif not other:
                turned &= False
            text, scene, start, end = (
                torch.where(turned if mine.ndim == 1 else turned[:, None], theirs[index], mine)
                for theirs, mine in zip(self.other, (text, scene, start, end), strict=True)
            )
        said = self.wordings[text]
        if generator is None:
            sentence = said[:, 0]
        else:
            pick = torch.randint(said.shape[1], (b, 1), **options)
            sentence = said.gather(1, pick)[:, 0]
        future = start[:, None] + self.chunk
        inside = future < end[:, None]
        return {
            **self._images(index, generator),
            "ids": self.ids[sentence],
            "lengths": self.lengths[sentence],
            "targets": self.targets[torch.where(inside, future, 0)],
            "inside": inside[..., None],
            "scene": scene,
        }

    def _images(self, index: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """uint8 [B, H, W, 3], and what their channels are multiplied by and raised by."""
        if generator is None:
            none = torch.zeros(1, device=self.device)
            return {"images": self.images[index], "gain": none + 1, "lift": none}
        c, b, (h, w) = self.config, len(index), self.images.shape[1:3]
        options = {"device": self.device, "generator": generator}
        offset = torch.randint(-c.shift, c.shift + 1, (2, b, 1), **options)
        rows = (torch.arange(h, device=self.device) + offset[0]).clamp(0, h - 1)
        columns = (torch.arange(w, device=self.device) + offset[1]).clamp(0, w - 1)
        noise = torch.rand((2, b, 3, 1, 1), **options) * 2 - 1
        return {
            "images": self.images[index[:, None, None], rows[:, :, None], columns[:, None, :]],
            "gain": 1 + c.brightness * noise[0, :, :1] + c.channel * noise[0],
            "lift": 0.5 * c.brightness * noise[1, :, :1],
        }
