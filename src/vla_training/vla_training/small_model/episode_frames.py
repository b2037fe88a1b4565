"""Loads training frames from datasets of any format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vla_inference.errors import DataError
from vla_inference.openvla.preprocessing import resize
from vla_inference.types import Step
from vla_training.datasets import EpisodeSet, open_dataset
from vla_training.datasets.hdf5.reader import Hdf5Set
from vla_training.loader.sample_weights import SampleWeights, chunk_limits
from vla_training.small_model.frames import (
    AS_USUAL,
    WORDINGS,
    TrainingFrames,
    load_frames,
    weight_of,
)
from vla_training.small_model.reset_images import is_reset_images


def frames_from_paths(
    paths: Sequence[str | Path],
    size: int,
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
    wordings: int = WORDINGS,
    cameras: Sequence[str] = (),
    states: bool = False,
    weights: SampleWeights = AS_USUAL,
    reasoning: bool = False,
) -> TrainingFrames:
    """All frames of some datasets, with images of size x size.

    cameras: agentview, or the first of each dataset, if left out. states: whether the robot's are
    kept.

    HDF5 files of that size in robosuite's own form are taken as they are, with what their
    simulator knew; reset images go only with these.
    wordings: sentences drawn for a recorded scene, see `load_frames`.
    """
    reset_images = [p for p in paths if is_reset_images(p)]
    sets = [open_dataset(p) for p in paths if p not in reset_images]
    if all(isinstance(s, Hdf5Set) and s.plain and _image_size(s) == (size, size) for s in sets):
        return load_frames(
            [s.path for s in sets] + reset_images,
            cameras or ("agentview",),
            device,
            report,
            wordings,
            states,
            weights,
            reasoning,
        )
    if reasoning:
        raise DataError(
            "what a model is to think is made from the simulator's poses",
            f"give only datasets of `vla generate` of {size} x {size}",
        )
    if reset_images:
        raise DataError(
            f"{reset_images[0]} has reset images, which go with episodes of `vla generate`",
            f"leave it out, or give such episodes with images of {size} x {size}",
        )
    if any(isinstance(s, Hdf5Set) and s.plain for s in sets):
        report(
            "trained on images and actions alone, without the simulator's poses and further "
            f"sentences: for these, give only datasets of `vla generate` of {size} x {size}"
        )
    return frames_from_episodes(sets, cameras, size, device, report, weights, states)


def _image_size(data: Hdf5Set) -> tuple[int, ...] | None:
    images = data.episodes.group(0).get("obs/agentview_image")
    return None if images is None else images.shape[1:3]


def frames_from_episodes(
    sets: Sequence[EpisodeSet],
    cameras: Sequence[str] = (),
    size: int | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = lambda _: None,
    weights: SampleWeights = AS_USUAL,
    states: bool = False,
) -> TrainingFrames:
    """Read all episodes into memory.

    cameras: the first of each dataset if left out. states: whether to keep the robot's.
    size: images are squashed to size x size, as inference does it with resize-naive; None keeps
        those of the first image, which all must have then.
    """
    specs = {s.name: s.spec for s in sets}
    if len(set(specs.values())) > 1:
        raise DataError(
            f"the actions of {', '.join(specs)} don't mean the same",
            "train on datasets of one convention",
        )
    images: list[np.ndarray] = []
    actions: list[np.ndarray] = []
    text: list[int] = []
    lengths: list[int] = []
    acted: list[np.ndarray] = []
    ends: list[int] = []
    sentences: dict[str, int] = {}
    robot: list[np.ndarray] = []
    for data in sets:
        names = cameras or data.cameras()[:1] or ("image",)
        for name in names:
            if name not in data.cameras():
                raise data.lacks(name)
        for number, episode in enumerate(data):
            if not len(episode):
                continue
            if not np.isfinite(episode.actions).all():
                raise DataError(f"{data.path}: episode {number} has actions that are not finite")
            for step in episode.steps:
                seen = [_sized(step.observation.images[name], size) for name in names]
                first = images[0][0].shape if images else seen[0].shape
                for image in seen:
                    if image.shape != first:
                        raise DataError(
                            f"{data.path}: an image of episode {number} is {image.shape[:2]}, "
                            f"the first was {first[:2]}",
                            "name a size",
                        )
                images.append(np.stack(seen))
                if states:
                    robot.append(_state(data, number, step, robot))
                sentence = step.observation.instruction
                if not sentence.strip():
                    raise DataError(
                        f"{data.path}: a step of episode {number} has no instruction",
                        "leave that dataset out, or convert it with --instruction",
                    )
                text.append(sentences.setdefault(sentence, len(sentences)))
            actions.append(episode.actions)
            lengths.append(len(episode))
            person = data.interventions(number)
            acted.append(np.zeros(len(episode), bool) if person is None else person)
        ends.append(len(images))
        report(f"{data.path}: {len(data)} episodes, {len(images)} frames so far")
    if not images:
        raise DataError("the datasets hold no frame", "check how they were made")
    shown = torch.from_numpy(np.stack(images))
    shown = shown[:, 0] if shown.shape[1] == 1 else shown
    counts = torch.tensor(lengths)
    last = np.cumsum(lengths)
    each = weights.of_steps(np.concatenate(acted), last, sets[0].spec.dt)
    return TrainingFrames(
        shown.to(device),
        torch.from_numpy(np.concatenate(actions)),
        torch.tensor(text),
        torch.from_numpy(chunk_limits(each, last)),
        torch.arange(len(counts)).repeat_interleave(counts),
        list(sentences),
        None,
        sets[0].name if len(sets) == 1 else "mixture",
        sets[0].spec,
        states=torch.from_numpy(np.stack(robot)) if states else None,
        weight=weight_of(each, ends, weights.dataset_weights),
    )


def _state(data: EpisodeSet, number: int, step: Step, before: Sequence[np.ndarray]) -> np.ndarray:
    """A step's state, float32 [P], as long as those before."""
    state = step.observation.state
    size = len(before[0]) if before else 1 if state is None else len(state)
    if state is None or len(state) != size or not np.isfinite(state).all():
        what = "none" if state is None else f"{len(state)} numbers, finite or not"
        raise DataError(
            f"{data.path}: a step of episode {number} has a state of {what}, of {size} it should",
            "train without --state, or on datasets of one robot",
        )
    return np.asarray(state, np.float32)


def _sized(image: np.ndarray, size: int | None) -> np.ndarray:
    if size is None or image.shape[:2] == (size, size):
        return image
    return np.asarray(resize(Image.fromarray(image), (size, size)))
