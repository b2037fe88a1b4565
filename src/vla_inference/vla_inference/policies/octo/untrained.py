"""Writes checkpoints of Octo's kind that have not been trained, of any size.

They lie in a folder as LeRobot's do, so that training, statistics and cameras are the same;
LeRobot itself knows no such model. The published ones, of JAX, cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vla_inference.policies.lerobot.untrained import features, write_folder
from vla_inference.policies.octo.config import PATCH, OctoConfig
from vla_inference.policies.octo.model import Octo

MODES = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


def write_untrained(
    folder: Path,
    config: OctoConfig,
    cameras: Sequence[str],
    image_size: tuple[int, int],
    tokenizer: Any,
    seed: int = 0,
) -> Path:
    """Writes into a folder what training begins with, of random weights.

    config: with as many cameras as named. image_size: height and width of their images.
    tokenizer: a `tokenizers.Tokenizer` of at most as many ids as the config's vocabulary.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Octo(config)
        begin(model)
    write_folder(folder, _settings(config, cameras, image_size), model.state_dict())
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@torch.no_grad()
def begin(model: Octo) -> None:
    """Random weights, of sizes at which a signal keeps its own through the layers.

    What a layer of the transformer adds is the less, the more there are. The head begins by
    finding no noise.
    """
    c = model.config
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            gain = 2.0 if name.startswith("stem.") else 1.0
            last = name.startswith("layers.") and name.endswith((".out", ".fc2"))
            share = 1 / (2 * c.layers) if last else 1.0
            module.weight.normal_(0, (gain * share / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.5)
    model.head.end.weight.zero_()
    height, width = c.image_size
    places = grid_sines(height // PATCH, width // PATCH, c.width)
    model.patch_position.weight.copy_(places.repeat(c.cameras, 1))
    model.patch_position.weight.add_(
        torch.randn(c.cameras, 1, c.width).mul(0.5).expand(-1, c.patches, -1).flatten(0, 1)
    )


def grid_sines(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the places of patches: [rows x columns, width]"""
    periods = 100 ** (torch.arange(width // 4) / (width // 4))
    y, x = (torch.arange(side)[:, None] / periods for side in (rows, columns))
    y, x = (torch.cat([angles.sin(), angles.cos()], 1) for angles in (y, x))
    found = torch.zeros(rows, columns, width)
    half = y.shape[1]
    found[..., :half], found[..., half : 2 * half] = y[:, None], x[None]
    return found.flatten(0, 1)


def _settings(
    c: OctoConfig, cameras: Sequence[str], image_size: tuple[int, int]
) -> dict[str, Any]:
    return {
        "type": "octo",
        "n_obs_steps": 1,
        **features(cameras, image_size, c.state_dim, c.action_dim),
        "normalization_mapping": MODES,
        "chunk_size": c.chunk,
        "n_action_steps": c.chunk,
        "image_size": list(c.image_size),
        "dim_model": c.width,
        "n_layers": c.layers,
        "n_heads": c.heads,
        "dim_feedforward": c.mlp,
        "vocab_size": c.vocabulary,
        "tokenizer_max_length": c.words,
        "n_readouts": c.readouts,
        "diffusion_steps": c.steps,
        "head_width": c.head_width,
        "head_blocks": c.head_blocks,
        "optimizer_lr": 3e-4,
        "optimizer_weight_decay": 0.01,
        "optimizer_grad_clip_norm": 1.0,
    }
