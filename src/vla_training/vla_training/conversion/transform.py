"""Episode transforms of `vla convert`: names, image sizes, steps, rotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from vla_inference.episodes.interventions import (
    INTERVENTION,
    by_larger_part,
    read_interventions,
)
from vla_inference.episodes.language import annotated, with_cameras
from vla_inference.errors import DataError
from vla_inference.options import check_options
from vla_inference.types import ActionSpec, Episode, Observation, Step, check_image
from vla_training.conversion.config import ConvertConfig
from vla_training.datasets.action_form import convert_rotation, join_actions, with_rotation
from vla_training.datasets.base import EpisodeSet, check_finite
from vla_training.datasets.images import StoredImages
from vla_training.datasets.writers import DataForm

STATE = "state"


@dataclass(frozen=True)
class EpisodeTransform:
    """How an episode of the source becomes one of the result.

    cameras: new name -> old name. sizes: new name -> (height, width).
    """

    config: ConvertConfig
    old: ActionSpec
    form: DataForm
    cameras: Mapping[str, str]
    resized: bool
    dropped: tuple[str, ...]

    @classmethod
    def of(cls, data: EpisodeSet, config: ConvertConfig, name: str) -> EpisodeTransform:
        check_options(config)
        first = next((e for e in data if len(e)), None)
        if first is None:
            raise DataError(f"{data.path} has no step", "check how it was made")
        seen = first.steps[0].observation
        if not data.cameras() and not config.allow_no_images:
            raise DataError(
                f"{data.path} has no images",
                "render them first, name another dataset, or give --allow-no-images",
            )
        names, dropped = _renamed(data, config.remap, seen)
        sizes = {new: _size(seen.images[old], config) for new, old in names.items()}
        spec = data.spec if config.rotation is None else with_rotation(data.spec, config.rotation)
        spec = replace(spec, dt=spec.dt * config.sample_actions)
        state = 0 if seen.state is None or STATE in dropped else len(seen.state)
        period = data.spec.dt * config.sample_steps
        form = DataForm(name, spec, sizes, state, period, data.carried())
        return cls(
            config,
            data.spec,
            form,
            names,
            bool(config.width or config.height),
            tuple(dropped),
        )

    def __call__(self, episode: Episode, where: str) -> Episode:
        starts = np.arange(0, len(episode), self.config.sample_steps)
        if not len(episode):
            return Episode([], self.form.spec, dict(episode.metadata))
        actions = episode.actions
        check_finite(actions, self.old, where)
        if self.config.sample_actions > 1:
            joined = join_actions(actions, self.old, self.config.sample_actions, starts)
        else:
            joined = actions[starts]
        # What is converted to what it is stays the same to the bit.
        if self.old.rotation != self.form.spec.rotation:
            joined = convert_rotation(joined, self.old, self.form.spec)
        joined = np.asarray(joined, np.float32)
        steps = []
        for number, start in enumerate(starts):
            span = episode.steps[start : start + self.config.sample_steps]
            seen = self._observation(span[0].observation, f"{where}, step {start}")
            steps.append(
                Step(
                    seen,
                    joined[number],
                    span[-1].reward,
                    number == 0,
                    number == len(starts) - 1,
                    any(s.is_terminal for s in span),
                )
            )
        columns = ColumnsAt(episode.columns, starts, self.config.sample_steps)
        metadata = {"source": where, **self._metadata(episode)}
        return Episode(steps, self.form.spec, metadata, columns)

    def _metadata(self, episode: Episode) -> dict[str, Any]:
        """With subtasks as rows of language, and cameras under their new names."""
        metadata = annotated(episode, self.form.spacing / self.config.sample_steps)
        return with_cameras(metadata, {old: new for new, old in self.cameras.items()})

    def _observation(self, seen: Observation, where: str) -> Observation:
        state = None
        if not seen.instruction.strip() and not self.config.allow_no_instructions:
            raise DataError(
                f"{where} has no sentence",
                "give one for all steps with --instruction, or --allow-no-instructions",
            )
        if self.form.state:
            if seen.state is None or len(seen.state) != self.form.state:
                size = "none" if seen.state is None else len(seen.state)
                raise DataError(
                    f"{where} has a state of {size} numbers, the first had {self.form.state}",
                    f"leave it out with --remap-keys {STATE}:None",
                )
            state = seen.state
        return Observation(ChangedImages(seen.images, self, where), seen.instruction, state)


class ColumnsAt(Mapping[str, np.ndarray]):
    """The columns of an episode at the steps that are kept, read on each access.

    A step that stands for `size` of the episode's is a person's where a person acted in at least
    half of them.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], steps: np.ndarray, size: int = 1):
        self._columns, self._steps, self._size = columns, steps, size

    def __getitem__(self, name: str) -> np.ndarray:
        values = self._columns[name]
        if name == INTERVENTION and self._size > 1:
            acted = read_interventions(values, len(values))
            return by_larger_part(acted, self._steps, self._size)
        return values[self._steps]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class ChangedImages(StoredImages):
    """The images of one step under their new names and sizes, made on each access."""

    __slots__ = ("_change", "_images", "_where")

    def __init__(self, images: Mapping[str, np.ndarray], change: EpisodeTransform, where: str):
        super().__init__(change.cameras)
        self._images, self._change, self._where = images, change, where

    def __getitem__(self, camera: str) -> np.ndarray:
        old = self._change.cameras[camera]
        if old not in self._images:
            raise DataError(
                f"{self._where} has no image of camera {old!r}",
                f"leave it out with --remap-keys {old}:None",
            )
        image = check_image(self._images[old], f"{self._where}: image {old!r}")
        height, width = self._change.form.cameras[camera]
        if self._change.resized:
            return np.asarray(
                Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
            )
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{self._where}: image {old!r} is {image.shape[1]}x{image.shape[0]}, the "
                f"first was {width}x{height}",
                "give --width and --height",
            )
        return image

    def encoded(self, camera: str) -> bytes | None:
        """The stored encoded image, if it is encoded and keeps its size."""
        if self._change.resized or not hasattr(self._images, "encoded"):
            return None
        return self._images.encoded(self._change.cameras[camera])


