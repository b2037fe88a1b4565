"""Completes the config of published OpenVLA checkpoints with what they leave out.

config.json is completed in this order, the later winning: what the files beside the shards imply
(OpenVLA-OFT's heads) and what the folder's name states, config.json itself, `vla.json` beside it
(the same keys, for folders whose config.json one would rather not touch), and the caller's
`overrides`. What was taken on trust ends up in `ModelConfig.assumed`, which `vla info` prints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_inference.checkpoints.oft_settings import OftSettings, read_settings
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import PROMPTS, action_lengths

# Files OpenVLA-OFT's fine-tuning writes beside the shards: `<part>--<step>_checkpoint.pt`.
COMPONENTS = ("action_head", "proprio_projector")
REFUSED = {
    "vision_backbone": "FiLM conditioning (vision_backbone--*)",
    "noisy_action_projector": "a diffusion head (noisy_action_projector--*)",
}
COMPONENT_NAME = re.compile(r"(\w+)--(\w+)\.pt")
OVERRIDES = "vla.json"
OVERRIDABLE = (
    "action_head",
    "arch_specifier",
    "bos_token_id",
    "center_crop",
    "empty_token_id",
    "image_resize_strategy",
    "llm_backbone_id",
    "n_action_bins",
    "name",
    "norm_stats",
    "pad_to_multiple_of",
    "prompt",
    "reasoning_tokens",
    "stop_token_id",
    "text_config",
    "vision_backbone_id",
    "vision_towers",
)


@dataclass(frozen=True)
class Recipe:
    """Constants that OpenVLA-OFT chooses by robot name and does not store."""

    chunk: int
    action_dim: int
    proprio_dim: int
    bounds: str = "q01_q99"


# openvla-oft prismatic/vla/constants.py
RECIPES = {
    "libero": Recipe(chunk=8, action_dim=7, proprio_dim=8),
    "aloha": Recipe(chunk=25, action_dim=14, proprio_dim=14, bounds="min_max"),
    "bridge": Recipe(chunk=5, action_dim=7, proprio_dim=7),
}

# Trained with image augmentation, hence to be run with a centre crop: the originals' evaluation
# asserts it by these names; their config.json doesn't say.
AUGMENTED = re.compile(r"^openvla-7b(-oft)?-finetuned-libero|image_aug")

# Embodied chain of thought (arXiv 2407.08693): the released checkpoints' config.json is OpenVLA's;
# prompt and length are those that the authors' README calls them with.
REASONS = re.compile(r"^ecot-openvla")
REASONING = {"prompt": PROMPTS["ecot"], "reasoning_tokens": 1024}


def override(raw: dict[str, Any], more: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`raw` updated with the keys of `more`; `action_head` and `text_config` are merged by
    field."""
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
    """The folder's name, its run's (RUN/checkpoint), or its repository's in the Hub cache."""
    folder = folder.resolve()
    if folder.name == "checkpoint" and folder.parent.name:
        return folder.parent.name
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.split("--")[-1]
    return folder.name


def check_names(names: Iterable[str], where: str) -> None:
    """Refuses a checkpoint with unsupported parts, from its file names only."""
    for name in sorted(names):
        found = COMPONENT_NAME.fullmatch(name)
        if found and found[1] in REFUSED:
            raise CheckpointError(
                f"{where} has {REFUSED[found[1]]}: {name}",
                "only OpenVLA-OFT checkpoints with an L1 head or parallel tokens can be run",
            )


def component_files(folder: Path) -> dict[str, Path]:
    """The file of each part."""
    names = [p.name for p in folder.iterdir() if p.is_file()]
    check_names(names, str(folder))
    found: dict[str, Path] = {}
    for part in COMPONENTS:
        files = sorted(n for n in names if n.startswith(f"{part}--") and n.endswith(".pt"))
        if len(files) > 1:
            raise CheckpointError(
                f"{folder} contains several of one part: {', '.join(files)}",
                "keep those of one training step",
            )
        if files:
            found[part] = folder / files[0]
    return found


