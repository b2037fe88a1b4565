"""One model for many clients: waiting observations are answered as one batch."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.base import Policy
from vla_inference.serving.model_thread import ModelThread
from vla_inference.serving.openpi.metrics import ServerMetrics
from vla_inference.types import ActionChunk, Observation

log = logging.getLogger(__name__)


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
    observation: Observation
    space: str | None  # of the action spaces of a model that has several
    future: Future[Answer] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """A latest-value slot for each client, and one thread in which the model answers them.

    load: gives the policy; called in that thread.
    """

    def __init__(self, load: Callable[[], Policy], max_batch: int, metrics: ServerMetrics):
        self._model: ModelThread[bool] = ModelThread(load, self._answer)
        self._max_batch, self._metrics = max_batch, metrics
        self._lock = threading.Lock()
        self._waiting: dict[Hashable, Request] = {}  # by client, the longest waiting first

    def start(self) -> Policy:
        """Loads the model and warms it up; raises what that raised."""
        self._model.start()
        assert self._model.policy is not None
        return self._model.policy

    @property
    def latency_ms(self) -> float:
        return self._model.latency_ms

    def stop(self, timeout: float = 0.5) -> None:
        self._model.stop(timeout)
        with self._lock:
            left, self._waiting = self._waiting, {}
        for request in left.values():
            request.future.cancel()

    def submit(
        self, client: Hashable, observation: Observation, space: str | None = None
    ) -> Future[Answer]:
        """The answer to come. It raises ObservationError where the observation is at fault,
        ReplacedError where the client submitted another one, PolicyFailure where the model is."""
        request = Request(observation, space)
        with self._lock:
            replaced = self._waiting.get(client)
            self._waiting[client] = request
        self._metrics.count("requests")
        if replaced is not None and replaced.future.set_running_or_notify_cancel():
            self._metrics.count("replaced")
            replaced.future.set_exception(
                ReplacedError("a newer observation came", "wait for each answer")
            )
        self._model.latest.put(True)
        return request.future

    def withdraw(self, client: Hashable) -> None:
        """Drops the waiting observation of a client that has gone."""
        with self._lock:
            request = self._waiting.pop(client, None)
        if request is not None:
            request.future.cancel()

    # -- in the model's thread ----------------------------------------------------------------

    def _take(self) -> list[Request]:
        """The observations that have waited longest."""
        with self._lock:
            clients = list(itertools.islice(self._waiting, self._max_batch))
            taken = [self._waiting.pop(client) for client in clients]
            if self._waiting:
                self._model.latest.put(True)
        return [r for r in taken if r.future.set_running_or_notify_cancel()]

    def _answer(self, model: ModelThread[bool], _: bool) -> None:
        batch = self._take()
        for space in dict.fromkeys(request.space for request in batch):
            self._answer_batch(model.policy, [r for r in batch if r.space == space])

    def _answer_batch(self, policy: Policy | None, batch: Sequence[Request]) -> None:
        """If one observation breaks the batch, each is answered alone."""
        begun = time.monotonic()
        try:
            if policy is None:
                raise VlaError("the server is stopping")
            policy = policy.in_space(batch[0].space)
            chunks = policy.predict([request.observation for request in batch])
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


def _check(chunk: Any, policy: Policy) -> None:
    """Raises VlaError for an invalid chunk."""
    actions = np.asarray(chunk.actions)
    if actions.shape != (policy.chunk, len(policy.action_spec())):
        raise VlaError(f"model {policy.name} gave actions of shape {actions.shape}")
    if not np.isfinite(actions).all():
        raise VlaError(f"model {policy.name} gave actions that are not finite")
