"""`vla data browse`: answers questions about one dataset, which stays open, as lines of JSON.

A program that shows datasets writes requests to stdin, `{"do": "episode", "index": 3}`, and reads
one answer for each from stdout: its fields, or `{"error": ...}`. While it works on one, lines
`{"progress": [done, of]}` may come first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from vla_inference.cli.output import plain
from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions, Policy
from vla_training.datasets.base import EpisodeSet
from vla_training.datasets.hdf5.edit import (
    delete_episode,
    deleted_episodes,
    episode_name,
    restore_episode,
    tag_episode,
)
from vla_training.evaluation.dataset_view import get_episode, plain_episode

Tell = Callable[[Mapping[str, Any]], None]


class Browser:
    """open_set: opens the dataset; again after each change. tell: writes a line."""

    def __init__(self, path: Path, open_set: Callable[[], EpisodeSet], tell: Tell):
        self._path, self._open, self._tell = path, open_set, tell
        self._data: EpisodeSet | None = open_set()
        self._policy: tuple[str, Policy] | None = None  # the model that answered last
        self._known = {
            "episode": self._episode,
            "compare": self._compare,
            "delete": self._delete,
            "restore": self._restore,
            "tag": self._tag,
        }

    def answer(self, line: str) -> dict[str, Any]:
        """The answer to one request."""
        try:
            asked = json.loads(line)
            act = self._known[asked["do"]]
        except (ValueError, KeyError, TypeError):
            return {"error": f"no request; use do: {', '.join(self._known)}"}
        try:
            return act(asked)
        except VlaError as error:
            return {"error": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            return {"error": f"{asked['do']}: {type(error).__name__}: {error}"}

    @property
    def data(self) -> EpisodeSet:
        if self._data is None:
            self._data = self._open()
        return self._data

    def _episode(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        index = int(asked["index"])
        found = plain_episode(self.data, index)
        tags = str(get_episode(self.data, index).metadata.get("tags", ""))
        return {**found, "tags": tags, **self._editing(index)}

    def _editing(self, index: int) -> dict[str, Any]:
        """What editing needs to know; nothing, where the dataset cannot be edited."""
        try:
            return {
                "name": episode_name(self._path, index),
                "deleted": deleted_episodes(self._path),
            }
        except VlaError:
            return {"name": "", "deleted": []}

    def _compare(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        from vla_inference.policies.registry import load_policy
        from vla_training.evaluation.episode_comparison import compare_episode

        model = str(asked["model"])
        if self._policy is None or self._policy[0] != model:
            self._policy = None  # two models may not fit into the memory
            self._policy = model, load_policy(model, LoadOptions())
        return compare_episode(
            self._policy[1],
            self.data,
            int(asked["index"]),
            lambda frame: self._tell({"progress": [frame.number, frame.total]}),
        )

    def _delete(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._data = None
        return {"name": delete_episode(self._path, int(asked["index"]), str(asked["name"]))}

    def _restore(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._data = None
        return {"name": restore_episode(self._path)}

    def _tag(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._data = None
        tags = [str(tag) for tag in asked["tags"]]
        name = tag_episode(self._path, int(asked["index"]), tags, str(asked["name"]))
        return {"name": name, "tags": ", ".join(tags)}


def browse(
    path: Path, open_set: Callable[[], EpisodeSet], asked: IO[str], answers: IO[str]
) -> None:
    """Answers until `asked` ends. Raises DataError where the dataset cannot be opened."""

    def tell(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(plain(value)) + "\n")
        answers.flush()

    browser = Browser(path, open_set, tell)
    for line in asked:
        tell(browser.answer(line))
