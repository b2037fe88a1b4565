"""Reads the weights of ACT as LeRobot names them."""

from __future__ import annotations

import torch

from vla_inference.policies.act.config import read_config
from vla_inference.policies.act.model import ACT
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint, load_weights

PREFIX = "model."  # which LeRobot's names have and ours have not
VAE = "vae_encoder"  # what the names of the latent's encoder begin with


def load_network(
    checkpoint: LeRobotCheckpoint, device: str, dtype: torch.dtype, vae: bool = False
) -> ACT:
    """vae: with the encoder of the latent, as training needs it."""
    with torch.device("meta"):
        model = ACT(read_config(checkpoint), vae)

    def our_name(name: str) -> str | None:
        name = name.removeprefix(PREFIX)
        return None if name.startswith(VAE) and not vae else name

    return load_weights(model, checkpoint.folder, our_name, device, dtype)
