"""Batches from weighted mixtures of datasets, decoded ahead by worker processes.

Which frame stands at which position, and how it is changed, follows from the seed and the position
alone: a run that is resumed, or spread over another number of devices, sees the same data.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vla_inference.errors import DataError, VlaError
from vla_inference.inputs.history import past_steps
from vla_inference.types import check_image
from vla_training.loader.augment import draw
from vla_training.loader.batch import Batch, pad
from vla_training.loader.frame_index import DatasetSource, FrameIndex
from vla_training.loader.sample_format import SampleFormat
from vla_training.loader.sampler import Sampler, rng


@dataclass
class Mixture:
    """Datasets with their indices, and the frames to draw from.

    spaces: of each, the name of the statistics its actions are normalised by.
    """

    sources: list[DatasetSource]
    indices: list[FrameIndex]
    frames: list[np.ndarray]
    spaces: list[str]
    statistics: dict[str, dict]

    def __len__(self) -> int:
        return sum(map(len, self.frames))

    @property
    def weights(self) -> list[float]:
        """Shares of the samples; datasets without a weight count by their frames."""
        given = [s.weight for s in self.sources]
        if all(w is None for w in given):
            pairs = zip(self.frames, self.frame_weights, strict=True)
            return [float(len(f) if w is None else w.sum()) for f, w in pairs]
        return [1.0 if w is None else w for w in given]

    @property
    def frame_weights(self) -> list[np.ndarray | None]:
        """Of the frames of each dataset; None where all count alike."""
        pairs = zip(self.indices, self.frames, strict=True)
        return [None if i.weights is None else i.weights[f] for i, f in pairs]


def mix(
    sources: Sequence[DatasetSource],
    indices: Sequence[FrameIndex],
    size: int,
    validation: float = 0.0,
    shared: str | None = None,
    statistics: Mapping[str, dict] | None = None,
) -> tuple[Mixture, Mixture]:
    """The training mixture and the held-out one.

    size: numbers of an action. validation: share of the episodes that is held out.
    shared: one action space of that name for all datasets, whose actions then have to mean the
        same; None gives each its own, as OpenVLA has it.
    statistics: those of `shared`, where they are not to be worked out of these datasets.
    """
    for index, source in zip(indices, sources, strict=True):
        if index.actions.shape[1] != size:
            raise DataError(
                f"the actions of {source.path} have {index.actions.shape[1]} dimensions, the "
                f"model's {size}",
                "convert the dataset, or fine-tune another model",
            )
    if shared is None:
        spaces, statistics = [], {}
        for index in indices:
            name = index.name
            while name in statistics:
                name += "_"
            statistics[name] = index.statistics
            spaces.append(name)
    else:
        spaces = [shared] * len(indices)
        statistics = dict(statistics or {shared: _joined(indices, shared)})
    held = [i.held_out(validation) for i in indices]
    parts = []
    for chosen in ([~h for h in held], held):
        frames = [np.flatnonzero(c & i.drawn) for c, i in zip(chosen, indices, strict=True)]
        keep = [i for i, f in enumerate(frames) if len(f)]
        parts.append(
            Mixture(
                [sources[i] for i in keep],
                [indices[i] for i in keep],
                [frames[i] for i in keep],
                [spaces[i] for i in keep],
                statistics,
            )
        )
    if len(parts[0].sources) != len(sources):
        raise DataError("a dataset has no frame left to train on", "generate more episodes")
    return parts[0], parts[1]


def _joined(indices: Sequence[FrameIndex], name: str) -> dict:
    from vla_training.datasets.base import action_statistics
    from vla_training.loader.frame_index import bounds

    if len({i.spec for i in indices}) > 1:
        raise DataError(
            "the datasets' actions don't mean the same", "give each its own action space"
        )
    spec = indices[0].spec
    assert spec is not None  # every dataset has one
    joined = action_statistics([i.actions for i in indices], spec, name)
    states = [i.states for i in indices if i.states is not None]
    if states:
        joined["proprio"] = bounds(np.concatenate(states))
    joined["num_trajectories"] = sum(len(i.ends) for i in indices)
    return joined


class Samples(torch.utils.data.Dataset):
    """Samples by position, for a worker process, which opens the datasets."""

    def __init__(self, mixture: Mixture, form: SampleFormat, seed: int, augmented: bool):
        self.mixture, self.form, self.seed, self.augmented = mixture, form, seed, augmented
        self.order: Sampler | None = None

    def check(self) -> None:
        """Reads one frame, to find errors that affect all of them before training."""
        sample = self[0]
        if isinstance(sample, VlaError):
            raise sample

    def _open(self) -> None:
        from vla_training.loader.frame_reader import FrameReader

        m = self.mixture
        form = self.form
        opened = [s.open() for s in m.sources]
        self.readers = [
            FrameReader(data, s.cameras, form.cameras, form.takes_instruction)
            for data, s in zip(opened, m.sources, strict=True)
        ]
        self.strides = [d.past_stride(form.interval) if form.history else 1 for d in opened]
        sizes = [len(f) for f in m.frames]
        self.order = Sampler(sizes, m.weights, self.seed, m.frame_weights)

    def _opened(self) -> Sampler:
        """Each worker opens the datasets for itself, when it is asked for the first sample."""
        if self.order is None:
            self._open()
        assert self.order is not None
        return self.order

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in OPENED} | {"order": None}

    def __getitem__(self, position: int) -> dict | VlaError:
        try:
            return self._sample(position)
        except VlaError as error:  # raised by the training process, as it was meant
            return error

    def _sample(self, position: int) -> dict:
        source, number = self._opened()(position)
        sample = self.sample_of(source, int(self.mixture.frames[source][number]))
        if self.augmented:
            sample["numbers"] = draw(rng(self.seed, 3, position))
        return sample | self.form.draw(rng(self.seed, 4, position))

    def sample_of(self, source: int, frame: int) -> dict:
        """A frame by dataset and number, without anything drawn at random."""
        self._opened()
        index, form, space = self.mixture.indices[source], self.form, self.mixture.spaces[source]
        episode, step = index.locate(frame)
        reader = self.readers[source]
        images, instruction = reader.read(episode, step)
        for before in past_steps(step, form.history, self.strides[source]):
            images = images + reader.read(episode, before)[0]
        future = frame + np.arange(form.chunk)
        inside = future < index.limits[frame]
        actions = index.actions[np.where(inside, future, frame)]
        state = None
        if form.takes_state:
            assert index.states is not None  # `index_frames` was asked for them
            state = form.state(index.states[frame], space)
        sample = {
            "images": np.stack([form.image(check_image(p)) for p in images]),
            "ids": form.prompt(instruction, state),
            "targets": form.actions(actions, space),
            "inside": inside,
            "source": source,
        }
        return sample if state is None else {**sample, "proprio": state}


OPENED = ("order", "readers", "strides")


def collate(samples: Sequence[dict | VlaError]) -> Batch | VlaError:
    good: list[dict] = []
    for sample in samples:
        if isinstance(sample, VlaError):
            return sample
        good.append(sample)

    def stacked(key: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(s[key]) for s in good]))

    def perhaps(key: str) -> torch.Tensor | None:
        return stacked(key) if key in good[0] else None

    ids, lengths = pad([s["ids"] for s in good])
    return Batch(
        stacked("images"),
        ids,
        stacked("targets"),
        stacked("inside"),
        None if bool((lengths == ids.shape[1]).all()) else lengths,
        perhaps("numbers"),
        perhaps("proprio"),
        perhaps("source"),
        noise=perhaps("noise"),
        time=perhaps("time"),
        seed=perhaps("seed"),
    )


def _leave_signals(_: int) -> None:
    """Ignores signals to the process group, so that reading does not end before the run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batches(
    samples: Samples,
    begin: int,
    end: int,
    batch: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
) -> Iterator[Batch]:
    """This process's part of the global batches `begin` to `end`.

    batch: samples per process. Global batch k holds the positions from k * batch * world on.
    """
    share: Any = [
        range((k * world + rank) * batch, (k * world + rank + 1) * batch)
        for k in range(begin, end)
    ]
    options: dict[str, Any] = {}
    if workers:
        # Fresh processes: those that run the training hold threads, files and a GPU.
        options = {"multiprocessing_context": "forkserver", "prefetch_factor": 4}
        options["worker_init_fn"] = _leave_signals
    loader = torch.utils.data.DataLoader(
        samples,
        batch_sampler=share,
        num_workers=min(workers, len(os.sched_getaffinity(0))),
        collate_fn=collate,
        pin_memory=pin,
        **options,
    )
    for made in loader:
        if isinstance(made, VlaError):
            raise made
        yield made
