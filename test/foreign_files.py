"""Shared parts of the foreign_* writers: a scene, actions, a controller.

The layouts in foreign_hdf5, foreign_lerobot and foreign_rlds are those that robomimic, LIBERO,
Isaac Lab, RoboCasa, ALOHA, LeRobot, openpi and TFDS publish; nobody's data is in them.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(step: int, size: int = 64) -> np.ndarray:
    """Upright: blue above, brown below, a red square that moves right."""
    image = np.zeros((size, size, 3), np.uint8)
    image[: size // 2], image[size // 2 :] = (90, 140, 220), (120, 80, 40)
    left = 4 + 2 * step
    image[40:52, left : left + 12] = (230, 20, 20)
    return image


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def robosuite_actions(count: int, seed: int = 0) -> np.ndarray:
    actions = np.random.default_rng(seed).uniform(-1, 1, (count, 7))
    actions[:, 6] = np.where(np.arange(count) < count // 2, -1, 1)
    return actions


def osc(delta: bool = True, freq: float = 20, reach=(0.05, 0.05, 0.05, 0.5, 0.5, 0.5)) -> dict:
    """env_args of a robosuite 1.4 file."""
    controller = {
        "type": "OSC_POSE",
        "control_delta": delta,
        "input_max": 1,
        "input_min": -1,
        "output_max": list(reach),
        "output_min": [-r for r in reach],
    }
    kwargs = {"control_freq": freq, "robots": ["Panda"], "controller_configs": controller}
    return {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}
