"""OpenVLA models that reason before they act (ECoT, arXiv 2407.08693).

An answer has two parts. First the model writes, from image and prompt on, up to "ACTION:"; then it
acts, as any OpenVLA model does, on a prompt that has become longer by what it wrote. A reasoning
that is kept for later images saves the first part, which takes nearly all of the time.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from vla_inference.errors import VlaError
from vla_inference.inputs.given import Seen
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.openvla.action_spaces import AskedSpace
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.policies.openvla.prediction import NOT_FINITE, PartialAction
from vla_inference.policies.reasoning import ACTION, Reasoning
from vla_inference.policies.stage_timer import StageTimer
from vla_inference.types import ActionChunk, Observation

TAIL = 8  # tokens that surely hold the tag of the action


class NoAction(VlaError):
    """The model wrote, and came to no action."""


@dataclass(frozen=True)
class Renewal:
    """When a reasoning is made anew: for each answer, or every so many answers or seconds."""

    every: int = 0
    seconds: float = 0.0

    def due(self, answers: int, age: float) -> bool:
        """answers: given with the reasoning so far; age: of the reasoning, s."""
        if not (self.every or self.seconds):
            return True
        if age < 0:  # the clock was set back: another episode
            return True
        return bool(self.every and answers >= self.every) or bool(
            self.seconds and age >= self.seconds
        )


@dataclass
class Plan:
    """A reasoning as the model wrote it: tokens [n], the action's tag among them.

    made: the time of its image, s. answers: how many were given with it.
    """

    instruction: str
    tokens: list[int]
    reasoning: Reasoning
    made: float
    answers: int = 0


@dataclass
class Kept:
    """What a policy, and copies of it for other action spaces, keep of earlier images.

    runs: how many have begun; a plan that is made for one is not kept for another.
    """

    plan: Plan | None = None
    runs: int = 0

    def forget(self) -> None:
        self.runs += 1
        self.plan = None


class ReasoningPolicy(OpenVLAPolicy):
    """An `OpenVLAPolicy` that reasons.

    renewal: when it reasons anew. `on_reasoning` is called each time another field begins, and at
    the end.

    A reasoning is kept for the sentence and the robot it was made for: for several observations
    at once each is reasoned about.
    """

    renewal = Renewal()
    _used: Plan | None = None  # of the last answer

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self._kept = Kept()

    def configure(self, options: LoadOptions) -> None:
        self.renewal = Renewal(options.reasoning_every, options.reasoning_seconds)

    def predict_batch(
        self,
        observations: Sequence[Seen],
        instruction: str | Sequence[str] | None = None,
        **how: Any,
    ) -> list[ActionChunk]:
        if len(observations) == 1:
            (chunk,) = super().predict_batch(observations, instruction, **how)
            return [self._with_reasoning(chunk)]
        several = instruction is not None and not isinstance(instruction, str)
        texts = list(instruction or ()) if several else [instruction] * len(observations)
        chunks = []
        for seen, text in zip(observations, texts, strict=True):
            self.forget()
            chunks += self.predict_batch([seen], text, **how)
        self.forget()
        return chunks

    def stream_action(
        self,
        observation: Seen,
        instruction: str | None = None,
        **how: Any,
    ) -> Generator[PartialAction, None, ActionChunk]:
        chunk = yield from super().stream_action(observation, instruction, **how)
        return self._with_reasoning(chunk)

    def forget(self) -> None:
        self._kept.forget()

    def warm_up(self) -> float:
        begun = time.perf_counter()
        with suppress(NoAction):  # a grey image need not lead to one
            super().warm_up()
        self.forget()
        return 1e3 * (time.perf_counter() - begun)

    def warm_up_batches(self, most: int) -> None:
        return

    # -- its steps ----------------------------------------------------------------------------

    def _with_reasoning(self, chunk: ActionChunk) -> ActionChunk:
        plan = self._used
        assert plan is not None  # `_context` has found or made it
        plan.answers += 1
        chunk.reasoning = replace(plan.reasoning, kept=plan.answers > 1)
        return chunk

    @torch.inference_mode()
    def _context(
        self, observations: Sequence[Observation], action_space: AskedSpace, timer: StageTimer
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        (observation,) = observations
        context, _ = super()._context(observations, action_space, timer)
        kept, run = self._kept, self._kept.runs
        plan, now = kept.plan, observation.stamp or time.monotonic()
        if (
            plan is None
            or plan.instruction != observation.instruction
            or self.renewal.due(plan.answers, now - plan.made)
        ):
            kept.plan = None  # a reasoning that fails leaves none
            tokens, reasoning = self._reason(context)
            plan = Plan(observation.instruction, tokens, reasoning, now)
            if kept.runs == run:  # else another run began while it was made
                kept.plan = plan
            timer.mark("reasoning")
        self._used = plan
        more = torch.tensor([self.prompt.finish(plan.tokens)], device=self.device)
        return torch.cat([context, self.engine.embed_tokens(more).to(context)], dim=1), None

    def _reason(self, context: torch.Tensor) -> tuple[list[int], Reasoning]:
        """What the model writes up to the tag of its action; NoAction if that never comes."""
        tokens: list[int] = []
        tokenizer, fields = self.prompt.tokenizer, 0
        for token in self.engine.generate_text(context, self.config.reasoning_tokens):
            if token == -1:
                raise VlaError(*NOT_FINITE)
            if token == self.config.stop_token_id:
                break
            tokens.append(token)
            tail = tokenizer.decode(tokens[-TAIL:])
            if tail.endswith(":"):
                so_far = Reasoning.parse(tokenizer.decode(tokens), len(tokens))
                if so_far.whole and tail.endswith(ACTION):
                    self._tell(so_far)
                    return tokens, so_far
                if (count := len(list(so_far.said()))) > fields:
                    fields = count
                    self._tell(so_far)
        self._tell(Reasoning.parse(tokenizer.decode(tokens), len(tokens)))
        raise NoAction(
            f"the model wrote {len(tokens)} tokens and came to no action",
            "allow it more (reasoning_tokens in vla.json), or check sentence and image",
        )

    def _tell(self, reasoning: Reasoning) -> None:
        if self.on_reasoning is not None:
            self.on_reasoning(reasoning)
