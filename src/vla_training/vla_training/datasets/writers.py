"""The dataset writer interface and the registry of writers.

A writer is opened with what all episodes have in common (`DataForm`), takes one episode after the
other, and shows its result under the asked name only when all of it is there: until then it
stands beside it under a hidden name, which goes away with any error.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from vla_inference.errors import DataError
from vla_inference.options import check_options
from vla_inference.system.files import Staged, being_written
from vla_inference.types import ActionSpec, Episode
from vla_training.datasets.base import READERS


@dataclass(frozen=True)
class DataForm:
    """What all episodes of a dataset share, known before the first one is written.

    cameras: name -> (height, width) in pixels; all images of a camera have one size.
    state: how many numbers of proprioception a step has; 0 where there is none.
    period: seconds from one frame to the next; None: as long as an action lasts.
    carried: which of `base.CARRIED` its episodes have.
    """

    name: str
    spec: ActionSpec
    cameras: Mapping[str, tuple[int, int]]
    state: int = 0
    period: float | None = None
    carried: frozenset[str] = frozenset()

    @property
    def spacing(self) -> float:
        """Seconds from one frame to the next."""
        return self.period or self.spec.dt


class EpisodeWriter(ABC):
    """Base of all writers; use it as a context manager.

    A subclass creates `self.partial` (a file or a folder) in `begin`, writes to it in `add`, and
    what can only be known at the end in `finish`. Where encoding costs time it overrides
    `encoder`, so that other processes can share the work.
    Options: the dataclass of what a format's writer takes beside path, form and overwrite.
    columns: names in `Episode.columns` that it stores as well.
    """

    Options: ClassVar[type]
    columns: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, path: str | os.PathLike, form: DataForm, overwrite: bool = False, **options: Any
    ):
        self.path, self.form, self.overwrite = Path(path), form, overwrite
        self.options = self.Options(**options)
        check_options(self.options, called=str, error=DataError)
        self.notes: list[str] = []  # what was changed or left out in writing, for people
        self.count = 0  # episodes written
        apart, lasts = form.spacing, form.spec.dt
        if abs(apart - lasts) > 1e-9:
            self.notes.append(
                f"frames are {apart:g} s apart, the action of each is for {lasts:g} s"
            )
        check_target(self.path, overwrite)
        try:
            with self.mishaps():
                self.begin()
        except BaseException:
            self.abort()
            raise

    @abstractmethod
    def begin(self) -> None:
        """Checks the form, and creates `partial`."""

    @cached_property
    def _staged(self) -> Staged:
        """The path while writing; created at first use."""
        with self.mishaps():
            staged = Staged(self.path)
        others = [p for p in being_written(self.path) if p != staged.staged.parent]
        if others:
            staged.discard()
            raise DataError(
                f"another process writes {self.path} ({others[0].name})",
                "wait for it, or choose another output",
            )
        return staged

    @property
    def partial(self) -> Path:
        return self._staged.staged

    def encoder(self) -> Callable[[Episode], Any]:
        """The function from an episode to what `add` takes; it and its results can be pickled."""
        return _as_it_is

    @abstractmethod
    def add(self, encoded: Any) -> None:
        """Writes the next episode, encoded by `encoder`."""

    def finish(self) -> None:  # noqa: B027  nothing to do is a fair answer
        """Writes what follows the last episode and closes all files."""

    def release(self) -> None:  # noqa: B027
        """Closes all files, also after an error."""

    def put(self, encoded: Any) -> None:
        """`add`, counted, with disk errors as DataError."""
        with self.mishaps():
            self.add(encoded)
        self.count += 1

    def write(self, episode: Episode) -> None:
        self.put(self.encoder()(episode))

    def close(self) -> None:
        """Finishes, and gives the dataset its name."""
        if not self.count:
            self.abort()
            raise DataError(f"no episode was written to {self.path}", "check the source")
        try:
            with self.mishaps():
                self.finish()
                self.release()
                check_target(self.path, self.overwrite)  # another process may have been faster
                self._staged.commit()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Removes everything written."""
        with contextlib.suppress(Exception):  # what broke may not close; it is removed anyway
            self.release()
        if "_staged" in vars(self):
            self._staged.discard()

    @contextlib.contextmanager
    def mishaps(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written ({_reason(error)})",
                "make room or choose another place; nothing half-written is left",
            ) from error

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _reason(error: OSError) -> str:
    """A short reason; HDF5's messages fill a page."""
    told = re.search(r"error message = '([^']+)'", str(error))
    return told[1] if told else error.strerror or str(error)


def _as_it_is(episode: Episode) -> Episode:
    return episode


# -- the place --------------------------------------------------------------------------------


def check_target(path: Path, overwrite: bool) -> None:
    """Refuses to overwrite anything but a dataset, and that only on request."""
    if not path.name:
        raise DataError(f"{path} is not a name for a dataset", "name a file or folder")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise DataError(f"{path} exists", "choose another output, or give --overwrite")
    empty = path.is_dir() and not any(path.iterdir())
    if path.is_symlink() or not (empty or any(r.recognises(path) for r in READERS.values())):
        raise DataError(
            f"{path} is not a dataset, --overwrite replaces nothing else",
            "remove it yourself, or choose another output",
        )


# -- the writers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writer:
    """target: "module:Class", imported on first use."""

    kind: str
    target: str
    about: str = field(default="", compare=False)

    def load(self) -> type[EpisodeWriter]:
        module, cls = self.target.split(":")
        return getattr(importlib.import_module(module), cls)


WRITERS = {
    w.kind: w
    for w in (
        Writer("rlds", "vla_training.datasets.rlds.writer:RldsWriter", "RLDS/TFDS, tfrecord"),
        Writer("hdf5", "vla_training.datasets.hdf5.writer:Hdf5Writer", "robomimic's HDF5"),
        Writer("libero", "vla_training.datasets.hdf5.libero_writer:LiberoWriter", "LIBERO's HDF5"),
        Writer("lerobot", "vla_training.datasets.lerobot.writer:LerobotWriter", "LeRobot v3.0"),
        Writer("bag", "vla_training.datasets.bag.writer:BagWriter", "rosbag2, a bag an episode"),
    )
}


def get_writer(kind: str) -> type[EpisodeWriter]:
    if kind not in WRITERS:
        raise DataError(f"cannot write datasets of type {kind!r}", f"known: {', '.join(WRITERS)}")
    return WRITERS[kind].load()


def open_writer(
    path: str | os.PathLike, kind: str, form: DataForm, overwrite: bool = False, **options: Any
) -> EpisodeWriter:
    """Opens a dataset for writing, of a kind in `WRITERS`.

    options: what that writer takes; None counts as left out. Raises DataError.
    """
    cls = get_writer(kind)
    options = {k: v for k, v in options.items() if v is not None}
    known = [f.name for f in fields(cls.Options)]
    for name in options:
        if name not in known:
            raise DataError(
                f"a dataset of type {kind} takes no {name}", f"it takes {', '.join(known)}"
            )
    return cls(path, form, overwrite, **options)
