"""What the actions of a checkpoint's statistics mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vla_inference.errors import CheckpointError
from vla_inference.model import ModelConfig
from vla_inference.types import ActionSpec, DimSpec, eef_delta_spec


def statistics_spec(statistics: Mapping, action_dim: int = 7) -> ActionSpec:
    """What the actions of a set of statistics mean.

    They may carry a `spec` ({"rotation", "frame", "dt", "dims": [{"name", "unit", "polarity"}]}).
    Those of the Open X-Embodiment sets don't: 7 dimensions are then fixed-axis angles in the base
    frame at about 5 Hz, 14 are ALOHA's two arms as OpenVLA-OFT has them, and others have no name.
    """
    defaults = {"rotation": "rpy", "frame": "base", "dt": 0.2}
    given = dict(statistics.get("spec", {}))
    dims = given.pop("dims", None)
    unknown = set(given) - set(defaults)
    if unknown:
        raise CheckpointError(
            f"the statistics' spec names unknown {', '.join(sorted(unknown))}",
            f"known: {', '.join(defaults)}, dims",
        )
    values = {**defaults, **given}
    if dims is not None:
        try:
            named = tuple(DimSpec(**d) for d in dims)
        except TypeError as error:
            raise CheckpointError(
                f"the statistics' spec has dims {dims!r:.80} ({error})",
                "give a list of {name, unit, polarity}",
            ) from None
        return ActionSpec(named, values["frame"], values["rotation"], values["dt"])
    if action_dim == 7:
        return eef_delta_spec(**values)
    joints = {"rotation": "joints", "frame": "joints"}
    if action_dim == 14:
        return ActionSpec(ALOHA, **{**joints, "dt": 0.04, **given})
    nameless = tuple(DimSpec(f"dim_{i}", "?") for i in range(action_dim))
    return ActionSpec(nameless, **{**values, "rotation": "?", "frame": "?", **given})


def _arm(side: str) -> tuple[DimSpec, ...]:
    names = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
    joints = tuple(DimSpec(f"{side}_{n}", "rad") for n in names)
    return (*joints, DimSpec(f"{side}_gripper", "1", "1 open, 0 closed"))


ALOHA = _arm("left") + _arm("right")


def check_statistics(config: ModelConfig, folder: Path) -> None:
    """Refuse statistics of another length than the model's actions, naming file and field."""
    file = "dataset_statistics.json"
    where = folder / (file if (folder / file).is_file() else "config.json")
    for name, space in config.norm_stats.items():
        if not isinstance(space, Mapping):
            raise CheckpointError(f"{where}: {name!r} is {space!r:.60}", "it must be an object")
        entry = space.get("action", space)
        for key in (*config.head.bounds.split("_"), "mask"):
            values = entry.get(key) if isinstance(entry, Mapping) else None
            if isinstance(values, list) and len(values) != config.head.action_dim:
                raise CheckpointError(
                    f"{where}: {name!r} has {len(values)} numbers in {key}, the model's actions "
                    f"have {config.head.action_dim}",
                    "the statistics and the weights must come from one training run",
                )
