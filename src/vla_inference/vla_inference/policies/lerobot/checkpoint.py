"""Reads a folder as LeRobot saves it: config.json, the processors' files, the weights' names.

Statistics stand in the processors' state files, or, in older checkpoints, in the weights. What a
checkpoint does not say (what its actions mean, most of all) stands in `vla.json` beside it.

Source: behaviour of huggingface/lerobot 0.6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from vla_inference.checkpoints.foreign_formats import check_files
from vla_inference.checkpoints.openvla_compat import OVERRIDES
from vla_inference.checkpoints.safetensors_io import iterate_tensors, read_json, tensor_headers
from vla_inference.errors import CheckpointError
from vla_inference.policies.action_specs import spec_from_json, unknown_spec
from vla_inference.policies.lerobot import relative
from vla_inference.policies.lerobot.settings import Settings
from vla_inference.policies.lerobot.statistics import Normaliser
from vla_inference.types import ActionSpec

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
IMAGE = "observation.image"  # of datasets with a single camera
WEIGHTS = "model.safetensors"
# Where older checkpoints keep their statistics, in the weights.
OLD = (
    "normalize_inputs.buffer_",
    "normalize_targets.buffer_",
    "unnormalize_targets.buffer_",
    "unnormalize_outputs.buffer_",
)
STEPS = (  # of processors, whose work is done here
    "rename_observations_processor",
    "to_batch_processor",
    "device_processor",
    "normalizer_processor",
    "unnormalizer_processor",
    "tokenizer_processor",
    "smolvla_new_line_processor",
    "pi0_new_line_processor",
    "pi05_prepare_state_tokenizer_processor_step",
    *relative.STEPS,
)
M = TypeVar("M", bound=nn.Module)
RATE = 30.0  # Hz, of actions whose checkpoint doesn't say; they are in unknown units then


@dataclass(frozen=True)
class LeRobotCheckpoint:
    """A checkpoint as far as known without its network's weights.

    cameras: as the robot names them, in the order of the network. image_features: the network's
    names of the same. state_dim, action_dim: of the robot. empty: cameras that may be missing.
    spec: what the actions mean. relative: of each number of an action, whether the network gives
        it as an offset from the state.
    """

    folder: Path
    config: Mapping[str, Any]
    cameras: tuple[str, ...]
    image_features: tuple[str, ...]
    image_shapes: Mapping[str, tuple[int, int]]
    state_dim: int
    action_dim: int
    empty: int
    spec: ActionSpec
    normalisers: Mapping[str, Normaliser]
    relative: tuple[bool, ...]
    processors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, fitted: bool = True) -> LeRobotCheckpoint:
        """fitted: False for a base model, whose statistics are not asked for."""
        path = folder / "config.json"
        says = Settings.read(path)
        raw = says.values
        inputs, outputs = _features(says, "input_features"), _features(says, "output_features")
        if ACTION not in outputs:
            raise CheckpointError(f"{path} has no output feature {ACTION}", "copy it again")
        processors = dict(_processors(folder))
        names = {to: of for of, to in _renamed(folder, processors).items()}
        empty = says.count("empty_cameras", 0, least=0)
        keys = [
            k
            for k in inputs
            if (k == IMAGE or k.startswith(IMAGES)) and not k.startswith(f"{IMAGES}empty_camera_")
        ]
        if not keys:
            raise CheckpointError(f"{path} names no camera", "give a checkpoint that sees")
        cameras = tuple(camera_of(names.get(k, k)) for k in keys)
        for key in keys:
            if len(inputs[key]) != 3:
                raise CheckpointError(
                    f"{path}: the shape of {key} is {list(inputs[key])}",
                    "give channels, height and width",
                )
        if len(set(cameras)) < len(cameras):
            raise CheckpointError(
                f"{folder}: two of the cameras {', '.join(cameras)} have one name",
                "correct rename_map in policy_preprocessor.json",
            )
        action_dim = outputs[ACTION][0]
        state_dim = inputs[STATE][0] if STATE in inputs else 0
        return cls(
            folder,
            raw,
            cameras,
            tuple(keys),
            {c: (inputs[k][-2], inputs[k][-1]) for c, k in zip(cameras, keys, strict=True)},
            state_dim,
            action_dim,
            empty,
            _spec(folder, says, action_dim),
            _normalisers(folder, says, processors, {**inputs, **outputs}, keys) if fitted else {},
            relative.relative_numbers(folder, processors, state_dim, action_dim),
            processors,
        )

    @property
    def settings(self) -> Settings:
        """What config.json says."""
        return Settings(str(self.folder / "config.json"), self.config)

    def statistics(self, feature: str) -> dict[str, np.ndarray]:
        """What the checkpoint knows of a feature, by name; empty where it knows nothing."""
        name = "unnormalizer_processor" if feature == ACTION else "normalizer_processor"
        return _statistics(self.folder, self.processors.get(name, {}), feature)

    def step(self, name: str) -> Mapping[str, Any]:
        """The settings of a step of the processors; empty where there is none."""
        return self.processors.get(name, {}).get("config", {})


def camera_of(feature: str) -> str:
    """The camera whose images a feature holds."""
    return feature.removeprefix(IMAGES).removeprefix("observation.")


def load_weights(
    model: M,
    folder: Path,
    our_name: Callable[[str], str | None],
    device: str,
    dtype: torch.dtype,
) -> M:
    """Gives a model on "meta" the weights of a folder, tensor by tensor, on a device.

    our_name: of a published tensor, in the model; None: nothing depends on it. Names and shapes
    are checked before anything is allocated. Raises CheckpointError, which names the tensor.
    """
    path = folder / WEIGHTS
    header = _header(folder)
    names = {key: None if key.startswith(OLD) else our_name(key) for key in header}
    wanted = {key: name for key, name in names.items() if name is not None}
    _check_shapes(path, header, wanted, {k: tuple(v.shape) for k, v in model.state_dict().items()})
    model = model.to(dtype).to_empty(device=device)
    targets = dict(model.state_dict(keep_vars=True))
    for key, value in iterate_tensors(path, {key: header[key] for key in wanted}):
        if not value.sum(dtype=torch.float64).isfinite():
            raise CheckpointError(
                f"{path}: {key} contains numbers that are not finite", "fetch it again"
            )
        with torch.no_grad():
            put = value.to(dtype) if value.is_floating_point() else value
            targets[wanted[key]].copy_(put)
    return model


def _check_shapes(
    path: Path,
    header: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """wanted: published name -> ours. shapes: of the model's tensors."""
    for key, name in wanted.items():
        if name not in shapes:
            raise CheckpointError(
                f"{path} holds {key}, which this family has no place for",
                "it may be of another version of LeRobot",
            )
        if (found := tuple(header[key]["shape"])) != shapes[name]:
            raise CheckpointError(
                f"{path}: {key} is {list(found)}, the configuration says {list(shapes[name])}",
                "give the configuration that the weights belong to",
            )
    if left := set(shapes) - set(wanted.values()):
        raise CheckpointError(
            f"{path} lacks {len(left)} tensors, such as {min(left)}", "fetch it again"
        )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of the weights, from their header alone."""
    return {key: tuple(entry["shape"]) for key, entry in _header(folder).items()}


def _header(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / WEIGHTS
    check_files((p.name for p in folder.iterdir() if p.is_file()), folder)
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}", "give a checkpoint folder of LeRobot")
    return tensor_headers(path)


def _features(says: Settings, name: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape, in the file's order."""
    features = says.part(name)
    return {key: features.part(key).counts("shape") for key in features.values}


