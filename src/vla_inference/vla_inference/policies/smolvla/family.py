"""Registers SmolVLA as the policy family `smolvla`."""

from __future__ import annotations

from pathlib import Path

from vla_inference.checkpoints.hub import resolve
from vla_inference.policies.base import Contract, Description, LoadOptions
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.loading import describe_checkpoint, placed_flow
from vla_inference.policies.lerobot.policy import flow_contract
from vla_inference.policies.smolvla.config import read_config
from vla_inference.policies.smolvla.policy import SmolVLAPolicy, sizes_of


def check(where: str, options: LoadOptions) -> Contract:
    placed_flow(options, "smolvla")
    checkpoint = LeRobotCheckpoint.read(resolve(where))
    return flow_contract(checkpoint, sizes_of(read_config(checkpoint)))


def load(where: str, options: LoadOptions) -> SmolVLAPolicy:
    options = placed_flow(options, "smolvla")
    return SmolVLAPolicy.load(LeRobotCheckpoint.read(resolve(where)), options)


def describe(where: str) -> Description:
    checkpoint = LeRobotCheckpoint.read(Path(resolve(where)))
    config = read_config(checkpoint)
    return describe_checkpoint(
        checkpoint,
        "smolvla",
        [("answer", f"{config.chunk} steps, {config.steps} of flow matching")],
    )
