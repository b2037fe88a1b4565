"""The bookkeeping of an evaluation run: next episode, outcomes, measurements."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from vla_sim_bridge.envs.base import StepResult
from vla_sim_bridge.envs.protocol import World
from vla_sim_bridge.evaluation.episode import EpisodeResult, EpisodeRun
from vla_sim_bridge.evaluation.rollout import summarise


@dataclass
class Latencies:
    """Latencies of the model and of ROS, one value per accepted chunk; milliseconds."""

    latency: list[float] = field(default_factory=list)
    round_trip: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    model: str = ""

    def add(self, latency: float, round_trip: float | None, stages: dict[str, float], model: str):
        """round_trip: from a frame's publication to its chunk's arrival, if known."""
        self.latency.append(latency)
        self.round_trip.append(float("nan") if round_trip is None else round_trip)
        for name, value in stages.items():
            self.stages.setdefault(name, []).append(value)
        self.model = model or self.model

    @property
    def overhead(self) -> np.ndarray:
        """Time that ROS and the nodes add to the model's own, per frame."""
        return np.array(self.round_trip) - np.array(self.latency)


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float | int | None]:
    """Median, 95th percentile and count of the finite values; None if there are none."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return {"median": None, "p95": None, "count": 0}
    median, p95 = np.percentile(finite, [50, 95])
    return {"median": round(float(median), 3), "p95": round(float(p95), 3), "count": len(finite)}


class ClosedLoopEvaluation:
    """Runs episodes of a seed in one simulation, one action at a time.

    first, episodes: the index of the first one, and how many; only: the indices, where given.
    An episode that was ended from outside ("aborted") is listed but counts for nothing.
    """

    def __init__(
        self,
        sim: World,
        seed: int,
        episodes: int,
        horizon: int,
        first: int = 0,
        only: Sequence[int] = (),
    ):
        self.sim, self.seed, self.horizon = sim, seed, horizon
        self.episodes = len(only) or episodes
        self.only = tuple(only)
        self._indices: Iterator[int] = iter(self.only) if only else itertools.count(first)
        self.run: EpisodeRun | None = None
        self.results: list[EpisodeResult] = []
        self.seconds: list[float] = []
        self.measured = Latencies()
        self.action_steps = 0
        self.frames = 0
        self.on_step: Callable[[], None] = lambda: None
        self._begun = 0.0
        self._clock: float | None = None  # when the action rate began to count
        self._busy = 0.0  # seconds it has counted over
        self._recent: deque[tuple[float, int]] = deque(maxlen=64)

    # -- episodes -----------------------------------------------------------------------------

    @property
    def episode(self) -> EpisodeRun:
        """The one that is being played, or was played last."""
        if self.run is None:
            raise RuntimeError("no episode has begun")
        return self.run

    def begin(self, seed: int | None = None, instruction: str = "") -> EpisodeRun:
        """Starts the next episode, or one of another seed, optionally with another sentence."""
        if seed is None:
            seed, index = self.seed, next(self._indices)
        else:
            index = 0
        self.run = EpisodeRun(self.sim, seed, index, self.horizon)
        self.run.on_step = lambda: self.on_step()
        if instruction:
            self.sim.instruction = self.run.first_instruction = instruction
        self._begun = time.perf_counter()
        return self.run

    def step(self, action: np.ndarray, held: bool = False) -> bool:
        """Executes one action; returns whether the episode is over (and counted).

        held: it was nobody's, the robot just waited; such steps don't count for the rate.
        """
        return self.advance(lambda: self.sim.step(action), held)

    def advance(self, move: Callable[[], StepResult], held: bool = False) -> bool:
        """The same for any other way to move the robot for one control period."""
        done = self.episode.advance(move)
        if not held:
            self.action_steps += 1
            self._recent.append((time.perf_counter(), self.action_steps))
        if done:
            self._close()
        return done

    def abort(self) -> None:
        """Ends the current episode from outside."""
        if self.run is not None and not self.run.done:
            self.run.abort()
            self._close()
            if self.only and self.run.seed == self.seed:  # it is still to be played
                self._indices = itertools.chain([self.run.index], self._indices)

    def _close(self) -> None:
        self.results.append(self.episode.result())
        self.seconds.append(time.perf_counter() - self._begun)

    @property
    def counted(self) -> list[EpisodeResult]:
        return [r for r in self.results if r.outcome != "aborted"]

    @property
    def successes(self) -> int:
        return sum(r.success for r in self.counted)

    @property
    def ever_successes(self) -> int:
        return sum(r.ever_success for r in self.counted)

    @property
    def complete(self) -> bool:
        return len(self.counted) >= self.episodes

    # -- rates --------------------------------------------------------------------------------

    def resume_clock(self) -> None:
        """Restarts the clock of the action rate, after a pause or when a model starts to
        answer."""
        if self._clock is None:
            self._clock = time.perf_counter()

    def stop_clock(self) -> None:
        if self._clock is not None:
            self._busy += time.perf_counter() - self._clock
            self._clock = None

    @property
    def action_rate(self) -> float:
        """Action steps per second over the whole run."""
        running = time.perf_counter() - self._clock if self._clock is not None else 0.0
        seconds = self._busy + running
        return self.action_steps / seconds if seconds > 0 else 0.0

    @property
    def recent_rate(self) -> float:
        """Action steps per second over the last few dozen steps."""
        if len(self._recent) < 2:
            return 0.0
        (begin, first), (end, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    # -- what is written ----------------------------------------------------------------------

    def results_dict(self) -> dict:
        """All counts and measurements as plain JSON values."""
        episodes = []
        for result, seconds in zip(self.results, self.seconds, strict=True):
            kept = asdict(result)
            del kept["task"], kept["horizon"]
            episodes.append({**kept, "seconds": round(seconds, 2)})
        measured = self.measured
        return {
            **summarise(self.counted),
            "task": self.sim.task.name,
            "language": self.sim.language,
            "seed": self.seed,
            "horizon": self.horizon,
            "episodes_asked": self.episodes,
            "complete": self.complete,
            "model": measured.model,
            "latency_ms": spread(measured.latency),
            "stage_ms_median": {k: spread(v)["median"] for k, v in measured.stages.items()},
            "round_trip_ms": spread(measured.round_trip),
            "ros_overhead_ms": spread(measured.overhead),
            "action_steps": self.action_steps,
            "action_steps_per_s": round(self.action_rate, 2),
            "frames_published": self.frames,
            "per_episode": episodes,
        }
