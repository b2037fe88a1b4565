"""The stand-in for a person: the scripted expert, who takes over where the model errs.

What it decides goes through the command node's own account of who commands (`Takeover`): a
hand-over drops the chunk in progress, and the model goes on with an image taken after it.
"""

from __future__ import annotations

import numpy as np

from vla_inference.control.takeover import HUMAN, MODEL, Takeover
from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.experts import expert_for
from vla_sim_bridge.generation.corrections.progress import Progress, WrongGrasp, stage_of

LASTS = 5  # steps for which the next subtask must be reached before the model is back in charge


class StandIn:
    """Watches an episode, one call of `look` a control step.

    stall: s without progress after which it takes over. most_steps: control steps after which it
    gives back at the latest; before, once the next subtask has been reached.
    """

    def __init__(self, sim: Simulation, stall: float, most_steps: int):
        self.sim, self.most_steps = sim, most_steps
        self._patience = round(stall / sim.spec.dt)
        self._expert = expert_for(sim.task)
        self.takeover = Takeover()
        self.reasons: list[str] = []  # of each takeover: "stall" or "wrong_object"
        self._now = 0
        self._watch()

    @property
    def acts(self) -> bool:
        """Whether the stand-in commands the next step."""
        return self.takeover.by_hand

    def action(self) -> np.ndarray:
        """SI end-effector delta [7]"""
        return self._expert(self.sim)

    def look(self) -> bool:
        """Looks at the world as it is now; returns whether somebody else commands from here on."""
        self._now += 1
        if self.acts:
            return self._gives_back()
        self._progress.look(self.sim)
        wrong = self._wrong.look(self.sim)
        if not wrong and self._progress.steps < self._patience:
            return False
        self.reasons.append("wrong_object" if wrong else "stall")
        self._goal, self._acted, self._reached = stage_of(self.sim) + 1, 0, 0
        self._hand_over(HUMAN)
        return True

    def _gives_back(self) -> bool:
        self._acted += 1
        self._reached = self._reached + 1 if stage_of(self.sim) >= self._goal else 0
        if self._reached < LASTS and self._acted < self.most_steps:
            return False
        self._watch()
        self._hand_over(MODEL)
        return True

    def _watch(self) -> None:
        """Begins to judge the model anew."""
        self._progress, self._wrong = Progress(), WrongGrasp()

    def _hand_over(self, source: str) -> None:
        self.takeover.hand_over(source, self._now * self.sim.spec.dt)
