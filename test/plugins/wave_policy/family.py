"""A minimal policy family in another package: its actions are sine waves.

A checkpoint is a folder whose config.json says `model_type` "wave", how many steps an answer has
and how far the end effector waves, or the first of its `joints` where it names any. The brighter
the image, the farther.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vla_inference.errors import CheckpointError, ObservationError
from vla_inference.policies.base import Contract, Description, LoadOptions, Needs, Policy
from vla_inference.types import (
    ActionChunk,
    Observation,
    check_image,
    check_instruction,
    eef_delta_spec,
    joint_spec,
)


def check(where: str, options: LoadOptions) -> Contract:
    options.allow("wave", "device")
    config = read_config(where)
    joints = config.get("joints")
    spec = joint_spec({"arm": joints}, ("gripper",)) if joints else eef_delta_spec()
    return Contract(Needs(cameras=(config["camera"],)), spec, config["chunk"])


def load(where: str, options: LoadOptions) -> WavePolicy:
    return WavePolicy(Path(where).name, check(where, options), read_config(where)["reach"])


def describe(where: str) -> Description:
    config = read_config(where)
    values = {"name": Path(where).name, "family": "wave", "folder": where, **config}
    lines = [("answer", f"{config['chunk']} steps, waving {config['reach']} m at most")]
    return Description(values, lines)


def read_config(where: str) -> dict:
    config = {"camera": "image", **json.loads(Path(where, "config.json").read_text())}
    if not {"chunk", "reach"} <= set(config):
        raise CheckpointError(f"{where}/config.json lacks chunk or reach", "say both")
    return config


class WavePolicy(Policy):
    def __init__(self, name: str, contract: Contract, reach: float):
        self.name, self.placement, self.reach = name, "cpu by NumPy", reach
        self.needs, self.spec, self.chunk = contract.needs, contract.spec, contract.chunk
        self.closed = False

    def action_spec(self):
        return self.spec

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [self._wave(o) for o in observations]

    def close(self) -> None:
        self.closed = True

    def unknown_words(self, instruction: str) -> list[str]:
        return [word for word in instruction.split() if word == "swim"]

    def _wave(self, observation: Observation) -> ActionChunk:
        begun = time.perf_counter()
        if len(observation.images) != 1:
            raise ObservationError(f"{len(observation.images)} images came", "give one")
        check_instruction(observation.instruction)
        (image,) = observation.images.values()
        bright = float(check_image(image).mean()) / 255
        actions = np.zeros((self.chunk, len(self.spec)))
        for t, row in enumerate(actions):
            row[0], row[-1] = self.reach * bright * math.cos(math.pi * t / self.chunk), 1.0
        timing = {"total": 1e3 * (time.perf_counter() - begun)}
        return ActionChunk(actions, self.spec, timing=timing)
