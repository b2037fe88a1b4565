"""Registers OpenVLA and OpenVLA-OFT as the policy family `openvla`."""

from __future__ import annotations

from vla_inference.policies.base import Contract, Description, LoadOptions
from vla_inference.policies.openvla.action_spaces import ActionSpaces
from vla_inference.policies.openvla.loading import check_request, needs
from vla_inference.policies.openvla.policy import OpenVLAPolicy


def check(where: str, options: LoadOptions) -> Contract:
    config = check_request(where, options).config
    spec = ActionSpaces(config).spec(options.action_space or None)
    return Contract(needs(config), spec, config.head.chunk)


def load(where: str, options: LoadOptions) -> OpenVLAPolicy:
    return OpenVLAPolicy.load(check_request(where, options))


def describe(where: str) -> Description:
    from vla_inference.policies.openvla.description import describe_checkpoint

    return describe_checkpoint(where)
