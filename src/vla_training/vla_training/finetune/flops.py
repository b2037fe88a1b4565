"""Floating-point operations of a training step, from the weights alone.

A weight that acts on a token costs 2 operations forward (N weights: 2N), 2 for the gradient of
its input and 2 for its own gradient: 6N for full fine-tuning, 4N for LoRA, whose base has no
gradient of its own, plus 6N of the adapters. What is computed twice (activation checkpointing) and
attention's own products (about 1 %) are not counted, so the utilisation is a lower bound.
"""

from __future__ import annotations

from itertools import pairwise

from vla_inference.openvla.config import ModelConfig, VisionEncoderConfig

# Dense bf16 by the makers' data sheets, without sparsity.
PEAK_BF16 = {"H200": 989.4e12, "H100": 989.4e12, "A100": 312e12, "L40S": 362e12, "4090": 165.2e12}


def peak_of(device_name: str) -> float | None:
    """Peak FLOP/s of a GPU by its name, None if unknown."""
    return next((v for k, v in PEAK_BF16.items() if k in device_name), None)


def _encoder(c: VisionEncoderConfig) -> int:
    """Weights that act on each token, times tokens."""
    block = 4 * c.embed_dim**2 + 2 * c.embed_dim * c.mlp_hidden
    stem = 3 * c.patch_size**2 * c.embed_dim * c.num_patches
    return c.layers * block * (c.num_patches + c.prefix_tokens) + stem


def forward_macs(config: ModelConfig, prompt: int) -> dict[str, int]:
    """Weights x tokens of one sample, by part. prompt: tokens of the prompt, BOS among them."""
    llm, head = config.llm, config.head
    patches = config.num_patches * head.num_images
    kv = llm.num_key_value_heads * llm.head_dim
    attention = llm.hidden_size * (2 * llm.hidden_size + 2 * kv)
    layer = attention + 3 * llm.hidden_size * llm.intermediate_size
    if head.decoding == "parallel":
        answers, tokens = head.num_slots, head.num_slots + 1
    else:
        answers, tokens = head.action_dim, head.action_dim - 1
    length = prompt + patches + tokens + int(head.proprio_dim > 0)
    vision = sum(t.embed_dim for t in config.encoders)
    widths = [vision, llm.hidden_size, llm.hidden_size]
    if config.projector == "fused-gelu-mlp":
        widths = [vision, 4 * vision, llm.hidden_size, llm.hidden_size]
    projector = sum(a * b for a, b in pairwise(widths))
    out = answers * llm.hidden_size * llm.vocab_size
    if head.type == "l1":
        per_step = head.slots_per_step * llm.hidden_size + 2 * llm.hidden_size + head.action_dim
        out = head.chunk * per_step * llm.hidden_size
    return {
        "vision": head.num_images * sum(map(_encoder, config.encoders)),
        "projector": patches * projector,
        "language": length * llm.num_hidden_layers * layer,
        "head": out,
    }


def step_flops(
    config: ModelConfig, batch: int, prompt: int, adapters: int | None = None, vision: bool = True
) -> float:
    """Operations of one step over `batch` samples.

    adapters: weights of LoRA adapters; None for full fine-tuning. vision: the vision encoders are
    trained.
    """
    macs = forward_macs(config, prompt)
    each = 6 if adapters is None else 4
    total = float(each * (sum(macs.values()) - macs["vision"]))
    total += (each if vision else 2) * macs["vision"]
    if adapters:
        # All but the vision encoders' adapters see the whole sequence; it is close enough for
        # both.
        tokens = macs["language"] / _language_weights(config)
        total += 6 * adapters * tokens
    return total * batch


def _language_weights(config: ModelConfig) -> int:
    llm = config.llm
    kv = llm.num_key_value_heads * llm.head_dim
    attention = llm.hidden_size * (2 * llm.hidden_size + 2 * kv)
    return llm.num_hidden_layers * (attention + 3 * llm.hidden_size * llm.intermediate_size)
