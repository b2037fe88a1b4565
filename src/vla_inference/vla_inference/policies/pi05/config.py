"""Sizes of a pi0 or pi0.5 model, and where they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vla_inference.errors import CheckpointError
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.flow import read_periods
from vla_inference.policies.lerobot.network.siglip import VisionDims, read_vision
from vla_inference.policies.lerobot.settings import LAYERS, Settings

SIZES = "reduced.json"  # beside config.json, of models that are smaller than their variants
FAMILIES = ("pi0", "pi05")


@dataclass(frozen=True)
class GemmaDims:
    """head: width of one attention head. condition: width of what its norms adapt to; 0: they
    are plain."""

    width: int
    layers: int
    mlp: int
    heads: int = 8
    kv_heads: int = 1
    head: int = 256
    condition: int = 0


SIGLIP = VisionDims(1152, 27, 16, 4304, 224, 14)
VARIANTS = {
    "gemma_2b": GemmaDims(2048, 18, 16384),
    "gemma_300m": GemmaDims(1024, 18, 4096),
}
VOCABULARY = 257152


@dataclass(frozen=True)
class PiConfig:
    """state_dim: of the state token of pi0, whose shorter states are padded with zeros; 0: the
    state is part of the prompt, as in pi0.5.

    action_dim: inside the network. steps: Euler steps from noise to actions. min_period,
    max_period: of the time embedding. words: most ids of a prompt.
    """

    vision: VisionDims
    text: GemmaDims
    expert: GemmaDims
    vocabulary: int = VOCABULARY
    state_dim: int = 0
    action_dim: int = 32
    chunk: int = 50
    steps: int = 10
    words: int = 200
    min_period: float = 0.004
    max_period: float = 4.0

    @property
    def image_size(self) -> tuple[int, int]:
        return self.vision.image, self.vision.image


def published(family: str) -> PiConfig:
    """The sizes of the published models of a family."""
    expert = VARIANTS["gemma_300m"]
    if family == "pi0":
        return PiConfig(SIGLIP, VARIANTS["gemma_2b"], expert, state_dim=32, words=48)
    return PiConfig(SIGLIP, VARIANTS["gemma_2b"], replace(expert, condition=expert.width))


def read_config(checkpoint: LeRobotCheckpoint) -> PiConfig:
    """From config.json, which names the variants of Gemma, and from reduced.json, which overrules
    their sizes where there is one."""
    says = checkpoint.settings
    _refuse_variants(checkpoint)
    vision, text, expert, vocabulary = _sizes(checkpoint)
    size = (vision.image, vision.image)
    if (given := says.counts("image_resolution", 2)) != size:
        raise CheckpointError(
            f"{checkpoint.folder}: image_resolution is {given}, the vision encoder takes {size}",
            "copy config.json again",
        )
    plain = family_of(checkpoint) == "pi0"
    return PiConfig(
        vision,
        text,
        expert if plain else replace(expert, condition=expert.width),
        vocabulary,
        says.count("max_state_dim") if plain else 0,
        says.count("max_action_dim"),
        says.count("chunk_size"),
        says.count("num_inference_steps"),
        says.count("tokenizer_max_length"),
        *read_periods(says),
    )


def family_of(checkpoint: LeRobotCheckpoint) -> str:
    return str(checkpoint.config.get("model_type", checkpoint.config.get("type")))


def _refuse_variants(checkpoint: LeRobotCheckpoint) -> None:
    """Refuses what would change the network in ways that are not here."""
    if (steps := checkpoint.settings.count("n_obs_steps", 1)) != 1:
        raise CheckpointError(
            f"{checkpoint.folder}: n_obs_steps is {steps}", "only 1 is supported"
        )
    if not checkpoint.state_dim:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'} has no input feature observation.state",
            "the model reads the robot's state: copy config.json again",
        )


def _sizes(checkpoint: LeRobotCheckpoint) -> tuple[VisionDims, GemmaDims, GemmaDims, int]:
    path = checkpoint.folder / SIZES
    raw = Settings.read(path) if path.is_file() else Settings(str(path), {})

    def gemma(field: str) -> GemmaDims:
        name = checkpoint.settings.text(field)
        if name not in VARIANTS:
            raise CheckpointError(
                f"{checkpoint.folder}: {field} is {name!r}", f"known: {', '.join(VARIANTS)}"
            )
        if name not in raw.values:
            return VARIANTS[name]
        own = raw.part(name)
        dims = GemmaDims(
            own.count("width"),
            own.count("depth", most=LAYERS),
            own.count("mlp_dim"),
            own.count("num_heads"),
            own.count("num_kv_heads"),
            own.count("head_dim"),
        )
        if dims.heads % dims.kv_heads or dims.head % 2 or dims.width % 2:
            raise CheckpointError(
                f"{own.where}: {dims.heads} heads of {dims.head} numbers with {dims.kv_heads} of "
                f"keys, and a width of {dims.width}",
                "the first must be a multiple of the third, the others even",
            )
        return dims

    text, expert = gemma("paligemma_variant"), gemma("action_expert_variant")
    vision = read_vision(raw.part("vision"), SIGLIP.eps) if "vision" in raw.values else SIGLIP
    vocabulary = raw.count("vocab_size", VOCABULARY)
    shared = [(d.layers, d.heads, d.kv_heads, d.head) for d in (text, expert)]
    if shared[0] != shared[1]:
        raise CheckpointError(
            f"{checkpoint.folder}: layers, heads, key heads and their width are {shared[0]} in "
            f"the language model and {shared[1]} in the expert",
            "they must be equal, since the expert reads the language model's cache",
        )
    return vision, text, expert, vocabulary
