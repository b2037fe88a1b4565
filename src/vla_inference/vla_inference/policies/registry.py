"""The registry of policy families: finds one by the `model_type` of a checkpoint's config.json.

Other packages bring families by entry points of group `vla.policies`: the name is the
`model_type`, the value a `Family` (`my_package.family`, or `my_package.family:FAMILY`).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import fields, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import vla_inference
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.base import Contract, Description, Family, LoadOptions, Policy
from vla_inference.system.plugins import find_plugins, load_plugin

GROUP = "vla.policies"
FAMILIES = {
    "act": "vla_inference.policies.act.family",
    "octo": "vla_inference.policies.octo.family",
    "openpi": "vla_inference.serving.openpi.client.family",  # by address alone
    "openvla": "vla_inference.policies.openvla.family",
    "pi0": "vla_inference.policies.pi05.family",
    "pi05": "vla_inference.policies.pi05.family",
    "smolvla": "vla_inference.policies.smolvla.family",
}


def families() -> dict[str, EntryPoint]:
    """Where each installed family is, by model_type."""
    return find_plugins(GROUP, FAMILIES)


def find_family(model: str | os.PathLike) -> tuple[Family, str]:
    """A model's family, and where the family finds the model.

    model: a checkpoint folder, a Hub id, or NAME:ADDRESS with "://" in it, which goes to the
        family of that name.
    """
    known = families()
    name, _, address = os.fspath(model).partition(":")
    if "://" in address:
        if name not in known:
            raise VlaError(f"there is no policy family {name!r}", f"known: {', '.join(known)}")
        return load_plugin(known[name]), address
    from vla_inference.checkpoints.hub import resolve

    folder = resolve(model)
    kind = model_type(folder)
    if kind not in known:
        raise CheckpointError(
            f"{folder} is a model of type {kind!r}, which no installed family runs",
            f"known: {', '.join(known)}; other packages bring theirs as entry points of {GROUP}",
        )
    return load_plugin(known[kind]), str(folder)


def model_type(folder: Path) -> str:
    """What a checkpoint's config.json calls its kind: `model_type`, LeRobot's `type`."""
    from vla_inference.checkpoints.foreign_formats import check_config, check_not_adapter
    from vla_inference.checkpoints.prismatic.run_config import is_run
    from vla_inference.checkpoints.safetensors_io import read_json

    check_not_adapter(folder)
    path = folder / "config.json"
    raw = read_json(path)
    kind = raw.get("model_type", raw.get("type"))
    if kind is None and is_run(raw):
        return "openvla"
    if not isinstance(kind, str):
        check_config(raw, folder)
        raise CheckpointError(
            f"{path} has no model_type", f"say one; known: {', '.join(families())}"
        )
    return kind


def check_policy(model: str | os.PathLike, options: LoadOptions = LoadOptions()) -> Contract:
    """Refuses whatever `load_policy` would refuse before reading weights."""
    family, where = find_family(model)
    return family.check(where, options)


def load_policy(
    model: str | os.PathLike, options: LoadOptions = LoadOptions(), **more: Any
) -> Policy:
    """Loads a checkpoint of any installed family. more: options by name.

    Example::

        policy = load_policy("models/stack-small", device="cpu")
        chunk = policy.act("table.jpg", "stack the red block on the green one")
        chunk.actions  # float32 [T, D], in the units of policy.action_spec()
    """
    known = [f.name for f in fields(LoadOptions)]
    if unknown := [name for name in more if name not in known]:
        raise VlaError(f"there is no option {unknown[0]!r}", f"known: {', '.join(known)}")
    options = replace(options, **more)
    family, where = find_family(model)
    if vla_inference.TOO_LATE and not options.device.startswith("cuda"):
        warnings.warn(
            "PyTorch was imported before vla_inference, so that its CPU threads spin and are "
            "slow beside other work; set OMP_WAIT_POLICY=PASSIVE, or import vla_inference first",
            stacklevel=2,
        )
    return family.load(where, options)


def describe_policy(model: str | os.PathLike) -> Description:
    """Describes a checkpoint without loading its weights."""
    family, where = find_family(model)
    return family.describe(where)
