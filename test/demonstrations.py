"""A small dataset of demonstrations in robomimic's HDF5 layout, for several test files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from vla_inference.episodes.hdf5 import write_columns, write_header
from vla_inference.episodes.robosuite import from_robosuite, to_robosuite

SIZE = (48, 64)  # height, width
LENGTHS = (7, 4, 5)


def image(t: int, shift: int) -> np.ndarray:
    """Smooth, with a block that moves."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    rgb = np.stack([2 * x + t, 3 * y + shift, 120 + x - y], axis=-1)
    rgb[10:22, 8 + 3 * t : 20 + 3 * t] = (200, 40, 30)
    return rgb.clip(0, 255).astype(np.uint8)


def recorded(motion: np.ndarray) -> np.ndarray:
    """Actions of [-1, 1] as `vla generate` writes them: in SI units they are float32."""
    return to_robosuite(from_robosuite(motion).astype(np.float32))


def write_set(path: Path, edit=None, **header) -> Path:
    rng = np.random.default_rng(5)
    with h5py.File(path, "w") as file:
        write_header(file, "Stack_D2", sum(LENGTHS), {})
        for i, n in enumerate(LENGTHS):
            gripper = np.where(np.arange(n) < n // 2, -1.0, 1.0)
            data = {
                "actions": recorded(
                    np.column_stack([rng.uniform(-1.2, 1.2, (n, 6)).clip(-1, 1), gripper])
                ),
                "states": np.zeros((n, 3)),
                "rewards": (np.arange(n) == n - 1) * 1.0,
                "dones": (np.arange(n) == n - 1) * np.int64(i != 1),  # the second was cut off
                "instructions": [f"stack the würfel {i}"] * (n - 1) + ["now wait"],
                "obs": {
                    "agentview_image": np.stack([image(t, 0) for t in range(n)]),
                    "wrist_image": np.stack([image(t, 60) for t in range(n)]),
                    "robot0_state": rng.normal(size=(n, 8)).astype(np.float32),
                },
                "attrs": {"task": "Stack_D2", "seed": 3, "attempt": i},
            }
            group = file.create_group(f"data/demo_{i}")
            write_columns(group, data)
            if edit:
                edit(group)
        for key, value in header.items():
            file["data"].attrs[key] = value
    return path


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)
