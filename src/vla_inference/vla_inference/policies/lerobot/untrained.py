"""Writes folders of LeRobot's whose weights are random and whose statistics are yet to come.

Source: of the files, behaviour of huggingface/lerobot 0.6.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.policies.lerobot.checkpoint import ACTION, IMAGES, STATE
from vla_inference.policies.lerobot.save import POSTPROCESSOR, PREPROCESSOR

Step = tuple[str, Mapping[str, Any]]  # of a processor: LeRobot's name of it, and its settings


def write_folder(
    folder: Path,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    words: Sequence[Step] = (),
) -> None:
    """Writes config.json, weights and both processors.

    settings: of config.json, `features` and "normalization_mapping" among them. words: the steps
    by which LeRobot reads an instruction.
    """
    save_checkpoint(folder, dict(settings), tensors)
    outputs, modes = settings["output_features"], settings["normalization_mapping"]
    features = {**settings["input_features"], **outputs}
    device: Step = ("device_processor", {"device": "cpu", "float_dtype": None})

    def normalising(name: str, of: Mapping[str, Any]) -> Step:
        return name, {"eps": 1e-8, "features": of, "norm_map": modes}

    before: list[Step] = [
        ("rename_observations_processor", {"rename_map": {}}),
        ("to_batch_processor", {}),
        *words,
        device,
        normalising("normalizer_processor", features),
    ]
    after = [normalising("unnormalizer_processor", outputs), device]
    for name, steps in ((PREPROCESSOR, before), (POSTPROCESSOR, after)):
        listed = [{"registry_name": kind, "config": about} for kind, about in steps]
        (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": listed}, indent=2))


def features(
    cameras: Sequence[str], image_size: tuple[int, int], state: int, actions: int
) -> dict[str, Any]:
    """What config.json says of a robot. image_size: height and width of its images; state,
    actions: how many numbers it has of each."""
    known = {STATE: {"type": "STATE", "shape": [state]}} if state else {}
    image = {"type": "VISUAL", "shape": [3, *image_size]}
    return {
        "input_features": {**known, **{IMAGES + name: image for name in cameras}},
        "output_features": {ACTION: {"type": "ACTION", "shape": [actions]}},
    }
