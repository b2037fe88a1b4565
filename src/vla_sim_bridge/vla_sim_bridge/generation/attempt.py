"""Runs one attempt at a demonstration and records it.

An attempt is a function of the configuration and its number alone. Its success is that of a
rollout: it must last through `SETTLE_STEPS` steps while the expert draws back (these are part of
the demonstration) and through as many again without motion (these are not).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_inference.episodes.robosuite import to_robosuite
from vla_inference.types import Episode, make_steps
from vla_sim_bridge.envs.poses import apply_delta
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.generation.config import GenerateConfig
from vla_sim_bridge.generation.perturbation import Perturbation


@dataclass
class Attempt:
    """The result of an attempt.

    outcome: "success", or why it failed: "no_SIGNAL" where a subtask's signal never came,
    "unsettled" where success did not last, the name of a task's own wrong end, else "timeout".
    """

    outcome: str
    episode: Episode

    @property
    def success(self) -> bool:
        return self.outcome == "success"


def attributes_of(config: GenerateConfig, index: int, outcome: str, scene: dict) -> dict[str, Any]:
    """What every attempt's episode says of itself."""
    return {
        "task": config.task,
        "seed": config.seed,
        "attempt": index,
        "method": config.method,
        "outcome": outcome,
        "settled": outcome == "success",
        "scene": json.dumps(scene),
    }


def make_attempt(
    sim: Simulation, config: GenerateConfig, index: int, sources: list | None = None
) -> Attempt:
    """Runs attempt `index`; sources: source demonstrations for MimicGen."""
    rng = episode_rng("generate", config.seed, index)
    sim.reset(rng)
    steps, horizon = _policy(sim, config, rng, sources)
    perturbation = Perturbation.draw(config, sim, index)
    recorder = DemonstrationRecorder(sim, config.images)
    signals: set[str] = set()
    settled, ever, outcome = 0, False, ""
    for recorded, executed in itertools.chain(steps, _rest(sim)):
        recorder.before(recorded)
        signals.update(name for name, risen in recorder.rows[-1]["signals"].items() if risen)
        result = sim.step(perturbation.disturb(sim, len(recorder) - 1, executed))
        settled = settled + 1 if result.success else 0
        ever = ever or result.success
        recorder.after(result.success)
        if settled > SETTLE_STEPS:
            outcome = "success" if _lasts(sim) else "unsettled"
            break
        if len(recorder) >= horizon:
            break
    outcome = outcome or _reason(sim, signals, ever)
    attributes = attributes_of(config, index, outcome, recorder.scene)
    attributes |= perturbation.attributes()
    if sim.randomized:
        attributes["randomized"] = json.dumps(sim.randomized)
    return Attempt(outcome, recorder.episode(attributes))


def _policy(sim, config, rng, sources) -> tuple[Iterator, int]:
    """Pairs of (action to record, action to execute), and the maximum number of steps."""
    from vla_sim_bridge.experts import expert_for
    from vla_sim_bridge.experts.motion import Noise
    from vla_sim_bridge.mimicgen.method import MimicGenConfig, mimicgen_policy

    horizon = config.horizon or sim.task.horizon
    if config.method == "mimicgen":
        settings = MimicGenConfig(selection=config.select_source, nearest=config.nearest)
        # a human's demonstration takes its time
        return mimicgen_policy(sim, sources, rng, settings), 10 * horizon
    noise = Noise(rng, rng.uniform(0, config.noise))
    return _expert_steps(sim, noise, expert_for(sim.task)), horizon


def _expert_steps(sim, noise, expert):
    while True:
        action = expert(sim)
        yield action, noise.disturb(action)


def _rest(sim: Simulation):
    """No motion after the last step of a policy, for the settling time."""
    for _ in range(2 * SETTLE_STEPS):
        still = np.array([0, 0, 0, 0, 0, 0, sim.gripper])
        yield still, still


def _lasts(sim: Simulation) -> bool:
    return all(sim.hold().success for _ in range(SETTLE_STEPS))


def _reason(sim: Simulation, signals: set[str], ever: bool) -> str:
    if ever:
        return "unsettled"
    if wrong := sim.wrong():
        return wrong
    missing = (s.signal for s in sim.task.subtasks if s.signal and s.signal not in signals)
    name = next(missing, None)
    return f"no_{name}" if name else "timeout"


class DemonstrationRecorder:
    """Collects what a demonstration consists of, step by step."""

    def __init__(self, sim: Simulation, images: bool = True):
        self.sim = sim
        self.scene = sim.scene_record()
        self.rows: list[dict] = []
        cameras = sim.cameras if images else ()
        self.images: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}

    def __len__(self) -> int:
        return len(self.rows)

    def before(self, action: np.ndarray) -> None:
        """Record the world as it is and the SI action chosen for it."""
        sim = self.sim
        for camera, images in self.images.items():
            images.append(sim.render(camera))
        eef = sim.eef_pose()
        self.rows.append(
            {
                # float32, as every format has it: so it comes back to the bit
                "action": np.asarray(action, np.float32),
                "state": sim.get_mujoco_state(),
                "robot": sim.robot_state(),
                "instruction": sim.instruction,
                "eef": eef,
                "target": apply_delta(eef, np.asarray(action)),
                "objects": sim.object_poses(),
                "signals": sim.signals(),
            }
        )

    def after(self, success: bool) -> None:
        self.rows[-1]["reward"] = float(success)

    def episode(self, metadata: dict) -> Episode:
        rows = self.rows

        def column(key, name=None):
            return np.stack([row[key] if name is None else row[key][name] for row in rows])

        steps = make_steps(
            [{c: images[t] for c, images in self.images.items()} for t in range(len(rows))],
            [row["instruction"] for row in rows],
            [row["robot"]["robot0_state"] for row in rows],
            column("action"),
            column("reward"),
            [row is rows[-1] for row in rows],
        )
        columns = {
            "states": column("state"),
            **{f"obs/{name}": column("robot", name) for name in rows[0]["robot"]},
            "datagen_info/eef_pose": column("eef"),
            "datagen_info/target_pose": column("target"),
            "datagen_info/gripper_action": to_robosuite(column("action"))[:, 6:7],
        }
        for name in rows[0]["objects"]:
            columns[f"datagen_info/object_poses/{name}"] = column("objects", name)
        for name in rows[0]["signals"]:
            signal = column("signals", name).astype(np.int64)
            columns[f"datagen_info/subtask_term_signals/{name}"] = signal
        return Episode(steps, self.sim.spec, metadata, columns)
