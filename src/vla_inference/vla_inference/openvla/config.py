"""A checkpoint's config.json as a checked dataclass with every default explicit.

The released OpenVLA files name their parts by id; `BACKBONES` says what the ids mean. A file may
instead spell its vision encoders out under `vision_towers`, as the small model that ships here
does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vla_inference.errors import CheckpointError
from vla_inference.openvla.json_fields import checked, one_of, pick
from vla_inference.quantization.formats import FORMATS
from vla_inference.quantization.swap import WHERE


@dataclass(frozen=True)
class VisionEncoderConfig:
    """A vision transformer, named as in timm; its last block and norm are unused (`layers`).

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
        """Number of blocks that run: all but the last."""
        return self.depth - 1


DINOV2_L = VisionEncoderConfig(
    "featurizer",
    224,
    14,
    1024,
    24,
    16,
    4096,
    cls_token=True,
    reg_tokens=4,
    layer_scale=True,
    mean=(0.484375, 0.455078125, 0.40625),
    std=(0.228515625, 0.2236328125, 0.224609375),
)
SIGLIP_SO400M = VisionEncoderConfig("featurizer", 224, 14, 1152, 27, 16, 4304)
SIGLIP_B16 = VisionEncoderConfig("featurizer", 224, 16, 768, 12, 12, 3072)

