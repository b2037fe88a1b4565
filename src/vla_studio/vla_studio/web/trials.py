"""AutoPrompt: one instruction after the other, an episode each, with successes counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Count:
    trials: int = 0
    successes: int = 0


@dataclass
class Trials:
    """ask: gives the model an instruction. ended: called when all trials are over.

    An episode ends when the simulation says so or, without one, with the operator's verdict.
    """

    ask: Callable[[str], None]
    ended: Callable[[], None]
    wanted: int = 0  # trials, 0: none are under way
    _instructions: tuple[str, ...] = ()
    _counts: dict[str, Count] = field(default_factory=dict)
    _done: int = 0
    _over: Any = None  # the episode that ended last
    _simulated: bool = False

    def start(self, instructions: Sequence[str], wanted: int) -> None:
        """instructions: asked in turn; none: each episode has its own."""
        self._instructions, self.wanted, self._done = tuple(instructions), wanted, 0
        self._counts = {text: Count() for text in instructions}
        if self.asked:
            self.ask(self.asked)

    def stop(self) -> None:
        self.wanted = 0

    @property
    def asked(self) -> str:
        """The instruction of the trial under way; empty: the episode's own, or none."""
        if not self.wanted or not self._instructions:
            return ""
        return self._instructions[self._done % len(self._instructions)]

    def heard(self, instruction: str) -> None:
        """The instruction in force: a simulation gives its own when an episode begins."""
        if self.asked and instruction != self.asked:
            self.ask(self.asked)

    def episode(self, status: Mapping[str, Any], instruction: str) -> None:
        """An EpisodeStatus. instruction: what is in force."""
        self._simulated = True
        this = (status.get("seed"), status.get("index")) if status.get("done") else None
        if this and this != self._over and status.get("outcome") != "aborted":
            self._count(bool(status.get("success")), instruction)
        self._over = this

    def verdict(self, verdict: str, instruction: str) -> None:
        """The operator's, which ends an episode where no simulation does."""
        if not self._simulated and verdict in ("success", "failure"):
            self._count(verdict == "success", instruction)

    def _count(self, success: bool, instruction: str) -> None:
        if not self.wanted:
            return
        count = self._counts.setdefault(self.asked or instruction, Count())
        count.trials += 1
        count.successes += success
        self._done += 1
        if self._done >= self.wanted:
            self.wanted = 0
            self.ended()
        elif self.asked:
            self.ask(self.asked)

    def state(self) -> dict[str, Any]:
        """For the pages."""
        rows = [
            {"instruction": text, "trials": count.trials, "successes": count.successes}
            for text, count in self._counts.items()
        ]
        return {
            "running": self.wanted > 0,
            "wanted": self.wanted,
            "done": self._done,
            "rows": rows,
        }
