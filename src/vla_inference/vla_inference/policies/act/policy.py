"""`ACTPolicy`: ACT as a `Policy`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vla_inference.policies.act.config import read_config
from vla_inference.policies.act.model import ACT
from vla_inference.policies.act.weights import load_network
from vla_inference.policies.base import Contract, LoadOptions
from vla_inference.policies.lerobot.base import DTYPES, LeRobotPolicy, contract_of
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.images import to_tensor
from vla_inference.policies.stage_timer import StageTimer
from vla_inference.types import ActionChunk, Observation


class ACTPolicy(LeRobotPolicy):
    """Images keep the size they come in; the instruction, which it cannot read, is passed over."""

    def __init__(self, model: ACT, checkpoint: LeRobotCheckpoint, options: LoadOptions):
        super().__init__(checkpoint, options, act_contract(checkpoint))
        self.model = model
        self.run: Callable[[Sequence[Tensor], Tensor | None], Tensor] = model
        if options.engine != "plain" and self.device.type == "cpu":
            from vla_inference.policies.act.cpu import CpuACT

            self.run = CpuACT(model)
            self.placement = f"{self.device} by engine torch"
        of = checkpoint.normalisers
        features = zip(checkpoint.cameras, checkpoint.image_features, strict=True)
        self.normalisers = {name: of[feature] for name, feature in features}

    @classmethod
    def load(cls, checkpoint: LeRobotCheckpoint, options: LoadOptions) -> ACTPolicy:
        """options: device and dtype are named."""
        model = load_network(checkpoint, options.device, DTYPES[options.dtype])
        return cls(model.eval().requires_grad_(False), checkpoint, options)

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        timer = StageTimer(self.device)
        sizes = {tuple(i.shape for i in self.cameras(o).values()) for o in observations}
        if len(sizes) > 1:  # which are no batch
            return [self.act(observation) for observation in observations]
        with torch.inference_mode():
            images, state = self.inputs(observations)
            timer.mark("preprocess")
            actions = self.run(images, state)
            timer.mark("vision")
            return self.answers(actions, observations, timer)

    def inputs(self, observations: Sequence[Observation]) -> tuple[list[Tensor], Tensor | None]:
        """Images of each camera [B, 3, H, W] and state [B, S], all normalised.

        Observations have images of equal sizes.
        """
        seen = [self.cameras(o) for o in observations]
        images = [
            torch.stack([self.image(name, of[name]) for of in seen]) for name in self.needs.cameras
        ]
        states = [self.state(o.state) for o in observations]
        if not self.needs.state:
            return images, None
        return images, self._placed(torch.from_numpy(np.stack(states)))

    def image(self, name: str, image: np.ndarray) -> Tensor:
        """A camera's uint8 [H, W, 3] -> normalised [3, H, W]"""
        pixels = self.normalisers[name].normalise(to_tensor(image).contiguous().numpy())
        return self._placed(torch.from_numpy(pixels))

    def _placed(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype)


def act_contract(checkpoint: LeRobotCheckpoint) -> Contract:
    sizes = set(checkpoint.image_shapes.values())
    size = sizes.pop() if len(sizes) == 1 else None
    return contract_of(checkpoint, read_config(checkpoint).chunk, size)
