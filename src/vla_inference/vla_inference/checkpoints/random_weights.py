"""Writes valid checkpoints with random weights, for tests and timing.

On disk (`write_random_checkpoint`, or `python -m vla_inference.checkpoints.random_weights FOLDER
--size openvla-7b`), or straight on a device (`random_model`). Either way one tensor exists at a
time beside the model itself.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_inference.checkpoints.load import place
from vla_inference.checkpoints.prismatic.run_config import QWENS
from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.errors import VlaError
from vla_inference.openvla.config import PROMPTS, ModelConfig
from vla_inference.openvla.model import VLA

# A few 10,000 parameters; 64x64 images, 16 patches.
TINY: dict[str, Any] = {
    "model_type": "openvla",
    "name": "tiny",
    "arch_specifier": "no-align+gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "vision_towers": [
        {
            "key": "featurizer",
            "image_size": 64,
            "patch_size": 16,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "mlp_hidden": 64,
        }
    ],
    "text_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 576,
        "rms_norm_eps": 1e-5,
    },
    "n_action_bins": 256,
    "pad_to_multiple_of": 0,
    "empty_token_id": None,
    "bos_token_id": 1,
    "stop_token_id": 2,
}

# Some 10 million parameters: big enough that memory and shards can be told from noise.
SMALL: dict[str, Any] = {
    **TINY,
    "name": "small",
    "vision_towers": [
        {
            **TINY["vision_towers"][0],
            "embed_dim": 192,
            "depth": 4,
            "num_heads": 4,
            "mlp_hidden": 768,
        }
    ],
    "text_config": {
        **TINY["text_config"],
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 4096,
    },
}

# config.json of the published checkpoints, without the statistics. What they don't say takes the
# defaults, here as there.
OPENVLA_7B: dict[str, Any] = {
    "model_type": "openvla",
    "name": "openvla-7b",
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "llm_backbone_id": "llama2-7b-pure",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "text_config": {"model_type": "llama", "vocab_size": 32064},
    "n_action_bins": 256,
    "pad_to_multiple_of": 64,
}
OPENVLA_V01_7B: dict[str, Any] = {
    **OPENVLA_7B,
    "name": "openvla-v01-7b",
    "vision_backbone_id": "siglip-vit-so400m",
    "llm_backbone_id": "vicuna-v15-7b",
    "arch_specifier": "no-align+gelu-mlp",
}
ECOT_7B: dict[str, Any] = {
    **OPENVLA_7B,
    "name": "ecot-openvla-7b",
    "prompt": PROMPTS["ecot"],
    "reasoning_tokens": 1024,
}
OPENVLA_OFT_7B: dict[str, Any] = {**OPENVLA_7B, "name": "openvla-oft-7b"}

# MiniVLA: of Qwen2.5-0.5B, with 256 tokens of its own behind the vocabulary's 151665.
MINIVLA: dict[str, Any] = {
    "model_type": "openvla",
    "name": "minivla",
    "vision_backbone_id": "dinosiglip-vit-so-224px",
    "llm_backbone_id": "qwen25-0_5b-extra",
    "arch_specifier": "no-align+fused-gelu-mlp",
    "image_resize_strategy": "resize-naive",
    "text_config": {**QWENS["0_5b"], "vocab_size": 151936},
    "n_action_bins": 256,
    "pad_to_multiple_of": 15,
    "prompt": PROMPTS["qwen2.5"],
    "bos_token_id": None,
    "empty_token_id": None,
    "stop_token_id": 151645,
}
# The same two with more pixels, as Prismatic has them: 729 patches in place of 256.
OPENVLA_384: dict[str, Any] = {
    **OPENVLA_7B,
    "name": "openvla-7b-384px",
    "vision_backbone_id": "dinosiglip-vit-so-384px",
}
MINIVLA_384: dict[str, Any] = {
    **MINIVLA,
    "name": "minivla-384px",
    "vision_backbone_id": "dinosiglip-vit-so-384px",
}
MINIVLA_VQ: dict[str, Any] = {**MINIVLA, "name": "minivla-vq", "n_action_bins": 128}
# Qwen2.5's network in the small: biases, grouped heads, tied embeddings.
TINY_QWEN: dict[str, Any] = {
    **TINY,
    "name": "tiny-qwen",
    "text_config": {
        **TINY["text_config"],
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "bos_token_id": None,
}

SIZES = {
    "tiny": TINY,
    "small": SMALL,
    "openvla-7b": OPENVLA_7B,
    "openvla-oft-7b": OPENVLA_OFT_7B,
    "openvla-v01-7b": OPENVLA_V01_7B,
    "openvla-7b-384px": OPENVLA_384,
    "tiny-qwen": TINY_QWEN,
    "minivla": MINIVLA,
    "minivla-vq": MINIVLA_VQ,
    "minivla-384px": MINIVLA_384,
    "ecot-openvla-7b": ECOT_7B,
}
# The head a size comes with where none is named.
USUAL_HEAD = {
    "openvla-7b": "tokens",
    "openvla-v01-7b": "tokens",
    "ecot-openvla-7b": "tokens",
    "openvla-oft-7b": "l1-two-cameras",
    "openvla-7b-384px": "tokens",
    "minivla": "tokens",
    "minivla-vq": "vq",
    "minivla-384px": "tokens",
}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
SHARD_BYTES = 5_000_000_000

HEADS: dict[str, dict[str, Any]] = {
    "tokens": {"type": "tokens", "decoding": "autoregressive"},
    "parallel": {"type": "tokens", "decoding": "parallel", "chunk": 4},
    "l1": {"type": "l1", "decoding": "parallel", "chunk": 8},
    "vq": {  # of minivla-vq-libero90: 7 codes of 128 for 8 steps
        "type": "vq",
        "decoding": "autoregressive",
        "chunk": 8,
        "codec": {"groups": 7, "codes": 128, "latent": 512},
    },
    "l1-slots": {
        "type": "l1",
        "decoding": "parallel",
        "chunk": 8,
        "slots_per_step": 1,
        "slots": "learned",
    },
    "l1-two-cameras": {
        "type": "l1",
        "decoding": "parallel",
        "chunk": 8,
        "num_images": 2,
        "proprio_dim": 8,
    },
}

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


def random_config(
    size: str | Mapping[str, Any] = "tiny", head: str | Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The contents of a config.json.

    size: a name of `SIZES`, or such contents themselves.
    head: a name of `HEADS`, or the contents of its `action_head`; None takes the size's usual.
    """
    config = copy.deepcopy(dict(find(SIZES, size, "size")))
    if head is None:
        head = USUAL_HEAD.get(size, "l1") if isinstance(size, str) else "l1"
    config["action_head"] = dict(find(HEADS, head, "head"))
    if "codec" in config["action_head"]:
        config["n_action_bins"] = config["action_head"]["codec"]["codes"]
    return config


