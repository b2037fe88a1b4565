"""Small checkpoints in the form that other programs write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vla_inference.checkpoints.random_weights import write_random_checkpoint


def statistics(size: int, low: float = -1.0, high: float = 1.0) -> dict[str, Any]:
    """Of actions and states of `size` numbers, the last one a gripper."""
    one = {
        "q01": [low] * size,
        "q99": [high] * size,
        "min": [2 * low] * size,
        "max": [2 * high] * size,
        "mask": [True] * (size - 1) + [False],
    }
    return {"action": one, "proprio": {k: v for k, v in one.items() if k != "mask"}}


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys; None takes one away."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content.update(changes)
    gone = [k for k, v in changes.items() if v is None]
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in gone}))


def published(folder: Path, head: Any = "tokens", **stats: Any) -> Path:
    """A tiny model whose config.json says nothing of its head, as published ones do."""
    write_random_checkpoint(folder, head=head, statistics=stats or {"mine": statistics(7)})
    edit_json(folder / "config.json", action_head=None)
    return folder


def oft(folder: Path, images: int, proprio: int, kind: str = "l1", name: str = "", **more) -> Path:
    """As OpenVLA-OFT's fine-tuning leaves it: heads in files of their own, trained on GPUs.

    more: fields of the head, such as chunk, and its action_dim.
    """
    dim = more.get("action_dim", 7)
    head = {
        "type": kind,
        "decoding": "parallel",
        "chunk": 8,
        "num_images": images,
        "proprio_dim": proprio,
        "slots_per_step": dim,
        **more,
    }
    stats = {**statistics(dim), "proprio": statistics(proprio or 8)["proprio"]}
    published(folder, head, **{name or "libero_spatial_no_noops": stats})
    tensors = load_file(folder / "model.safetensors")
    for part in ("action_head", "proprio_projector"):
        own = {k: tensors.pop(k) for k in list(tensors) if k.startswith(f"{part}.")}
        own = {k.replace(f"{part}.", "module.", 1): v for k, v in own.items()}
        if own:
            torch.save(own, folder / f"{part}--150000_checkpoint.pt")
    save_file(tensors, folder / "model.safetensors")
    return folder
