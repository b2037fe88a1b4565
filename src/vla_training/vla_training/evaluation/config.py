"""The options of `vla eval` and `vla validate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vla_inference.options import Holds, option


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate. None: no limit, or the default of dataset and model.

    action_space: "normalized" is the model's own -1 to 1, compared with the truth in the dataset's
        q01 to q99. cameras: in the model's order.
    """

    max_episodes: int | None = option(None, "Episodes to evaluate; default: all.", low=1)
    max_steps: int | None = option(None, "Total frames to evaluate; default: all.", low=1)
    action_space: str | None = option(
        None,
        "Statistics by name, 'normalized', or a JSON file of statistics.",
        names=("--unnorm-key", "--action-space"),
        holds=Holds.NAME_OR_PATH,
    )
    cameras: tuple[str, ...] = option(
        (), "Camera(s) that the model sees, separated by commas.", names=("--camera", "--cameras")
    )
    instruction: str | None = option(None, "Replaces the dataset's instructions.")


@dataclass(frozen=True)
class ValidateConfig(EvalConfig):
    execute_steps: int | None = option(
        None, "Steps of a chunk until the next one; default: from the recording.", low=1
    )


SHARE = {"low": 0, "high": 1}


@dataclass(frozen=True)
class Thresholds:
    """Limits that a validation must keep; None: no check."""

    min_accuracy: float | None = option(
        None, "Fail below this accuracy (clipped), 0 to 1.", **SHARE
    )
    min_raw_accuracy: float | None = option(
        None, "Fail below this accuracy (raw), 0 to 1.", **SHARE
    )
    min_direction: float | None = option(None, "Fail below this mean cosine of translations.")
    min_coverage: float | None = None
    max_gripper_flips: float | None = option(
        None, "Fail above this share of flipped frames, 0 to 1.", **SHARE
    )
    max_clip_rate: float | None = option(
        None, "Fail above this share of steps over command limits.", **SHARE
    )
    max_latency_ms: float | None = option(None, "Fail above this latency (95 %), ms.")
    max_jump_mm: float | None = option(None, "Fail above this jump at chunk joins (95 %), mm.")
    GROUPS = {"Limits that the model must keep": ()}

    def failures(self, statistics: Mapping[str, Any]) -> list[str]:
        """Describes the thresholds that were missed; unknown values count as missed."""
        v, mean = statistics["validation"], statistics["mean"]
        jump = v["joins"]["jump_translation_mm"]
        values = {
            "min_accuracy": mean["accuracy_clipped"],
            "min_raw_accuracy": mean["accuracy"],
            "min_direction": v["direction"]["translation"]["cosine"],
            "min_coverage": v["coverage"],
            "max_gripper_flips": v["gripper_flips"],
            "max_clip_rate": v["clip_rate"],
            "max_latency_ms": v["latency_ms"]["p95"],
            "max_jump_mm": jump and jump["p95"],
        }
        found = []
        for name, value in values.items():
            bound, words = getattr(self, name), name.split("_", 1)[1].replace("_", " ")
            if bound is None:
                continue
            if value is None or not math.isfinite(value):
                found.append(f"{words} is not known, {bound:g} is required")
            elif name.startswith("min") and value < bound:
                found.append(f"{words} {value:.4f} is below {bound:g}")
            elif name.startswith("max") and value > bound:
                found.append(f"{words} {value:.4f} is above {bound:g}")
        return found
