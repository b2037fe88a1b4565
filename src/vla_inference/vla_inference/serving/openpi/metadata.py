"""The metadata that a server sends first: its inputs and the meaning of its actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import spec_from_json, spec_to_json
from vla_inference.policies.base import Contract, Needs
from vla_inference.serving.openpi.observation_maps import ObservationMap

PROTOCOL, VERSION = "vla-openpi", 1
MAX_IMAGES, MAX_NUMBERS, MAX_STEPS = 64, 4096, 1000  # that a server may ask for and answer
MIN_SIDE, MAX_SIDE = 16, 2048  # pixels that a server may ask for
MAX_INTERVAL = 60.0  # s between past images that a server may ask for
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
        "history_interval": needs.interval,
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
        "n_external_cameras": min(needs.views, 2),
        "needs_wrist_camera": needs.views > 1,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": next((ROBOARENA[p.kind] for p in spec.parts if p.kind in ROBOARENA), ""),
    }


def read_metadata(metadata: Mapping[str, Any]) -> Contract | None:
    """The metadata of one of our servers; None for other servers. Raises VlaError."""
    protocol, version = metadata.get("protocol"), metadata.get("version")
    if not isinstance(protocol, str) or protocol != PROTOCOL:
        return None
    if type(version) is not int or version != VERSION:
        raise VlaError(
            f"the server speaks version {version!r:.20} of {PROTOCOL}, this client {VERSION}",
            "bring both to the same release",
        )
    try:
        size = metadata["image_resolution"]
        needs = Needs(
            images=_count(metadata["images"], MAX_IMAGES),
            state=_count(metadata["state_dim"], MAX_NUMBERS),
            image_size=None if size is None else (_side(size[0]), _side(size[1])),
            cameras=_names(metadata["cameras"]),
            history=_count(metadata["history"], MAX_IMAGES),
            interval=_seconds(metadata.get("history_interval", 0.0)),
        )
        spec = spec_from_json(metadata["actions"], "the server's metadata")
        return Contract(needs, spec, _count(metadata["action_horizon"], MAX_STEPS))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise VlaError(f"the server's metadata is wrong ({error!r:.80})", "update it") from None


def _count(value: Any, most: int, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r:.20} is not {least} to {most}")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MAX_INTERVAL:
        raise ValueError(f"{value!r:.20} is not 0 to {MAX_INTERVAL}")
    return float(value)


def _side(value: Any) -> int:
    """Pixels of an image's side."""
    return _count(value, MAX_SIDE, least=MIN_SIDE)


def _names(value: Any) -> tuple[str, ...]:
    _count(len(value), MAX_IMAGES)
    return tuple(map(str, value))
