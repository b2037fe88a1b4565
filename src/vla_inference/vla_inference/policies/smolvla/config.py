"""Sizes of a SmolVLA model, and where they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from vla_inference.errors import CheckpointError
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint, tensor_shapes
from vla_inference.policies.lerobot.flow import read_periods
from vla_inference.policies.lerobot.network.siglip import VisionDims, read_vision
from vla_inference.policies.lerobot.settings import LAYERS, Settings

L = TypeVar("L")
VLM_CONFIG = "vlm_config.json"
PUBLISHED = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"  # whose sizes the defaults are


@dataclass(frozen=True)
class TextDims:
    """The language model, as far as it is kept. head: width of one attention head."""

    width: int = 960
    layers: int = 16
    heads: int = 15
    kv_heads: int = 5
    head: int = 64
    mlp: int = 2560
    vocabulary: int = 49280
    eps: float = 1e-5


@dataclass(frozen=True)
class ExpertDims:
    """The action expert.

    every: layer i of the language model has a layer of the expert where i is a multiple of it.
    self_every: of these, those where i is a multiple of it attend to the actions as well; the
        others to the prefix alone. 0: all of them do.
    """

    width: int = 720
    layers: int = 16
    mlp: int = 2048
    every: int = 1
    self_every: int = 2

    @property
    def self_attention(self) -> list[bool]:
        """Of each layer: whether it attends to the actions as well."""
        return [self._own(j * self.every) for j in range(self.layers)]

    def _own(self, i: int) -> bool:
        return not self.self_every or i % self.self_every == 0

    def schedule(self, layers: Sequence[L]) -> Iterator[tuple[int, L, bool]]:
        """Each layer with that of the language model it reads, and `self_attention`."""
        for j, layer in enumerate(layers):
            yield j * self.every, layer, self._own(j * self.every)


@dataclass(frozen=True)
class SmolVLAConfig:
    """shuffle: image tokens are blocks of shuffle x shuffle patches.

    state_dim, action_dim: widths inside the network; shorter vectors are padded with zeros.
    steps: Euler steps from noise to actions. min_period, max_period: of the time embedding.
    words: most ids of an instruction.
    """

    vision: VisionDims = field(default_factory=VisionDims)
    text: TextDims = TextDims()
    expert: ExpertDims = ExpertDims()
    shuffle: int = 4
    state_dim: int = 32
    action_dim: int = 32
    chunk: int = 50
    steps: int = 10
    words: int = 48
    min_period: float = 0.004
    max_period: float = 4.0
    image_size: tuple[int, int] = (512, 512)


def read_config(checkpoint: LeRobotCheckpoint) -> SmolVLAConfig:
    """The sizes of a checkpoint: from config.json, from the vision-language model's own
    configuration (vlm_config.json beside it, or the published model's), and from the weights."""
    says = checkpoint.settings
    _refuse_variants(says)
    shapes = tensor_shapes(checkpoint.folder)
    vision, text, shuffle = _vlm(checkpoint)
    layers = says.count("num_vlm_layers", least=-1)
    experts = says.count("num_expert_layers", least=-1)
    if 0 < layers < text.layers:
        text = replace(text, layers=layers)
    experts = experts if experts > 0 else text.layers
    if text.layers % experts:
        raise CheckpointError(
            f"{checkpoint.folder}: {experts} layers of the expert for {text.layers} of the "
            "language model",
            "the second must be a multiple of the first",
        )
    width = int(says.number("expert_width_multiplier", low=1 / text.width, high=16) * text.width)
    if width % 2:
        raise CheckpointError(
            f"{checkpoint.folder}: the expert's width is {width}",
            "expert_width_multiplier must make it an even number",
        )
    expert = ExpertDims(
        width,
        experts,
        _rows(shapes, "model.vlm_with_expert.lm_expert.layers.0.mlp.gate_proj.weight"),
        text.layers // experts,
        says.count("self_attn_every_n_layers", least=-1),
    )
    pixels_wide, pixels_high = says.counts("resize_imgs_with_padding", 2)
    return SmolVLAConfig(
        vision,
        text,
        expert,
        shuffle,
        says.count("max_state_dim"),
        says.count("max_action_dim"),
        says.count("chunk_size"),
        says.count("num_steps"),
        says.count("tokenizer_max_length"),
        *read_periods(says),
        (pixels_high, pixels_wide),
    )


def _refuse_variants(says: Settings) -> None:
    """Refuses settings that change the network in ways that are not here."""
    for name, usual in (
        ("attention_mode", "cross_attn"),
        ("add_image_special_tokens", False),
        ("adapt_to_pi_aloha", False),
        ("use_delta_joint_actions_aloha", False),
        ("n_obs_steps", 1),
    ):
        if (given := says.values.get(name, usual)) != usual:
            raise CheckpointError(
                f"{says.where}: {name} is {given!r:.40}", f"only {usual!r} is supported"
            )


def _vlm(checkpoint: LeRobotCheckpoint) -> tuple[VisionDims, TextDims, int]:
    path = checkpoint.folder / VLM_CONFIG
    if not path.is_file():
        named = checkpoint.settings.text("vlm_model_name")
        if named != PUBLISHED:
            raise CheckpointError(
                f"{checkpoint.folder} does not say the sizes of {named}",
                f"copy its config.json there as {VLM_CONFIG}",
            )
        return VisionDims(), TextDims(layers=32), 4
    says = Settings.read(path)
    seen, told, shuffle = says.part("vision_config"), says.part("text_config"), "scale_factor"
    eps = seen.number("layer_norm_eps", VisionDims.eps, high=1)
    vision = read_vision(seen, eps, shuffle=says.count(shuffle))
    width, heads = told.count("hidden_size"), told.count("num_attention_heads")
    text = TextDims(
        width,
        told.count("num_hidden_layers", most=LAYERS),
        heads,
        told.count("num_key_value_heads"),
        told.count("head_dim", max(1, width // heads)),
        told.count("intermediate_size"),
        told.count("vocab_size"),
        told.number("rms_norm_eps", TextDims.eps, high=1),
    )
    if heads % text.kv_heads or text.head % 2:
        raise CheckpointError(
            f"{path}: {heads} heads of {text.head} numbers with {text.kv_heads} of keys",
            "the first must be a multiple of the last, the second even",
        )
    return vision, text, says.count(shuffle)


def _rows(shapes: Mapping[str, Any], name: str) -> int:
    if name not in shapes:
        raise CheckpointError(f"the weights lack {name}", "fetch them again")
    return int(shapes[name][0])
