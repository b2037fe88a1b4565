"""robosuite's TwoArmLift: two Pandas side by side, and a pot with two handles between them.

Driven by joints alone; it has no episodes and no task of this package.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_sim_bridge.envs.joint_tracking import JointTracking, Reference
from vla_sim_bridge.envs.renderer import Renderer
from vla_sim_bridge.envs.robosuite_env import ROBOT, make_bare, silence

ARMS = ("right_arm", "left_arm")  # robosuite's robot0 and robot1, which look along x


class TwoArms:
    """The arms' joints by name of the arm. Poses are 4 x 4 matrices, metres."""

    camera = "agentview"

    def __init__(self, width: int = 224, height: int = 224, seed: int = 0):
        with silence():
            self._env = make_bare("TwoArmLift", [ROBOT] * 2, seed, env_configuration="parallel")
            self._env._observables.clear()
            self._env.reset()
        self.model, self.data = self._env.sim.model._model, self._env.sim.data._data
        self._tracking = JointTracking(self._env)
        self._images = Renderer(self.model, self.data, width, height)
        self.render, self.camera_matrix = self._images.render, self._images.camera_matrix

    def joints(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Positions [7] rad and velocities [7] rad/s of each arm."""
        track = self._tracking
        return {n: (track.positions(i), track.velocities(i)) for i, n in enumerate(ARMS)}

    def step(self, references: Mapping[str, Reference], grippers: Mapping[str, float]) -> None:
        """One control period of 0.05 s. By arm: the reference, and the gripper, 1 open."""
        self._tracking.step([references[n] for n in ARMS], [grippers[n] for n in ARMS])

    def in_base(self, arm: str, site: str) -> np.ndarray:
        """[3] m: where a site of MuJoCo's, such as pot_handle0, is in the axes of an arm's
        base."""
        base = self.data.body(f"robot{ARMS.index(arm)}_base")
        return base.xmat.reshape(3, 3).T @ (self.data.site(site).xpos - base.xpos)

    def lifted(self) -> bool:
        """Whether the pot is, by robosuite's rule."""
        return bool(self._env._check_success())

    def close(self) -> None:
        self._images.close()
