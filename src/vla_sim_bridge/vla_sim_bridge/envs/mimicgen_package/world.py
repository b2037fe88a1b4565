"""A task of an installed `mimicgen` package as a `World`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.inputs.robot_state import QuaternionSign
from vla_sim_bridge.envs.mimicgen_package.process import start
from vla_sim_bridge.envs.other_python.process import SLOW
from vla_sim_bridge.envs.other_python.world import OtherWorld
from vla_sim_bridge.tasks import Language, Scene, Task


class MimicgenWorld(OtherWorld):
    """One environment that the package registers."""

    def __init__(
        self,
        task: Task,
        cameras: Sequence[str] = ("agentview",),
        width: int = 224,
        height: int = 224,
        language: Language = "train",
    ):
        process = start()
        super().__init__(task, cameras, width, height, language, process)
        try:
            process.check_registered(task.env)
            header, _ = process.ask("make", timeout=SLOW, env=task.env, control_freq=CONTROL_FREQ)
            self._use_cameras(header["fovy"])
        except BaseException:
            self.close()
            raise

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode; the global generators of the other Python are seeded from `rng`."""
        seed = int(rng.integers(2**32))
        self._sign = QuaternionSign()
        self._take(*self._process.ask("reset", timeout=SLOW, seed=seed))
        self.instruction = self.task.instruct(rng, Scene(), self.language)
        self.gripper = 1.0
