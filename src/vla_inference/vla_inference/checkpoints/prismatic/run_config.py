"""What a run in Prismatic's own layout is, from its config.json and what it names.

Such a run states ids; the tables say what they mean. Sources (facts): TRI-ML/prismatic-vlms and
Stanford-ILIAD/openvla-mini prismatic/conf/{models,vla}.py, prismatic/models/{load,materialize}.py,
prismatic/models/backbones/llm/{qwen25,base_llm}.py and its qwen_prompter.py; sizes of Qwen2.5 from
the config.json of Qwen/Qwen2.5-*. What neither states is asked for, under its key of `vla.json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vla_inference.checkpoints.prismatic.codec import codec_config, codec_folder
from vla_inference.checkpoints.prismatic.weights import EMBEDDINGS, read_weights
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import PROMPTS, ModelConfig

QWEN_WORDS = 151643  # `tokenizer.vocab_size`; the tokens added to it end at `QWEN_TOKENS`
QWEN_TOKENS = 151665
QWEN_EXTRA = 256  # <|extra_0|> ... of "-extra"
QWEN_END_OF_TURN = 151645  # <|im_end|>
LLAMA_WORDS = 32000
DINO_MEAN, DINO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Base(NamedTuple):
    """A vision-language model of Prismatic's registry."""

    vision_backbone_id: str
    llm_backbone_id: str
    arch_specifier: str
    image_resize_strategy: str


FUSED, PLAIN = "no-align+fused-gelu-mlp", "no-align+gelu-mlp"
SMALL, LARGE, NAIVE = "dinosiglip-vit-so-224px", "dinosiglip-vit-so-384px", "resize-naive"
BASES = {
    "prism-qwen25-extra-dinosiglip-224px+0_5b": Base(SMALL, "qwen25-0_5b-extra", FUSED, NAIVE),
    "prism-qwen25-dinosiglip-224px+0_5b": Base(SMALL, "qwen25-0_5b-pure", FUSED, NAIVE),
    "prism-dinosiglip-224px+7b": Base(SMALL, "llama2-7b-pure", FUSED, NAIVE),
    "prism-dinosiglip+7b": Base(LARGE, "llama2-7b-pure", FUSED, NAIVE),
    "prism-dinosiglip-controlled+7b": Base(LARGE, "llama2-7b-pure", FUSED, NAIVE),
    "siglip-224px+7b": Base("siglip-vit-so400m", "vicuna-v15-7b", PLAIN, NAIVE),
}


def qwen(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }


QWENS = {
    "0_5b": qwen(896, 4864, 24, 14),
    "1_5b": qwen(1536, 8960, 28, 12),
    "3b": qwen(2048, 11008, 36, 16),
}
# Trained with the eps of Llama-2's own config.json; converted ones are run with another.
LLAMA_7B = {"model_type": "llama", "rms_norm_eps": 1e-5}
DECODERS = {
    **{f"qwen25-{size}-pure": sizes for size, sizes in QWENS.items()},
    **{f"qwen25-{size}-extra": sizes for size, sizes in QWENS.items()},
    "llama2-7b-pure": LLAMA_7B,
    "vicuna-v15-7b": LLAMA_7B,
}


