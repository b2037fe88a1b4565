"""Sizes of a model of Octo's kind, and where they are read."""

from __future__ import annotations

from dataclasses import dataclass

from vla_inference.errors import CheckpointError
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.settings import LAYERS

PATCH = 16  # pixels that one token of an image stands for


@dataclass(frozen=True)
class OctoConfig:
    """cameras: how many images it reads. state_dim: 0 where it reads no state.

    image_size: height and width, multiples of `PATCH`. words: most ids of an instruction.
    readouts: tokens that the head reads. steps: of denoising. head_width, head_blocks: of the
    residual network that denoises.
    """

    cameras: int
    state_dim: int
    action_dim: int
    chunk: int = 4
    image_size: tuple[int, int] = (256, 256)
    width: int = 384
    layers: int = 12
    heads: int = 6
    mlp: int = 1536
    vocabulary: int = 1024
    words: int = 48
    readouts: int = 1
    steps: int = 20
    head_width: int = 256
    head_blocks: int = 3

    @property
    def patches(self) -> int:
        """Tokens of one image."""
        height, width = self.image_size
        return (height // PATCH) * (width // PATCH)


def read_config(checkpoint: LeRobotCheckpoint) -> OctoConfig:
    """The sizes that config.json says."""
    says = checkpoint.settings
    height, width = says.counts("image_size", 2)
    config = OctoConfig(
        cameras=len(checkpoint.cameras),
        state_dim=checkpoint.state_dim,
        action_dim=checkpoint.action_dim,
        chunk=says.count("chunk_size"),
        image_size=(height, width),
        width=says.count("dim_model"),
        layers=says.count("n_layers", most=LAYERS),
        heads=says.count("n_heads"),
        mlp=says.count("dim_feedforward"),
        vocabulary=says.count("vocab_size"),
        words=says.count("tokenizer_max_length"),
        readouts=says.count("n_readouts"),
        steps=says.count("diffusion_steps", most=1000),
        head_width=says.count("head_width"),
        head_blocks=says.count("head_blocks", most=LAYERS),
    )
    if height % PATCH or width % PATCH or config.width % config.heads:
        raise CheckpointError(
            f"{says.where}: images of {height} x {width} pixels, tokens of {config.width} "
            f"numbers for {config.heads} heads",
            f"give multiples of {PATCH}, and a multiple of the heads",
        )
    return config
