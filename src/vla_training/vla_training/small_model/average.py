"""Averages the weights of two checkpoints of one shape, before and after a further training.

Weights are mixed number by number (Wortsman et al. 2022, "Model soups", arXiv 2203.05482).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.system.files import Staged

WEIGHTS, TOKENIZER, CONFIG = "model.safetensors", "tokenizer.json", "config.json"


def check_checkpoint(folder: Path, names: Sequence[str] = (WEIGHTS, TOKENIZER, CONFIG)) -> None:
    """Refuses a folder without these files of a checkpoint."""
    for name in names:
        if not (folder / name).is_file():
            raise VlaError(f"there is no {folder / name}", "name a checkpoint in one file")


def check_average(before: Path, layers: int) -> None:
    """Refuses, before training, what a model of so many layers cannot be averaged with."""
    from vla_inference.checkpoints.safetensors_io import read_json

    check_checkpoint(before)
    there = read_json(before / CONFIG).get("text_config", {}).get("num_hidden_layers")
    if there != layers:
        raise VlaError(
            f"{before} has {there} layers, the model to train {layers}", f"give --layers {there}"
        )


def average(before: Path, after: Path, output: Path, share: float) -> Path:
    """Writes (1 - share) `before` + share `after`; everything else is as in `after`."""
    from safetensors.torch import load_file

    from vla_inference.checkpoints.save import save_tensors

    check_checkpoint(before)
    check_checkpoint(after)
    mine, theirs = (load_file(folder / WEIGHTS) for folder in (before, after))
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
        raise VlaError(
            f"{before} and {after} are not of one shape", "average with the checkpoint of --start"
        )
    if (before / TOKENIZER).read_bytes() != (after / TOKENIZER).read_bytes():
        raise VlaError(
            f"{before} and {after} have different tokenizers",
            "average with the checkpoint of --start",
        )
    mixed = {
        k: mine[k].float().lerp(v.float(), share).to(v.dtype).contiguous()
        for k, v in theirs.items()
    }
    with Staged(output) as staged:
        shutil.copytree(after, staged, ignore=shutil.ignore_patterns(WEIGHTS), dirs_exist_ok=True)
        save_tensors(staged / WEIGHTS, mixed, {"format": "pt"})
    return output
