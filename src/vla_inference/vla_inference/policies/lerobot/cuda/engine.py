"""`FlowEngine`: one observation at a time on CUDA, in two graphs.

One graph reads the observation, the other has all of Euler's steps. They are captured for each
number of images and each number of words, rounded up, when it first comes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vla_inference.engines.cuda.graphs import Graphs
from vla_inference.policies.lerobot.cuda.network import CudaNetwork
from vla_inference.policies.lerobot.flow import FlowSizes, Guide, Inputs, Solve, sample

ROUND = 16  # words are padded to a multiple of it
KEPT = 256  # graphs


class FlowEngine:
    """replay: runs work under a key, as `Graphs.replay` does; None: by CUDA graphs."""

    def __init__(
        self,
        model: nn.Module,
        network: CudaNetwork,
        inputs: Inputs,
        replay: Callable[[tuple, Callable[[], Any]], Any] | None = None,
    ):
        """model: the plain one, over the same weights. inputs: as `room` makes them for the
        largest observation."""
        self.model, self.network = model, network
        self._replay = replay or Graphs(KEPT).replay
        self._images, self._words, self._state = inputs.images[0], inputs.words[0], inputs.state
        self._count = torch.zeros(1, dtype=torch.int32, device=network.device)
        self._shape = 0, 0  # images and padded words of what was read
        config: Any = model.config
        shape = (config.chunk, config.action_dim)
        self._actions = torch.zeros(shape, device=network.device)

    def fits(self, inputs: Inputs) -> bool:
        """Whether the engine takes them: one observation, no larger than it has room for."""
        images, words = inputs.images, inputs.words
        most = len(self._images), len(self._words)
        return len(words) == 1 and images.shape[1] <= most[0] and words.shape[1] <= most[1]

    def warm_up(self) -> None:
        """Captures the graphs of prompts of every length, with all images, so that no answer
        waits for that. A prompt of pi0.5 has the state in it, whose length changes as it moves."""
        for words in range(ROUND, len(self._words) + 1, ROUND):
            asked = self._words[None, :words].clone()
            given = Inputs(self._images[None].clone(), asked, asked == asked, self._state.clone())
            self.begin(given)
            self.solve(torch.zeros_like(self._actions)[None])

    @torch.inference_mode()
    def begin(self, inputs: Inputs) -> Solve:
        """Reads one observation; returns `solve`."""
        images, words, mask, state = inputs
        count, asked = images.shape[1], words.shape[1]
        padded = round_up(asked)
        self._images[:count].copy_(images[0])
        self._words[:asked].copy_(words[0])
        self._count.copy_(mask.sum(1))
        self._state.copy_(state)
        self._shape = shape = count, padded
        given = self._images[:count], self._words[:padded], self._count, self._state
        self._run(("read", *shape), partial(self.network.read, *given))
        return self.solve

    @torch.inference_mode()
    def solve(
        self, noise: Tensor, guide: Guide | None = None, held: Tensor | None = None
    ) -> Tensor:
        """The actions [1, T, action_dim] of what was read last; see `flow.sample`.

        Where steps are held, each action has a time of its own: the plain expert reads the cache.
        """
        steps, shape = self.network.expert.steps, self._shape
        if held is not None:
            return sample(self._plain(), noise, steps, guide, held)
        if guide is None:
            self._actions.copy_(noise[0])
            work = partial(self.network.sample, self._actions, *shape)
            return self._run(("sample", *shape), work).clone()[None]
        x = noise
        for i in range(steps):
            self._actions.copy_(x[0])
            work = partial(self.network.velocity, i, self._actions, *shape)
            v = self._run(("velocity", i, *shape), work)[None]
            x = x - guide(v, x, 1 - i / steps) / steps
        return x

    def _run(self, key: tuple, work: Callable[[], Any]) -> Any:
        """By `replay`, on the engine's GPU, which need not be the current one."""
        if self._count.is_cuda:
            with torch.cuda.device(self._count.device):
                return self._replay(key, work)
        return self._replay(key, work)

    def _plain(self) -> Callable[[Tensor, Tensor], Tensor]:
        prefix, model, dtype = self.network.prefix(*self._shape), self.model, self.network.dtype
        velocity: Callable[..., Tensor] = model.velocity  # type: ignore[assignment]
        return lambda x, time: velocity(x.to(dtype), time, prefix).float()


def room(images: int, sizes: FlowSizes, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Buffers for an observation of that many images, and of the longest prompt."""
    words = round_up(sizes.words)
    return Inputs(
        torch.zeros(1, images, 3, *sizes.image_size, dtype=dtype, device=device),
        torch.zeros(1, words, dtype=torch.long, device=device),
        torch.zeros(1, words, dtype=torch.bool, device=device),
        torch.zeros(1, sizes.state_dim, dtype=dtype, device=device),
    )


def round_up(words: int) -> int:
    return -(-words // ROUND) * ROUND
