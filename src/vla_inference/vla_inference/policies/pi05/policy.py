"""`PiPolicy`: pi0 and pi0.5 as a `Policy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vla_inference.errors import CheckpointError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint, tensor_shapes
from vla_inference.policies.lerobot.flow import FlowSizes, Inputs
from vla_inference.policies.lerobot.images import resize_with_pad, to_tensor
from vla_inference.policies.lerobot.loading import build
from vla_inference.policies.lerobot.policy import FlowPolicy
from vla_inference.policies.lerobot.tokenizer import find_tokenizer
from vla_inference.policies.pi05.config import PiConfig, read_config
from vla_inference.policies.pi05.model import Pi
from vla_inference.policies.pi05.weights import naming

if TYPE_CHECKING:
    from vla_inference.policies.lerobot.cuda.network import CudaNetwork

TOKENIZER = "google/paligemma-3b-pt-224"
EDGES = np.linspace(-1, 1, 257)[:-1]  # lower edges of the state's 256 bins


class PiPolicy(FlowPolicy):
    model: Pi

    def __init__(
        self, model: Pi, checkpoint: LeRobotCheckpoint, tokenizer: Any, options: LoadOptions
    ):
        super().__init__(checkpoint, tokenizer, options, sizes_of(checkpoint, model.config))
        self.model, self.begin_token = model, tokenizer.token_to_id("<bos>")
        if self.begin_token is None:
            raise CheckpointError(
                f"the tokenizer of {checkpoint.folder} has no token <bos>",
                f"give the tokenizer of {TOKENIZER}",
            )

    @classmethod
    def load(cls, checkpoint: LeRobotCheckpoint, options: LoadOptions) -> PiPolicy:
        """options: device and dtype are named."""
        config = read_config(checkpoint)
        tokenizer = find_tokenizer(checkpoint, TOKENIZER, config.vocabulary)
        names = naming(tensor_shapes(checkpoint.folder))
        model = build(lambda: Pi(config), checkpoint, names, options)
        policy = cls(model, checkpoint, tokenizer, options)
        policy.prepare(options)
        return policy

    def prompt(self, instruction: str, state: np.ndarray) -> str:
        if self.model.config.state_dim:  # pi0
            return instruction if instruction.endswith("\n") else f"{instruction}\n"
        task = instruction.strip().replace("_", " ").replace("\n", " ")
        return f"Task: {task}, State: {' '.join(map(str, bins(state)))};\nAction: "

    def tokens(self, prompt: str) -> list[int]:
        return [self.begin_token, *super().tokens(prompt)]

    def image(self, image: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        return resize_with_pad(to_tensor(image, device), *self.sizes.image_size, "centre") * 2 - 1

    def begin(self, inputs: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
        images, words, mask, state = inputs
        prefix = self.model.prefix(*self.model.embed(images, words, mask))
        prefix = self.model.read_state(state, prefix)
        return lambda x, time: self.model.velocity(x, time, prefix)

    def network(self, images: int, words: int, matmul_by: str) -> CudaNetwork:
        from vla_inference.policies.pi05.cuda import CudaPi

        return CudaPi(self.model, images, words, matmul_by)


def bins(state: np.ndarray) -> np.ndarray:
    """The bin of each number of a normalised state: 0 to 255 between -1 and 1, -1 below, 255
    above."""
    return np.digitize(state, EDGES) - 1


def sizes_of(checkpoint: LeRobotCheckpoint, config: PiConfig) -> FlowSizes:
    return FlowSizes(
        config.chunk,
        config.steps,
        config.state_dim or checkpoint.state_dim,
        config.action_dim,
        config.image_size,
        config.words,
    )