BACKBONES: dict[str, tuple[VisionEncoderConfig, ...]] = {
    "dinosiglip-vit-so-224px": (
        DINOV2_L,
        dataclasses.replace(SIGLIP_SO400M, key="fused_featurizer"),
    ),
    "siglip-vit-so400m": (SIGLIP_SO400M,),  # openvla-v01-7b
    "dinosiglip-vit-so-384px": (
        dataclasses.replace(DINOV2_L, image_size=384),
        dataclasses.replace(SIGLIP_SO400M, key="fused_featurizer", image_size=384),
    ),
    "siglip-vit-so400m-384px": (dataclasses.replace(SIGLIP_SO400M, image_size=384),),
    "dinov2-vit-l": (DINOV2_L,),
    "siglip-vit-b16-224px": (SIGLIP_B16,),
    "siglip-vit-b16-256px": (dataclasses.replace(SIGLIP_B16, image_size=256),),
    "siglip-vit-b16-384px": (dataclasses.replace(SIGLIP_B16, image_size=384),),
}


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama decoder; defaults are those of transformers' LlamaConfig.

    Qwen2.5 is one with two differences:
    qkv_bias: queries, keys and values have a bias.
    tie_word_embeddings: the embeddings are the output layer as well.
    """

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    vocab_size: int = 32064
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    qkv_bias: bool = False
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class CodecConfig:
    """The residual VQ-VAE of an action chunk, as in MiniVLA and VQ-BeT (arXiv 2403.03181).

    groups: codebooks, each for what the ones before left over, and so tokens of a chunk.
    codes: entries of a codebook; latent: their width.
    hidden, layers: width of the decoder's hidden layers, and how many follow the first.
    scale: what the decoder's outputs are multiplied by (`act_scale`).
    """

    groups: int
    codes: int
    latent: int
    hidden: int = 128
    layers: int = 1
    scale: float = 1.0


@dataclass(frozen=True)
class HeadConfig:
    """The action head: how actions leave the model.

    decoding: "autoregressive" (one token after the other) or "parallel" (OpenVLA-OFT, arXiv
        2502.19645: one pass over `chunk * action_dim` empty positions, bidirectional attention).
    type: "tokens" (256 bins), "l1" (a regression head on the hidden states; parallel only), or
        "vq" (the tokens are codes of a whole chunk, see `codec`; autoregressive only).
    slots_per_step: positions in the sequence per chunk step; OpenVLA-OFT has one per dimension.
    slots: what stands at these positions: "zero" as in OpenVLA-OFT, where a pretrained model
        tells them apart by position alone, or "learned", which a model from scratch needs.
    bounds: the statistics that [-1, 1] stands for: "q01_q99", or "min_max" (OpenVLA-OFT on ALOHA).
    num_images: of an observation, past ones among them. history: how many past images come after
        the present ones of each camera, newest first; history_interval: s between them, or None.
    """

    type: Literal["tokens", "l1", "vq"] = "tokens"
    decoding: Literal["autoregressive", "parallel"] = "autoregressive"
    chunk: int = 1
    action_dim: int = 7
    proprio_dim: int = 0
    num_images: int = 1
    history: int = 0
    history_interval: float | None = None
    slots_per_step: int = 7
    slots: Literal["zero", "learned"] = "zero"
    bounds: Literal["q01_q99", "min_max"] = "q01_q99"
    codec: CodecConfig | None = None

    @property
    def views(self) -> int:
        """How many cameras the model sees at once."""
        return self.num_images // (1 + self.history)

    @property
    def num_slots(self) -> int:
        return self.chunk * self.slots_per_step

    @property
    def num_tokens(self) -> int:
        """Tokens that are decoded one after the other for an answer."""
        return self.codec.groups if self.codec else self.action_dim


TRAINED_CROP = 0.9

PROMPTS = {
    "openvla": "In: What action should the robot take to {instruction}?\nOut:",
    "vicuna": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER: What action "
        "should the robot take to {instruction}? ASSISTANT:"
    ),
    # Of MiniVLA. Its first token stands before the image, where Llama has BOS.
    "qwen2.5": (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\nWhat action should the robot take to {instruction}?"
        "<|im_end|>\n<|im_start|>assistant\n"
    ),
}
# Embodied chain of thought: the model goes on from here with its reasoning.
PROMPTS["ecot"] = PROMPTS["vicuna"] + " TASK:"
MOST_REASONING = 4096  # tokens


def words_of(text: str) -> list[str]:
    """The words of an instruction, as counted in training."""
    return re.findall(r"\w+", text.lower())


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the model. `from_json` reads a config.json.

    center_crop: share of the image's area the model sees, 0 for all of it. In the file `true`
        stands for 0.9, what OpenVLA's fine-tuning with image augmentation calls for.
    bos_token_id: put before the prompt; None: the prompt has a first token of its own.
    quantization: format of the decoder's weights (`quantization.FORMATS`); "": as they were.
    assumed: what the files don't say and was taken from the published recipe.
    words: all that the instructions of its training were made of; none: not known.
    reasoning_tokens: tokens at most that the model writes before it acts; 0: it acts at once.
    """

    encoders: tuple[VisionEncoderConfig, ...]
    llm: LlamaConfig
    head: HeadConfig
    projector: Literal["gelu-mlp", "fused-gelu-mlp"]
    norm_stats: Mapping[str, Any]
    n_action_bins: int = 256
    pad_to_multiple_of: int = 64
    image_resize_strategy: Literal["resize-naive", "letterbox", "resize-crop"] = "resize-naive"
    prompt: str = PROMPTS["openvla"]
    empty_token_id: int | None = 29871
    bos_token_id: int | None = 1
    stop_token_id: int = 2
    center_crop: float = 0.0
    name: str = "openvla"
    quantization: str = ""
    assumed: tuple[str, ...] = ()
    words: frozenset[str] = frozenset()
    reasoning_tokens: int = 0

    def unknown_words(self, instruction: str) -> list[str]:
        """Words that the training instructions did not contain, as far as known."""
        said = dict.fromkeys(words_of(instruction)) if self.words else {}
        return [word for word in said if word not in self.words]

    @property
    def action_vocab_end(self) -> int:
        """One past the last action token: the vocabulary without its padding rows."""
        return self.llm.vocab_size - self.pad_to_multiple_of

    @property
    def num_patches(self) -> int:
        return self.encoders[0].num_patches

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Check and complete the contents of a config.json; errors name the field."""
        if not isinstance(raw, Mapping) or "text_config" not in raw:
            raise CheckpointError(
                f"{where} has no 'text_config'", "is this an OpenVLA checkpoint?"
            )
        encoders = _encoders(raw, where)
        label = f"{where}: text_config"
        llm = pick(LlamaConfig, _decoder(raw["text_config"], label), label)
        _check_multiple(llm, "num_attention_heads", "num_key_value_heads", where)
        _check_multiple(llm, "hidden_size", "num_attention_heads", where)
        head = pick(HeadConfig, _head(raw, where), f"{where}: action_head", strict=True)
        if head.type == "tokens" and head.slots_per_step != head.action_dim:
            raise CheckpointError(
                f"{where}: action_head.slots_per_step is {head.slots_per_step}, tokens need one "
                f"slot for each of the {head.action_dim} dimensions",
                "fix the file",
            )
        _check_decoding(head, where)
        _check_history(head, f"{where}: action_head")
        arch = raw.get("arch_specifier", "no-align+fused-gelu-mlp").removeprefix("no-align+")
        one_of(arch, ("gelu-mlp", "fused-gelu-mlp"), f"{where}: arch_specifier")
        llm_id = raw.get("llm_backbone_id", "llama2-7b-pure")
        prompt = raw.get("prompt", PROMPTS["vicuna" if "vicuna" in str(llm_id) else "openvla"])
        if not isinstance(prompt, str) or prompt.count("{instruction}") != 1:
            raise CheckpointError(
                f"{where}: prompt is {prompt!r:.60}", "it must hold {instruction} once"
            )
        statistics = raw.get("norm_stats") or {}
        if not isinstance(raw.get("norm_stats", {}), Mapping):
            raise CheckpointError(f"{where}: norm_stats is not an object", "fix the file")
        return cls(
            encoders=encoders,
            llm=llm,
            head=head,
            projector=arch,
            norm_stats=statistics,
            prompt=prompt,
            center_crop=_area(raw.get("center_crop", False), f"{where}: center_crop"),
            quantization=_quantization(raw.get("quantization"), f"{where}: quantization"),
            assumed=tuple(raw.get("assumed", ())),
            words=_words(raw.get("trained_words", []), f"{where}: trained_words"),
            **checked(cls, raw, AS_STORED, f"{where}: "),
        )._checked(where)

    def _checked(self, where: str) -> ModelConfig:
        rows, codec = self.llm.vocab_size, self.head.codec
        if codec and codec.codes != self.n_action_bins:
            raise CheckpointError(
                f"{where}: n_action_bins is {self.n_action_bins}, the codec has {codec.codes} "
                "codes",
                "fix the file",
            )
        if not 0 <= self.reasoning_tokens <= MOST_REASONING:
            raise CheckpointError(
                f"{where}: reasoning_tokens is {self.reasoning_tokens}",
                f"it must be 0 to {MOST_REASONING}",
            )
        if self.action_vocab_end - self.n_action_bins < 0:
            raise CheckpointError(
                f"{where}: vocab_size {rows} leaves no room for {self.n_action_bins} action "
                f"tokens and {self.pad_to_multiple_of} padding rows",
                "fix the file",
            )
        for name in ("empty_token_id", "bos_token_id", "stop_token_id"):
            if (getattr(self, name) or 0) >= rows:
                raise CheckpointError(
                    f"{where}: {name} {getattr(self, name)} is beyond vocab_size {rows}",
                    "fix the file",
                )
        return self


# Fields of `ModelConfig` that config.json has under the same names.
AS_STORED = [
    "n_action_bins",
    "pad_to_multiple_of",
    "image_resize_strategy",
    "empty_token_id",
    "bos_token_id",
    "stop_token_id",
    "reasoning_tokens",
    "name",
]
# Keys of text_config that change the network, and the values it is built for: Llama's usual ones.
PLAIN_DECODER: dict[str, tuple] = {
    "model_type": ("llama", "qwen2"),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "use_sliding_window": (False, None),
}


def _decoder(raw: Any, where: str) -> Any:
    """text_config as `LlamaConfig`; refuses other architectures.

    transformers states the rotary base as `rope_theta` or, since its version 5, within
    `rope_parameters`; without `num_key_value_heads` there are as many as heads.
    """
    if not isinstance(raw, Mapping):
        return raw
    for key, known in PLAIN_DECODER.items():
        if key in raw and raw[key] not in known:
            raise CheckpointError(
                f"{where}.{key} is {raw[key]!r:.60}, which is another network than the one built "
                f"here ({key} {known[0]!r})",
                "give a checkpoint of a plain Llama or Qwen2.5 decoder",
            )
    raw = {k: v for k, v in raw.items() if (k, v) != ("tie_word_embeddings", None)}
    qwen = raw.get("model_type") == "qwen2"
    if raw.get("sliding_window") is not None and not qwen:  # which says so by another key
        raise CheckpointError(
            f"{where}.sliding_window is {raw['sliding_window']!r:.60}, which is another network "
            "than the one built here",
            "give a checkpoint of a plain Llama or Qwen2.5 decoder",
        )
    raw.setdefault("qkv_bias", qwen)
    for key in ("rope_parameters", "rope_scaling"):
        rotary = raw.get(key) or {}
        if not isinstance(rotary, Mapping) or not _plain_positions(rotary):
            raise CheckpointError(
                f"{where}.{key} is {raw[key]!r:.80}, and only plain rotary positions are built",
                "give a checkpoint without scaled positions",
            )
        theta = rotary.get("rope_theta")
        if theta is not None and raw.setdefault("rope_theta", theta) != theta:
            raise CheckpointError(
                f"{where} has rope_theta {raw['rope_theta']!r} and, in {key}, {theta!r}",
                "say one of them",
            )
    heads, width = raw.get("num_attention_heads", 32), raw.get("hidden_size", 4096)
    raw.setdefault("num_key_value_heads", heads)
    if raw["num_key_value_heads"] is None:
        raw["num_key_value_heads"] = heads
    dim = raw.get("head_dim")
    if dim is not None and isinstance(heads, int) and dim * heads != width:
        raise CheckpointError(
            f"{where}.head_dim is {dim!r}, {heads} heads of it are not hidden_size {width!r}",
            "give a checkpoint whose heads fill its width",
        )
    return raw


def _plain_positions(rotary: Mapping[str, Any]) -> bool:
    kind = rotary.get("rope_type", rotary.get("type"))
    return kind == "default" or (kind is None and set(rotary) <= {"rope_theta"})


def _head(raw: Mapping[str, Any], where: str) -> Any:
    """action_head; for token models with the action length filled in.

    The original decodes as many tokens as the statistics' q01 has numbers, and nothing else says
    how many. OpenVLA-OFT has one slot per dimension.
    """
    head = raw.get("action_head", {})
    if not isinstance(head, Mapping):
        return head
    head = dict(head)
    if head.get("codec") is not None:
        head["codec"] = pick(CodecConfig, head["codec"], f"{where}: action_head.codec", True)
    if head.get("type", "tokens") == "tokens" and "action_dim" not in head:
        lengths = action_lengths(raw.get("norm_stats"))
        if len(lengths) > 1:
            raise CheckpointError(
                f"{where}: the statistics are of actions of several lengths ("
                + ", ".join(f"{n}: {', '.join(names)}" for n, names in sorted(lengths.items()))
                + ")",
                "keep those of one length: under norm_stats in vla.json beside config.json",
            )
        if lengths:
            head["action_dim"] = next(iter(lengths))
    if "action_dim" in head:
        head.setdefault("slots_per_step", head["action_dim"])
    return head


def _check_history(head: HeadConfig, where: str) -> None:
    if head.num_images % (1 + head.history):
        raise CheckpointError(
            f"{where}.num_images is {head.num_images}, which {head.history} past images beside "
            "each present one do not make",
            "num_images counts them all: cameras * (1 + history)",
        )
    if (head.history > 0) != (head.history_interval is not None):
        raise CheckpointError(
            f"{where} has history {head.history} and history_interval {head.history_interval}",
            "give both, or none",
        )


def _check_decoding(head: HeadConfig, where: str) -> None:
    """Refuses a type of head that does not go with what is said beside it."""
    wanted = {"l1": "parallel", "vq": "autoregressive"}.get(head.type, head.decoding)
    if head.decoding != wanted:
        raise CheckpointError(
            f"{where}: action_head.type {head.type!r} needs decoding {wanted!r}", "fix the file"
        )
    if (head.type == "vq") != (head.codec is not None):
        raise CheckpointError(
            f"{where}: action_head.codec goes with type 'vq', and type 'vq' with it",
            "fix the file",
        )


def action_lengths(statistics: Any) -> dict[int, list[str]]:
    """Names of the statistics by action length."""
    lengths: dict[int, list[str]] = {}
    for name, entry in statistics.items() if isinstance(statistics, Mapping) else ():
        action = entry.get("action", entry) if isinstance(entry, Mapping) else None
        low = action.get("q01", action.get("min")) if isinstance(action, Mapping) else None
        if isinstance(low, list) and low:
            lengths.setdefault(len(low), []).append(name)
    return lengths


def _quantization(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, Mapping) or not isinstance(value.get("format"), str):
        raise CheckpointError(f"{where} is {value!r:.60}", "it must be an object with a format")
    one_of(value["format"], tuple(FORMATS), f"{where}.format")
    if value.get("modules", [WHERE]) != [WHERE]:
        raise CheckpointError(
            f"{where}.modules is {value['modules']!r:.80}", f"only [{WHERE!r}] can be quantised"
        )
    return value["format"]


def _area(value: Any, where: str) -> float:
    if isinstance(value, bool):
        return TRAINED_CROP if value else 0.0
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise CheckpointError(f"{where} is {value!r:.60}", "it must be true, false or 0 to 1")
    return 0.0 if value == 1 else float(value)


def _encoders(raw: Mapping[str, Any], where: str) -> tuple[VisionEncoderConfig, ...]:
    if "vision_towers" in raw:
        label = f"{where}: vision_towers"
        encoders = tuple(
            pick(VisionEncoderConfig, t, label, strict=True) for t in raw["vision_towers"]
        )
        for encoder in encoders:
            _check_encoder(encoder, label)
    else:
        backbone = raw.get("vision_backbone_id", "")
        one_of(backbone, tuple(BACKBONES), f"{where}: vision_backbone_id")
        encoders = BACKBONES[backbone]
    if not encoders or len({t.num_patches for t in encoders}) != 1:
        raise CheckpointError(
            f"{where}: the vision encoders give {[t.num_patches for t in encoders]} patches",
            "all vision encoders must cut an image into the same number of patches",
        )
    return encoders


def _check_encoder(encoder: VisionEncoderConfig, where: str) -> None:
    patch = encoder.patch_size
    if encoder.image_size % patch or (encoder.stem == "conv" and patch & (patch - 1)):
        raise CheckpointError(
            f"{where}: patch_size {patch} does not fit image_size {encoder.image_size}",
            "it must divide it, and be a power of two for a conv stem",
        )
    _check_multiple(encoder, "embed_dim", "num_heads", where)


def _check_multiple(config: Any, whole: str, part: str, where: str) -> None:
    a, b = getattr(config, whole), getattr(config, part)
    if a % b:
        raise CheckpointError(
            f"{where}: {whole} {a} is not a multiple of {part} {b}", "fix the file"
        )


def _words(value: Any, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise CheckpointError(f"{where} is not a list of words", "fix the file, or leave it out")
    return frozenset(value)
