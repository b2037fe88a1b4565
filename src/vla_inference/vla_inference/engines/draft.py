"""Speculative decoding with the previous action's tokens as the draft, checked in the prefill.

Greedy speculative decoding (Leviathan et al., 2022, arXiv 2211.17192) whose draft costs nothing:
the tokens are those of plain decoding, whatever the draft was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vla_inference.engines.base import Engine


class DraftEngine(Engine):
    """The plain engine with draft decoding, for one observation, token by token.

    accepted, drafted: drafts' tokens that stood, and all that were checked.
    """

    def __init__(self, model: Any, vision: Any = None):
        super().__init__(model, vision)
        self._last: Tensor | None = None  # the previous action's ids [D]
        self.accepted = self.drafted = 0

    def generate(
        self, context: Tensor, lengths: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if len(context) != 1:
            yield from super().generate(context, lengths)
            return
        draft, self._last = self._last, None
        steps = super().generate(context) if draft is None else self._checked(context, draft)
        tokens = []
        for token, hidden in steps:
            tokens.append(token)
            yield token, hidden
        ids = torch.cat(tokens)
        if (ids >= 0).all():
            self._last = ids

    def _checked(self, context: Tensor, draft: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass over context and draft; tokens after the first mismatch are decoded again."""
        n, llama = context.shape[1], self.model.language_model.model
        guess = self.embed_tokens(draft[None, :-1])
        states, cache = llama(torch.cat([context, guess], 1))
        states = states[:, n - 1 :]
        found = self.argmax(self.action_logits(states))[0]
        right = int((found[:-1] == draft[:-1]).int().cumprod(0).sum())
        self.accepted += right
        self.drafted += len(draft) - 1
        for i in range(right + 1):
            yield found[i : i + 1], states[:, i]
        cache = [(k[:, :, : n + right], v[:, :, : n + right]) for k, v in cache]
        token = found[right : right + 1]
        for _ in range(right + 1, len(draft)):
            hidden, cache = self.decode(self.embed_tokens(token.clamp(min=0)[:, None]), cache)
            token = self.argmax(self.action_logits(hidden))
            yield token, hidden
