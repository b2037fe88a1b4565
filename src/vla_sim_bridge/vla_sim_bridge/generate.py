"""Demonstrations by the thousand: worker processes, one file per episode until all are done.

Attempt i is a function of (seed, i) alone, and the kept episodes are the first N successful
attempts by number, so the result does not depend on how many workers made it. Every success is
written under its own name at once and renamed into place, so kill -9 loses none; a second call
takes up where the first was stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np

from vla_inference.errors import DataError, VlaError
from vla_sim_bridge.episode_run import SETTLE_STEPS
from vla_sim_bridge.hdf5 import write_episode, write_header
from vla_sim_bridge.simulation import Simulation, episode_rng, to_robosuite
from vla_sim_bridge.statistics import wilson_interval
from vla_sim_bridge.tasks import get_task
from vla_sim_bridge.workers import end_with_parent


@dataclass(frozen=True)
class GenerateConfig:
    """What to generate. Two calls with the same values make the same data."""

    task: str = "Stack_D2"
    episodes: int = 100
    cameras: tuple[str, ...] = ("agentview",)
    width: int = 224
    height: int = 224
    seed: int = 0
    method: str = "scripted"  # or "mimicgen"
    source: str | None = None  # mimicgen: HDF5 with sources; None: the human's that ships
    # scripted only: largest standard deviation of executed noise, in full actions
    noise: float = 0.2
    horizon: int = 200
    compression: str | None = "gzip"
    pictures: bool = True


@dataclass
class Progress:
    """Reported after each attempt."""

    successes: int
    attempts: int
    wanted: int
    seconds: float

    @property
    def rate(self) -> float:
        """Successes per second in this call."""
        return self.successes / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float:
        return (self.wanted - self.successes) / self.rate if self.rate else float("inf")


def generate(
    config: GenerateConfig,
    output: str | os.PathLike,
    parallel: int | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Generate `config.episodes` successes into `output`/demo.hdf5 and return that path.

    parallel: worker processes; None or -1 for one per core.
    """
    if config.episodes < 1:
        raise VlaError(f"{config.episodes} episodes were asked for", "ask for at least 1")
    task = get_task(config.task)
    if config.method not in ("scripted", "mimicgen"):
        raise VlaError(f"there is no method {config.method!r}", "use 'scripted' or 'mimicgen'")
    output = Path(output)
    final = output / "demo.hdf5"
    parts = output / "parts"
    _claim(output, config)
    if final.exists():
        return final
    parts.mkdir(parents=True, exist_ok=True)
    outcome = _recall(parts)
    workers = os.cpu_count() if parallel in (None, -1) else max(1, parallel)
    begun = time.perf_counter()
    done_before = sum(outcome.values())

    def tell():
        good = sum(outcome.values())
        seconds = time.perf_counter() - begun
        report(Progress(good - done_before, len(outcome), config.episodes - done_before, seconds))

    deaths = 0
    while not _enough(outcome, config.episodes):
        known = len(outcome)
        try:
            _work(config, parts, outcome, workers, tell)
        except BrokenProcessPool as error:
            # A worker was killed (out of memory, say). What it was at is done again.
            outcome.update(_recall(parts))
            deaths = deaths + 1 if len(outcome) == known else 0
            if deaths == 3:
                raise VlaError(
                    "worker processes die before they finish an episode",
                    "use fewer with --parallel: memory may be short; the same call resumes",
                ) from error
    _merge(config, task.name, parts, outcome, final)
    return final


def _enough(outcome: dict[int, bool], wanted: int) -> bool:
    """Whether the first `wanted` successes by attempt number are all known."""
    good = attempt = 0
    while attempt in outcome:
        good += outcome[attempt]
        if good >= wanted:
            return True
        attempt += 1
    return False


