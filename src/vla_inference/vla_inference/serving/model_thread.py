"""Loads, warms up and runs a model in its own thread."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import check_si
from vla_inference.policies.base import Contract, LoadOptions, Policy, no_chunking
from vla_inference.policies.registry import load_policy
from vla_inference.system.latest_value import LatestValue
from vla_inference.types import ActionSpec

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSettings:
    """What to load, and the numbers of images and state values it will get.

    images: past ones among them, `history` of each camera, `interval` s apart.
    num_threads: of PyTorch on the CPU; 0: as many as it likes. chunking: the form of real-time
        chunking that the policy must take; empty: none.
    """

    model: str
    options: LoadOptions = field(default_factory=LoadOptions)
    num_threads: int = 0
    images: int = 1
    history: int = 0
    interval: float = 0.0
    state_dim: int = 0
    chunking: str = ""

    def load(self) -> Policy:
        """A policy that fits these inputs; raises VlaError if it does not."""
        if not self.model:
            raise VlaError("parameter 'model' is empty", "set it to a checkpoint folder")
        if self.num_threads:
            import torch

            torch.set_num_threads(self.num_threads)
        policy = load_policy(self.model, self.options)
        try:
            self.check(policy)
        except VlaError:
            policy.close()
            raise
        return policy

    def check(self, policy: Policy) -> None:
        """Refuses a policy that needs other inputs than it will get."""
        needs = policy.needs
        if needs.images != self.images:
            raise VlaError(
                f"model {policy.name} takes {needs.images} images, parameters 'cameras' and "
                f"'history' give {self.images}",
                "name as many cameras, in the order it was trained with",
            )
        # Past images may also come as cameras of their own.
        # A model that does not say what its images are is given what the parameters say.
        apart = bool(needs.interval) and needs.interval != self.interval
        if self.history and needs.history and (needs.history != self.history or apart):
            raise VlaError(
                f"model {policy.name} takes {needs.history} past images of each camera "
                f"{needs.interval:g} s apart, parameters 'history' and 'history_interval' give "
                f"{self.history}, {self.interval:g} s apart",
                "set them as it was trained",
            )
        if needs.state != self.state_dim:
            raise VlaError(
                f"model {policy.name} takes {needs.state} numbers of state, parameter 'state' "
                f"gives {self.state_dim}",
                "name the parts it was trained with",
            )
        if self.chunking and self.chunking not in policy.chunking:
            raise no_chunking(policy, self.chunking)
        check_si(policy.action_spec())


class ModelThread(Generic[T]):
    """Loads a policy, then answers the latest value, all in one thread.

    One thread for all of it, because PyTorch keeps thread pools and CUDA state per thread: what
    was warmed up elsewhere is cold here.

    load: gives the policy. answer: called with this object and a value; must not raise.
    max_batch: observations that it will answer at once.
    latency_ms: of an answer to a grey image, once it is warm.
    side_work: what else the model answers between the values. It is called with the number of
        observations for which there is time until the next value is due, and says in how many
        seconds it wants to be called again; None: after `latest.wake()`. It must not raise.
    """

    def __init__(
        self,
        load: Callable[[], Policy],
        answer: Callable[[ModelThread[T], T], None] = lambda model, value: None,
        max_batch: int = 1,
    ):
        self.latest: LatestValue[T] = LatestValue()
        self.policy: Policy | None = None
        self.load_seconds = self.latency_ms = 0.0
        self.side_work: Callable[[float], float | None] | None = None
        self._load, self._answer, self._max_batch = load, answer, max_batch
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._busy_since: float | None = None  # monotonic, while it is at a value
        self._took: deque[float] = deque(maxlen=9)  # seconds for one observation
        # A daemon, so that a long computation does not outlive the process's will to end.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def begin(self) -> None:
        """Starts loading without waiting for it; then call `ready` until it is."""
        self._thread.start()

    def ready(self, timeout: float = 0.0) -> bool:
        """Whether the model is warm within `timeout` seconds; raises what loading raised."""
        ready = self._ready.wait(timeout)
        if self._error is not None:
            raise self._error
        return ready

    def start(self) -> None:
        """Waits until the model is warm; raises what loading raised. Ctrl-C works meanwhile."""
        self.begin()
        try:
            while not self.ready(0.05):
                pass
        except BaseException:
            self.latest.close()  # a load that was interrupted ends when it is through
            raise

    def stop(self, timeout: float) -> bool:
        """Stops the thread; False if it is still busy with an answer."""
        self.latest.close()
        self._thread.join(timeout)
        self.policy = None
        return not self._thread.is_alive()

    def busy(self, now: float) -> float:
        """Seconds spent on the current value [s]; 0: idle."""
        since = self._busy_since
        return now - since if since is not None else 0.0

    def took(self, seconds: float) -> None:
        """Notes how long an observation took, for the time that is left to `side_work`."""
        self._took.append(seconds)

    def _run(self) -> None:
        try:
            policy = self._prepare()
        except BaseException as error:  # raised again by `ready`, where somebody waits for it
            self._error = error
            return
        finally:
            self._ready.set()
        with contextlib.closing(policy):
            wait = None
            while not self.latest.closed:
                value = self.latest.take(wait)
                begun = self._busy_since = time.monotonic()
                if value is not None:
                    self._answer(self, value)
                    self.took(time.monotonic() - begun)
                wait = self._do_side_work(self.latest.due() / max(self._took))
                self._busy_since = None
            while self._do_side_work(math.inf) is not None:
                pass  # what came before the end is answered

    def _do_side_work(self, count: float) -> float | None:
        return self.side_work(count) if self.side_work is not None else None

    def _prepare(self) -> Policy:
        begun = time.monotonic()
        policy = self._load()
        try:
            policy.warm_up()
            policy.warm_up_batches(self._max_batch)
            # The second time as it will be; and numbers that are not finite raise here.
            self.latency_ms = policy.warm_up()
        except BaseException:
            policy.close()
            raise
        self.load_seconds = time.monotonic() - begun
        self.took(max(1e-3 * self.latency_ms, 1e-6))
        self.policy = policy
        return policy


def changes(old: Contract, new: Contract) -> list[str]:
    """Describes changes in the meaning of actions with the new model."""
    found = []
    a, b = old.spec, new.spec
    for what, before, after in (
        ("frame", a.frame, b.frame),
        ("rotation", a.rotation, b.rotation),
        ("parts", _kinds(a), _kinds(b)),
        ("dt", f"{a.dt:g} s", f"{b.dt:g} s"),
        ("dimensions", " ".join(a.names), " ".join(b.names)),
        ("units", " ".join(d.unit for d in a.dims), " ".join(d.unit for d in b.dims)),
        ("chunk", f"{old.chunk} steps", f"{new.chunk} steps"),
    ):
        if before != after:
            found.append(f"{what}: {before} -> {after}")
    return found


def _kinds(spec: ActionSpec) -> str:
    return ", ".join(f"{p.name} ({p.kind})" for p in spec.parts)


def release_memory() -> None:
    """Releases the memory of a model that was dropped."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
