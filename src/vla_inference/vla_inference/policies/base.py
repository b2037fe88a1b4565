"""The `Policy` and `Family` protocols that every policy family implements.

A `Family` knows a kind of checkpoint: it checks, describes and loads one. What it loads is a
`Policy`: observations in, action chunks out. Nothing here needs PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from vla_inference.errors import VlaError
from vla_inference.types import ActionChunk, ActionSpec, Observation

GREY = 128


@dataclass(frozen=True)
class LoadOptions:
    """How to run a checkpoint. Empty fields are left to its family.

    device: "cpu", "cuda", "cuda:1"; the usual is CUDA where there is one.
    dtype: "float32", "bfloat16" or "float16".
    engine: "plain" is each family's own code; OpenVLA has those of `engines.ENGINES`.
    vision: "onnx:FOLDER" or "tensorrt:FOLDER" for the vision encoders.
    quantization: format that weights are rounded to as they are loaded.
    draft: the last action's tokens are tried first.
    action_space: name of the statistics to un-normalise with, where there are several.
    """

    device: str = ""
    dtype: str = ""
    engine: str = ""
    vision: str = ""
    quantization: str = ""
    draft: bool = False
    action_space: str = ""

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
    image_size: height and width in pixels that it brings each image to; None: it takes any.
    cameras: names of these images, where the checkpoint says them.
    history: past images of each camera, after the present ones; they count in `images`.
    """

    images: int = 1
    state: int = 0
    image_size: tuple[int, int] | None = None
    cameras: tuple[str, ...] = ()
    history: int = 0

    def grey(self) -> Observation:
        """A valid observation of grey images."""
        past = [f"{name}-{ago}" for ago in range(1, self.history + 1) for name in self.cameras]
        names = [*self.cameras, *past] or [f"camera_{i}" for i in range(self.images)]
        image = np.full((*(self.image_size or (224, 224)), 3), GREY, np.uint8)
        state = np.zeros(self.state, np.float32) if self.state else None
        return Observation(dict.fromkeys(names, image), "warm up", state)


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
    """

    name: str
    placement: str
    needs: Needs
    chunk: int
    action_space: str | Mapping | None = None

    def action_spec(self) -> ActionSpec:
        """The meaning of its actions; VlaError if an action space must be chosen first."""
        ...

    def predict(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """The next action chunk for each observation; `timing` has at least "total" [ms].

        Raises ObservationError where an observation is not what the policy needs, and VlaError
        instead of answering with numbers that are not finite.
        """
        ...

    def act(self, observation: Observation) -> ActionChunk:
        """The next action chunk for one observation."""
        return self.predict([observation])[0]

    def warm_up(self) -> float:
        """Predicts once on grey images, so that the first real answer is not slow; returns
        milliseconds."""
        begun = time.perf_counter()
        self.act(self.needs.grey())
        return 1e3 * (time.perf_counter() - begun)

    def close(self) -> None:
        """Releases connections and processes."""
        return

    def unknown_words(self, instruction: str) -> list[str]:
        """Words that its training instructions did not contain, as far as known."""
        return []

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
