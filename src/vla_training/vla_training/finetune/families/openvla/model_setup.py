"""Prepares the model to fine-tune: a checkpoint, with another action head if requested."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from vla_inference.checkpoints.load import load_config, load_model, raw_config
from vla_inference.errors import VlaError
from vla_inference.openvla.config import TRAINED_CROP, HeadConfig, ModelConfig
from vla_inference.openvla.heads import L1ActionHead, ProprioProjector
from vla_inference.openvla.model import VLA
from vla_training.lora.layers import WHOLE
from vla_training.lora.peft_adapter import Adapter

HEADS = ("keep", "tokens", "parallel", "l1")


def read_base(folder: Path) -> ModelConfig:
    """The config of a base checkpoint."""
    config = load_config(folder)
    if config.quantization:
        raise VlaError(
            f"{folder} is quantised to {config.quantization}, no adapter can be merged into it",
            "give the checkpoint that it was made from, and --quantize if memory is short",
        )
    return config


def choose_head(
    base: HeadConfig,
    kind: str = "keep",
    chunk: int | None = None,
    images: int | None = None,
    proprio_dim: int | None = None,
    history: int | None = None,
    interval: float | None = None,
) -> HeadConfig:
    """The action head of the fine-tuned model.

    kind: "keep" what the base has; "tokens" one after the other; "parallel" tokens of a whole
        chunk in one pass, "l1" a regression on it (both OpenVLA-OFT, chunk 8 if left out).
    images: cameras seen at once. history: past images of each, `interval` s apart.
    """
    if kind not in HEADS:
        raise VlaError(f"unknown action head {kind!r}", f"known: {', '.join(HEADS)}")
    if base.codec and kind == "keep":
        raise VlaError(
            "the base answers by codes of whole chunks, which are not trained here",
            "choose --action-head tokens, parallel or l1",
        )
    changes: dict[str, Any] = {}
    if kind == "tokens":
        changes = {"type": "tokens", "decoding": "autoregressive", "chunk": 1}
        changes["slots_per_step"] = base.action_dim
    elif kind != "keep":
        changes = {"type": "l1" if kind == "l1" else "tokens", "decoding": "parallel"}
        if base.decoding != "parallel":
            changes |= {"chunk": 8, "slots_per_step": base.action_dim}
    if chunk is not None:
        changes["chunk"] = chunk
    views = base.views if images is None else images
    past = base.history if history is None else history
    changes |= {"num_images": views * (1 + past), "history": past}
    changes["history_interval"] = (interval or base.history_interval or 0.2) if past else None
    if proprio_dim is not None:
        changes["proprio_dim"] = proprio_dim
    head = dataclasses.replace(base, codec=None, **changes)
    if head.decoding == "autoregressive" and head.chunk != 1:
        raise VlaError(
            f"a chunk of {head.chunk} was requested, and tokens one after the other give 1",
            "choose --action-head parallel or l1",
        )
    if interval is not None and not past:
        raise VlaError(
            "past images have an interval, and there are none", "give --history as well"
        )
    if min(head.chunk, head.num_images) < 1:
        raise VlaError("chunk and number of images must be at least 1", "give at least 1")
    if head.slots == "learned" and head.num_slots != base.num_slots:
        raise VlaError(
            f"the model has {base.num_slots} learned slots, the chunk needs {head.num_slots}",
            f"keep a chunk of {base.chunk}",
        )
    return head


def open_model(
    folder: Path,
    head: HeadConfig,
    statistics: Mapping[str, Any],
    augmented: bool,
    device: str,
    dtype: torch.dtype,
    seed: int = 0,
) -> tuple[VLA, dict[str, Any]]:
    """The checkpoint's model with `head` and `statistics`, and the config.json it will have."""
    base = load_config(folder)
    model = load_model(folder, device, dtype, base)
    crop = TRAINED_CROP if augmented else base.center_crop
    config = dataclasses.replace(base, head=head, norm_stats=dict(statistics), center_crop=crop)
    attach_head(model, config, device, dtype, seed)
    raw = copy.deepcopy(raw_config(folder))
    raw["action_head"] = dataclasses.asdict(head)
    raw["center_crop"] = crop or False
    for key in ("norm_stats", "assumed"):
        raw.pop(key, None)
    return model, raw


def attach_head(
    model: VLA, config: ModelConfig, device: str, dtype: torch.dtype, seed: int = 0
) -> None:
    """Creates the parts of `config`'s head that the model lacks, and drops those not needed."""
    old, new, width = model.config.head, config.head, config.llm.hidden_size
    model.config = config
    # Drawn on the CPU: what training starts from is the same on every device.
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if new.type != "l1" and hasattr(model, "action_head"):
            del model.action_head
        shape = (new.action_dim, new.slots_per_step)
        if new.type == "l1" and (
            old.type != "l1" or shape != (old.action_dim, old.slots_per_step)
        ):
            model.action_head = _placed(L1ActionHead(width, *shape), device, dtype)
        if not new.codec and hasattr(model, "action_codec"):
            del model.action_codec
        if new.slots != "learned" and hasattr(model, "action_slots"):
            del model.action_slots
        if not new.proprio_dim and hasattr(model, "proprio_projector"):
            del model.proprio_projector
        if new.proprio_dim and new.proprio_dim != old.proprio_dim:
            projector = ProprioProjector(new.proprio_dim, width)
            model.proprio_projector = _placed(projector, device, dtype)


M = TypeVar("M", bound=nn.Module)


def _placed(module: M, device: str, dtype: torch.dtype) -> M:
    return module.to(device, dtype).requires_grad_(False)


def load_with_adapter(
    base: Path, adapter: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> VLA:
    """Base and adapter, unmerged, ready to predict."""
    given = Adapter(adapter)
    config = load_config(base)
    model = load_model(base, device, dtype, config)
    wanted = ModelConfig.from_json(given.config_on(base), str(adapter))
    statistics = given.statistics or config.norm_stats
    wanted = dataclasses.replace(
        config, head=wanted.head, center_crop=wanted.center_crop, norm_stats=statistics
    )
    attach_head(model, wanted, device, dtype)
    given.change.apply(model)
    given.check_base(base)
    for name, parameter in model.named_parameters():
        if name.startswith(WHOLE):  # trained in float32
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)
