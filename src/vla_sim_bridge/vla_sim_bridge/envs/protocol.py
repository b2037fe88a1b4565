"""The `World` protocol: what rollouts and the simulation node need of a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vla_inference.types import ActionSpec, Observation
from vla_sim_bridge.envs.robosuite_sim import Simulation, StepResult
from vla_sim_bridge.tasks import Language, Task, get_task


class World(Protocol):
    """See `Simulation` for shapes, frames and units."""

    task: Task
    language: Language
    instruction: str
    gripper: float
    spec: ActionSpec
    versions: dict[str, str]  # of what it runs on, where that is not this Python's

    def reset(self, rng: np.random.Generator) -> None: ...

    def step(self, action: np.ndarray) -> StepResult: ...

    def hold(self) -> StepResult: ...

    def observation(self) -> Observation: ...

    def eef_pose(self) -> np.ndarray: ...

    def base_position(self) -> np.ndarray: ...

    def state(self) -> np.ndarray: ...

    def render(
        self, camera: str, width: int | None = None, height: int | None = None
    ) -> np.ndarray: ...

    def camera_matrix(self, camera: str) -> np.ndarray: ...

    def close(self) -> None: ...


def make_world(
    task: Task | str,
    cameras: Sequence[str] = ("agentview",),
    width: int = 224,
    height: int = 224,
    language: Language = "train",
) -> World:
    """Makes the task's world, in this process or in the Python that has the task's package."""
    task = get_task(task) if isinstance(task, str) else task
    if not task.package:
        return Simulation(task, cameras, width, height, language)
    from vla_sim_bridge.mimicgen.world import MimicgenWorld

    return MimicgenWorld(task, cameras, width, height, language)