def is_run(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of a training run of Prismatic's own."""
    return "text_config" not in raw and isinstance(raw.get("vla", raw.get("model")), Mapping)


def released_config(
    folder: Path, raw: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The run's config.json in the form of the released OpenVLA checkpoints.

    given: keys that vla.json or the caller states.
    """
    vla = raw.get("vla", {})
    base = {**_base(folder, raw), **{k: v for k, v in given.items() if k in Base._fields}}
    missing = [key for key in Base._fields if key not in base]
    if missing:
        raise CheckpointError(
            f"{folder} is a training run of Prismatic's own on the base {vla.get('base_vlm')!r}, "
            f"and nothing says its {', '.join(missing)}",
            _remedy({key: BASES["prism-dinosiglip+7b"]._asdict()[key] for key in missing}),
        )
    decoder = _decoder(folder, base["llm_backbone_id"], given)
    tokenizer = str(vla.get("action_tokenizer", "action_tokenizer"))
    end = _end_of_actions(folder, tokenizer, base["llm_backbone_id"])
    images = vla.get("image_sequence_len", 1)
    head: dict[str, Any] = {"decoding": "autoregressive", "num_images": images}
    assumed = [f"base {vla['base_vlm']}: by Prismatic's registry"] if "base_vlm" in vla else []
    if "vq" in tokenizer.split("_"):
        codec = codec_config(codec_folder(folder))
        head |= codec.head
        bins = codec.codes
    else:
        bins = 256
    if "vla" not in raw:
        assumed.append("actions: none were trained, config.json is a vision-language model's")
    if raw.get("image_aug"):
        assumed.append("center_crop 0.9: by image_aug in config.json")
    if images == 2:
        wrist = vla.get("use_wrist_image")
        second = "the wrist's camera" if wrist else "two of one camera, the older first"
        assumed.append(f"images 2: {second}, by use_wrist_image in config.json")
    qwen25 = base["llm_backbone_id"].startswith("qwen25")
    return {
        "model_type": "openvla",
        "name": str(vla.get("vla_id") or vla.get("base_vlm") or folder.name),
        **base,
        "text_config": decoder,
        "action_head": head,
        "n_action_bins": bins,
        "pad_to_multiple_of": decoder["vocab_size"] - end,
        **(_of_qwen() if qwen25 else {}),
        **({"center_crop": True} if raw.get("image_aug") else {}),
        "assumed": assumed,
    }


def unrounded(config: ModelConfig) -> ModelConfig:
    """With timm's mean and std, which the run trained with; released files have bfloat16's."""
    encoders = [
        dataclasses.replace(t, mean=DINO_MEAN, std=DINO_STD) if t.layer_scale else t
        for t in config.encoders
    ]
    return dataclasses.replace(config, encoders=tuple(encoders))


def _of_qwen() -> dict[str, Any]:
    return {
        "prompt": PROMPTS["qwen2.5"],
        "bos_token_id": None,
        "empty_token_id": None,
        "stop_token_id": QWEN_END_OF_TURN,
    }


def _base(folder: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of the vision-language model, as far as they are stated or known by name."""
    model = raw.get("model")
    if isinstance(model, Mapping):
        return {key: model[key] for key in Base._fields if isinstance(model.get(key), str)}
    name = Path(str(raw["vla"].get("base_vlm", ""))).name.split("+stage-")[0]
    for known, base in BASES.items():
        if name in (known, known.replace("+", "-")):  # the Hub has no "+"
            return base._asdict()
    return {}


def _decoder(folder: Path, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """text_config, with as many embeddings as the weights have."""
    stated = given.get("text_config")
    stated = dict(stated) if isinstance(stated, Mapping) else {}
    if name not in DECODERS and not stated:
        raise CheckpointError(
            f"{folder} has the language model {name!r}, whose sizes are not known here",
            "write its config.json as text_config into vla.json; known: " + ", ".join(DECODERS),
        )
    sizes: dict[str, Any] = {**DECODERS.get(name, {}), **stated}
    return {**sizes, "vocab_size": len(read_weights(folder)[EMBEDDINGS])}


def _end_of_actions(folder: Path, tokenizer: str, llm: str) -> int:
    """One past the last action token: the end of the tokenizer's words, or of all its tokens."""
    everything = "extra" in tokenizer.split("_")
    if not llm.startswith("qwen25"):
        if everything:
            raise CheckpointError(
                f"{folder} has action tokens {tokenizer!r} of {llm!r}, which the original has for "
                "Qwen2.5 alone",
                "give the run's own config.json",
            )
        return LLAMA_WORDS
    if not everything:
        return QWEN_WORDS
    return QWEN_TOKENS + (QWEN_EXTRA if llm.endswith("-extra") else 0)


def _remedy(example: Mapping[str, Any]) -> str:
    return f"write {json.dumps(example)}, with its own values, into vla.json beside config.json"
