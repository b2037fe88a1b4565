"""results.json of a run on LIBERO: as for other tasks, and the counts of each task."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vla_sim_bridge.evaluation import report
from vla_sim_bridge.evaluation.episode import EpisodeResult
from vla_sim_bridge.evaluation.rollout import summarise
from vla_sim_bridge.evaluation.run import spread
from vla_sim_bridge.libero.episodes import Setting
from vla_sim_bridge.tasks.libero_suites import split_name


@dataclass(frozen=True)
class Work:
    """Episodes to play, and where.

    indices: of the episodes, in the benchmark's order. parallel: workers. ray: address of a
    cluster, or empty. films: episodes from the first that are filmed. failures: failed ones that
    are kept as films of what the model saw.
    """

    indices: Sequence[int]
    folder: Path
    parallel: int = 1
    ray: str = ""
    films: int = 3
    failures: int = 0

    @property
    def first(self) -> int:
        """That of a run without gaps; 0 for others."""
        return min(self.indices) if self.whole else 0

    @property
    def whole(self) -> bool:
        """Whether no index is left out in between."""
        low = min(self.indices)
        return sorted(self.indices) == list(range(low, low + len(self.indices)))


def gather(setting: Setting, work: Work, entries: list[dict], versions: dict, seconds: float):
    """results.json: as for other tasks, and the counts of each task of the suite."""
    results = [_result(entry) for entry in entries]
    suite, _ = split_name(setting.task)
    by_task: dict[int, list[dict]] = {}
    for entry in entries:
        by_task.setdefault(entry["task_index"], []).append(entry)
    steps = sum(entry["steps_done"] for entry in entries)
    counts = {
        **summarise(results),
        "wrong_object": sum(r.outcome == "wrong_object" for r in results),
        "task": setting.task,
        "language": "train",
        "seed": setting.seed,
        "horizon": setting.horizon,
        "episodes_asked": len(work.indices),
        "first_episode": work.first,
        "only_episodes": [] if work.whole else list(work.indices),
        "complete": len(entries) == len(work.indices),
        "ended": "all episodes done",
        "model": entries[0]["model"] if entries else "",
        "latency_ms": spread([ms for entry in entries for ms in entry["latency_ms"]]),
        "stage_ms_median": {},
        "round_trip_ms": spread([]),
        "ros_overhead_ms": spread([]),
        "action_steps": steps,
        "action_steps_per_s": round(steps / max(1e-9, sum(e["seconds"] for e in entries)), 2),
        "seconds": round(seconds, 1),
        "started": f"{datetime.now():%Y-%m-%d %H:%M}",
        "lock_step": True,
        "execute_steps": setting.execute,
        "checkpoint": setting.model,
        "image": {"camera": "agentview", "width": setting.width, "height": setting.height},
        "observation_map": setting.observation_map,
        "sentence_from": "BDDL file" if suite.perturbed else "task name",
        "versions": {**report.versions(), **versions},
    }
    counts["tasks"] = [task_counts(task, by_task[task]) for task in sorted(by_task)]
    kept = ("index", "seed", "instruction", "frames", "outcome", "ever_success", "seconds")
    counts["per_episode"] = [
        {**{k: e[k] for k in kept}, "task": e["task_index"], "state": e["state"]} for e in entries
    ]
    counts["command"] = command(setting, work)
    return counts


def task_counts(task: int, entries: list[dict]) -> dict:
    """One task's successes by both rules, and both of its sentences."""
    counts = summarise([_result(entry) for entry in entries])
    kept = ("episodes", "successes", "ever_successes", "ever_success_wilson95")
    return {
        "task": task,
        **{name: counts[name] for name in kept},
        "instruction": entries[0]["instruction"],
        **entries[0]["sentences"],
    }


def _result(entry: dict) -> EpisodeResult:
    return EpisodeResult(**{name: entry[name] for name in EpisodeResult.__dataclass_fields__})


def command(setting: Setting, work: Work) -> str:
    """The command line that runs the same episodes again."""
    words = ["./vla", "rollout", "--task", setting.task, "--episodes", str(len(work.indices))]
    if work.first:
        words += ["--first", str(work.first)]
    if not work.whole:
        words += ["--only", ",".join(map(str, work.indices))]
    words += ["--seed", str(setting.seed), "--horizon", str(setting.horizon)]
    words += ["--execute-steps", str(setting.execute), "--map", setting.observation_map]
    words += ["--width", str(setting.width), "--height", str(setting.height)]
    if not setting.model.endswith(report.SHIPPED):
        words += ["--model", setting.model]
    return shlex.join(words)
