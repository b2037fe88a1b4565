"""The model that a server serves at present, and the clients that were told of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from vla_inference.policies.base import Contract
from vla_inference.serving.openpi.batcher import Backend
from vla_inference.serving.openpi.metadata import write_metadata, write_roboarena
from vla_inference.serving.openpi.observation_maps import ObservationMap
from vla_inference.serving.openpi.wire import pack
from vla_inference.serving.openpi.wire_actions import Conversion

UNANSWERED = 8  # messages of a client whose replies are still to be sent
Frame = str | bytes


@dataclass(frozen=True)
class Served:
    """A model that is served. contract: with the actions on the wire."""

    backend: Backend
    contract: Contract
    convert: Conversion
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, backend: Backend, observation_map: ObservationMap, dialect: str) -> Served:
        """Raises VlaError if the model does not fit the map."""
        offer = backend.offer
        needs, own = offer.contract.needs, offer.contract.spec
        observation_map.check(needs)
        convert = Conversion.between(own, observation_map.spec or own)
        contract = replace(offer.contract, spec=convert.spec)
        if dialect == "roboarena":
            metadata = write_roboarena(contract)
        else:
            metadata = write_metadata(contract, offer.name, observation_map)
        return cls(backend, contract, convert, metadata)

    @property
    def name(self) -> str:
        return self.backend.offer.name

    def same_to_clients(self, other: Served) -> bool:
        """Whether clients that were told of one may be answered by the other."""
        return (self.name, self.contract) == (other.name, other.contract)


@dataclass(eq=False)
class Client:
    """A websocket.

    met: the model that it was told of. replies: to send, in order; None: the end, because that
    model is served no more. total: of the last answer [s]. asked: whether an observation of it
    could be read.
    """

    socket: web.WebSocketResponse
    realtime: bool
    met: Served
    transport: asyncio.Transport | None = None
    asked: bool = False
    replies: asyncio.Queue[Awaitable[Frame] | None] = field(
        default_factory=lambda: asyncio.Queue(UNANSWERED + 1)
    )
    total: float | None = None

    @property
    def full(self) -> bool:
        return self.replies.qsize() >= UNANSWERED

    def dismiss(self) -> None:
        """Ends the connection after the replies to what has come."""
        with contextlib.suppress(asyncio.QueueFull):  # it was dismissed before
            self.replies.put_nowait(None)

    def leave(self) -> None:
        """Breaks the connection, without waiting for the other side."""
        if self.transport is not None:
            self.transport.abort()

    def error(self, text: str) -> Frame:
        """openpi's clients know an error by its text frame, vLLM-Omni's by its type."""
        return pack({"type": "error", "message": text}) if self.realtime else text
