"""The `Policy` and `Family` protocols that every policy family implements.

A `Family` knows a kind of checkpoint: it checks, describes and loads one. What it loads is a
`Policy`: observations in, action chunks out. Nothing here needs PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.inputs.given import Seen, as_observation
from vla_inference.inputs.history import past_name
from vla_inference.options import Holds, option
from vla_inference.policies.chunking import Continuation
from vla_inference.policies.reasoning import Reasoning
from vla_inference.types import ActionChunk, ActionSpec, Observation

GREY = 128


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a checkpoint. Empty fields are left to its family."""

    device: str = option("", "cpu, cuda, cuda:1; default: CUDA if available.")
    dtype: str = option("", "float32, bfloat16 or float16; default: the device's.")
    engine: str = option(
        "",
        "plain, torch, tvm:FOLDER or mlc:FOLDER; default: torch if it can run.",
        holds=Holds.ENGINE_FOLDER,
    )
    vision: str = option(
        "", "onnx:FOLDER or tensorrt:FOLDER for the vision encoders.", holds=Holds.ENGINE_FOLDER
    )
    quantization: str = option(
        "", "int4, int4-g32, int8, fp8, q4f16_ft, fp16 ...; default: as stored."
    )
    draft: bool = option(False, "Try the last action's tokens first (engine plain).")
    reasoning_every: int = option(
        0, "Answers for which a model that reasons keeps one reasoning.", low=0, high=100_000
    )
    reasoning_seconds: float = option(
        0.0, "Seconds for which it keeps one; 0: no matter how long.", low=0.0, high=3600.0
    )
    GROUPS = {"How the model runs": ()}


@dataclass(frozen=True, kw_only=True)
class LoadOptions(RunOptions):
    """How to load a checkpoint: how it is run, and what its actions are scaled by."""

    action_space: str = option(
        "",
        "Name of the action statistics, or 'normalized'; default: the only one.",
        names=("--unnorm-key", "--action-space"),
    )

    @classmethod
    def of(cls, run: RunOptions, action_space: str = "") -> LoadOptions:
        return cls(
            **{f.name: getattr(run, f.name) for f in fields(RunOptions)}, action_space=action_space
        )

    @classmethod
    def given(cls, **values: Any) -> LoadOptions:
        """Makes options from a command line's values, leaving out None."""
        return cls(**{name: value for name, value in values.items() if value is not None})

    def allow(self, family: str, *names: str) -> None:
        """Refuses options that are set but unknown to this family; `engine` "plain" is always
        known."""
        for f in fields(self):
            value = getattr(self, f.name)
            plain = f.name == "engine" and value == "plain"
            if value and f.name not in names and not plain:
                raise VlaError(
                    f"models of family {family} take no {f.name} ({value!r} was given)",
                    f"leave it out; they take {', '.join(names) or 'no options'}",
                )


@dataclass(frozen=True)
class Needs:
    """The inputs of a policy.

    images: how many an observation holds, in the policy's order.
    state: numbers of the robot's state; 0: none.
    image_size: height and width in pixels that it brings each image to, or, if it takes them as
        they are, that it was trained with; None: any.
    cameras: names of these images, where the checkpoint says them.
    history: past images of each camera, after the present ones, newest first; they count in
        `images`. interval: between them, s; 0: not known.
    """

    images: int = 1
    state: int = 0
    image_size: tuple[int, int] | None = None
    cameras: tuple[str, ...] = ()
    history: int = 0
    interval: float = 0.0

    def grey(self) -> Observation:
        """A valid observation of grey images."""
        ages = range(1, self.history + 1)
        past = [past_name(name, ago) for ago in ages for name in self.cameras]
        names = [*self.cameras, *past] or [f"camera_{i}" for i in range(self.images)]
        image = np.full((*(self.image_size or (224, 224)), 3), GREY, np.uint8)
        state = np.zeros(self.state, np.float32) if self.state else None
        return Observation(dict.fromkeys(names, image), "warm up", state)

    @property
    def views(self) -> int:
        """How many cameras are seen at once."""
        return self.images // (1 + self.history)


@dataclass(frozen=True)
class Contract:
    """The inputs and outputs of a checkpoint, as far as known without its weights.

    chunk: steps of an answer.
    """

    needs: Needs
    spec: ActionSpec
    chunk: int = 1