def _processors(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Steps of both processors by name."""
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        path = folder / name
        if not path.is_file():
            continue  # an older checkpoint
        steps = read_json(path).get("steps")
        if not isinstance(steps, list):
            raise CheckpointError(f"{path} has no steps", "copy it again")
        for step in steps:
            if not isinstance(step, Mapping) or "registry_name" not in step:
                raise CheckpointError(
                    f"{path} has a step that LeRobot's registry does not name: {step!r:.80}",
                    "such a step is code of its own, which is not run",
                )
            says = Settings(str(path), step)
            kind = says.text("registry_name")
            if kind not in STEPS:
                raise CheckpointError(
                    f"{path} has the step {kind}, which is not supported",
                    f"supported: {', '.join(STEPS)}",
                )
            says.part("config", {})
            yield kind, {**step, "config": step.get("config") or {}}


def _renamed(folder: Path, processors: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The robot's name of a feature -> the network's."""
    step = processors.get("rename_observations_processor", {})
    where = str(folder / "policy_preprocessor.json")
    given = Settings(where, step.get("config", {})).part("rename_map", {})
    return {name: given.text(name) for name in given.values}


def _normalisers(
    folder: Path,
    says: Settings,
    processors: Mapping[str, Mapping[str, Any]],
    features: Mapping[str, tuple[int, ...]],
    cameras: list[str],
) -> dict[str, Normaliser]:
    """Of state, action and each camera."""
    found: dict[str, Normaliser] = {}
    wanted = [*([STATE] if STATE in features else []), ACTION, *cameras]
    for feature in wanted:
        kind = "VISUAL" if feature in cameras else "STATE" if feature == STATE else "ACTION"
        step_name = "unnormalizer_processor" if feature == ACTION else "normalizer_processor"
        step = processors.get(step_name, {})
        own = Settings(f"{folder}: {step_name}", step.get("config", {})).part("norm_map", {})
        modes = own if own.values else says.part("normalization_mapping", {})
        statistics = _statistics(folder, step, feature)
        found[feature] = Normaliser.find(modes.text(kind, "IDENTITY"), statistics, feature)
        shape, size = features[feature], found[feature].a.size
        if found[feature].mode != "IDENTITY" and size not in (shape[0], int(np.prod(shape))):
            raise CheckpointError(
                f"{folder}: the statistics of {feature} are of {size} numbers, it has {shape[0]}",
                "copy the processors' files again",
            )
    return found


def _statistics(folder: Path, step: Mapping[str, Any], feature: str) -> dict[str, np.ndarray]:
    """The statistics of a feature by name."""
    if not step:
        return _old_statistics(folder, feature)
    if step.get("state_file") is None:
        return {}
    path = folder / str(step["state_file"])
    if path.parent != folder or not path.is_file():
        raise CheckpointError(f"{path} is missing", "the checkpoint folder is incomplete")
    begin = f"{feature}."
    return {
        key.removeprefix(begin): value.numpy()
        for key, value in iterate_tensors(path, tensor_headers(path))
        if key.startswith(begin) and "." not in key.removeprefix(begin)
    }


def _old_statistics(folder: Path, feature: str) -> dict[str, np.ndarray]:
    """From the weights, where dots of the feature's name are underscores."""
    path = folder / WEIGHTS
    header = tensor_headers(path)
    flat = feature.replace(".", "_")
    wanted = {
        key: key.rsplit(".", 1)[1]
        for key in header
        for begin in OLD
        if key.startswith(f"{begin}{flat}.")
    }
    some = {key: header[key] for key in wanted}
    return {wanted[key]: value.numpy().copy() for key, value in iterate_tensors(path, some)}


def _spec(folder: Path, says: Settings, action_dim: int) -> ActionSpec:
    """What vla.json says of the actions; else numbers of unknown units."""
    beside = folder / OVERRIDES
    given = read_json(beside) if beside.is_file() else {}
    if "actions" in given:
        spec = spec_from_json(given["actions"], f"{beside}: actions")
        if len(spec) != action_dim:
            raise CheckpointError(
                f"{beside} names {len(spec)} numbers of an action, the model gives {action_dim}",
                "name each number",
            )
        return spec
    names = says.texts("action_feature_names", [])
    if len(names) != action_dim or len(set(names)) < action_dim:
        names = [f"dim_{i}" for i in range(action_dim)]
    return unknown_spec(names, 1 / RATE)
