"""What published checkpoints leave unsaid, and how we know it nevertheless.

config.json is completed in this order, the later winning: what the files beside the shards imply
(OpenVLA-OFT's heads) and what the folder's name says, config.json itself, `vla.json` beside it
(the same keys, for folders whose config.json one would rather not touch), and the caller's
`overrides`. What was taken on trust ends up in `ModelConfig.assumed`, which `vla info` prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_inference.errors import CheckpointError

# Files OpenVLA-OFT's fine-tuning writes beside the shards: `<part>--<step>_checkpoint.pt`.
COMPONENTS = ("action_head", "proprio_projector")
REFUSED = {
    "vision_backbone": "FiLM conditioning (vision_backbone--*)",
    "noisy_action_projector": "a diffusion head (noisy_action_projector--*)",
}
COMPONENT_NAME = re.compile(r"(\w+)--(\w+)\.pt")
OVERRIDES = "vla.json"
OVERRIDABLE = (
    "action_head", "arch_specifier", "bos_token_id", "center_crop", "empty_token_id",
    "image_resize_strategy", "llm_backbone_id", "n_action_bins", "name", "norm_stats",
    "pad_to_multiple_of", "prompt", "stop_token_id", "text_config", "vision_backbone_id",
    "vision_towers",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Constants that OpenVLA-OFT picks by the name of the robot and stores nowhere."""

    chunk: int
    action_dim: int
    proprio_dim: int
    num_images: int
    bounds: str = "q01_q99"


# openvla-oft prismatic/vla/constants.py; the number of pictures is that of its evaluation scripts.
RECIPES = {
    "libero": Recipe(chunk=8, action_dim=7, proprio_dim=8, num_images=2),
    "aloha": Recipe(chunk=25, action_dim=14, proprio_dim=14, num_images=3, bounds="min_max"),
    "bridge": Recipe(chunk=5, action_dim=7, proprio_dim=7, num_images=1),
}

# Trained with image augmentation, hence to be run with a centre crop: the originals' evaluation
# asserts it by these names; their config.json doesn't say.
AUGMENTED = re.compile(r"^openvla-7b(-oft)?-finetuned-libero|image_aug")


