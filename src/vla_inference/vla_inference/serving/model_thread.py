"""Loads, warms up and runs a model in its own thread."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import check_si
from vla_inference.policies.base import LoadOptions, Policy
from vla_inference.policies.registry import load_policy
from vla_inference.system.latest_value import LatestValue
from vla_inference.types import ActionSpec

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSettings:
    """What to load, and the numbers of images and state values it will get.

    num_threads: of PyTorch on the CPU; 0: as many as it likes.
    """

    model: str
    options: LoadOptions = field(default_factory=LoadOptions)
    num_threads: int = 0
    images: int = 1
    state_dim: int = 0

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
        if needs.state != self.state_dim:
            raise VlaError(
                f"model {policy.name} takes {needs.state} numbers of state, parameter 'state' "
                f"gives {self.state_dim}",
                "name the parts it was trained with",
            )
        check_si(policy.action_spec())


class ModelThread(Generic[T]):
    """Loads a policy, then answers the latest value, all in one thread.

    One thread for all of it, because PyTorch keeps thread pools and CUDA state per thread: what
    was warmed up elsewhere is cold here.

    load: gives the policy. answer: called with this object and a value; must not raise.
    latency_ms: of an answer to a grey image, once it is warm.
    """

    def __init__(self, load: Callable[[], Policy], answer: Callable[[ModelThread[T], T], None]):
        self.latest: LatestValue[T] = LatestValue()
        self.policy: Policy | None = None
        self.load_seconds = self.latency_ms = 0.0
        self._load, self._answer = load, answer
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._busy_since: float | None = None  # monotonic, while it is at a value
        # A daemon, so that a long computation does not outlive the process's will to end.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Waits until the model is warm; raises what loading raised. Ctrl-C works meanwhile."""
        self._thread.start()
        try:
            while not self._ready.wait(0.05):
                pass
            if self._error is not None:
                raise self._error
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

    def _run(self) -> None:
        try:
            policy = self._prepare()
        except BaseException as error:  # raised again by `start`, where somebody waits for it
            self._error = error
            return
        finally:
            self._ready.set()
        with contextlib.closing(policy):
            while not self.latest.closed:
                value = self.latest.take()
                if value is not None:
                    self._busy_since = time.monotonic()
                    self._answer(self, value)
                    self._busy_since = None

    def _prepare(self) -> Policy:
        begun = time.monotonic()
        policy = self._load()
        try:
            policy.warm_up()
            # The second time as it will be; and numbers that are not finite raise here.
            self.latency_ms = policy.warm_up()
        except BaseException:
            policy.close()
            raise
        self.load_seconds = time.monotonic() - begun
        self.policy = policy
        return policy


def changes(old: Policy, new: Policy) -> list[str]:
    """Describes changes in the meaning of actions with the new model."""
    found = []
    a, b = old.action_spec(), new.action_spec()
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
