"""`RemotePolicy`: a model on a server as a `Policy`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.base import Policy
from vla_inference.serving.openpi.client.address import Address
from vla_inference.serving.openpi.client.link import Link
from vla_inference.serving.openpi.client.terms import Terms
from vla_inference.serving.openpi.wire import pack
from vla_inference.types import ActionChunk, ActionSpec, Observation

WARM_SECONDS = 120.0  # for the first answers, which may compile something


class RemotePolicy(Policy):
    """Sends observations to a server and checks its chunks against what it promised.

    Example::

        policy = load_policy("openpi:ws://127.0.0.1:8000")
        chunk = policy.act(Observation({"image": image}, "stack the red block"))

    After a loss each call tries to connect again, at growing pauses, and raises until it is back.
    """

    def __init__(self, address: Address):
        self.address, self._link = address, Link(address)
        try:
            self.terms = self._begin()
            self._learn_chunk()
        except BaseException:
            self._link.close()
            raise
        self.name, self.placement = self.terms.name, f"server {address.server}"
        self._convert = self.terms.conversion
        contract = self.terms.contract
        self.needs, self.chunk = contract.needs, contract.chunk

    def action_spec(self) -> ActionSpec:
        return self._convert.spec

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        return [self._answer(o, self.address.timeout) for o in observations]

    def warm_up(self) -> float:
        begun = time.perf_counter()
        self._answer(self.needs.grey(), max(WARM_SECONDS, self.address.timeout))
        return 1e3 * (time.perf_counter() - begun)

    def close(self) -> None:
        self._link.close()

    # -- its steps ----------------------------------------------------------------------------

    def _begin(self) -> Terms:
        """Connects and reads the server's metadata; a new connection is a new session."""
        self._session = uuid.uuid4().hex
        try:
            return Terms.read(self._link.connect(), self.address)
        except VlaError:
            self._link.drop()
            raise

    def _learn_chunk(self) -> None:
        """If the metadata does not state the chunk length, one answer does."""
        if self.terms.contract.chunk:
            return
        actions, _ = self._exchange(self.terms.contract.needs.grey(), WARM_SECONDS)
        self.terms = replace(self.terms, contract=replace(self.terms.contract, chunk=len(actions)))

    def _return(self) -> None:
        """Reconnects; VlaError if the server now has another model."""
        now = self._begin()
        if not now.contract.chunk:
            now = replace(now, contract=replace(now.contract, chunk=self.chunk))
        if now != self.terms:
            self._link.drop()
            raise VlaError(
                f"server {self.address.server} runs another model by now: {now.name}, "
                f"it was {self.name}",
                "load the model again",
            )

    def _answer(self, observation: Observation, timeout: float) -> ActionChunk:
        begun = time.perf_counter()
        observation = self._fitting(observation)
        if not self._link.connected:
            self._return()
        actions, reply = self._exchange(observation, timeout)
        total = 1e3 * (time.perf_counter() - begun)
        timing = {**_server_time(reply, total), "total": total}
        return ActionChunk(self._convert(actions), self._convert.spec, timing=timing)

    def _fitting(self, observation: Observation) -> Observation:
        """The observation without state that the model does not use."""
        needs = self.needs
        if len(observation.images) != needs.images:
            raise ObservationError(
                f"the server's model takes {needs.images} images, {len(observation.images)} came",
                "give one per camera it was trained with",
            )
        if not needs.state:
            return replace(observation, state=None)
        given = 0 if observation.state is None else len(observation.state)
        if given != needs.state:
            raise ObservationError(
                f"the server's model takes {needs.state} numbers of state, {given} came",
                "name the parts it was trained with",
            )
        return observation

    def _exchange(self, observation: Observation, timeout: float) -> tuple[Any, Any]:
        """Actions float32 [T, D] on the wire's terms, and the whole reply."""
        terms = self.terms
        message = terms.observation_map.write(observation, terms.size)
        if terms.endpoint:
            message["endpoint"] = "infer"
        if terms.session:
            message["session_id"] = self._session
        reply = self._link.ask(pack(message), timeout)
        return terms.read_actions(reply), reply


def _server_time(reply: Any, total: float) -> dict[str, float]:
    """Milliseconds in the server's model and in transit, if the server reports them."""
    timing = reply.get("server_timing") if isinstance(reply, Mapping) else None
    model = timing.get("infer_ms") if isinstance(timing, Mapping) else None
    if not isinstance(model, (int, float)) or not 0 <= model <= total:
        return {}
    return {"server": float(model), "network": total - model}
