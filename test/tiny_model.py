"""A tiny version of the shipped model, for tests of training."""

from __future__ import annotations

import copy
from typing import Any

from vla_training.small_model.train import SMALL


def tiny_model(layers: int = 2) -> dict[str, Any]:
    """A config.json of the same parts, for 32x32 images."""
    tiny = copy.deepcopy(SMALL)
    tiny["vision_towers"][0].update(image_size=32, embed_dim=64, num_heads=2, mlp_hidden=64)
    tiny["text_config"].update(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return tiny
