"""Exports a trained run as files that a policy loads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.system.files import Staged
from vla_training.lora.adapter import BESIDE, merge, save_adapter

if TYPE_CHECKING:
    from vla_training.finetune.finetune import Finetuner


def export(run: Finetuner) -> Path:
    """Writes adapter and merged checkpoint, or the whole model, each atomically."""
    folder, first = run.folder, run.place.first
    if run.config.lora is not None:
        adapter = folder / "adapter"
        if first:
            save_adapter(
                adapter, run.model, run.config.lora, str(run.base), run.model_json, run.statistics
            )
            if run.config.merge:
                run.log.say(f"adapter {adapter}")
                merge(run.base, adapter, folder / "checkpoint")
        run.place.barrier()
        return folder / "checkpoint" if run.config.merge else adapter
    save_model(run, folder / "checkpoint")
    run.place.barrier()
    return folder / "checkpoint"


def save_model(run: Finetuner, output: Path) -> None:
    """Saves the current model in bfloat16; all processes gather sharded tensors one at a time."""
    state = {k: v for k, v in run.model.state_dict().items()}
    if not run.place.first:
        for value in state.values():
            _gathered(value)
        return

    def stream() -> Iterator[tuple[str, Tensor]]:
        for key, value in state.items():
            yield key, _gathered(value).to(torch.bfloat16)

    empty = {
        k: torch.empty(v.shape, dtype=torch.bfloat16, device="meta") for k, v in state.items()
    }
    with Staged(output) as staged:
        save_checkpoint(
            staged,
            run.model_json,
            empty,
            run.tokenizer,
            run.statistics,
            stream=stream(),
            shard_bytes=5_000_000_000,
        )
        for name in BESIDE:
            if (run.base / name).is_file():
                shutil.copyfile(run.base / name, staged / name)


def _gathered(value: Tensor) -> Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()
