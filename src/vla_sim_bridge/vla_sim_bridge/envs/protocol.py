"""The `World` protocol: what rollouts and the simulation node need of a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionSpec, Observation
from vla_sim_bridge.envs.base import Demonstration
from vla_sim_bridge.envs.robosuite_sim import Simulation, StepResult
from vla_sim_bridge.tasks import Language, Task, get_task
from vla_sim_bridge.tasks.rover import RoverTask


class World(Protocol):
    """See `Simulation` for shapes, frames and units."""

    task: Task
    cameras: Sequence[str]
    language: Language
    instruction: str
    gripper: float
    spec: ActionSpec
    versions: dict[str, str]  # of what it runs on, where that is not this Python's

    def reset(self, rng: np.random.Generator) -> None: ...

    def start_episode(self, purpose: str, seed: int, index: int) -> None: ...

    def step(self, action: np.ndarray) -> StepResult: ...

    def still(self) -> np.ndarray: ...

    def hold(self) -> StepResult: ...

    def actions(self, chunk: ActionChunk) -> np.ndarray: ...

    def observation(self) -> Observation: ...

    def state(self) -> np.ndarray: ...

    def render(
        self, camera: str, width: int | None = None, height: int | None = None
    ) -> np.ndarray: ...

    def seen_by(self, camera: str) -> np.ndarray: ...

    def camera_matrix(self, camera: str) -> np.ndarray: ...

    def close(self) -> None: ...


@runtime_checkable
class ArmWorld(World, Protocol):
    """A world with an arm."""

    def eef_pose(self) -> np.ndarray: ...

    def base_position(self) -> np.ndarray: ...


class ExpertWorld(World, Protocol):
    """A world that plays whole demonstrations itself, and draws their images afterwards."""

    def demonstrate(
        self, seed: int, index: int, limit: int, settle: int, noise: float
    ) -> Demonstration: ...

    def set_mujoco_state(self, state: np.ndarray) -> None: ...


def check_installed(task: Task) -> None:
    """Refuses a task whose package is not installed, before anything else is started."""
    if task.package == "libero":
        from vla_sim_bridge.libero import environment

        environment.check_installed(task.env)
    elif task.package == "robocasa":
        from vla_sim_bridge.envs.robocasa_package import environment as robocasa

        robocasa.check_installed(task.env)
    elif task.package:
        from vla_sim_bridge.envs.mimicgen_package import process

        process.check_installed(task.env)


def make_world(
    task: Task | str,
    cameras: Sequence[str] = ("agentview",),
    width: int = 224,
    height: int = 224,
    language: Language = "train",
) -> World:
    """Makes the task's world, in this process or in the Python that has the task's package."""
    task = get_task(task) if isinstance(task, str) else task
    if isinstance(task, RoverTask):
        from vla_sim_bridge.envs.rover.world import RoverWorld

        return RoverWorld(task, cameras, width, height, language)
    if not task.package:
        return Simulation(task, cameras, width, height, language)
    if task.package == "libero":
        from vla_sim_bridge.libero.world import LiberoWorld

        return LiberoWorld(task, cameras, width, height, language)
    if task.package == "robocasa":
        from vla_sim_bridge.envs.robocasa_package.world import RobocasaWorld

        return RobocasaWorld(task, cameras, width, height, language)
    from vla_sim_bridge.envs.mimicgen_package.world import MimicgenWorld

    return MimicgenWorld(task, cameras, width, height, language)


def make_expert_world(
    task: Task, cameras: Sequence[str], width: int = 224, height: int = 224
) -> ExpertWorld:
    """A world that has its own expert; VlaError for one that has none."""
    if task.package != "libero":
        raise VlaError(f"{task.name} has no expert here", "generate with its package's own tools")
    return cast("ExpertWorld", make_world(task, cameras, width, height))