def _renamed(
    data: EpisodeSet, remap: Mapping[str, str | None], seen: Observation
) -> tuple[dict[str, str], list[str]]:
    """New camera name -> old one, and the cameras dropped on request."""
    known = data.cameras()
    others = [STATE] if seen.state is not None else []
    for key, new in remap.items():
        if key not in known and key not in others:
            raise DataError(
                f"--remap-keys names {key!r}, which {data.path} does not have",
                f"there is {', '.join(known + others) or 'nothing to rename'}",
            )
        if key in others and new not in (None, key):
            raise DataError(f"{key!r} cannot be called {new!r}", f"leave it, or give {key}:None")
        if new is not None and (not new or "/" in new or (new == STATE and key != STATE)):
            raise DataError(
                f"{new!r} is not a name for a camera", "choose another in --remap-keys"
            )
    names: dict[str, str] = {}
    for old in known:
        new = remap.get(old, old)
        if new is None:
            continue
        if new in names:
            raise DataError(
                f"cameras {names[new]!r} and {old!r} would both be called {new!r}",
                f"give --remap-keys {old}:OTHER, or {old}:None",
            )
        names[new] = old
    # Those that were named come first, in that order: "image" is what many trainers look for.
    order = [new for new in remap.values() if new in names]
    names = {new: names[new] for new in [*order, *(n for n in names if n not in order)]}
    return names, [key for key, new in remap.items() if new is None]


def _size(image: np.ndarray, config: ConvertConfig) -> tuple[int, int]:
    height, width = image.shape[:2]
    if config.width and config.height:
        return config.height, config.width
    if config.width:
        return max(1, round(height * config.width / width)), config.width
    if config.height:
        return config.height, max(1, round(width * config.height / height))
    return height, width
