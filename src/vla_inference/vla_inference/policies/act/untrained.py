"""Writes ACT checkpoints that have not been trained, for a robot's cameras, state and actions.

Source: of how weights begin, arXiv:2304.13705 and arXiv:2005.12872 (its transformer); of the
files, behaviour of huggingface/lerobot 0.6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_inference.checkpoints.safetensors_io import iterate_tensors, tensor_headers
from vla_inference.errors import CheckpointError
from vla_inference.policies.act.backbone import Block, ResNet
from vla_inference.policies.act.config import ACTConfig
from vla_inference.policies.act.model import ACT
from vla_inference.policies.act.weights import PREFIX
from vla_inference.policies.lerobot.untrained import features, write_folder

KINDS = ("VISUAL", "STATE", "ACTION")


def write_untrained(
    folder: Path,
    config: ACTConfig,
    cameras: Sequence[str],
    image_size: tuple[int, int],
    seed: int = 0,
    backbone: Path | None = None,
) -> Path:
    """Writes into a folder what fine-tuning begins with, of random weights.

    config: with as many cameras as named. image_size: height and width of their images.
    backbone: a safetensors file of a ResNet by torchvision's names, which takes the place of the
        random one. Raises CheckpointError if it is not of the same size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ACT(config, vae=True)
        begin(model)
    if backbone is not None:
        load_backbone(model.backbone, backbone)
    state = {f"{PREFIX}{name}": value for name, value in model.state_dict().items()}
    write_folder(folder, _settings(config, cameras, image_size), state)
    return folder


@torch.no_grad()
def begin(model: ACT) -> None:
    """Random weights, of sizes at which a signal keeps its own through the layers."""
    for parameter in (*model.encoder.parameters(), *model.decoder.parameters()):
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    blocks = [m for m in model.backbone.modules() if isinstance(m, Block)]
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for block in blocks:  # their norms keep their statistics: sums would grow from block to block
        block.convolutions()[-1][1].weight.fill_(len(blocks) ** -0.5)


def load_backbone(backbone: ResNet, path: Path) -> None:
    """Reads the weights of a classifier whose features the backbone gives, but for its head."""
    targets: dict[str, Tensor] = backbone.state_dict()
    left = set(targets)
    header = {
        name: entry
        for name, entry in tensor_headers(path).items()
        if not (name.startswith("fc.") or name.endswith("num_batches_tracked"))
    }
    for name, value in iterate_tensors(path, header):
        if name not in targets or value.shape != targets[name].shape:
            raise CheckpointError(
                f"{path} holds {name} {list(value.shape)}, which is none of the backbone's",
                "give the file of the same ResNet, with torchvision's names",
            )
        targets[name].copy_(value)
        left.discard(name)
    if left:
        raise CheckpointError(
            f"{path} lacks {len(left)} tensors of the backbone, such as {min(left)}",
            "give the file of the same ResNet, with torchvision's names",
        )


def _settings(c: ACTConfig, cameras: Sequence[str], image_size: tuple[int, int]) -> dict[str, Any]:
    """config.json, of the published settings where a robot says nothing else."""
    return {
        "type": "act",
        "n_obs_steps": 1,
        **features(cameras, image_size, c.state_dim, c.action_dim),
        "chunk_size": c.chunk,
        "n_action_steps": c.chunk,
        "normalization_mapping": dict.fromkeys(KINDS, "MEAN_STD"),
        "vision_backbone": c.backbone,
        "pretrained_backbone_weights": None,
        "replace_final_stride_with_dilation": c.dilated,
        "pre_norm": c.pre_norm,
        "dim_model": c.width,
        "n_heads": c.heads,
        "dim_feedforward": c.mlp,
        "feedforward_activation": c.activation,
        "n_encoder_layers": c.encoder_layers,
        "n_decoder_layers": c.decoder_layers,
        "use_vae": c.vae_layers > 0,
        "latent_dim": c.latent,
        "n_vae_encoder_layers": c.vae_layers or ACTConfig.vae_layers,
        "temporal_ensemble_coeff": None,
        "dropout": c.dropout,
        "kl_weight": 10.0,
        "optimizer_lr": 1e-5,
        "optimizer_weight_decay": 1e-4,
        "optimizer_lr_backbone": 1e-5,
    }