def load_component(path: Path) -> dict[str, Any]:
    """The tensors of an OpenVLA-OFT head file by name, mapped from the file, not yet read."""
    import torch

    from vla_inference.checkpoints.prismatic.weights import read_pt

    state = read_pt(path)
    if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise CheckpointError(f"{path} has no tensors by name", "give the published file")
    # What was trained on several GPUs carries DistributedDataParallel's prefix.
    return {str(k).removeprefix("module."): v for k, v in state.items()}


def infer_head(
    folder: Path, raw: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """`action_head` of an OpenVLA-OFT folder and which fields were assumed; None for any other.

    Widths come from the heads' shapes, the rest from what the run's name and config state. The
    length of a chunk and the kind of bounds OpenVLA-OFT itself takes from the robot's name. What
    nobody states, or two state differently, is asked for: it must stand in `action_head`.
    """
    files = component_files(folder)
    given = dict(raw.get("action_head") or {})
    stated = read_settings(folder, raw, name)
    if not files and (stated is None or "decoding" in given):
        return None
    stated = stated or OftSettings()
    _refuse_unread(folder, stated)
    head: dict[str, Any] = {"decoding": "parallel"}
    if "action_head" in files:
        head |= _l1_shape(files["action_head"])
    elif given.get("type", stated.kind) is not None:
        head["type"] = given.get("type", stated.kind)
    if "proprio_projector" in files:
        head["proprio_dim"] = _proprio_dim(files["proprio_projector"])
    _check_files_fit(folder, files, stated, given)

    lengths = action_lengths(raw.get("norm_stats"))
    dims = head.get("action_dim") or given.get("action_dim") or next(iter(lengths), 7)
    robot = _robot(dims, head.get("proprio_dim", 0), raw)
    recipe = RECIPES[robot] if robot else None
    by_name, by_robot = "by the checkpoint's name or config", f"OpenVLA-OFT's constant for {robot}"
    why: dict[str, str] = {}

    def take(key: str, value: Any, reason: str) -> None:
        if value is not None and key not in given:
            head[key], why[key] = value, reason

    if recipe and stated.chunk not in (None, recipe.chunk) and "chunk" not in given:
        raise CheckpointError(
            f"{folder}: a chunk has {stated.chunk} steps by the checkpoint's name or config, "
            f"{recipe.chunk} by OpenVLA-OFT's constant for {robot}",
            _remedy({**head, "chunk": stated.chunk}),
        )
    take("chunk", recipe.chunk if recipe else None, by_robot)
    take("chunk", stated.chunk, by_name)
    take("num_images", stated.images, by_name)
    if recipe:
        take("bounds", recipe.bounds, by_robot)
    elif dims != RECIPES["aloha"].action_dim:  # whose bounds are others than all the rest's
        take("bounds", "q01_q99", "OpenVLA-OFT's constant for all but aloha")
    missing = [key for key in ASKED if key not in head and key not in given]
    if missing:
        raise CheckpointError(
            f"{folder} is an OpenVLA-OFT checkpoint, and neither its name nor its files tell "
            + ", ".join(ASKED[key] for key in missing),
            _remedy({**head, **given}),
        )
    assumed = tuple(f"action_head.{key} {head[key]}: {reason}" for key, reason in why.items())
    return {**head, **given}, assumed


# What must be known of an OpenVLA-OFT checkpoint, in words, and an example of each.
ASKED = {
    "type": "whether it answers by an L1 head or by tokens",
    "chunk": "how long its chunks are",
    "num_images": "how many images it takes",
    "bounds": "which statistics its actions are scaled by",
}
EXAMPLE = {"type": "tokens", "chunk": 8, "num_images": 1}


def _remedy(known: Mapping[str, Any]) -> str:
    example = {"decoding": "parallel"}
    example |= {key: known.get(key, value) for key, value in EXAMPLE.items()}
    example |= {"bounds": known.get("bounds", "q01_q99")}
    return (
        f"write {json.dumps({'action_head': example})}, with its own values, into {OVERRIDES} "
        "beside config.json"
    )


def _refuse_unread(folder: Path, stated: OftSettings) -> None:
    unread = "a diffusion head" if stated.kind == "diffusion" else ""
    unread = "FiLM conditioning" if stated.film else unread
    if unread:
        raise CheckpointError(
            f"{folder} has {unread}, as its name or config states",
            "only OpenVLA-OFT checkpoints with an L1 head or parallel tokens can be run",
        )


def _check_files_fit(
    folder: Path, files: Mapping[str, Path], stated: OftSettings, given: Mapping[str, Any]
) -> None:
    """Checks that exactly the stated parts are beside the weights."""
    wanted = {
        "action_head": given.get("type", stated.kind) == "l1",
        "proprio_projector": bool(stated.proprio) and "proprio_dim" not in given,
    }
    for part, there in wanted.items():
        if there and part not in files:
            raise CheckpointError(
                f"{folder} lacks {part}--*_checkpoint.pt, which its name or config states",
                "copy it from where the checkpoint comes from",
            )
    if given.get("type", stated.kind) == "tokens" and "action_head" in files:
        raise CheckpointError(
            f"{folder} answers by tokens, as its name or config states, and contains an L1 head, "
            f"{files['action_head'].name}",
            f'remove that file, or write {{"action_head": {{"type": "l1"}}}} into {OVERRIDES}',
        )


def _proprio_dim(path: Path) -> int:
    state = load_component(path)
    if "fc1.weight" not in state:
        raise CheckpointError(f"{path} has no fc1.weight", "give the published file")
    return state["fc1.weight"].shape[1]


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
    """The robot whose constants OpenVLA-OFT used, from the names of the statistics."""
    names = " ".join(raw.get("norm_stats") or {}).lower()
    for robot, recipe in RECIPES.items():
        if robot in names and action_dim == recipe.action_dim:
            return robot if proprio_dim in (0, recipe.proprio_dim) else None
    return None


# A run's folder, as OpenVLA's fine-tuning names it: base+dataset+b16+lr-...
RUN = re.compile(r"^[^+]+\+([^+]+)\+b\d+")


def check_trained_on(name: str, raw: Mapping[str, Any], where: str | Path) -> None:
    """Refuses the base model's statistics if the run's name shows what it was fine-tuned on.

    OpenVLA's fine-tuning writes the new ones beside the weights, and leaves the base's in
    config.json.
    """
    run, known = RUN.match(name), raw.get("norm_stats") or {}
    if run and isinstance(known, Mapping) and not {run[1], f"{run[1]}_no_noops"} & set(known):
        raise CheckpointError(
            f"{where} has no dataset_statistics.json, and config.json has no statistics of "
            f"{run[1]}, on which it was trained by its name",
            "copy dataset_statistics.json from the run's folder",
        )


def complete(folder: Path, raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The contents of config.json, completed from what the folder implies; `raw` takes
    precedence."""
    assumed: tuple[str, ...] = ()
    if AUGMENTED.search(name) and "center_crop" not in raw:
        raw = {**raw, "center_crop": True}
        assumed = ("center_crop 0.9: by the checkpoint's name",)
    if REASONS.search(name) and not set(REASONING) <= set(raw):
        raw = {**REASONING, **raw}
        assumed += ("prompt and reasoning of ECoT: by the checkpoint's name",)
    inferred = infer_head(folder, raw, name)
    if inferred is not None:
        raw = {**raw, "action_head": inferred[0]}
        assumed += inferred[1]
    if not assumed:
        return raw
    return {**raw, "assumed": list(dict.fromkeys((*raw.get("assumed", ()), *assumed)))}
