"""The names that transformers gives to the tensors of an attention block and of SigLIP."""

from __future__ import annotations

import re
from collections.abc import Iterable

Rule = tuple[re.Pattern[str], str]


def rules(*pairs: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), put) for pattern, put in pairs)


SIGLIP = rules(
    (r"vision\.embeddings\.(patch|position)_embedding", r"vision.\1"),
    (r"vision\.post_layernorm", "vision.norm"),
    (r"vision\.encoder\.", "vision."),
)
BLOCK = rules(
    (r"\.self_attn\.([qkv])_proj", r".\1"),
    (r"\.self_attn\.(?:o|out)_proj", ".out"),
    (r"\.mlp\.(gate|up|down)_proj", r".\1"),
    (r"\.mlp\.fc", ".fc"),
    (r"\.(?:input_layernorm|layer_norm1)", ".norm1"),
    (r"\.(?:post_attention_layernorm|layer_norm2)", ".norm2"),
)


def renamed(name: str, changes: Iterable[Rule]) -> str:
    """The name after each of the changes, in their order."""
    for pattern, put in changes:
        name = pattern.sub(put, name)
    return name
