"""A model in a thread of its own: loaded, checked, warmed up and fed there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vla_inference.errors import VlaError
from vla_inference.policies.action_specs import check_si
from vla_inference.serving.latest_value import LatestValue
from vla_inference.serving.worker import Worker
from vla_inference.types import ActionSpec

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSettings:
    """What to load and how to run it; empty strings and 0 take the usual.

    cameras, state_dim: how many images and numbers of state it will be given.
    """

    model: str
    unnorm_key: str = ""
    device: str = ""
    dtype: str = ""
    engine: str = ""
    vision: str = ""
    quantization: str = ""
    draft: bool = False
    num_threads: int = 0
    cameras: int = 1
    state_dim: int = 0


def load_policy(settings: ModelSettings) -> Any:
    """A policy that fits the inputs; raises VlaError where it doesn't."""
    import torch

    from vla_inference.policies.openvla.policy import OpenVLAPolicy

    if not settings.model:
        raise VlaError("parameter 'model' is empty", "set it to a checkpoint folder")
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    policy = OpenVLAPolicy.from_pretrained(
        settings.model,
        device=settings.device or None,
        dtype=settings.dtype or None,
        engine=settings.engine,
        vision=settings.vision,
        quantization=settings.quantization or None,
        draft=settings.draft,
    )
    head = policy.config.head
    if head.num_images != settings.cameras:
        raise VlaError(
            f"model {policy.name} takes {head.num_images} images, parameters 'cameras' and "
            f"'history' give {settings.cameras}",
            "name as many cameras, in the order it was trained with",
        )
    if head.proprio_dim != settings.state_dim:
        raise VlaError(
            f"model {policy.name} takes {head.proprio_dim} numbers of state, parameter 'state' "
            f"gives {settings.state_dim}",
            "name the parts it was trained with",
        )
    return policy


class ModelThread(Generic[T]):
    """Answers what is put into its mailbox, once `start` has come through.

    answer: called with this object and an item, in the model's thread; must not raise.
    """

    def __init__(self, settings: ModelSettings, answer: Callable[[ModelThread[T], T], None]):
        self.settings = settings
        self.latest: LatestValue[T] = LatestValue()
        self.policy: Any = None
        self.name = self.device = ""
        self.chunk = 0  # steps
        self.spec: ActionSpec | None = None
        self.load_seconds = self.latency_ms = 0.0
        self._worker = Worker(self._load, lambda item: answer(self, item), self.latest)

    def start(self) -> None:
        """Load; raises what loading raised. Ctrl-C gets through."""
        try:
            self._worker.start()
        except BaseException:
            self.latest.close()  # a load that was interrupted ends when it is through
            raise

    def stop(self, timeout: float) -> bool:
        """Let go of the model; False where it is still busy with an answer."""
        ended = self._worker.stop(timeout)
        self.policy = None
        return ended

    @property
    def unnorm_key(self) -> str | None:
        return self.settings.unnorm_key or None

    def busy(self, now: float) -> float:
        """Seconds it has been at one item [s]; 0: it waits for one."""
        since = self._worker.busy_since
        return now - since if since is not None else 0.0

    def _load(self) -> None:
        begun = time.monotonic()
        policy = load_policy(self.settings)
        self.spec = policy.action_spec(self.unnorm_key)  # is it known?
        if len(self.spec) == 7:
            check_si(self.spec)
        policy.warm_up(self.unnorm_key)
        # The second time as it will be; and numbers that are not finite raise here.
        self.latency_ms = policy.warm_up(self.unnorm_key)
        self.name, self.device = policy.name, str(policy.device)
        self.chunk = policy.config.head.chunk
        self.load_seconds = time.monotonic() - begun
        self.policy = policy


def changes(old: ModelThread, new: ModelThread) -> list[str]:
    """What whoever executes the actions must know about the new model, in words."""
    found = []
    a, b = old.spec, new.spec
    for what, before, after in (
        ("frame", a.frame, b.frame),
        ("rotation", a.rotation, b.rotation),
        ("dt", f"{a.dt:g} s", f"{b.dt:g} s"),
        ("dimensions", " ".join(a.names), " ".join(b.names)),
        ("units", " ".join(d.unit for d in a.dims), " ".join(d.unit for d in b.dims)),
        ("chunk", f"{old.chunk} steps", f"{new.chunk} steps"),
    ):
        if before != after:
            found.append(f"{what}: {before} -> {after}")
    return found


def release_memory() -> None:
    """Give back what a model took that has gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
