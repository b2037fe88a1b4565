"""Plays the expert in an environment of LIBERO and records what a demonstration consists of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vla_sim_bridge.libero.expert.motion import OPEN, Motion
from vla_sim_bridge.libero.expert.pick_place import MOST_TILT, PickPlace, goals
from vla_sim_bridge.libero.expert.scene import Scene

MEMORY = 0.7  # AR(1) factor of the noise
NOISE_SCALE = np.array([1, 1, 1, 0.4, 0.4, 0.4])  # a full turn is far more violent than a move
STILL = np.array([0.0] * 6 + [OPEN])

Arrays = dict[str, np.ndarray]


class Recorder:
    """Steps the environment, and keeps each step's beginning and the action chosen for it.

    settle: control steps that success must last, with the fingers open, for the expert to be done.
    scale: standard deviation of the noise on executed actions, in full actions; what is recorded
    is what the expert wanted (after DART, arXiv 1703.09327).
    """

    def __init__(self, env, look: Callable[[], Arrays], limit: int, settle: int):
        self.env, self.limit, self.settle = env, limit, settle
        self.first, self.lasted = 0, 0
        self.rows: list[dict] = []
        self._look = look
        self._names = list(env.obj_body_id)
        self._rng, self._scale, self._value = np.random.default_rng(0), 0.0, np.zeros(6)

    def add_noise(self, seed: int, scale: float) -> None:
        self._rng, self._scale = np.random.default_rng(seed), scale

    def step(self, action: np.ndarray) -> bool:
        """One action [7]; whether the demonstration is over."""
        sim = self.env.sim
        row = {
            "states": sim.get_state().flatten(),
            "actions": action,
            "objects": np.array([self._object(name) for name in self._names]),
            **self._look(),
        }
        self.env.step(self._disturbed(action))
        good = bool(self.env._check_success())
        self.rows.append({**row, "success": float(good)})
        self.first = self.first or (len(self.rows) if good else 0)
        self.lasted = self.lasted + 1 if good and action[6] == OPEN else 0
        return self.lasted > self.settle or len(self.rows) >= self.limit

    def arrays(self) -> Arrays:
        """By name, [T, ...]."""
        return {n: np.stack([row[n] for row in self.rows]).astype(float) for n in self.rows[0]}

    def _object(self, name: str) -> np.ndarray:
        """[7]: position m, quaternion w x y z."""
        data, body = self.env.sim.data._data, self.env.obj_body_id[name]
        return np.concatenate([data.xpos[body], data.xquat[body]])

    def _disturbed(self, action: np.ndarray) -> np.ndarray:
        fresh = self._rng.standard_normal(6) * np.sqrt(1 - MEMORY**2)
        self._value = MEMORY * self._value + fresh
        noise = self._scale * self._value * NOISE_SCALE
        return np.append(np.clip(action[:6] + noise, -1, 1), action[6])


def demonstrate(
    env, look: Callable[[], Arrays], limit: int, settle: int, seed: int, noise: float
) -> tuple[dict, Arrays]:
    """The outcome and what was recorded, from where the environment is.

    Outcomes: "success", "unsettled" (it did not last `settle` steps more), "tilted" (a bad scene),
    "timeout", or how the object was lost. `first`: steps until success was first reached, 0 for
    never. look: the robot as the sensors saw it.
    """
    wanted, _ = goals(env.parsed_problem)
    scene, recorder = Scene(env), Recorder(env, look, limit, settle)
    recorder.add_noise(seed, noise)
    motion = Motion(scene, recorder.step)
    how = "tilted"
    if max(scene.tilt(name) for _, name, _ in wanted) <= MOST_TILT:
        how = PickPlace(scene, motion).run(wanted)
    motion.rest(2 * settle if how != "tilted" else 1)
    outcome = how
    if recorder.lasted > settle:
        outcome = "success" if _lasts(env, settle) else "unsettled"
    elif recorder.first:
        outcome = "unsettled"
    elif how == "placed":
        outcome = "timeout"
    names = list(env.obj_body_id)
    said = {"outcome": outcome, "first": recorder.first, "objects": names}
    return {**said, "fixtures": fixtures(env)}, recorder.arrays()


def fixtures(env) -> dict[str, list[float]]:
    """Where furniture stands, which is in no state: position m, quaternion w x y z by body."""
    model, found = env.sim.model, {}
    for fixture in env.fixtures_dict.values():
        body = model.body_name2id(fixture.root_body)
        pose = np.concatenate([model.body_pos[body], model.body_quat[body]])
        found[fixture.root_body] = pose.tolist()
    return found


def _lasts(env, steps: int) -> bool:
    for _ in range(steps):
        env.step(STILL)
        if not env._check_success():
            return False
    return True
