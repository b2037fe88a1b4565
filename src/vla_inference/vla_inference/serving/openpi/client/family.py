"""Registers servers with openpi's websocket as a policy family: `openpi:ws://HOST:PORT`."""

from __future__ import annotations

import contextlib
import dataclasses

from vla_inference.policies.base import Contract, Description, LoadOptions
from vla_inference.serving.openpi.client.address import Address
from vla_inference.serving.openpi.client.policy import RemotePolicy


def check(where: str, options: LoadOptions) -> Contract:
    with contextlib.closing(load(where, options)) as policy:
        return policy.contract


def load(where: str, options: LoadOptions) -> RemotePolicy:
    options.allow("openpi")
    return RemotePolicy(Address.parse(where))


def describe(where: str) -> Description:
    with contextlib.closing(load(where, LoadOptions())) as policy:
        return _describe(policy)


def _describe(policy: RemotePolicy) -> Description:
    needs, spec = policy.needs, policy.action_spec()
    values = {
        "name": policy.name,
        "family": "openpi",
        "folder": policy.address.shown,
        "map": policy.terms.observation_map.name,
        "needs": dataclasses.asdict(needs),
        "chunk": policy.chunk,
        "spec": dataclasses.asdict(spec),
    }
    cameras = f" ({', '.join(needs.cameras)})" if needs.cameras else ""
    dims = ", ".join(f"{d.name} [{d.unit}]" for d in spec.dims)
    lines = [
        ("observation", f"{needs.images} images{cameras}, {needs.state} numbers of state"),
        ("", f"by map {policy.terms.observation_map.name}"),
        ("answer", f"{policy.chunk} steps of {spec.dt:g} s; {'; '.join(map(str, spec.parts))}"),
        ("", dims),
    ]
    return Description(values, lines)
