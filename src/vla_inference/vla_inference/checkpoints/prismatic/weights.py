"""Reads checkpoints/*.pt by PyTorch's restricted unpickler; tensors get their released names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_inference.checkpoints.safetensors_io import DTYPES, canonical
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import ModelConfig

EMBEDDINGS = "language_model.model.embed_tokens.weight"
OUTPUT = "language_model.lm_head.weight"
# The parts of a checkpoint and what goes before their tensors' names.
PARTS = {"vision_backbone": "vision_backbone.", "projector": "projector.", "llm_backbone": ""}
LATEST = "latest-checkpoint.pt"


def weights_file(folder: Path) -> Path:
    """The one checkpoint of a run, or the one that the run calls its latest."""
    files = sorted((folder / "checkpoints").glob("*.pt"))
    if not files:
        raise CheckpointError(
            f"{folder} has no checkpoints/*.pt", "copy the run's checkpoint there"
        )
    latest = folder / "checkpoints" / LATEST
    if len(files) > 1 and not latest.is_file():
        raise CheckpointError(
            f"{folder}/checkpoints has {', '.join(f.name for f in files[:4])}",
            f"keep the one to be run, or name it {LATEST}",
        )
    return latest if latest.is_file() else files[0]


def read_pt(path: Path) -> Any:
    """The content of a PyTorch file, tensors mapped, not yet read.

    `weights_only` is PyTorch's restricted unpickler: it makes tensors and plain containers and
    runs nothing.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # the unpickler and the zip reader raise all kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {reason:.160})",
            "it may be truncated: copy it again",
        ) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A run's tensors by their released names, mapped from the file."""
    path = weights_file(folder)
    content = read_pt(path)
    model = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(model, Mapping) or not {"projector", "llm_backbone"} <= set(model):
        raise CheckpointError(
            f"{path} has no 'model' with 'projector' and 'llm_backbone'",
            "give a checkpoint of Prismatic's training",
        )
    if "vision_backbone" not in model:
        raise CheckpointError(
            f"{path} has no vision encoders: they were frozen in its training, and are timm's",
            "give a run that trained them, or add them to the file as model['vision_backbone']",
        )
    found: dict[str, Tensor] = {}
    for part, prefix in PARTS.items():
        for key, tensor in model[part].items():
            if not isinstance(tensor, Tensor):
                raise CheckpointError(f"{path}: {part}.{key} is no tensor", "copy it again")
            found[canonical(f"{prefix}{key}")] = tensor
    if EMBEDDINGS not in found:
        raise CheckpointError(
            f"{path} has no embeddings ({EMBEDDINGS})", "give a checkpoint of Prismatic's training"
        )
    return found


def run_headers(folder: Path) -> tuple[Path, dict[str, dict]]:
    """The checkpoint's file, and shape and dtype of each tensor as safetensors has them."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    headers = {
        key: {"shape": list(t.shape), "dtype": names.get(t.dtype, str(t.dtype))}
        for key, t in read_weights(folder).items()
    }
    return weights_file(folder), headers


def read_run(folder: Path, config: ModelConfig) -> dict[str, Tensor]:
    """All tensors of a run's model, those of its codec among them."""
    from vla_inference.checkpoints.prismatic.codec import codec_folder, codec_weights

    weights = _untied(read_weights(folder), config.llm.tie_word_embeddings, folder)
    return {**weights, **(codec_weights(codec_folder(folder)) if config.head.codec else {})}


def _untied(weights: dict[str, Tensor], tied: bool, folder: Path) -> dict[str, Tensor]:
    """Without the output layer where it is the embeddings once more, which is checked."""
    if not tied or OUTPUT not in weights:
        return weights
    if not torch.equal(weights[OUTPUT], weights[EMBEDDINGS]):
        raise CheckpointError(
            f"{weights_file(folder)} has an output layer that differs from its embeddings, and "
            "its language model is one that ties the two",
            'say {"text_config": {"tie_word_embeddings": false}} in vla.json if it was untied',
        )
    return {k: v for k, v in weights.items() if k != OUTPUT}
