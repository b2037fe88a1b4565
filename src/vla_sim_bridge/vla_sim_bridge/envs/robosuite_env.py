"""Makes robosuite environments, and converts units and signs to robosuite's.

Facts about robosuite 1.5.2: OSC_POSE takes deltas in the base frame, scaled by 0.05 m and 0.5 rad;
the gripper is -1 open, +1 closed.
"""

from __future__ import annotations

import contextlib
import os
import sys

import numpy as np

from vla_inference.errors import VlaError
from vla_sim_bridge.envs.renderer import explained
from vla_sim_bridge.tasks import Task

POSITION_SCALE = 0.05  # m per unit of robosuite action (controller output_max)
ROTATION_SCALE = 0.5  # rad
CONTROL_FREQ = 20.0  # Hz
ROBOT = "Panda"
ACTION_SCALE = np.array([POSITION_SCALE] * 3 + [ROTATION_SCALE] * 3)


def to_robosuite(action: np.ndarray) -> np.ndarray:
    """SI delta (m, rad, gripper 1 open) -> robosuite's 7 numbers in [-1, 1] (gripper -1 open)."""
    action = np.asarray(action, np.float64)
    arm = np.clip(action[..., :6] / ACTION_SCALE, -1.0, 1.0)
    gripper = np.where(action[..., 6:7] > 0.5, -1.0, 1.0)
    return np.concatenate([arm, gripper], axis=-1)


def from_robosuite(action: np.ndarray) -> np.ndarray:
    """robosuite's 7 numbers -> SI delta (m, rad, gripper 1 open): undoes `to_robosuite`."""
    action = np.asarray(action, np.float64)
    gripper = (1.0 - action[..., 6:7]) / 2.0
    return np.concatenate([action[..., :6] * ACTION_SCALE, gripper], axis=-1)


def make_env(task: Task):
    """The task's environment, without robosuite's own images and sensors."""
    with explained():
        import mujoco  # noqa: F401  looks for OpenGL
    try:
        import robosuite
        from robosuite.controllers import load_composite_controller_config
        from robosuite.utils.placement_samplers import UniformRandomSampler

        import vla_sim_bridge.envs.blocks  # noqa: F401  registers ours
    except ImportError as error:
        raise VlaError(f"robosuite cannot be imported ({error})", "run `make setup`") from error
    arguments = dict(task.make)
    if task.x_range is not None:
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
    env = robosuite.make(
        task.env,
        robots=ROBOT,
        controller_configs=load_composite_controller_config(robot=ROBOT),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        hard_reset=False,
        ignore_done=True,
        control_freq=CONTROL_FREQ,
        seed=0,
        **arguments,
    )
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
    """robosuite logs warnings about optional parts at import; errors still come as exceptions."""
    import logging

    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
        sys.stdout.flush()
        yield
