"""Sizes of an ACT model, read from LeRobot's config.json."""

from __future__ import annotations

from dataclasses import dataclass

from vla_inference.errors import CheckpointError
from vla_inference.policies.act.backbone import VARIANTS
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.settings import LAYERS

ENVIRONMENT = "observation.environment_state"


@dataclass(frozen=True)
class ACTConfig:
    """cameras: how many images it reads. state_dim: 0 where it reads no state.

    backbone: a variant of ResNet. dilated: its last stage keeps the resolution.
    activation: of the feed-forward layers, "relu" or "gelu".
    vae_layers: of the encoder of the latent, which training alone needs; 0: trained without.
    """

    cameras: int
    state_dim: int
    action_dim: int
    chunk: int = 100
    backbone: str = "resnet18"
    dilated: bool = False
    width: int = 512
    heads: int = 8
    mlp: int = 3200
    activation: str = "relu"
    pre_norm: bool = False
    encoder_layers: int = 4
    decoder_layers: int = 1
    vae_layers: int = 4
    latent: int = 32
    dropout: float = 0.1


def read_config(checkpoint: LeRobotCheckpoint) -> ACTConfig:
    """The sizes of a checkpoint; refuses by name what changes the network in other ways."""
    says = checkpoint.settings
    count = says.count
    config = ACTConfig(
        cameras=len(checkpoint.cameras),
        state_dim=checkpoint.state_dim,
        action_dim=checkpoint.action_dim,
        chunk=count("chunk_size"),
        backbone=says.text("vision_backbone"),
        dilated=says.flag("replace_final_stride_with_dilation"),
        width=count("dim_model"),
        heads=count("n_heads"),
        mlp=count("dim_feedforward"),
        activation=says.text("feedforward_activation"),
        pre_norm=says.flag("pre_norm"),
        encoder_layers=count("n_encoder_layers", most=LAYERS),
        decoder_layers=count("n_decoder_layers", most=LAYERS),
        vae_layers=count("n_vae_encoder_layers", most=LAYERS) if says.flag("use_vae") else 0,
        latent=count("latent_dim"),
        dropout=says.number("dropout", ACTConfig.dropout, high=1),
    )
    _refuse_variants(checkpoint, config)
    return config


def _refuse_variants(checkpoint: LeRobotCheckpoint, c: ACTConfig) -> None:
    for name, given, known in (
        ("vision_backbone", c.backbone, tuple(VARIANTS)),
        ("feedforward_activation", c.activation, ("relu", "gelu")),
        ("n_obs_steps", checkpoint.settings.count("n_obs_steps", 1), (1,)),
    ):
        if given not in known:
            raise CheckpointError(
                f"{checkpoint.folder}: {name} is {given!r}",
                f"supported: {', '.join(map(str, known))}",
            )
    if ENVIRONMENT in checkpoint.config["input_features"]:
        raise CheckpointError(
            f"{checkpoint.folder} reads {ENVIRONMENT}, which no robot can tell",
            "give a checkpoint that sees by cameras alone",
        )
    if c.dilated and not VARIANTS[c.backbone].bottleneck:
        raise CheckpointError(
            f"{checkpoint.folder}: replace_final_stride_with_dilation, but {c.backbone} has no "
            "dilated form",
            "copy config.json again",
        )
    if c.width % c.heads or c.width % 4:
        raise CheckpointError(
            f"{checkpoint.folder}: dim_model is {c.width}, n_heads {c.heads}",
            "the first must be a multiple of the second, and of 4",
        )
