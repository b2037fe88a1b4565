"""The long parts of a round: episodes in simulation or recorded, fine-tuning, judging episodes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions, Needs
from vla_inference.policies.registry import check_policy, model_type
from vla_inference.serving.model_thread import release_memory
from vla_inference.system.files import Staged, replace_entry
from vla_sim_bridge.evaluation.episode import EpisodeResult
from vla_sim_bridge.evaluation.rollout import rollout
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.generate import generate
from vla_sim_bridge.tasks import get_task
from vla_training.datasets import open_dataset
from vla_training.datasets.base import READERS
from vla_training.finetune.config import FinetuneConfig
from vla_training.improve.config import ImproveConfig
from vla_training.improve.own_recipe import gpus, recipe, train_small
from vla_training.improve.versions import Version
from vla_training.loader.frame_index import DatasetSource, index_frames
from vla_training.loader.sample_weights import SampleWeights

STALL = GenerateConfig().stall  # s
USUAL = (224, 224)  # pixels, of a model that takes any


@dataclass
class SimulationWork:
    """Everything by one model family's own tools, in this process and its workers.

    config: of the rounds. finetune: of the training, its sources the older data. folder: of all.
    tell_node: has a running node load a checkpoint and says what came of it; None: there is none.
    """

    config: ImproveConfig
    finetune: FinetuneConfig
    folder: Path
    say: Callable[[str], None] = lambda _: None
    tell_node: Callable[[Path], str] | None = None

    def check(self) -> None:
        """Refuses, before hours of work, what cannot be done."""
        needs = self._needs(Path(self.finetune.vla_path))
        if needs.images != len(self.config.sees):
            raise VlaError(
                f"{self.finetune.vla_path} sees {needs.images} images, --sees has "
                f"{len(self.config.sees)}",
                "name as many, in its order",
            )
        if self.config.recorded is not None and not Path(self.config.recorded).is_dir():
            raise VlaError(f"there is no folder {self.config.recorded}", "correct --recorded")
        if self.config.recipe == "train":
            recipe(Path(self.finetune.vla_path), self.finetune, [DatasetSource("")])
            gpus(self.finetune.device)
        if self.config.recorded is None:
            self._generation(1, self.finetune.vla_path).check()

    def _needs(self, checkpoint: Path) -> Needs:
        return check_policy(checkpoint, LoadOptions.given(engine="plain")).needs

    @property
    def _workers(self) -> int:
        return (os.cpu_count() or 1) if self.config.parallel < 0 else self.config.parallel

    # -- the episodes of a round --------------------------------------------------------------

    def collect(self, number: int, version: Version, output: Path) -> dict[str, Any]:
        if self.config.recorded is not None:
            self._take_recorded(Path(self.config.recorded), output)
        else:
            config = self._generation(number, str(version.checkpoint))
            generate(config, output, self._workers)
        return self._described(output)

    def _generation(self, number: int, model: str) -> GenerateConfig:
        c = self.config
        height, width = self._needs(Path(model)).image_size or USUAL
        acts: dict[str, Any] = {"model": model, "device": self.finetune.device}
        return GenerateConfig(
            task=c.task,
            episodes=c.episodes,
            cameras=c.sees,
            camera_width=width,
            camera_height=height,
            seed=self.finetune.seed + number,
            method=c.collect,
            **(acts if c.collect == "corrected" else {}),
        )

    def _take_recorded(self, source: Path, output: Path) -> None:
        """Links what no round before has taken into `output`; nothing of it is changed."""
        if output.is_dir():
            return
        taken = {entry.name for entry in output.parent.glob("*/*")}
        new = [e for e in sorted(source.iterdir()) if e.name not in taken and _is_data(e)]
        if not new:
            raise VlaError(f"{source} has no new episode", "record some, then go on")
        with Staged(output) as staged:
            staged.mkdir()
            for entry in new:
                _link(entry, staged / entry.name)

    def _described(self, path: Path) -> dict[str, Any]:
        data = open_dataset(path)
        acted = [data.interventions(i) for i in range(len(data))]
        known = np.concatenate([a for a in acted if a is not None] or [np.zeros(0, bool)])
        return {
            "episodes": len(data),
            "frames": sum(len(data.actions(i)) for i in range(len(data))),
            "corrected_episodes": sum(bool(a is not None and a.any()) for a in acted),
            "corrected_frames": int(known.sum()),
        }

    # -- training -----------------------------------------------------------------------------

    def train(
        self, number: int, version: Version, episodes: Sequence[Path], output: Path
    ) -> dict[str, Any]:
        from vla_training.finetune.finetune import can_resume, train

        run_it = train if self.config.recipe == "finetune" else train_small
        run = self.folder / "runs" / f"{number:04d}"
        training = self._training(version, episodes, run, number)
        if not output.is_dir():
            begun = can_resume(run)
            if not begun:
                shutil.rmtree(run, ignore_errors=True)  # killed before there was anything to keep
            made, finished = run_it(training, begun)
            release_memory()  # for the processes that play
            if not finished:
                raise VlaError("the training was stopped", "the same command goes on with it")
            output.parent.mkdir(parents=True, exist_ok=True)
            replace_entry(made, output)
        shutil.rmtree(run / "state", ignore_errors=True)  # large, and of no more use
        data = {s.path: round(s.weight or 0.0, 6) for s in training.sources}
        return {"recipe": self.config.recipe, "data": data, "max_steps": training.max_steps}

    def _training(
        self, version: Version, episodes: Sequence[Path], run: Path, number: int
    ) -> FinetuneConfig:
        f = self.finetune
        return replace(
            f,
            vla_path=str(version.checkpoint),
            sources=self._mixed([DatasetSource(str(path)) for path in episodes]),
            folder=str(run),
            action_space=f.action_space or _own_space(version.checkpoint),
            merge=True,
            seed=f.seed + number,
            weights=self._weights(),
        )

    def _weights(self) -> SampleWeights:
        """Of the steps. The stand-in's patience, in which nothing got better, is left out."""
        weights, c = self.finetune.weights, self.config
        if c.collect != "corrected" or c.recorded is not None:
            return weights
        return replace(weights, before_takeover=max(weights.before_takeover, STALL))

    def _mixed(self, new: Sequence[DatasetSource]) -> tuple[DatasetSource, ...]:
        """New data with their share of the samples, the older ones with the rest."""
        old = self.finetune.sources
        share = self.config.share if old else 1.0
        return (*self._shared(old, 1 - share), *self._shared(new, share))

    def _shared(self, sources: Sequence[DatasetSource], share: float) -> list[DatasetSource]:
        """Datasets that have a share of the samples together, divided by weights or frames."""
        if not share:
            return []
        each, sees = [self._weight(s) for s in sources], self.config.sees
        return [
            replace(s, cameras=s.cameras or sees, weight=share * weight / sum(each))
            for s, weight in zip(sources, each, strict=True)
        ]

    def _weight(self, source: DatasetSource) -> float:
        where = self.folder / "runs" / "statistics"
        return source.weight or float(len(index_frames(source, where, report=self.say)))

    # -- judging ------------------------------------------------------------------------------

    def play(
        self, checkpoint: Path, indices: Sequence[int], note: Callable[[EpisodeResult], None]
    ) -> None:
        c, size = self.config, (self._needs(checkpoint).image_size or USUAL)[0]
        rollout(
            str(checkpoint),
            c.task,
            c.judged_by,
            c.judging_seed,
            horizon=get_task(c.task).horizon,
            workers=min(self._workers, len(indices)),
            device=self.finetune.device,
            size=size,
            cameras=c.sees,
            only=indices,
            report=note,
        )

    def load(self, version: Version) -> None:
        if self.tell_node is not None and version.number:
            self.say(self.tell_node(version.checkpoint))


def _is_data(entry: Path) -> bool:
    hidden = entry.name.startswith(".")
    return not hidden and any(r.recognises(entry) for r in READERS.values())


def _link(source: Path, target: Path) -> None:
    """The same files under another name; copies where the disk is another one."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> str:
    with contextlib.suppress(OSError):
        os.link(source, target)
        return target
    return shutil.copy2(source, target)


def _own_space(checkpoint: Path) -> str | None:
    """An OpenVLA model's own action statistics, which all its versions keep; None for families
    that have but one set."""
    if model_type(checkpoint) != "openvla":
        return None
    from vla_inference.checkpoints.load import load_config

    return next(iter(load_config(checkpoint).norm_stats), None)
