"""The simulation's tasks as Gymnasium environments.

    import gymnasium, vla_sim_bridge.gym  # the second registers the tasks
    env = gymnasium.make("vla/Stack_D2-v0")

gymnasium is optional: requirements/gymnasium.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import Observation
from vla_sim_bridge.envs.protocol import World, make_world
from vla_sim_bridge.envs.rover.world import MOST
from vla_sim_bridge.evaluation.episode import EpisodeRun
from vla_sim_bridge.tasks import TASKS, Language, Task, get_task

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise VlaError(
        f"Gymnasium is not installed ({error})", "pip install -r requirements/gymnasium.txt"
    ) from error

# Largest motion of one step: robosuite's own, with which demonstrations are made.
POSITION, ROTATION = 0.05, 0.5  # m, rad
CHARACTERS = frozenset(map(chr, range(32, 127)))  # of instructions, which are English


class TaskEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """One task with the rules of `vla rollout`.

    An observation has "images" (uint8 [H, W, 3] by camera), "state" (float32 [S]) and the
    "instruction". An action [7] is an end-effector delta in the robot's base frame (m, rotation
    vector in rad) and the gripper (above 0.5: open); a rover's is [2], m/s forwards and rad/s to
    the left. The reward is 1 in each step whose state is a success; the episode is terminated when
    success has lasted (`EpisodeRun`) and truncated at the
    task's horizon. `info["outcome"]` says how it stands. Episode i of a seed is that of
    `vla rollout --seed`: `reset(seed=7)` starts episode 0, each reset without a seed the next.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        task: str = "Stack_D2",
        cameras: Sequence[str] = ("agentview",),
        width: int = 224,
        height: int = 224,
        language: Language = "train",
        horizon: int | None = None,
        render_mode: str | None = None,
    ):
        known = get_task(task)
        self.world: World = make_world(known, cameras, width, height, language)
        self.horizon = horizon or known.horizon
        self.render_mode = render_mode
        self._seed, self._index = 0, 0
        self._run: EpisodeRun | None = None
        self.action_space = _action_space(known)
        image = spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict({name: image for name in cameras}),
                "state": spaces.Box(-np.inf, np.inf, self.world.state().shape, np.float32),
                "instruction": spaces.Text(1000, min_length=0, charset=CHARACTERS),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Starts an episode. options: {"episode": its number} in place of the next one."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._index = seed, 0
        self._index = (options or {}).get("episode", self._index)
        self._run = EpisodeRun(self.world, self._seed, self._index, self.horizon)
        self._index += 1
        return self._observe(), self._info(self._run)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        run = self._run
        if run is None or run.done:
            raise gymnasium.error.ResetNeeded("the episode is over; call reset()")
        over = run.step(np.asarray(action, np.float64))
        timeout = run.outcome == "timeout"
        reward = float(run.outcome == "success") if over else run.reward
        return self._observe(), reward, over and not timeout, timeout, self._info(run)

    def render(self) -> np.ndarray | None:  # type: ignore[override] # Gymnasium's is generic
        """uint8 [H, W, 3] of the first camera."""
        return self.world.seen_by(self.world.cameras[0]) if self.render_mode else None

    def close(self) -> None:
        self.world.close()

    def observation(self) -> Observation:
        """What a policy takes: `policy.act(env.unwrapped.observation())`."""
        return self.world.observation()

    def _observe(self) -> dict[str, Any]:
        seen = self.world.observation()
        assert seen.state is not None  # worlds have one
        return {
            "images": dict(seen.images),
            "state": np.asarray(seen.state, np.float32),
            "instruction": seen.instruction,
        }

    def _info(self, run: EpisodeRun) -> dict[str, Any]:
        return {
            "outcome": run.outcome,
            "success": run.outcome == "success",
            "episode": run.index,
            "steps": run.step_count,
        }


def _action_space(task: Task) -> spaces.Box:
    if task.robot == "Rover":
        return spaces.Box(-MOST.astype(np.float32), MOST.astype(np.float32))
    return spaces.Box(
        np.array([-POSITION] * 3 + [-ROTATION] * 3 + [0.0], np.float32),
        np.array([POSITION] * 3 + [ROTATION] * 3 + [1.0], np.float32),
    )


for name in TASKS:
    gymnasium.register(
        f"vla/{name}-v0",
        "vla_sim_bridge.gym:TaskEnv",
        kwargs={"task": name},
        disable_env_checker=True,  # it is run in our tests, not in each of yours
    )
