"""The metadata that a server sends first: its inputs and the meaning of its actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.policies.base import Contract, Needs
from vla_inference.serving.openpi.observation_maps import ObservationMap, read_spec

PROTOCOL, VERSION = "vla-openpi", 1
REALTIME = "/v1/realtime/robot/openpi"  # vLLM-Omni's path


def write_metadata(contract: Contract, name: str, observation_map: ObservationMap) -> dict:
    """contract: with the spec of the actions on the wire. name: of the model."""
    needs, spec = contract.needs, contract.spec
    return {
        "protocol": PROTOCOL,
        "version": VERSION,
        "model": name,
        "embodiment": observation_map.name,
        "images": needs.images,
        "cameras": list(needs.cameras),
        "history": needs.history,
        "state_dim": needs.state,
        "image_encodings": ["array", "jpeg", "png"],
        "action_horizon": contract.chunk,
        "action_dim": len(spec),
        "action_dims": [dataclasses.asdict(d) for d in spec.dims],
        "action_frame": spec.frame,
        "action_rotation": spec.rotation,
        "action_dt": spec.dt,
        **write_roboarena(contract),
    }


def write_roboarena(contract: Contract) -> dict:
    """The six keys that RoboArena's clients read; its own refuses any other."""
    needs, spec = contract.needs, contract.spec
    return {
        "image_resolution": list(needs.image_size) if needs.image_size else None,
        "n_external_cameras": min(needs.images, 2),
        "needs_wrist_camera": needs.images > 1,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": "joint_position" if spec.frame == "joints" else "cartesian_velocity",
    }


def read_metadata(metadata: Mapping[str, Any]) -> Contract | None:
    """The metadata of one of our servers; None for other servers. Raises VlaError."""
    if metadata.get("protocol") != PROTOCOL:
        return None
    if metadata.get("version") != VERSION:
        raise VlaError(
            f"the server speaks version {metadata.get('version')!r:.20} of {PROTOCOL}, "
            f"this client {VERSION}",
            "bring both to the same release",
        )
    try:
        size = metadata["image_resolution"]
        needs = Needs(
            images=_count(metadata["images"]),
            state=_count(metadata["state_dim"]),
            image_size=None if size is None else (_count(size[0]), _count(size[1])),
            cameras=tuple(map(str, metadata["cameras"])),
            history=_count(metadata["history"]),
        )
        spec = read_spec(
            metadata["action_dims"],
            str(metadata["action_frame"]),
            str(metadata["action_rotation"]),
            metadata["action_dt"],
        )
        return Contract(needs, spec, _count(metadata["action_horizon"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VlaError(f"the server's metadata is wrong ({error!r:.80})", "update it") from None


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 1_000_000:
        raise ValueError(f"{value!r:.20} is not a count")
    return value