def _work(config, parts, outcome, workers, tell) -> None:
    context = get_context("spawn")
    args = (config,)
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=args) as pool:
        running = {}
        attempt = 0
        try:
            while True:
                good = sum(outcome.values())
                while len(running) < workers and good + len(running) < config.episodes + workers:
                    while attempt in outcome or attempt in running.values():
                        attempt += 1
                    running[pool.submit(_attempt, config, attempt, str(parts))] = attempt
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    outcome[running.pop(future)] = future.result()
                    tell()
                if _enough(outcome, config.episodes):
                    return
        finally:
            for future in running:
                future.cancel()


_sim: Simulation | None = None
_source = None


def _start_worker(config: GenerateConfig) -> None:
    global _sim, _source
    end_with_parent()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    _sim = Simulation(config.task, config.cameras, config.width, config.height)
    if config.method == "mimicgen":
        from vla_sim_bridge.mimicgen import load_sources

        _source = load_sources(_sim, config.source)


def _attempt(config: GenerateConfig, index: int, parts: str) -> bool:
    episode = attempt_episode(_sim, config, index, _source)
    name = Path(parts) / f"attempt_{index:07d}"
    if episode is None:
        name.with_suffix(".failed").touch()
        return False
    temporary = name.with_suffix(f".{os.getpid()}.tmp")
    with h5py.File(temporary, "w") as file:
        write_episode(file.create_group("demo"), episode, config.compression)
    os.replace(temporary, name.with_suffix(".hdf5"))
    return True


def attempt_episode(sim: Simulation, config: GenerateConfig, index: int, sources=None):
    """One attempt: the demonstration as `write_episode` takes it, or None if it failed."""
    from vla_sim_bridge.experts import expert_for
    from vla_sim_bridge.experts.motion import Noise
    from vla_sim_bridge.mimicgen import mimicgen_policy

    rng = episode_rng("generate", config.seed, index)
    sim.reset(rng)
    if config.method == "mimicgen":
        steps = mimicgen_policy(sim, sources, rng)
        horizon = 10 * config.horizon  # a human's demonstration takes its time
    else:
        noise = Noise(rng, rng.uniform(0, config.noise))
        steps = _expert_steps(sim, noise, expert_for(sim.task))
        horizon = config.horizon
    recorder = Recorder(sim, config.pictures)
    settled = 0
    for recorded, executed in itertools.chain(steps, _rest(sim)):
        recorder.before(recorded)
        settled = settled + 1 if sim.step(executed).success else 0
        recorder.after(settled > 0)
        if settled > SETTLE_STEPS:
            return recorder.episode(config, index)
        if len(recorder) >= horizon:
            break
    return None


def _rest(sim: Simulation):
    """After the last step of a policy that ends: no motion, for as long as settling may take."""
    for _ in range(2 * SETTLE_STEPS):
        still = np.array([0, 0, 0, 0, 0, 0, sim.gripper])
        yield still, still


def _expert_steps(sim, noise, expert):
    while True:
        action = expert(sim)
        yield action, noise.disturb(action)


