"""The rounds: collect episodes, train on them, judge the new version, keep the better one.

Every step leaves its result on disk, whole or not at all, and begins by looking whether it is
there. So a run that was killed at any moment goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from vla_inference.errors import VlaError
from vla_inference.system.files import only_one, write_whole
from vla_sim_bridge.evaluation.compare import compare
from vla_sim_bridge.evaluation.episode import EpisodeResult
from vla_sim_bridge.evaluation.rollout import summarise
from vla_training.improve.versions import Version, Versions

ABOUT = "improve.json"


class Work(Protocol):
    """The long parts of a round. Each may be called again after it was killed."""

    def collect(self, number: int, version: Version, output: Path) -> dict[str, Any]:
        """Makes the episodes of a round in `output`, with a version in charge; returns what is to
        be told of them."""

    def train(
        self, number: int, version: Version, episodes: Sequence[Path], output: Path
    ) -> dict[str, Any]:
        """Trains a version further on the episodes of all rounds up to this one; `output`, the
        new checkpoint, appears whole at the end. Returns what is to be told of it."""

    def play(
        self, checkpoint: Path, indices: Sequence[int], note: Callable[[EpisodeResult], None]
    ) -> None:
        """Plays these of the judging episodes, and notes each one as it ends."""

    def load(self, version: Version) -> None:
        """Has the running node, if there is one, use a version."""


class Improvement:
    """Rounds in a folder. identity: what must be as it was for them to go on, as JSON.

    judged_by: how many episodes judge a version; say: told what happens.
    """

    def __init__(
        self,
        folder: Path,
        work: Work,
        identity: dict[str, Any],
        judged_by: int,
        say: Callable[[str], None] = lambda _: None,
    ):
        self.folder, self.work, self.say = folder, work, say
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.judged_by = judged_by
        self.versions = Versions(folder)

    def run(self, model: Path, rounds: int) -> Version:
        """Goes on up to round `rounds`; returns the version to use."""
        with only_one(self.folder, "vla improve"):
            self._claim()
            if self.versions.get(0) is None:
                self._judge(0, model, None, {"checkpoint": str(model)})
            for number in range(1, rounds + 1):
                if self.versions.get(number) is None:
                    self._round(number)
            self.versions.point()
            self.work.load(self.versions.current())
            return self.versions.current()

    def _claim(self) -> None:
        """Refuses to go on with what was begun otherwise."""
        path = self.folder / ABOUT
        if not path.exists():
            write_whole(path, json.dumps(self.identity, indent=2))
            return
        before = json.loads(path.read_text())
        for key in {**self.identity, **before}:
            if before.get(key) != self.identity.get(key):
                raise VlaError(
                    f"{self.folder} was begun with {key} {before.get(key)!r}, "
                    f"not {self.identity.get(key)!r}",
                    "give the same options to go on, or choose another --output",
                )

    def _episodes(self, number: int) -> Path:
        return self.folder / "episodes" / f"{number:04d}"

    def _round(self, number: int) -> None:
        before = self.versions.current()
        self.say(f"round {number}: episodes, with version {before.number}")
        collected = self.work.collect(number, before, self._episodes(number))
        self.say(f"round {number}: training")
        episodes = [self._episodes(n) for n in range(1, number + 1)]
        output = self.versions.place(number) / "checkpoint"
        trained = self.work.train(number, before, episodes, output)
        about = {"checkpoint": output.name, "collected": collected, "trained": trained}
        version = self._judge(number, output, before, about)
        if version.kept:
            try:
                self.work.load(version)
            except VlaError as error:  # the rounds go on; at their end it counts
                self.say(str(error))

    def _judge(
        self, number: int, checkpoint: Path, before: Version | None, about: dict[str, Any]
    ) -> Version:
        """Plays the judging episodes, and keeps the version where it won more of them than the
        one it is to replace."""
        played = self.versions.played(number)
        missing = [i for i in range(self.judged_by) if i not in played]
        self.say(f"version {number}: {len(missing)} episodes to judge it")
        if missing:
            self.work.play(checkpoint, missing, lambda r: self.versions.note(number, r))
        judged = self._results(number)
        kept = before is None or judged["successes"] > before.successes
        figures = {
            "version": number,
            "from": None if before is None else before.number,
            "kept": kept,
            **about,
            "judged": {k: v for k, v in judged.items() if k != "per_episode"},
        }
        if before is not None:
            figures["compared"] = self._compared(before.number, judged)
        version = self.versions.add(number, figures)
        rate = f"{judged['successes']} of {judged['episodes']}"
        self.say(f"version {number}: {rate}, {'kept' if kept else 'not better, left aside'}")
        return version

    def _results(self, number: int) -> dict[str, Any]:
        """Counts of a version's episodes, and each of them, as results.json has them."""
        found = self.versions.played(number)
        if missing := [i for i in range(self.judged_by) if i not in found]:
            raise VlaError(
                f"episode {missing[0]} of version {number} was not played",
                "give the command again",
            )
        results = [found[i] for i in range(self.judged_by)]
        episodes = [
            {"seed": r.seed, "index": r.index, "instruction": r.instruction, "outcome": r.outcome}
            for r in results
        ]
        return {**summarise(results), "language": "train", "per_episode": episodes}

    def _compared(self, before: int, judged: dict[str, Any]) -> dict[str, Any]:
        """The paired comparison with the version before."""
        found = compare(self._results(before), judged)
        return {
            "better": found.better,
            "worse": found.worse,
            "difference_95": list(found.interval),
            "p_value": found.p_value,
        }
