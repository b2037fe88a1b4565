"""The versions of a model on disk, with their figures.

versions/0000/figures.json     where it began: the checkpoint that was given
versions/0001/checkpoint/      the model after round 1
versions/0001/played.jsonl     the episodes that judged it, a line each as it ended
versions/0001/figures.json     its figures, and whether it was kept; written last of all
current -> versions/0001       the newest that was kept

A version exists once its figures do: what a killed round left is taken up by the next call.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vla_inference.errors import DataError
from vla_inference.system.files import write_whole
from vla_sim_bridge.evaluation.episode import EpisodeResult

FIGURES, PLAYED, CURRENT = "figures.json", "played.jsonl", "current"


@dataclass(frozen=True)
class Version:
    """A model and its figures. kept: whether it was better than the one before it."""

    number: int
    checkpoint: Path
    kept: bool
    figures: dict[str, Any]

    @property
    def successes(self) -> int:
        return int(self.figures["judged"]["successes"])


class Versions:
    """All versions in a folder, by number."""

    def __init__(self, folder: Path):
        self.folder = folder

    def place(self, number: int) -> Path:
        return self.folder / "versions" / f"{number:04d}"

    def get(self, number: int) -> Version | None:
        """A version whose figures are there."""
        path = self.place(number) / FIGURES
        if not path.is_file():
            return None
        try:
            figures = json.loads(path.read_text())
            checkpoint = self.place(number) / figures["checkpoint"]
            return Version(number, checkpoint, bool(figures["kept"]), figures)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} has no figures ({error})", "restore it, or remove that version's folder"
            ) from error

    def __iter__(self) -> Iterator[Version]:
        number = 0
        while (version := self.get(number)) is not None:
            yield version
            number += 1

    def current(self) -> Version:
        """The newest that was kept."""
        return [version for version in self if version.kept][-1]

    def add(self, number: int, figures: dict[str, Any]) -> Version:
        """Makes a version of what is in its place, with its checkpoint's path in the figures."""
        write_whole(self.place(number) / FIGURES, json.dumps(figures, indent=2))
        version = self.get(number)
        assert version is not None  # just written
        self.point()
        return version

    def point(self) -> None:
        """Has `current` lead to the newest that was kept; at any moment it leads somewhere."""
        link, target = self.folder / CURRENT, Path("versions") / f"{self.current().number:04d}"
        if link.is_symlink() and Path(os.readlink(link)) == target:
            return
        aside = link.with_name(f".{CURRENT}.{os.getpid()}")
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        os.replace(aside, link)

    # -- the episodes that judge a version ----------------------------------------------------

    def played(self, number: int) -> dict[int, EpisodeResult]:
        """Results by index, without a last line that was cut short."""
        path = self.place(number) / PLAYED
        found: dict[int, EpisodeResult] = {}
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                result = EpisodeResult(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[result.index] = result
        return found

    def note(self, number: int, result: EpisodeResult) -> None:
        path = self.place(number) / PLAYED
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            end = file.tell()
            file.seek(max(0, end - 1))
            cut = end and file.read(1) != b"\n"  # a line of a call that was killed
            file.write((b"\n" if cut else b"") + json.dumps(asdict(result)).encode() + b"\n")
