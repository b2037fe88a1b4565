"""What a checkpoint's config.json says, checked and with every default made explicit.

The released OpenVLA files name their parts by id; `BACKBONES` says what the ids mean. A file may
instead spell its towers out under `vision_towers`, as the small model that ships here does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vla_inference.errors import CheckpointError


@dataclass(frozen=True)
class TowerConfig:
    """A vision transformer, named as in timm. Its last block and norm are never used: see `layers`.

    key: name below `vision_backbone.` in the checkpoint.
    depth: blocks in the published model; the features are those after block depth - 2.
    stem: "patch" (one convolution of patch size) or "conv" (a pyramid of stride-2 convolutions,
        arXiv 2106.14881, which learns fine positions from little data).
    """

    key: str
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    cls_token: bool = False
    reg_tokens: int = 0
    layer_scale: bool = False
    stem: Literal["patch", "conv"] = "patch"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def prefix_tokens(self) -> int:
        return int(self.cls_token) + self.reg_tokens

    @property
    def layers(self) -> int:
        """Blocks that are run: all but the last."""
        return self.depth - 1


DINOV2_L = TowerConfig(
    "featurizer", 224, 14, 1024, 24, 16, 4096, cls_token=True, reg_tokens=4, layer_scale=True,
    mean=(0.484375, 0.455078125, 0.40625), std=(0.228515625, 0.2236328125, 0.224609375),
)  # fmt: skip
SIGLIP_SO400M = TowerConfig("featurizer", 224, 14, 1152, 27, 16, 4304)

BACKBONES: dict[str, tuple[TowerConfig, ...]] = {
    "dinosiglip-vit-so-224px": (
        DINOV2_L,
        dataclasses.replace(SIGLIP_SO400M, key="fused_featurizer"),
    ),
    "siglip-vit-so400m": (SIGLIP_SO400M,),
}


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama decoder; defaults are those of transformers' LlamaConfig."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    vocab_size: int = 32064
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class HeadConfig:
    """How actions leave the model.

    decoding: "autoregressive" (one token after the other) or "parallel" (OpenVLA-OFT, arXiv
        2502.19645: one pass over `chunk * action_dim` empty positions, bidirectional attention).
    type: "tokens" (256 bins) or "l1" (a regression head on the hidden states; parallel only).
    """

    type: Literal["tokens", "l1"] = "tokens"
    decoding: Literal["autoregressive", "parallel"] = "autoregressive"
    chunk: int = 1
    action_dim: int = 7
    proprio_dim: int = 0
    num_images: int = 1


PROMPTS = {
    "openvla": "In: What action should the robot take to {instruction}?\nOut:",
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: What action "
        "should the robot take to {instruction}? ASSISTANT:"
    ),
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything the model needs to know to be built. `from_json` reads a config.json."""

    towers: tuple[TowerConfig, ...]
    llm: LlamaConfig
    head: HeadConfig
    projector: Literal["gelu-mlp", "fused-gelu-mlp"]
    norm_stats: Mapping[str, Any]
    n_action_bins: int = 256
    pad_to_multiple_of: int = 64
    image_resize_strategy: str = "resize-naive"
    prompt: str = PROMPTS["openvla"]
    empty_token_id: int | None = 29871
    bos_token_id: int = 1
    stop_token_id: int = 2
    center_crop: bool = False
    name: str = "openvla"

    @property
    def action_vocab_end(self) -> int:
        """One past the last action token: the vocabulary without its padding rows."""
        return self.llm.vocab_size - self.pad_to_multiple_of

    @property
    def num_patches(self) -> int:
        return self.towers[0].num_patches

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Check and complete the contents of a config.json; errors name the field."""
        if "text_config" not in raw:
            raise CheckpointError(f"{where} has no 'text_config'", "is this an OpenVLA checkpoint?")
        towers = _towers(raw, where)
        llm = _pick(LlamaConfig, raw["text_config"], f"{where}: text_config")
        if llm.hidden_size % llm.num_attention_heads:
            raise CheckpointError(
                f"{where}: hidden_size {llm.hidden_size} is not a multiple of "
                f"num_attention_heads {llm.num_attention_heads}",
                "mend the file",
            )
        head = _pick(HeadConfig, raw.get("action_head", {}), f"{where}: action_head", strict=True)
        _one_of(head.type, ("tokens", "l1"), f"{where}: action_head.type")
        _one_of(head.decoding, ("autoregressive", "parallel"), f"{where}: action_head.decoding")
        if head.type == "l1" and head.decoding != "parallel":
            raise CheckpointError(
                f"{where}: action_head.type 'l1' needs decoding 'parallel'", "mend the file"
            )
        arch = raw.get("arch_specifier", "no-align+fused-gelu-mlp").removeprefix("no-align+")
        _one_of(arch, ("gelu-mlp", "fused-gelu-mlp"), f"{where}: arch_specifier")
        strategy = raw.get("image_resize_strategy", "resize-naive")
        strategies = ("resize-naive", "letterbox", "resize-crop")
        _one_of(strategy, strategies, f"{where}: image_resize_strategy")
        llm_id = raw.get("llm_backbone_id", "llama2-7b-pure")
        prompt = PROMPTS["vicuna" if "vicuna" in llm_id else "openvla"]
        names = ("n_action_bins", "pad_to_multiple_of", "empty_token_id", "bos_token_id")
        names += ("stop_token_id", "center_crop", "name")
        return cls(
            towers=towers,
            llm=llm,
            head=head,
            projector=arch,
            norm_stats=raw.get("norm_stats") or {},
            image_resize_strategy=strategy,
            prompt=raw.get("prompt", prompt),
            **{n: raw[n] for n in names if n in raw},
        )


def _towers(raw: Mapping[str, Any], where: str) -> tuple[TowerConfig, ...]:
    if "vision_towers" in raw:
        label = f"{where}: vision_towers"
        towers = tuple(_pick(TowerConfig, t, label, strict=True) for t in raw["vision_towers"])
        for tower in towers:
            _one_of(tower.stem, ("patch", "conv"), f"{label}.stem")
    else:
        backbone = raw.get("vision_backbone_id")
        _one_of(backbone, tuple(BACKBONES), f"{where}: vision_backbone_id")
        towers = BACKBONES[backbone]
    if not towers or len({t.num_patches for t in towers}) != 1:
        raise CheckpointError(
            f"{where}: the vision towers give {[t.num_patches for t in towers]} patches",
            "all towers must cut a picture into the same number of patches",
        )
    return towers


def _pick(cls, raw: Mapping[str, Any], where: str, strict: bool = False):
    """Build dataclass `cls` from the fields it knows; with `strict`, refuse any other."""
    fields = {f.name for f in dataclasses.fields(cls)}
    unknown = set(raw) - fields
    if strict and unknown:
        raise CheckpointError(
            f"{where} names unknown {', '.join(sorted(unknown))}",
            f"known fields: {', '.join(sorted(fields))}",
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in fields}
    try:
        return cls(**values)
    except TypeError as error:
        raise CheckpointError(f"{where}: {error}", "complete the file") from error


def _one_of(value, known: tuple[str, ...], where: str) -> None:
    if value not in known:
        raise CheckpointError(f"{where} is {value!r}", f"known: {', '.join(known)}")
