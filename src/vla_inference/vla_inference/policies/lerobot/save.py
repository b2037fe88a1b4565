"""Writes a folder as LeRobot saves it: config.json, weights, the processors and their statistics.

Beside them lie the two files that LeRobot leaves out and our loading needs: tokenizer.json, and
vla.json, which says what the actions mean.

Source: behaviour of huggingface/lerobot 0.6.1.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_inference.checkpoints.openvla_compat import OVERRIDES
from vla_inference.checkpoints.safetensors_io import (
    DTYPES,
    iterate_tensors,
    read_json,
    tensor_headers,
)
from vla_inference.checkpoints.save import save_checkpoint, save_tensors
from vla_inference.errors import CheckpointError
from vla_inference.policies.action_specs import spec_to_json
from vla_inference.policies.lerobot.checkpoint import (
    ACTION,
    IMAGES,
    OLD,
    STATE,
    WEIGHTS,
    LeRobotCheckpoint,
    camera_of,
)
from vla_inference.policies.lerobot.statistics import Normaliser
from vla_inference.types import ActionSpec

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
# Files that do not depend on training
BESIDE = ("tokenizer.json", "tokenizer.model", "vlm_config.json", "reduced.json")
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
# Of images in [0, 1]. As LeRobot's trainer has them, who takes the mean and the deviation from
# ImageNet, where backbones come from.
IMAGENET = {
    name: np.array(values, np.float32)[:, None, None]
    for name, values in {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "min": (0.0, 0.0, 0.0),
        "max": (1.0, 1.0, 1.0),
    }.items()
}

# Feature -> name -> one number for each of the feature's
Statistics = Mapping[str, Mapping[str, np.ndarray]]


def column_statistics(values: np.ndarray) -> dict[str, np.ndarray]:
    """What LeRobot knows of a feature, of each column of [N, D]: float32 [D] by name."""
    x = values.astype(np.float64)
    found = {"mean": x.mean(0), "std": x.std(0), "min": x.min(0), "max": x.max(0)}
    found |= {name: np.quantile(x, at, axis=0) for name, at in QUANTILES.items()}
    return {name: value.astype(np.float32) for name, value in found.items()}


def check_writable(folder: Path) -> None:
    """Refuses a base from which `save` could write nothing that LeRobot loads."""
    for name in (PREPROCESSOR, POSTPROCESSOR):
        if not (folder / f"{name}.json").is_file():
            raise CheckpointError(
                f"{folder} has no {name}.json, as checkpoints of older versions of LeRobot",
                "write both processors by LeRobot's processor/migrate_policy_normalization.py",
            )


def fit(
    base: LeRobotCheckpoint,
    cameras: Sequence[str],
    statistics: Statistics,
    spec: ActionSpec,
    image_size: tuple[int, int] | None = None,
) -> LeRobotCheckpoint:
    """A checkpoint for another robot: its cameras, its state and its actions.

    cameras: in the network's order, whose first ones they become. statistics: of `STATE`, if it
    has one, and of `ACTION`, each as many numbers as these have; of images [3, 1, 1], by the
        network's names, where they are normalised. spec: what the actions mean; none of them is
        relative. image_size: height and width of its images; None: the base's.
    """
    inputs = dict(base.config["input_features"])
    kept = base.image_features[: len(cameras)]
    dropped = base.image_features[len(cameras) :]
    inputs = {k: v for k, v in inputs.items() if k not in (*dropped, STATE)}
    if image_size is not None:
        inputs |= {k: {**inputs[k], "shape": [3, *image_size]} for k in kept}
    if STATE in statistics:
        size = len(statistics[STATE]["mean"])
        inputs = {STATE: {"type": "STATE", "shape": [size]}, **inputs}
    outputs = {ACTION: {"type": "ACTION", "shape": [len(spec)]}}
    modes = _modes(base)
    normalisers = {
        feature: Normaliser.find(modes.get(kind, "IDENTITY"), statistics.get(feature, {}), feature)
        for kind, features in {"STATE": [STATE], "ACTION": [ACTION], "VISUAL": kept}.items()
        for feature in features
        if feature in (*statistics, *kept)
    }
    return replace(
        base,
        config={**base.config, "input_features": inputs, "output_features": outputs},
        cameras=tuple(cameras),
        image_features=kept,
        image_shapes={
            c: (inputs[k]["shape"][-2], inputs[k]["shape"][-1])
            for c, k in zip(cameras, kept, strict=True)
        },
        state_dim=len(statistics[STATE]["mean"]) if STATE in statistics else 0,
        action_dim=len(spec),
        spec=spec,
        normalisers=normalisers,
        relative=(False,) * len(spec),
    )


def save(
    folder: Path,
    checkpoint: LeRobotCheckpoint,
    statistics: Statistics,
    trained: Mapping[str, Tensor],
    our_name: Callable[[str], str | None],
) -> None:
    """Writes a fitted checkpoint into an empty folder.

    checkpoint: of `fit`; its folder still is the base's. trained: tensors by our name that are
    others than the base's; all keep the base's dtypes.
    """
    base = checkpoint.folder
    path = base / WEIGHTS
    header = {k: v for k, v in tensor_headers(path).items() if not k.startswith(OLD)}
    order = sorted(header, key=lambda key: header[key]["data_offsets"])
    dtypes = {k: DTYPES[header[k]["dtype"]] for k in order}

    def stream() -> Iterator[tuple[str, Tensor]]:
        for key, value in iterate_tensors(path, header):
            new = trained.get(our_name(key) or "")
            yield _published(key), value if new is None else new.to(dtypes[key])

    empty = {
        _published(k): torch.empty(header[k]["shape"], dtype=dtypes[k], device="meta")
        for k in order
    }
    save_checkpoint(folder, dict(checkpoint.config), empty, stream=stream())
    for name in BESIDE:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    about = read_json(base / OVERRIDES) if (base / OVERRIDES).is_file() else {}
    about = {**about, "actions": spec_to_json(checkpoint.spec)}
    (folder / OVERRIDES).write_text(json.dumps(about, indent=2))
    for name in (PREPROCESSOR, POSTPROCESSOR):
        steps = read_json(base / f"{name}.json")["steps"]
        _write_processor(folder, name, steps, checkpoint, statistics)


def _write_processor(
    folder: Path,
    name: str,
    steps: Sequence[Mapping[str, Any]],
    checkpoint: LeRobotCheckpoint,
    statistics: Statistics,
) -> None:
    """One of the two processors, with the statistics that its normalising step reads."""
    features = {**checkpoint.config["input_features"], **checkpoint.config["output_features"]}
    written = []
    for number, step in enumerate(steps):
        kind, settings = step["registry_name"], dict(step.get("config", {}))
        files = {}
        if kind == "rename_observations_processor":
            settings["rename_map"] = _renaming(checkpoint, settings.get("rename_map", {}))
        elif kind in ("normalizer_processor", "unnormalizer_processor"):
            mine = features if name == PREPROCESSOR else checkpoint.config["output_features"]
            settings |= {"features": mine, "norm_map": _modes(checkpoint)}
            files["state_file"] = f"{name}_step_{number}_{kind}.safetensors"
            tensors = {
                f"{feature}.{statistic}": torch.from_numpy(np.asarray(value))
                for feature, values in statistics.items()
                for statistic, value in values.items()
            }
            save_tensors(folder / files["state_file"], tensors)
        written.append({"registry_name": kind, "config": settings, **files})
    content = {"name": name, "steps": written}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2))


def _renaming(checkpoint: LeRobotCheckpoint, given: Mapping[str, str]) -> dict[str, str]:
    """The rename_map that makes the robot's cameras the network's; what else was renamed stays."""
    others = {of: to for of, to in given.items() if to not in checkpoint.image_features}
    names = zip(checkpoint.cameras, checkpoint.image_features, strict=True)
    return {**others, **{IMAGES + c: key for c, key in names if camera_of(key) != c}}


def _modes(checkpoint: LeRobotCheckpoint) -> dict[str, str]:
    """How each kind of feature is normalised."""
    step = checkpoint.step("normalizer_processor")
    return dict(step.get("norm_map") or checkpoint.config.get("normalization_mapping", {}))


def _published(key: str) -> str:
    return key.replace("._orig_mod", "")  # torch.compile's
