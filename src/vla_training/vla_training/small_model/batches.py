"""Batches of frames on the device; sentences and augmentation are drawn there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_inference.errors import VlaError
from vla_inference.inputs.history import stride_of
from vla_inference.openvla.config import HeadConfig, ModelConfig
from vla_inference.openvla.preprocessing import PromptTokenizer
from vla_training.loader.augment import NUMBERS
from vla_training.loader.batch import Batch, pad
from vla_training.loader.sampler import Sampler
from vla_training.loop.distributed import Place
from vla_training.small_model.auxiliary_targets import SIZE
from vla_training.small_model.config import TrainConfig
from vla_training.small_model.frames import TrainingFrames


class Batches:
    """All frames on the device, with normalised actions and tokenised instructions."""

    def __init__(
        self,
        frames: TrainingFrames,
        targets: Tensor,
        config: TrainConfig,
        model: ModelConfig,
        tokenizer,
        device: str,
        states: Tensor | None = None,
    ):
        """targets, states: normalised, float32 [M, 7] and [N, P] or None"""
        self.config, self.device = config, device
        self.images = frames.images if frames.images.ndim == 5 else frames.images[:, None]
        self.targets, self.weight = targets.to(device), frames.weight
        self.states = None if states is None else states.to(device)
        self.chunk = torch.arange(model.head.chunk, device=device)
        self.back = _back(model.head, frames.spec.dt).to(self.images.device)
        self.first = first_frames(frames.episode).to(self.images.device)
        self.wordings = frames.wordings.to(device)
        prompt = PromptTokenizer(model, tokenizer)
        self.ids, self.lengths = (t.to(device) for t in pad([prompt(s) for s in frames.sentences]))
        self.thoughts: tuple[Tensor, Tensor] | None = None
        self.thought = self.other_thought = None
        if frames.thought is not None:
            written = [tokenizer.encode(t, add_special_tokens=False).ids for t in frames.thoughts]
            longest = max(map(len, written))
            if longest > model.reasoning_tokens:
                raise VlaError(
                    f"a thought has {longest} tokens, the model writes {model.reasoning_tokens}",
                    "raise `thoughts.MOST`",
                )
            ids, lengths = pad(written)
            self.thoughts = ids.to(device), lengths.to(device)
            self.thought = frames.thought.to(device)
        scene = frames.scene
        if scene is None:
            scene = torch.full((len(frames), SIZE), torch.nan)
        asked = (frames.text, scene, frames.start, frames.end)
        self.asked = [t.to(device) for t in asked]
        self.other = None
        if frames.other is not None:
            o = frames.other
            self.other = [t.to(device) for t in (o.text, o.scene, o.start, o.end)]
            self.other_thought = None if o.thought is None else o.thought.to(device)

    def stream(self, frames: Tensor, begin: int, place: Place) -> Iterator[Batch]:
        """This process's part of the global batches from number `begin` on, endlessly.

        frames: those that are drawn from. What a batch holds follows from seed and number alone,
        so a resumed run sees the data of an unbroken one.
        """
        c = self.config
        weight = None if self.weight is None else self.weight[frames.cpu()].numpy()
        order = Sampler([len(frames)], [1.0], c.seed, [weight])
        generator = torch.Generator(self.device)
        share, number = c.batch_size // place.world, begin
        # Where each process holds frames of its own, each goes through all of them.
        rank, world = (0, 1) if c.shares else (place.rank, place.world)
        while True:
            at = (number * world + rank) * share
            picked = torch.from_numpy(order.span(at, at + share)).to(self.device)
            generator.manual_seed((c.seed << 32) + number * place.world + place.rank)
            yield self.batch(frames[picked], generator)
            number += 1

    def _seen(self, index: Tensor) -> Tensor:
        """uint8 [B, images, H, W, 3]: of all cameras now, then of one interval before ..., where
        the episode's first frame stands in for what was before it."""
        if not len(self.back):
            return self.images[index]
        past = (index[:, None] - self.back).maximum(self.first[index][:, None])
        return self.images[torch.cat([index[:, None], past], 1)].flatten(1, 2)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None, other: bool = False
    ) -> Batch:
        """The frames at `index`; with a generator, with random wording and augmentation.

        other: without a generator, ask for the other order of every frame that has one.
        """
        b = len(index)
        options: dict[str, Any] = {"device": self.device, "generator": generator}
        text, scene, start, end = (t[index] for t in self.asked)
        thought = None if self.thought is None else self.thought[index]
        if self.other is not None:
            turned = self.other[0][index] >= 0
            if generator is not None:
                turned &= torch.rand(b, **options) < self.config.other_order
            elif not other:
                turned &= False
            if thought is not None and self.other_thought is not None:
                thought = torch.where(turned, self.other_thought[index], thought)
            text, scene, start, end = (
                torch.where(turned if mine.ndim == 1 else turned[:, None], theirs[index], mine)
                for theirs, mine in zip(self.other, (text, scene, start, end), strict=True)
            )
        said = self.wordings[text]
        if generator is None:
            sentence, numbers = said[:, 0], None
        else:
            pick = torch.randint(said.shape[1], (b, 1), **options)
            sentence = said.gather(1, pick)[:, 0]
            numbers = torch.rand((b, NUMBERS), **options)
        future = start[:, None] + self.chunk
        inside = future < end[:, None]
        ids, lengths, asked = self._asked(sentence, thought)
        return Batch(
            self._seen(index),
            ids,
            self.targets[torch.where(inside, future, 0)],
            inside,
            lengths,
            numbers,
            scene=scene,
            proprio=None if self.states is None else self.states[index],
            asked=asked,
        )

    def _asked(
        self, sentence: Tensor, thought: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids [B, n] of sentences with the thoughts behind them, their lengths, the prompts'."""
        ids, lengths = self.ids[sentence], self.lengths[sentence]
        if thought is None or self.thoughts is None:
            return ids, lengths, None
        written, more = (t[thought] for t in self.thoughts)
        at = torch.arange(ids.shape[1] + written.shape[1], device=ids.device) - lengths[:, None]
        prompt = F.pad(ids, (0, written.shape[1]))
        tail = written.gather(1, at.clamp(0, written.shape[1] - 1))
        both = torch.where(at < 0, prompt, torch.where(at < more[:, None], tail, 0))
        return both, lengths + more, lengths


def _back(head: HeadConfig, dt: float) -> Tensor:
    """How many frames before the present one the past ones are: int64 [history]"""
    if not head.history:
        return torch.arange(0)
    assert head.history_interval is not None  # as `ModelConfig` has it
    return stride_of(head.history_interval, dt) * torch.arange(1, head.history + 1)


def first_frames(episode: Tensor) -> Tensor:
    """Number of the first frame of each frame's episode [N]; an episode's stand together."""
    _, counts = episode.unique_consecutive(return_counts=True)
    return (counts.cumsum(0) - counts).repeat_interleave(counts)