def override(raw: dict[str, Any], more: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`raw` with the keys of `more` in their place; `action_head` and `text_config` by field."""
    unknown = sorted(set(more) - set(OVERRIDABLE))
    if unknown:
        raise CheckpointError(
            f"{where} names unknown {', '.join(unknown)}", f"known: {', '.join(OVERRIDABLE)}"
        )
    merged = {**raw, **more}
    for key in ("action_head", "text_config"):
        old, new = raw.get(key), more.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            merged[key] = {**old, **new}
    return merged


def checkpoint_name(folder: Path) -> str:
    """The folder's name; of a snapshot in the Hub's cache, the repository's."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.split("--")[-1]
    return folder.name


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse, by the names of its files alone, a checkpoint with parts we can't run."""
    for name in sorted(names):
        found = COMPONENT_NAME.fullmatch(name)
        if found and found[1] in REFUSED:
            raise CheckpointError(
                f"{where} has {REFUSED[found[1]]}: {name}",
                "only OpenVLA-OFT checkpoints with an L1 head or parallel tokens can be run",
            )


def component_files(folder: Path) -> dict[str, Path]:
    """Part -> the one file that holds it."""
    names = [p.name for p in folder.iterdir() if p.is_file()]
    check_names(names, str(folder))
    found: dict[str, Path] = {}
    for part in COMPONENTS:
        files = sorted(n for n in names if n.startswith(f"{part}--") and n.endswith(".pt"))
        if len(files) > 1:
            raise CheckpointError(
                f"{folder} holds several of one part: {', '.join(files)}",
                "keep those of one training step",
            )
        if files:
            found[part] = folder / files[0]
    return found


def load_component(path: Path) -> dict[str, Any]:
    """The tensors of an OpenVLA-OFT head file by name, mapped from the file, not yet read.

    These are the one kind of published weights that is not safetensors. `weights_only` is
    PyTorch's restricted unpickler: it makes tensors and plain containers and runs nothing.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # the unpickler and the zip reader raise all kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {reason:.160})",
            "it may be cut short: copy it again",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError(f"{path} holds no tensors by name", "give the published file")
    # What was trained on several GPUs carries DistributedDataParallel's prefix.
    return {str(k).removeprefix("module."): v for k, v in state.items()}


def infer_head(
    folder: Path, raw: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """`action_head` of an OpenVLA-OFT folder and what of it was assumed; None for any other.

    Widths come from the heads' shapes. The length of a chunk, the kind of bounds and the number
    of pictures are stored nowhere: they follow from the robot, told by the statistics' names.
    """
    files = component_files(folder)
    if not files:
        return None
    given = dict(raw.get("action_head") or {})
    head: dict[str, Any] = {"decoding": "parallel"}
    tokens = "action_head" not in files
    if "action_head" in files:
        head |= _l1_shape(files["action_head"])
    if "proprio_projector" in files:
        state = load_component(files["proprio_projector"])
        if "fc1.weight" not in state:
            raise CheckpointError(
                f"{files['proprio_projector']} has no fc1.weight", "give the published file"
            )
        head["proprio_dim"] = state["fc1.weight"].shape[1]
    robot = _robot(head.get("action_dim", 0), head.get("proprio_dim", 0), raw)
    if robot is None and "chunk" not in given:
        raise CheckpointError(
            f"{folder} is an OpenVLA-OFT checkpoint whose files don't tell how long its chunks "
            f"are (its statistics, {', '.join(raw.get('norm_stats') or {}) or 'none'}, name none "
            f"of {', '.join(RECIPES)})",
            f'write {{"action_head": {{"chunk": 8, "num_images": 1}}}}, with its own numbers, '
            f"into {OVERRIDES} beside config.json",
        )
    if robot is not None:
        recipe = RECIPES[robot]
        head |= {"chunk": recipe.chunk, "bounds": recipe.bounds}
        if tokens:  # one slot for each dimension
            head |= {"action_dim": recipe.action_dim, "slots_per_step": recipe.action_dim}
        # The recipes' wrist cameras came together with proprioception.
        head["num_images"] = recipe.num_images if head.get("proprio_dim") else 1
    assumed = tuple(
        f"action_head.{key} {head[key]}: OpenVLA-OFT's constant for {robot}"
        for key in ("chunk", "bounds", "num_images")
        if robot is not None and key not in given
    )
    return {**head, **given}, assumed


def _l1_shape(path: Path) -> dict[str, Any]:
    state = load_component(path)
    if any(k.startswith(("noise_predictor", "time_encoder")) for k in state):
        raise CheckpointError(
            f"{path} is a diffusion head",
            "only OpenVLA-OFT checkpoints with an L1 head or parallel tokens can be run",
        )
    try:
        (hidden, inputs), dims = state["model.fc1.weight"].shape, len(state["model.fc2.bias"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not an L1 action head ({error} is not as it should be)",
            "give the published file",
        ) from error
    return {"type": "l1", "action_dim": dims, "slots_per_step": inputs // hidden}


def _robot(action_dim: int, proprio_dim: int, raw: Mapping[str, Any]) -> str | None:
    names = " ".join(raw.get("norm_stats") or {}).lower()
    fitting = [
        robot
        for robot, r in RECIPES.items()
        if action_dim in (0, r.action_dim) and proprio_dim in (0, r.proprio_dim)
    ]
    named = [robot for robot in fitting if robot in names]
    if named or (len(fitting) == 1 and proprio_dim):
        return (named or fitting)[0]
    return None


def complete(folder: Path, raw: dict[str, Any], name: str) -> dict[str, Any]:
    """config.json's contents with what the folder implies filled in; `raw` wins."""
    assumed: tuple[str, ...] = ()
    if AUGMENTED.search(name) and "center_crop" not in raw:
        raw = {**raw, "center_crop": True}
        assumed = ("center_crop 0.9: by the checkpoint's name",)
    inferred = infer_head(folder, raw)
    if inferred is not None:
        raw = {**raw, "action_head": inferred[0]}
        assumed += inferred[1]
    return {**raw, "assumed": assumed}
