"""Registers pi0 and pi0.5 as the policy families `pi0` and `pi05`."""

from __future__ import annotations

from pathlib import Path

from vla_inference.checkpoints.hub import resolve
from vla_inference.policies.base import Contract, Description, LoadOptions
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.loading import describe_checkpoint, placed_flow
from vla_inference.policies.lerobot.policy import flow_contract
from vla_inference.policies.pi05.config import family_of, read_config
from vla_inference.policies.pi05.policy import PiPolicy, sizes_of


def check(where: str, options: LoadOptions) -> Contract:
    checkpoint = LeRobotCheckpoint.read(resolve(where))
    placed_flow(options, family_of(checkpoint))
    return flow_contract(checkpoint, sizes_of(checkpoint, read_config(checkpoint)))


def load(where: str, options: LoadOptions) -> PiPolicy:
    checkpoint = LeRobotCheckpoint.read(resolve(where))
    options = placed_flow(options, family_of(checkpoint))
    return PiPolicy.load(checkpoint, options)


def describe(where: str) -> Description:
    checkpoint = LeRobotCheckpoint.read(Path(resolve(where)))
    config = read_config(checkpoint)
    state = "a token" if config.state_dim else "part of the prompt"
    return describe_checkpoint(
        checkpoint,
        family_of(checkpoint),
        [("answer", f"{config.chunk} steps, {config.steps} of flow matching; state: {state}")],
    )