def write_random_checkpoint(
    folder: str | os.PathLike,
    size: str | Mapping[str, Any] = "tiny",
    head: str | Mapping[str, Any] | None = None,
    seed: int = 0,
    statistics: Mapping[str, Any] = STATISTICS,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a checkpoint folder whose weights are drawn from `seed`.

    size, head: as for `random_config`.
    shard_bytes: what is larger comes in several files with an index, as published.
    progress: called with the bytes written so far and in all.
    """
    raw = random_config(size, head)
    config = ModelConfig.from_json(raw, "config")
    stored = find(DTYPES, dtype, "dtype")
    shapes = tensor_shapes(config)
    empty = {k: torch.empty(s, dtype=stored, device="meta") for k, s in shapes.items()}
    drawn = ((k, random_tensor(k, s, seed).to(stored)) for k, s in shapes.items())
    return save_checkpoint(
        folder,
        raw,
        empty,
        byte_tokenizer(),
        dict(statistics),
        stream=drawn,
        shard_bytes=shard_bytes,
        progress=progress,
    )


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {k: tuple(p.shape) for k, p in VLA(config).state_dict().items()}


def random_tensor(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """float32 weights that follow from name and seed alone."""
    rng = np.random.Generator(np.random.Philox(zlib.crc32(f"{seed}/{key}".encode())))
    x = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return _scaled(key, x)


def _scaled(key: str, x: torch.Tensor) -> torch.Tensor:
    """Scales in place, so that activations neither vanish nor explode."""
    if key.endswith(".bias"):
        return x.mul_(0.02)
    if x.ndim == 1:  # norms and layer scales
        return x.mul_(0.1).add_(1)
    if "embed" not in key:
        return x.div_(float(np.sqrt(np.prod(x.shape[1:]))))
    return x


def random_tensors(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """float32 weights by name."""
    return {k: random_tensor(k, s, seed) for k, s in tensor_shapes(config).items()}


def random_model(
    config: ModelConfig | Mapping[str, Any],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> VLA:
    """A random model created on the device, which takes seconds even for billions of weights.

    The same seed gives the same model on the same kind of device only; each tensor is drawn in
    float32 and then rounded, so that models of two dtypes are one model in two precisions.
    """
    if not isinstance(config, ModelConfig):
        config = ModelConfig.from_json(config, "config")
    with torch.device("meta"):
        model = VLA(config)
    for key, parameter in list(model.state_dict().items()):
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed}/{key}".encode()))
        x = torch.randn(parameter.shape, generator=generator, device=device)
        place(model, key, _scaled(key, x).to(dtype))
    return model.eval().requires_grad_(False)


def byte_tokenizer():
    """A byte-level tokenizer without merges: 4 special ids, then one per byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<pad>", "<s>", "</s>", "<empty>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def find(known: Mapping[str, Any], value: Any, what: str) -> Any:
    if isinstance(value, Mapping):
        return value
    if value not in known:
        raise VlaError(f"unknown {what} {value!r}", f"known: {', '.join(known)}")
    return known[value]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vla_inference.checkpoints.random_weights",
        description="Write a checkpoint folder with random weights, for tests and timing.",
    )
    parser.add_argument("folder")
    parser.add_argument("--size", default="tiny", help=", ".join(SIZES))
    parser.add_argument("--head", help=f"{', '.join(HEADS)}; by default the size's usual")
    parser.add_argument("--dtype", default="bfloat16", help=", ".join(DTYPES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)

    def tell(done: int, total: int) -> None:
        print(f"\r{done / 1e9:.2f} of {total / 1e9:.2f} GB", end="", file=sys.stderr, flush=True)

    try:
        folder = write_random_checkpoint(
            given.folder, given.size, given.head, given.seed, dtype=given.dtype, progress=tell
        )
    except VlaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(file=sys.stderr)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
