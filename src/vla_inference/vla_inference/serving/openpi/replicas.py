"""Replicas of a model by Ray Serve, behind the same sockets: `vla serve --ray`.

The server checks and answers its clients as always; Ray Serve keeps the replicas alive, on one
machine or many, and sends each observation to one that is little occupied. A replica answers what
waits as one batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import logging
import os
import uuid
from collections.abc import Hashable
from concurrent.futures import Future
from typing import Any

from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.registry import check_policy
from vla_inference.serving.model_thread import ModelThread
from vla_inference.serving.openpi.batcher import (
    Answer,
    Backend,
    Batcher,
    Offer,
    PolicyFailure,
    ReplacedError,
    Request,
    refuse,
)
from vla_inference.serving.openpi.metrics import ServerMetrics
from vla_inference.serving.openpi.settings import ReplicaSettings, ServeSettings
from vla_inference.system.ray_cluster import connect
from vla_inference.types import Observation

log = logging.getLogger(__name__)


class Replica:
    """One process with the model; its methods are called by Ray Serve."""

    def __init__(self, model: str, settings: ServeSettings):
        thread = ModelThread[None](lambda: settings.load(model))
        thread.start()
        self._batcher = Batcher(thread, settings.max_batch, ServerMetrics())

    async def offer(self) -> Offer:
        return self._batcher.offer

    async def answer(
        self, number: int, observation: Observation, space: str | None
    ) -> Answer | ObservationError | None:
        """The answer, why the observation is refused, or None if the model failed."""
        try:
            return await asyncio.wrap_future(self._batcher.submit(number, observation, space))
        except ObservationError as error:
            return error
        except PolicyFailure:
            return None


class Replicas(Backend):
    """The replicas as a backend: a latest-value slot for each client, one request at a time.

    Made in any thread; used in the server's. Leaving the `with` block ends the replicas.
    """

    def __init__(
        self, model: str, settings: ServeSettings, ray: ReplicaSettings, metrics: ServerMetrics
    ):
        ray.check(settings)
        check_policy(model, settings.load_options)
        self._metrics = metrics
        self._count = itertools.count()
        self._numbers: dict[Hashable, int] = {}  # of clients, for the replicas
        self._waiting: dict[Hashable, Request] = {}
        self._asking: dict[Hashable, asyncio.Task] = {}
        self._name = f"vla-{uuid.uuid4().hex[:8]}"
        self._ray = connect(ray.ray_address, cpus=max(os.cpu_count() or 1, _cpus(settings, ray)))
        self._serve = _import_serve()
        try:
            self._check_room(settings, ray)
            self._handle = self._deploy(model, settings, ray)
            self.offer = self._handle.offer.remote().result(timeout_s=60)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    # -- as a backend -------------------------------------------------------------------------

    def submit(
        self, client: Hashable, observation: Observation, space: str | None = None
    ) -> Future[Answer]:
        request = Request(client, observation, space)
        self._numbers.setdefault(client, next(self._count))
        self._metrics.count("requests")
        if (replaced := self._waiting.get(client)) is not None:
            self._metrics.count("replaced")
            refuse(replaced, ReplacedError("a newer observation came", "wait for each answer"))
        self._waiting[client] = request
        if client not in self._asking:
            self._asking[client] = asyncio.ensure_future(self._ask_in_turn(client))
        return request.future

    def withdraw(self, client: Hashable) -> None:
        self._numbers.pop(client, None)
        if (request := self._waiting.pop(client, None)) is not None:
            request.future.cancel()

    def close(self) -> None:
        for client in list(self._waiting):
            self.withdraw(client)
        for task in self._asking.values():
            task.cancel()

    async def _ask_in_turn(self, client: Hashable) -> None:
        """Has a replica answer what the client submits, one observation after the other."""
        try:
            while (request := self._waiting.pop(client, None)) is not None:
                if request.future.set_running_or_notify_cancel():
                    await self._ask(request)
        finally:
            del self._asking[client]

    async def _ask(self, request: Request) -> None:
        try:
            found = await self._handle.answer.remote(
                self._numbers.get(request.client, -1), request.observation, request.space
            )
        except asyncio.CancelledError:
            request.future.set_exception(PolicyFailure())
            raise
        except Exception:  # a replica that died, the network: one request is lost
            log.exception("no replica has answered")
            found = None
        if isinstance(found, Answer):
            for name, value in (
                ("wait_seconds", found.waited),
                ("predict_seconds", found.took),
                ("batch_size", found.batch),
            ):
                self._metrics.add(name, value)
            request.future.set_result(found)
        elif isinstance(found, ObservationError):
            request.future.set_exception(found)
        else:
            self._metrics.count("failed")
            request.future.set_exception(PolicyFailure())

    # -- on the cluster -----------------------------------------------------------------------

    def _check_room(self, settings: ServeSettings, ray: ReplicaSettings) -> None:
        """Ray itself would wait for cores and GPUs that there are not."""
        there = self._ray.cluster_resources()
        for name, wanted in (("CPU", _cpus(settings, ray)), ("GPU", self._gpus(settings, ray))):
            if wanted > there.get(name, 0):
                raise VlaError(
                    f"{ray.replicas} replicas take {wanted} {name}s, the cluster has "
                    f"{there.get(name, 0):g}",
                    "ask for fewer --replicas or --num-threads",
                )

    def _gpus(self, settings: ServeSettings, ray: ReplicaSettings) -> int:
        """One for each replica, where there are any."""
        there = self._ray.cluster_resources().get("GPU", 0)
        return ray.replicas if settings.device != "cpu" and there else 0

    def _deploy(self, model: str, settings: ServeSettings, ray: ReplicaSettings) -> Any:
        """A handle of the replicas, once all are warm."""
        serve = self._serve
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(
            Replica,
            num_replicas=ray.replicas,
            max_ongoing_requests=2 * settings.max_batch,
            ray_actor_options={
                "num_cpus": _cpus(settings, ray) // ray.replicas,
                "num_gpus": self._gpus(settings, ray) // ray.replicas,
            },
            logging_config={"log_level": "WARNING"},
        )
        try:
            app = deployment.bind(model, settings)
            return serve.run(app, name=self._name, route_prefix=None)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1:] or ["Ray says no reason"]
            raise VlaError(
                f"the replicas do not start ({reason[0][:300]})",
                "every machine of the cluster needs the model and this environment",
            ) from error

    def _end(self) -> None:
        with contextlib.suppress(Exception):  # the cluster may have gone
            self._serve.delete(self._name)
        self._ray.shutdown()


def _cpus(settings: ServeSettings, ray: ReplicaSettings) -> int:
    """Of all replicas."""
    return ray.replicas * max(1, settings.num_threads)


def _import_serve() -> Any:
    try:
        return importlib.import_module("ray.serve")
    except ImportError as error:
        raise VlaError(
            f"Ray Serve cannot be imported ({error})", "pip install -r requirements/ray.txt"
        ) from error
