"""Registers ACT as the policy family `act`."""

from __future__ import annotations

import math
from pathlib import Path

from vla_inference.checkpoints.hub import resolve
from vla_inference.policies.act.config import read_config
from vla_inference.policies.act.policy import ACTPolicy, act_contract
from vla_inference.policies.base import Contract, Description, LoadOptions
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.loading import describe_checkpoint, placed


def check(where: str, options: LoadOptions) -> Contract:
    placed(options, "act", engines=("plain", "torch"))
    return act_contract(LeRobotCheckpoint.read(resolve(where)))


def load(where: str, options: LoadOptions) -> ACTPolicy:
    options = placed(options, "act", engines=("plain", "torch"))
    return ACTPolicy.load(LeRobotCheckpoint.read(resolve(where)), options)


def describe(where: str) -> Description:
    checkpoint = LeRobotCheckpoint.read(Path(resolve(where)))
    config, says = read_config(checkpoint), checkpoint.settings
    executed = says.count("n_action_steps", config.chunk)
    lines = [("answer", f"{config.chunk} steps, of which LeRobot executes {executed}")]
    if checkpoint.config.get("temporal_ensemble_coeff") is not None:
        coefficient = says.number("temporal_ensemble_coeff", low=-math.inf)
        lines.append(("", f"made for temporal ensembling: set ensemble to {coefficient:g}"))
    return describe_checkpoint(checkpoint, "act", lines)
