"""Further training of the small model by its own recipe, that of `vla train`.

Beside images and actions it learns from further sentences and from the simulation's poses, with
shifted and recoloured images: from few episodes more than by fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla_inference.checkpoints.load import raw_config
from vla_inference.errors import VlaError
from vla_training.finetune.config import FinetuneConfig
from vla_training.loader.frame_index import DatasetSource
from vla_training.small_model.config import SMALL, TrainConfig


def check_small(checkpoint: Path) -> dict[str, Any]:
    """config.json of a small model; refuses every other."""
    raw = raw_config(checkpoint)
    stems = [encoder.get("stem") for encoder in raw.get("vision_towers", ())]
    width = raw.get("text_config", {}).get("hidden_size")
    if stems != ["conv"] or width != SMALL["text_config"]["hidden_size"]:
        raise VlaError(
            f"{checkpoint} is not the small model, whose own recipe was asked for",
            "leave --recipe out",
        )
    return raw


def recipe(checkpoint: Path, finetune: FinetuneConfig, sources: Sequence[DatasetSource]):
    """Options of `vla train` that continue a checkpoint as `finetune` says."""
    if finetune.max_steps is None:
        raise VlaError("--recipe train has no end", "give --max-steps")
    raw = check_small(checkpoint)
    (encoder,), weights = raw["vision_towers"], [s.weight or 0.0 for s in sources]
    return TrainConfig(
        start=str(checkpoint),
        name=raw.get("name", SMALL["name"]),
        steps=finetune.max_steps,
        batch_size=finetune.batch_size,
        learning_rate=finetune.learning_rate or 3e-4,
        layers=raw["text_config"]["num_hidden_layers"],
        image_size=encoder["image_size"],
        cameras=sources[0].cameras,
        state=bool(raw["action_head"].get("proprio_dim")),
        validation=min(finetune.val_split, 0.5),
        seed=finetune.seed,
        tensorboard=finetune.tensorboard,
        compile=finetune.compile,
        weights=replace(finetune.weights, dataset_weights=tuple(weights)),
    )


def train_small(config: FinetuneConfig, resume: bool) -> tuple[Path, bool]:
    """The checkpoint, and whether the end was reached; `config` as for `finetune.train`."""
    from vla_training.small_model.train import steps_done, train

    options = recipe(Path(config.vla_path), config, config.sources)
    devices, first = gpus(config.device)
    folder, paths = Path(config.folder), [source.path for source in config.sources]
    made = train(paths, folder, options, devices, resume, lambda _: None, first)
    return made, steps_done(folder) >= options.steps


def gpus(device: str | None) -> tuple[int, int]:
    """How many GPUs a device is, 0 or 1, and the number of that one; refuses what is not there."""
    import torch

    there = torch.cuda.device_count()
    try:
        asked = torch.device(device or ("cuda" if there else "cpu"))
    except RuntimeError:
        asked = None
    if asked is None or asked.type not in ("cpu", "cuda"):
        raise VlaError(f"--device is {device!r}", "give cpu, cuda or cuda:N")
    number = asked.index or 0
    if asked.type == "cuda" and number >= there:
        raise VlaError(f"--device is {device}, there are {there} GPUs", "name another, or cpu")
    return int(asked.type == "cuda"), number
