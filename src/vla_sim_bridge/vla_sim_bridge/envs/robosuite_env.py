"""Makes robosuite environments as the tasks describe them."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import numpy as np

from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.errors import VlaError
from vla_sim_bridge.envs.renderer import explained
from vla_sim_bridge.tasks import Task

ROBOT = "Panda"


def make_bare(env: str, robots: Any, seed: int = 0, **arguments: Any) -> Any:
    """robosuite's environment of that name, without its images, sensors and ends of episodes."""
    import robosuite
    from robosuite.controllers import load_composite_controller_config

    return robosuite.make(
        env,
        robots=robots,
        controller_configs=load_composite_controller_config(robot=ROBOT),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        hard_reset=False,
        ignore_done=True,
        control_freq=CONTROL_FREQ,
        seed=seed,
        **arguments,
    )


def make_env(task: Task):
    """The task's environment, without robosuite's own images and sensors."""
    with explained():
        import mujoco  # noqa: F401  looks for OpenGL
    try:
        from robosuite.utils.placement_samplers import UniformRandomSampler

        import vla_sim_bridge.envs.blocks  # noqa: F401  registers ours
    except ImportError as error:
        raise VlaError(f"robosuite cannot be imported ({error})", "run `make setup`") from error
    arguments: dict[str, Any] = dict(task.make)
    if task.x_range is not None and task.y_range is not None:
        arguments["placement_initializer"] = UniformRandomSampler(
            name="ObjectSampler",
            x_range=list(task.x_range),
            y_range=list(task.y_range),
            rotation=None,
            ensure_object_boundary_in_range=False,
            ensure_valid_placement=True,
            reference_pos=np.array((0, 0, 0.8)),
            z_offset=0.01,
            rng=np.random.default_rng(0),
        )
    env = make_bare(task.env, ROBOT, **arguments)
    samplers = getattr(env.placement_initializer, "samplers", {})
    for name, place in task.placements.items():
        sampler = samplers.get(name, env.placement_initializer)
        sampler.x_range, sampler.y_range = list(place.x), list(place.y)
        sampler.rotation = place.yaw
    # We read poses from MuJoCo ourselves; robosuite would sample every sensor at 500 Hz.
    env._observables.clear()
    return env


@contextlib.contextmanager
def silence():
    """Silences robosuite's warnings about optional parts at import; errors remain exceptions."""
    import logging

    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
        sys.stdout.flush()
        yield
