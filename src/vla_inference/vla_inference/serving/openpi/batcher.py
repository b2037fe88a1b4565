"""One model for many clients: waiting observations are answered as one batch."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.base import Contract, Policy
from vla_inference.serving.model_thread import ModelThread
from vla_inference.serving.openpi.gathering import Gathering
from vla_inference.serving.openpi.metrics import ServerMetrics
from vla_inference.types import ActionChunk, Observation

log = logging.getLogger(__name__)
PATIENCE = 2.0  # seconds that an observation waits where the model has values of its own
RETRY = 0.02  # seconds until the next look for time between them


class ReplacedError(ObservationError):
    """The observation was not processed, because its client sent a newer one."""


class PolicyFailure(Exception):
    """The model failed; the log has the reason."""


@dataclass(frozen=True)
class Answer:
    """waited, took: seconds until the model began, and until it had answered the batch."""

    chunk: ActionChunk
    waited: float
    took: float
    batch: int


@dataclass(frozen=True)
class Request:
    client: Hashable
    observation: Observation
    space: str | None  # of the action spaces of a model that has several
    future: Future[Answer] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Offer:
    """What a model is to its clients. contract: with the model's own actions."""

    name: str
    placement: str
    contract: Contract
    spaces: frozenset[str]
    latency_ms: float

    @classmethod
    def of(cls, model: ModelThread[Any]) -> Offer:
        """The offer of a model that is ready."""
        policy = model.policy
        assert policy is not None
        spaces = frozenset(policy.action_spaces)
        return cls(policy.name, policy.placement, policy.contract, spaces, model.latency_ms)


class Backend(Protocol):
    """Whatever answers observations for a server."""

    offer: Offer

    def submit(
        self, client: Hashable, observation: Observation, space: str | None = None
    ) -> Future[Answer]:
        """The answer to come. It raises ObservationError where the observation is at fault,
        ReplacedError where the client submitted another one, PolicyFailure where the model is."""
        ...

    def withdraw(self, client: Hashable) -> None:
        """Drops the waiting observation of a client that has gone."""
        ...

    def close(self) -> None:
        """Drops what waits, and refuses what comes."""
        ...


class Batcher(Backend):
    """A latest-value slot for each client; a model answers what waits as one batch.

    model: ready. Where it has values of its own to answer, these come first, and an observation
    is only begun if there is time until the next is due.
    """

    def __init__(self, model: ModelThread[Any], max_batch: int, metrics: ServerMetrics):
        self.offer = Offer.of(model)
        self._model, self._max_batch, self._metrics = model, max_batch, metrics
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, Request] = {}  # by client, the longest waiting first
        self._gathering = Gathering()
        self._closed = False
        model.side_work = self._work

    def close(self) -> None:
        with self._lock:
            self._closed = True
            left, self._waiting = self._waiting, {}
        for request in left.values():
            request.future.cancel()

    def submit(
        self, client: Hashable, observation: Observation, space: str | None = None
    ) -> Future[Answer]:
        request = Request(client, observation, space)
        with self._lock:
            if self._closed:
                raise ReplacedError("the model was replaced", "send the observation again")
            replaced = self._waiting.get(client)
            self._waiting[client] = request
            self._gathering.asked(client, request.arrived)
        self._metrics.count("requests")
        if replaced is not None:
            self._metrics.count("replaced")
            refuse(replaced, ReplacedError("a newer observation came", "wait for each answer"))
        self._model.latest.wake()
        return request.future

    def withdraw(self, client: Hashable) -> None:
        with self._lock:
            request = self._waiting.pop(client, None)
            self._gathering.gone(client)
        if request is not None:
            request.future.cancel()

    # -- in the model's thread ----------------------------------------------------------------

    def _work(self, time_for: float) -> float | None:
        """Answers up to that many observations; says when to be called again."""
        count = int(min(time_for, self._max_batch))
        if not count:
            self._refuse_late()
        elif (wait := self._missing(count)) > 0:
            return wait
        batch = self._take(count)
        for space in dict.fromkeys(request.space for request in batch):
            self._answer_batch(self._model.policy, [r for r in batch if r.space == space])
        with self._lock:
            if self._waiting:
                return 0.0 if count else RETRY
            self._closed |= self._model.latest.closed
            return None

    def _missing(self, count: int) -> float:
        """How long to wait for more observations [s]; 0: no longer."""
        with self._lock:
            if not 0 < len(self._waiting) < count or self._closed:
                return 0.0
            return self._gathering.wait(time.monotonic())

    def _take(self, count: int) -> list[Request]:
        """The observations that have waited longest."""
        with self._lock:
            clients = list(itertools.islice(self._waiting, count))
            taken = [self._waiting.pop(client) for client in clients]
        return [r for r in taken if r.future.set_running_or_notify_cancel()]

    def _refuse_late(self) -> None:
        """Refuses what has waited in vain for time between the model's own values."""
        before = time.monotonic() - PATIENCE
        with self._lock:
            late = [c for c, r in self._waiting.items() if r.arrived < before]
            refused = [self._waiting.pop(client) for client in late]
        for request in refused:
            refuse(request, ObservationError("the model is busy with its own robot", "try later"))

    def _answer_batch(self, policy: Policy | None, batch: Sequence[Request]) -> None:
        """If one observation breaks the batch, each is answered alone."""
        begun = time.monotonic()
        try:
            if policy is None:
                raise VlaError("the server is stopping")
            policy = policy.in_space(batch[0].space)
            policy.forget()  # what is kept belongs to another client, or to the robot
            chunks = policy.predict([request.observation for request in batch])
            policy.forget()
            for chunk in chunks:
                _check(chunk, policy)
            done = time.monotonic()
        except Exception as error:  # a model's fault is one refused request; the server lives on
            if len(batch) > 1:
                for request in batch:
                    self._answer_batch(policy, [request])
            else:
                batch[0].future.set_exception(self._failure(error))
            return
        self._model.took((done - begun) / len(batch))
        with self._lock:
            self._gathering.answered([r.client for r in batch], done, done - begun)
        self._metrics.add("batch_size", len(batch))
        self._metrics.add("predict_seconds", done - begun)
        for request, chunk in zip(batch, chunks, strict=True):
            waited = begun - request.arrived
            self._metrics.add("wait_seconds", waited)
            request.future.set_result(Answer(chunk, waited, done - begun, len(batch)))

    def _failure(self, error: Exception) -> Exception:
        if isinstance(error, ObservationError):
            return error
        self._metrics.count("failed")
        log.error("the model failed", exc_info=error)
        return PolicyFailure()


def refuse(request: Request, error: ObservationError) -> None:
    """Ends a request that waits."""
    if request.future.set_running_or_notify_cancel():
        request.future.set_exception(error)


def _check(chunk: Any, policy: Policy) -> None:
    """Raises VlaError for an invalid chunk."""
    actions = np.asarray(chunk.actions)
    if actions.shape != (policy.chunk, len(policy.action_spec())):
        raise VlaError(f"model {policy.name} gave actions of shape {actions.shape}")
    if not np.isfinite(actions).all():
        raise VlaError(f"model {policy.name} gave actions that are not finite")
