"""Policies of every family, trained from scratch on one camera and the sentence: for benchmarks.

All see the same images, take no state, and are trained by the one stack of `vla finetune`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import come_to_end, finish

from vla_inference.system.files import Staged
from vla_training.datasets import open_dataset
from vla_training.finetune import finetune
from vla_training.finetune.config import FinetuneConfig
from vla_training.finetune.untrained.families import find_untrained, write_untrained
from vla_training.finetune.untrained.robot import Robot, Untrained
from vla_training.loader.frame_index import DatasetSource

CAMERA = "agentview"
CHUNK = 16  # steps of an answer, of all but tokens: 0.8 s, longer than answers are late
SPACE = "generated"  # the one name of OpenVLA's statistics, of all datasets together
TRIAL = 30  # updates by which the speed is measured, after as many that are not


@dataclass(frozen=True)
class Recipe:
    """family, sizes: of the untrained checkpoint (`vla new`); chunk: 0 is the family's own.

    batch: samples of an update. learning_rate: peak of the cosine. weight_decay: None is the
    family's own.
    """

    family: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    chunk: int = CHUNK
    batch: int = 256
    learning_rate: float = 5e-4
    weight_decay: float | None = 0.05


# Each of 7 to 10 million parameters
RECIPES = {
    "tokens": Recipe("openvla", {"head": "tokens"}, 0, learning_rate=1e-3),
    "l1": Recipe("openvla", {"head": "l1"}, learning_rate=1e-3),
    "flow": Recipe("smolvla", {"text_layers": 5, "vision_layers": 5}),
    "act": Recipe("act", {"backbone": "resnet10", "width": 256, "mlp": 896, "vae_layers": 1}),
    "octo": Recipe("octo", {}),
}


def sources(paths: Sequence[Path]) -> tuple[DatasetSource, ...]:
    return tuple(DatasetSource(str(path), cameras=(CAMERA,)) for path in paths)


def write_base(recipe: Recipe, data: Path, folder: Path, seed: int, stored: str) -> Path:
    """The untrained checkpoint, if it is not there."""
    if not folder.is_dir():
        robot = replace(Robot.of(open_dataset(data), (CAMERA,)), state=0)
        sizes = find_untrained(recipe.family)(**recipe.sizes)
        with Staged(folder) as staged:
            about = Untrained(chunk=recipe.chunk, seed=seed, stored=stored)
            write_untrained(staged, sizes, robot, about)
    return folder


def train(
    recipe: Recipe,
    data: Sequence[Path],
    folder: Path,
    *,
    steps: int = 0,
    minutes: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 4,
    stored: str = "float32",
    **changes: Any,
) -> Path:
    """The trained checkpoint; the same call goes on where it was stopped. Exits if it is stopped.

    steps: updates. minutes: instead of these, as many as fit, by the speed of a short trial.
    changes: other options of `FinetuneConfig`.
    """
    how = {"seed": seed, "device": device, "workers": workers}

    def run() -> bool:
        base = write_base(recipe, data[0], folder / "base", seed, stored)
        config = _config(recipe, base, data, folder / "run", **how, **changes)
        count = steps or _steps(config, minutes, folder)
        config = replace(config, max_steps=count, warmup_steps=max(1, count // 30))
        return finetune.train(config, resume=finetune.can_resume(folder / "run"))[1]

    folder.mkdir(parents=True, exist_ok=True)
    finish(folder, run)
    return folder / "run" / "checkpoint"


def _config(
    recipe: Recipe, base: Path, data: Sequence[Path], run: Path, **changes: Any
) -> FinetuneConfig:
    if recipe.family == "openvla":
        changes["action_space"] = SPACE
    return FinetuneConfig(
        vla_path=str(base),
        sources=sources(data),
        folder=str(run),
        lora_rank=0,
        batch_size=recipe.batch,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        lr_schedule="cosine",
        tensorboard=False,
        save_minutes=2.0,
        **changes,
    )


def _steps(config: FinetuneConfig, minutes: float, folder: Path) -> int:
    """Updates that fit into the time; measured once."""
    kept = folder / "speed.json"
    if not kept.is_file():
        trial = replace(
            config, folder=str(folder / "trial"), max_steps=2 * TRIAL, log_steps=TRIAL, quiet=True
        )
        shutil.rmtree(trial.folder, ignore_errors=True)
        come_to_end(finetune.train(trial)[1])
        (found,) = (e for e in metrics(Path(trial.folder)) if e["step"] == 2 * TRIAL)
        shutil.rmtree(trial.folder)
        speed = {key: found[key] for key in ("steps_per_s", "samples_per_s")}
        kept.write_text(json.dumps(speed))
    return max(1, round(60 * minutes * json.loads(kept.read_text())["steps_per_s"]))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The reports of a run's training."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["kind"] == "train"]
