"""Registers models of Octo's kind as the policy family `octo`."""

from __future__ import annotations

from pathlib import Path

from vla_inference.checkpoints.hub import resolve
from vla_inference.policies.base import Contract, Description, LoadOptions
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.loading import describe_checkpoint, placed
from vla_inference.policies.lerobot.policy import flow_contract
from vla_inference.policies.octo.config import read_config
from vla_inference.policies.octo.policy import OctoPolicy, sizes_of


def check(where: str, options: LoadOptions) -> Contract:
    placed(options, "octo")
    checkpoint = LeRobotCheckpoint.read(resolve(where))
    return flow_contract(checkpoint, sizes_of(read_config(checkpoint)))


def load(where: str, options: LoadOptions) -> OctoPolicy:
    options = placed(options, "octo")
    return OctoPolicy.load(LeRobotCheckpoint.read(resolve(where)), options)


def describe(where: str) -> Description:
    checkpoint = LeRobotCheckpoint.read(Path(resolve(where)))
    config = read_config(checkpoint)
    lines = [("answer", f"{config.chunk} steps, {config.steps} of diffusion")]
    return describe_checkpoint(checkpoint, "octo", lines)