class Recorder:
    """Collects what a demonstration consists of, step by step."""

    def __init__(self, sim: Simulation, pictures: bool = True):
        self.sim, self.pictures = sim, pictures
        self.instruction = sim.instruction
        self.scene = sim.scene_record()
        self.rows: list[dict] = []
        self.images: dict[str, list[np.ndarray]] = {c: [] for c in sim.cameras}

    def __len__(self) -> int:
        return len(self.rows)

    def before(self, action: np.ndarray) -> None:
        """Record the world as it is and the SI action chosen for it."""
        sim = self.sim
        if self.pictures:
            for camera in sim.cameras:
                self.images[camera].append(sim.render(camera))
        self.rows.append(
            {
                "action": to_robosuite(action),
                "state": sim.get_mujoco_state(),
                "robot": sim.state(),
                "instruction": sim.instruction,
                "eef": sim.eef_pose(),
                "target": _target(sim, action),
                "objects": sim.object_poses(),
                "signals": sim.signals(),
            }
        )

    def after(self, success: bool) -> None:
        self.rows[-1]["reward"] = float(success)

    def episode(self, config: GenerateConfig, index: int) -> dict:
        def column(key):
            return np.stack([row[key] for row in self.rows])

        rewards = column("reward")
        objects, signals = self.rows[0]["objects"], self.rows[0]["signals"]
        obs = {f"{c}_image": np.stack(v) for c, v in self.images.items() if v}
        robot = column("robot")
        return {
            "actions": column("action"),
            "states": column("state"),
            "rewards": rewards,
            "dones": (np.arange(len(rewards)) == len(rewards) - 1).astype(np.int64),
            "instructions": [row["instruction"] for row in self.rows],
            "obs": {
                **obs,
                "robot0_state": robot,
                "robot0_eef_pos": robot[:, :3],
                "robot0_gripper_qpos": robot[:, 6:8],
            },
            "datagen_info": {
                "eef_pose": column("eef"),
                "target_pose": column("target"),
                "gripper_action": column("action")[:, 6:7],
                "object_poses": {
                    n: np.stack([r["objects"][n] for r in self.rows]) for n in objects
                },
                "subtask_term_signals": {
                    n: np.array([r["signals"][n] for r in self.rows], np.int64) for n in signals
                },
            },
            "attrs": {
                "task": config.task,
                "seed": config.seed,
                "attempt": index,
                "scene": json.dumps(self.scene),
            },
        }


def _target(sim: Simulation, action: np.ndarray) -> np.ndarray:
    from vla_sim_bridge.poses import apply_delta

    return apply_delta(sim.eef_pose(), np.asarray(action))


def _claim(output: Path, config: GenerateConfig) -> None:
    """Note what this folder is for, and refuse to mix two different requests in one."""
    note = output / "generate.json"
    wanted = json.loads(json.dumps(asdict(config)))
    if note.exists():
        found = json.loads(note.read_text())
        differing = [k for k in wanted if found.get(k) != wanted[k]]
        if differing:
            raise DataError(
                f"{output} was begun with another {', '.join(differing)}",
                "choose another --output, or give the same options to resume",
            )
        return
    if output.exists() and any(output.iterdir()):
        raise DataError(f"{output} is not empty", "choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / "generate.json.tmp"
    temporary.write_text(json.dumps(wanted, indent=2))
    os.replace(temporary, note)


def _recall(parts: Path) -> dict[int, bool]:
    """Attempts already made, by number: whether they succeeded."""
    outcome = {int(p.stem.split("_")[1]): False for p in parts.glob("attempt_*.failed")}
    outcome.update({int(p.stem.split("_")[1]): True for p in parts.glob("attempt_*.hdf5")})
    return outcome


def _merge(config, task: str, parts: Path, outcome: dict[int, bool], final: Path) -> None:
    kept: Sequence[int] = sorted(i for i, ok in outcome.items() if ok)[: config.episodes]
    attempts = kept[-1] + 1
    temporary = final.with_suffix(".tmp")
    lengths = []
    with h5py.File(temporary, "w") as file:
        write_header(file, task, 0, {"control_freq": 20, "robots": "Panda"})
        for number, attempt in enumerate(kept):
            with h5py.File(parts / f"attempt_{attempt:07d}.hdf5", "r") as part:
                part.copy("demo", file["data"], f"demo_{number}")
            lengths.append(int(file["data"][f"demo_{number}"].attrs["num_samples"]))
        file["data"].attrs["total"] = sum(lengths)
    low, high = wilson_interval(len(kept), attempts)
    statistics = {
        "task": task,
        "episodes": len(kept),
        "attempts": attempts,
        "success_rate": len(kept) / attempts,
        "success_rate_wilson95": [low, high],
        "frames": sum(lengths),
        "length_mean": float(np.mean(lengths)),
        "length_std": float(np.std(lengths)),
        "length_max": max(lengths),
    }
    (final.parent / "statistics.json").write_text(json.dumps(statistics, indent=2))
    os.replace(temporary, final)
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()
