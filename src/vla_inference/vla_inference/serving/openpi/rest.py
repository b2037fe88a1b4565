"""`POST /act`: OpenVLA's request {image, instruction, unnorm_key?} and OpenVLA-OFT's
{full_image, ...wrist..., state, instruction}, with arrays as json-numpy writes them.

Sources: openvla/openvla and moojink/openvla-oft, vla-scripts/deploy.py (forms on the wire).
OpenVLA's is answered by one action [D], OFT's by a list of the chunk's actions; both in the units
of the model's statistics. A payload in {"encoded": TEXT} is answered by text as well.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_inference.errors import ObservationError
from vla_inference.policies.base import Needs
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_inference.serving.openpi.wire import WireError, make_array
from vla_inference.types import ActionChunk, Observation

FREE = ObservationMap("free", prompt="instruction")


@dataclass(frozen=True)
class ActRequest:
    """chunk: whether all steps are wanted (OFT). encoded: whether as text in text."""

    observation: Observation
    space: str | None
    chunk: bool
    encoded: bool


def read_act(body: bytes, needs: Needs, usual: str = "") -> ActRequest:
    """Raises ObservationError. usual: instruction of a request that has none."""
    payload = _loads(body)
    encoded = isinstance(payload, dict) and isinstance(payload.get("encoded"), str)
    if encoded:
        payload = _loads(payload["encoded"])
    if not isinstance(payload, dict):
        raise WireError("the request is not a JSON object", "send image and instruction")
    chunk = "full_image" in payload
    names = [name for name in payload if chunk and "wrist" in name]
    names = [*(["full_image"] if chunk else ["image"]), *names, "state", "instruction"]
    message = {name: payload[name] for name in names if name in payload}
    space = payload.get("unnorm_key") or None
    if not (space is None or isinstance(space, str)):
        raise WireError("unnorm_key is not text", "name the statistics")
    return ActRequest(FREE.read(message, needs, usual), space, chunk, encoded)


def read_change(body: bytes) -> tuple[str, str]:
    """Model and action space of a request {"model": TEXT, "action_space": TEXT?}."""
    payload = _loads(body)
    payload = payload if isinstance(payload, dict) else {}
    model, action_space = payload.get("model"), payload.get("action_space", "")
    if not isinstance(model, str) or not isinstance(action_space, str):
        raise WireError("the request names no model", 'send {"model": "NAME"}')
    return model, action_space


def write_act(chunk: ActionChunk, request: ActRequest) -> str:
    """JSON of the reply."""
    actions = np.asarray(chunk.actions, np.float64)
    reply = [to_json(a) for a in actions] if request.chunk else to_json(actions[0])
    text = json.dumps(reply)
    return json.dumps(text) if request.encoded else text


def to_json(array: np.ndarray) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}


def _loads(text: bytes | str) -> Any:
    try:
        return json.loads(text, object_hook=_from_json)
    except ObservationError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError(f"the request is not JSON ({type(error).__name__})", "send some") from None


def _from_json(value: Mapping[str, Any]) -> Any:
    if "__numpy__" not in value:
        return value
    try:
        data = base64.b64decode(value["__numpy__"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise WireError("an array's data is not base64", "write it by json-numpy") from None
    return make_array(data, value.get("dtype"), value.get("shape"))
