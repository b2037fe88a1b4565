"""The metadata that a server sends first: its inputs and the meaning of its actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import spec_from_json, spec_to_json
from vla_inference.policies.base import Contract, Needs
from vla_inference.serving.openpi.observation_maps import ObservationMap

PROTOCOL, VERSION = "vla-openpi", 1
REALTIME = "/v1/realtime/robot/openpi"  # vLLM-Omni's path
ROBOARENA = {  # a part's kind -> its word for the action space
    "eef_delta": "cartesian_velocity",
    "eef_pose": "cartesian_position",
    "joint_position": "joint_position",
    "joint_velocity": "joint_velocity",
}


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
        "actions": spec_to_json(spec),
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
        "action_space": next((ROBOARENA[p.kind] for p in spec.parts if p.kind in ROBOARENA), ""),
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
        spec = spec_from_json(metadata["actions"], "the server's metadata")
        return Contract(needs, spec, _count(metadata["action_horizon"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VlaError(f"the server's metadata is wrong ({error!r:.80})", "update it") from None


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 1_000_000:
        raise ValueError(f"{value!r:.20} is not a count")
    return value
