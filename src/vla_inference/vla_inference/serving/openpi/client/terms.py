"""The terms of a server's metadata: what it needs and what its actions mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.policies.base import Contract, Needs
from vla_inference.serving.openpi.client.address import Address
from vla_inference.serving.openpi.metadata import MAX_STEPS, REALTIME, read_metadata
from vla_inference.serving.openpi.observation_maps import ObservationMap, map_names
from vla_inference.serving.openpi.wire_actions import Conversion, with_open_gripper

ROBOARENA = {
    "image_resolution",
    "n_external_cameras",
    "needs_wrist_camera",
    "needs_stereo_camera",
    "needs_session_id",
    "action_space",
}


@dataclass(frozen=True)
class Terms:
    """name: of the model. contract: its chunk is 0 if only an answer can tell.

    size: height and width that images are brought to, if any. endpoint, session: whether
    requests name them. keys: of the parts of an answer, in order.
    """

    name: str
    contract: Contract
    observation_map: ObservationMap
    size: tuple[int, int] | None = None
    endpoint: bool = False
    session: bool = False
    keys: tuple[str, ...] = ()

    @classmethod
    def read(cls, metadata: Any, address: Address) -> Terms:
        """Raises VlaError if the metadata is incomplete or unsupported."""
        if not isinstance(metadata, Mapping):
            raise VlaError(
                f"server {address.server} sent no metadata", "give the address of a model server"
            )
        own = read_metadata(metadata)
        name = address.map or (_known_map(metadata, address) if own is not None else "")
        if not name:
            raise VlaError(
                f"server {address.server} does not say what its model looks at",
                f"name it: openpi:{address.shown}?map=libero (or droid, aloha, bridge)",
            )
        used = ObservationMap.load(name)
        contract = own or _foreign(metadata, used, address)
        if address.images not in (0, contract.needs.images):
            raise VlaError(
                f"the server's model takes {contract.needs.images} images, images="
                f"{address.images} was given",
                "leave that out",
            )
        roboarena = set(metadata) >= ROBOARENA
        return cls(
            name=_text(metadata, "model")[:100] or address.server,
            contract=contract,
            observation_map=used,
            size=None if own is not None else used.size,
            endpoint=roboarena or address.path == REALTIME,
            session=metadata.get("needs_session_id") is True or address.path == REALTIME,
            keys=_texts(metadata.get("action_keys")),
        )

    @property
    def conversion(self) -> Conversion:
        """Conversion from actions on the wire to ours, with grippers 1 open."""
        spec = self.contract.spec
        return Conversion.between(spec, with_open_gripper(spec))

    def read_actions(self, reply: Any) -> np.ndarray:
        """float32 [T, D] from any supported reply; raises VlaError.

        A map with `actions`, a bare array, or a map of named parts; [1, T, D] is taken, too.
        """
        array = self._join(reply)
        if array.dtype.kind not in "fiu":
            raise VlaError(f"the server's actions have dtype {array.dtype}", "numbers are wanted")
        if array.ndim == 3 and array.shape[0] == 1:
            array = array[0]
        dims, chunk = len(self.contract.spec), self.contract.chunk
        if array.ndim != 2 or array.shape[1] != dims or not 0 < len(array) <= MAX_STEPS:
            raise VlaError(
                f"the server's actions have shape {array.shape}, [T, {dims}] are wanted "
                f"({', '.join(self.contract.spec.names)})",
                "check that the map fits the server's model",
            )
        if chunk and len(array) != chunk:
            raise VlaError(
                f"the server's answer has {len(array)} steps, it said {chunk}", "load it again"
            )
        with np.errstate(over="ignore"):
            actions = array.astype(np.float32)
        if not np.isfinite(actions).all():
            raise VlaError("the server's actions are not finite", "check its model")
        return actions

    def _join(self, reply: Any) -> np.ndarray:
        if isinstance(reply, str):
            lines = reply.strip().splitlines() or ["nothing"]
            raise VlaError(f"the server refused: {lines[-1][:300]}")
        if isinstance(reply, Mapping) and _text(reply, "type") == "error":
            raise VlaError(f"the server refused: {reply.get('message')!s:.300}")
        if isinstance(reply, np.ndarray):
            return reply
        if isinstance(reply, Mapping) and isinstance(reply.get("actions"), np.ndarray):
            return reply["actions"]
        named = (
            {k: v for k, v in reply.items() if _is_part(v)} if isinstance(reply, Mapping) else {}
        )
        lacking = [name for name in self.keys if name not in named]
        if lacking and len(named) > 1:  # in which order, nobody has said
            raise VlaError(
                f"the server's reply lacks {', '.join(lacking)[:100]}, which its metadata names",
                "check its model",
            )
        parts = [named[name] for name in (named if lacking else self.keys or named)]
        parts = [p if p.ndim > 1 else p[:, None] for p in parts]
        if not parts or len({part.shape[:-1] for part in parts}) > 1:
            raise VlaError("the server's reply has no actions", "check that it runs a policy")
        return np.concatenate(parts, axis=-1)


def _is_part(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim in (1, 2, 3)


def _foreign(metadata: Mapping, used: ObservationMap, address: Address) -> Contract:
    if used.spec is None:
        raise VlaError(
            f"server {address.server} does not say what its actions mean",
            "name a map that does: map=libero, droid, aloha, bridge or a file",
        )
    if address.images > len(used.images):
        raise VlaError(
            f"{address.images} images are to be sent, map {used.name} has {len(used.images)}",
            "send fewer",
        )
    needs = Needs(
        images=address.images or len(used.images), state=used.state_dim, image_size=used.size
    )
    dims = metadata.get("action_dim", len(used.spec))
    if type(dims) is not int or dims != len(used.spec):
        raise VlaError(
            f"the server's actions have {dims!r:.20} numbers, map {used.name} has "
            f"{len(used.spec)}",
            "name another map",
        )
    horizon = metadata.get("action_horizon")
    if type(horizon) is not int or not 0 < horizon <= MAX_STEPS:
        horizon = 0
    return Contract(needs, used.spec, horizon)


def _known_map(metadata: Mapping, address: Address) -> str:
    """The map that one of our servers names; a path that it names is not opened here."""
    name = _text(metadata, "embodiment")
    if name not in map_names():
        raise VlaError(
            f"server {address.server} uses map {name[:40]!r}, which is not known here",
            "give its file: ?map=FILE",
        )
    return name


def _text(values: Mapping, name: str) -> str:
    """A text of a message; empty where there is none."""
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
