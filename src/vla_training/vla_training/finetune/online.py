"""Trains on freshly generated episodes: the next round is generated while one is trained on.

Round r is a dataset of its own, made by `vla generate` with seed + r; training in round r draws
from all rounds up to it. What is seen at which step therefore follows from the seeds alone, and a
run that is resumed waits for, or finds, the same episodes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.system.interrupts import end_with_parent
from vla_training.finetune.config import Online
from vla_training.loader.frame_index import DatasetSource
from vla_training.loop.distributed import Place

PERIOD = 1.0  # seconds between two looks at what is being made


class OnlineRounds:
    """Generates rounds in `folder`, one ahead of training."""

    def __init__(self, online: Online, folder: Path, place: Place, rounds: int):
        self.online, self.folder, self.place, self.rounds = online, folder, place, rounds
        self._making: dict[Path, subprocess.Popen] = {}

    def paths(self, number: int) -> list[Path]:
        folder = self.folder / f"round-{number:05d}"
        return [folder / task / "demo.hdf5" for task in self.online.tasks]

    def sources(self, number: int, given: Sequence[DatasetSource] = ()) -> list[DatasetSource]:
        """The given datasets and those of rounds 0 to `number`; waits for missing ones."""
        for r in range(number + 1):
            for path in self.paths(r):
                self._wait(path, r)
        if number + 1 < self.rounds:
            for path in self.paths(number + 1):
                self._begin(path, number + 1)
        made = [[DatasetSource(str(p)) for p in self.paths(r)] for r in range(number + 1)]
        older = [*given, *(source for r in made[:-1] for source in r)]
        return self.online.mixed(older, made[-1])

    def _begin(self, path: Path, number: int) -> None:
        if not self.place.first or path.exists() or path in self._making:
            return
        o, output = self.online, path.parent
        output.parent.mkdir(parents=True, exist_ok=True)
        words = [
            sys.executable,
            "-m",
            "vla_inference.cli.main",
            "generate",
            "--tasks",
            output.name,
            "--episodes",
            str(o.episodes),
            "--seed",
            str(o.seed + number),
            "--output",
            str(output),
            "--parallel",
            str(o.parallel),
        ]
        if o.ray_address:
            words += ["--ray-address", o.ray_address]
        with output.with_suffix(".log").open("ab") as log:
            self._making[path] = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent
            )

    def _wait(self, path: Path, number: int) -> None:
        """All processes wait together: none may leave the others at a barrier for long."""
        self._begin(path, number)
        while True:
            missing, failed = not path.exists(), 0.0
            process = self._making.get(path)
            if missing and process is not None and process.poll() is not None:
                failed = float(not path.exists())
            if self.place.agree(failed) > 0:
                text = path.parent.with_suffix(".log")
                last = text.read_text().strip().splitlines()[-1:] if text.exists() else []
                raise VlaError(
                    f"round {number} of {path.parent.name} was not made ({' '.join(last)})",
                    f"see {text}; --resume continues",
                )
            if self.place.agree(float(missing)) == 0:
                self._making.pop(path, None)
                return
            time.sleep(PERIOD)

    def close(self) -> None:
        for process in self._making.values():
            process.terminate()
        for process in self._making.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