class Policy(Protocol):
    """A loaded model: observations in, action chunks out.

    Families inherit from it for what is the same for all of them. Used by one thread at a time.

    name: of the checkpoint, as results name it.
    placement: on which device and by which engine it runs, in words.
    needs, chunk: as in `Contract`.
    action_space: the one that was chosen, of a model that has several.
    on_reasoning: called with what it thinks, as it comes, if it is one that reasons.
    chunking: the forms of real-time chunking that `continue_chunk` can do; none by default.
    """

    name: str
    placement: str
    needs: Needs
    chunk: int
    action_space: str | Mapping | None = None
    chunking: tuple[str, ...] = ()
    on_reasoning: Callable[[Reasoning], None] | None = None

    @property
    def contract(self) -> Contract:
        """Its inputs and outputs; raises as `action_spec` does."""
        return Contract(self.needs, self.action_spec(), self.chunk)

    def action_spec(self) -> ActionSpec:
        """The meaning of its actions; VlaError if an action space must be chosen first."""
        ...

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """The next action chunk for each observation; `timing` has at least "total" [ms].

        Raises ObservationError where an observation is not what the policy needs, and VlaError
        instead of answering with numbers that are not finite.
        """
        ...

    def act(
        self,
        observation: Seen,
        instruction: str | None = None,
        state: np.ndarray | None = None,
    ) -> ActionChunk:
        """The next action chunk for one observation.

        observation: an `Observation`, or an image (array, Pillow's, path), several by name, or
            what an environment of `vla_sim_bridge.gym` returned.
        instruction, state: of images alone; they replace an observation's.
        """
        return self.predict([as_observation(observation, instruction, state)])[0]

    def continue_chunk(self, observation: Observation, after: Continuation) -> ActionChunk:
        """The next action chunk, which goes on from the one that the robot executes now."""
        raise no_chunking(self, after.chunking.form)

    def warm_up(self) -> float:
        """Predicts once on grey images, so that the first real answer is not slow; returns
        milliseconds."""
        begun = time.perf_counter()
        self.act(self.needs.grey())
        return 1e3 * (time.perf_counter() - begun)

    def warm_up_batches(self, most: int) -> None:
        """The same for predictions of up to `most` observations at once, where that has to be."""
        return

    def forget(self) -> None:
        """Drops what it keeps of earlier images: another run begins."""
        return

    def close(self) -> None:
        """Releases connections and processes."""
        return

    def unknown_words(self, instruction: str) -> list[str]:
        """Words that its training instructions did not contain, as far as known."""
        return []

    def __repr__(self) -> str:
        images = f"{self.needs.images} image{'s' * (self.needs.images > 1)}"
        state = f", state of {self.needs.state}" if self.needs.state else ""
        steps = f"{self.chunk} action{'s' * (self.chunk > 1)} an answer"
        return f"<{type(self).__name__} {self.name}: {images}{state}, {steps}, {self.placement}>"

    # -- action spaces ------------------------------------------------------------------------

    @property
    def action_spaces(self) -> Mapping[str, Mapping]:
        """Statistics by name ({"action": {"q01": [D], "q99": [D]}}) of a model that was trained
        on several datasets; empty: it has one action space, which needs no name."""
        return {}

    def in_space(self, action_space: str | Mapping | None) -> Policy:
        """The same model with actions in another of its spaces; None: the only one."""
        if action_space is None:
            return self
        raise VlaError(
            f"model {self.name} has one action space, {action_space!r:.60} was requested",
            "leave it out",
        )


def no_chunking(policy: Policy, form: str) -> VlaError:
    """What a policy answers to a form of real-time chunking that it cannot do."""
    can = ", ".join(policy.chunking)
    return VlaError(
        f"model {policy.name} takes no chunking {form!r}",
        f"it takes {can}" if can else "leave it empty: only flow-matching models take it",
    )


@dataclass(frozen=True)
class Description:
    """What a checkpoint is, for `vla info`.

    values: plain JSON values, "name", "family" and "folder" among them.
    lines: the same for people, as (heading, text); an empty heading goes on with the one before.
    """

    values: Mapping[str, Any]
    lines: Sequence[tuple[str, str]] = field(default=())

    def __str__(self) -> str:
        first = f"{self.values['name']}  ({self.values['folder']})"
        rest = [
            f"  {heading:<11} {text}" if heading else f"    {text}" for heading, text in self.lines
        ]
        return "\n".join([first, *rest])


class Family(Protocol):
    """A kind of checkpoint: an object or module with these functions.

    where: a folder or Hub id, or what followed "NAME:" of a model served elsewhere.
    """

    def check(self, where: str, options: LoadOptions) -> Contract:
        """Refuses whatever `load` would refuse before reading weights; returns the contract."""
        ...

    def load(self, where: str, options: LoadOptions) -> Policy: ...

    def describe(self, where: str) -> Description:
        """Describes a checkpoint without reading weights."""
        ...
