"""Checkpoints with random weights: complete, valid, and good for nothing but tests and timing."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_inference.checkpoint import save_checkpoint
from vla_inference.errors import VlaError
from vla_inference.model import VLA, ModelConfig

# A few 10,000 parameters; 64x64 pictures, 16 patches.
TINY: dict[str, Any] = {
    "model_type": "openvla",
    "name": "tiny",
    "arch_specifier": "no-align+gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "vision_towers": [
        {
            "key": "featurizer", "image_size": 64, "patch_size": 16, "embed_dim": 32,
            "depth": 2, "num_heads": 2, "mlp_hidden": 64,
        }
    ],
    "text_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 576,
        "rms_norm_eps": 1e-5,
    },
    "n_action_bins": 256,
    "pad_to_multiple_of": 0,
    "empty_token_id": None,
    "bos_token_id": 1,
    "stop_token_id": 2,
}  # fmt: skip

SIZES = {"tiny": TINY}

HEADS: dict[str, dict[str, Any]] = {
    "tokens": {"type": "tokens", "decoding": "autoregressive"},
    "parallel": {"type": "tokens", "decoding": "parallel", "chunk": 4},
    "l1": {"type": "l1", "decoding": "parallel", "chunk": 8},
    "l1-slots": {
        "type": "l1", "decoding": "parallel", "chunk": 8, "slots_per_step": 1, "slots": "learned",
    },
    "l1-two-cameras": {
        "type": "l1", "decoding": "parallel", "chunk": 8, "num_images": 2, "proprio_dim": 8,
    },
}  # fmt: skip

# Small enough motions that a robot in simulation stays where it is.
STATISTICS: dict[str, Any] = {
    "random": {
        "action": {
            "q01": [-0.02, -0.02, -0.02, -0.1, -0.1, -0.1, 0.0],
            "q99": [0.02, 0.02, 0.02, 0.1, 0.1, 0.1, 1.0],
            "mask": [True] * 7,
        },
        "proprio": {"q01": [-1.0] * 8, "q99": [1.0] * 8, "mask": [True] * 8},
        "spec": {"rotation": "rotvec", "frame": "base", "dt": 0.05},
    }
}


def write_random_checkpoint(
    folder: str | os.PathLike,
    size: str | Mapping[str, Any] = "tiny",
    head: str | Mapping[str, Any] = "l1",
    seed: int = 0,
    statistics: Mapping[str, Any] = STATISTICS,
) -> Path:
    """Write a checkpoint folder whose weights are drawn from `seed`.

    size: a name of `SIZES`, or the contents of a config.json.
    head: a name of `HEADS`, or the contents of its `action_head`.
    """
    config = copy.deepcopy(dict(_named(SIZES, size, "size")))
    config["action_head"] = dict(_named(HEADS, head, "head"))
    tensors = random_tensors(ModelConfig.from_json(config, "config"), seed)
    return save_checkpoint(folder, config, tensors, byte_tokenizer(), dict(statistics))


def random_tensors(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """float32 weights by name; scaled so that activations neither fade nor blow up."""
    with torch.device("meta"):
        shapes = {k: tuple(p.shape) for k, p in VLA(config).state_dict().items()}
    rng = np.random.default_rng(seed)
    tensors = {}
    for key, shape in shapes.items():
        x = rng.standard_normal(shape, dtype=np.float32)
        if key.endswith(".bias"):
            x *= 0.02
        elif len(shape) == 1:  # norms and layer scales
            x = 1 + 0.1 * x
        elif "embed" not in key:
            x /= np.sqrt(np.prod(shape[1:]), dtype=np.float32)
        tensors[key] = torch.from_numpy(np.ascontiguousarray(x))
    return tensors


def byte_tokenizer():
    """A byte-level tokenizer that merges nothing: 4 special ids, then one per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<empty>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _named(known: Mapping[str, Mapping], value: str | Mapping, what: str) -> Mapping:
    if isinstance(value, Mapping):
        return value
    if value not in known:
        raise VlaError(f"unknown {what} {value!r}", f"known: {', '.join(known)}")
    return known[value]
