"""Perturbs some demonstrations, so that they show how to recover.

What is recorded is what the expert wants, not what happened to it, so a model learns the way back
(after DART, arXiv 1703.09327, with disturbances far larger than its noise). Two things happen,
one per episode: the arm is knocked off its course (full actions for a few steps), or an object
that nobody holds gets a push that slides it some centimetres. MimicGen's method cannot see a
push once a segment has begun: there it is always the arm.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from vla_inference.episodes.robosuite import ACTION_SCALE
from vla_sim_bridge.envs.robosuite_sim import Simulation, episode_rng
from vla_sim_bridge.generation.config import GenerateConfig

FIRST, LAST = 4, 45  # control steps between which it happens
KNOCK_STEPS = (3, 7)
TURN = 0.3  # share of a full action that a knock turns by, at most
PUSH = (0.4, 0.9)  # m/s; friction 1 stops that within 1 to 4 cm


@dataclass(frozen=True)
class Perturbation:
    """The perturbation of an episode; kind "" for none.

    at: control step; steps: how many; action: [6] SI, executed instead of the expert's; velocity:
    [2] m/s of the object named.
    """

    kind: str = ""
    at: int = 0
    steps: int = 0
    action: tuple[float, ...] = ()
    object: str = ""
    velocity: tuple[float, ...] = ()

    @classmethod
    def draw(cls, config: GenerateConfig, sim: Simulation, index: int) -> Perturbation:
        """Draws from its own random generator; the rest of the episode is unchanged."""
        rng = episode_rng("recovery", config.seed, index)
        if rng.random() >= config.recovery:
            return cls()
        at = int(rng.integers(FIRST, LAST + 1))
        free = sim.free_objects()
        if config.method == "scripted" and free and rng.random() < 0.5:
            angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*PUSH)
            velocity = (float(speed * np.cos(angle)), float(speed * np.sin(angle)))
            return cls("nudge", at, 1, object=str(rng.choice(free)), velocity=velocity)
        way = rng.standard_normal(6)
        way[:3] /= np.linalg.norm(way[:3])
        way[3:] *= TURN / np.linalg.norm(way[3:])
        way[2] = abs(way[2])  # never into the table
        steps = int(rng.integers(KNOCK_STEPS[0], KNOCK_STEPS[1] + 1))
        return cls("knock", at, steps, tuple((way * ACTION_SCALE).tolist()))

    def disturb(self, sim: Simulation, step: int, action: np.ndarray) -> np.ndarray:
        """The executed action of a control step, instead of `action` [7]."""
        if not self.at <= step < self.at + self.steps:
            return action
        if self.kind == "nudge":
            if not sim.holds(self.object):
                sim.push(self.object, np.array(self.velocity))
            return action
        return np.append(self.action, action[6])

    def attributes(self) -> dict:
        """Attributes of the demonstration: `recovery`, and the perturbation as JSON."""
        if not self.kind:
            return {}
        what = {k: v for k, v in vars(self).items() if v}
        return {"recovery": True, "perturbation": json.dumps(what)}
