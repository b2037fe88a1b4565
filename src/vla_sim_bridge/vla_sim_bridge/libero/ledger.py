"""`Ledger`: the finished episodes of a run, a line each, so that a stopped run goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from vla_inference.errors import VlaError
from vla_sim_bridge.libero.episodes import Played, Setting

LINES = "episodes.jsonl"


class Ledger:
    """The lines of a results folder; the first one says what they were played with."""

    def __init__(self, folder: Path, setting: Setting):
        self.path = folder / LINES
        self.versions: dict[str, str] = {}
        self._first = {"setting": json.loads(json.dumps(asdict(setting)))}

    def read(self) -> dict[int, dict]:
        """Entries by episode. VlaError if the folder is of another run."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self._first) + "\n")
            return {}
        first, *rest = self.path.read_text().splitlines() or ["{}"]
        if json.loads(first) != self._first:
            raise VlaError(
                f"{self.path.parent} holds episodes of another run",
                "choose another output folder, or give the options of that run",
            )
        entries = []
        for line in rest:
            try:
                entries.append(json.loads(line))
            except ValueError:  # a line that was being written when its process was killed
                continue
        for entry in entries:
            self.versions = entry["versions"]
        return {entry["index"]: entry for entry in entries}

    def entry(self, played: Played) -> dict:
        self.versions = played.versions
        return {
            **asdict(played.result),
            "task_index": played.task,
            "state": played.state,
            "sentences": played.sentences,
            "seconds": round(played.seconds, 2),
            "latency_ms": [round(ms, 3) for ms in played.latency_ms],
            "steps_done": played.steps,
            "model": played.model,
            "versions": played.versions,
        }

    def add(self, played: Played) -> None:
        text = self.path.read_bytes()
        whole = "" if text.endswith(b"\n") else "\n"
        with self.path.open("a") as file:
            file.write(whole + json.dumps(self.entry(played)) + "\n")
