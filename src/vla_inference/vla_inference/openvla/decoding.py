"""From image and instruction to action tokens, on the parts that a model or an engine provides.

Shapes: B batch, P patches (all images together), n prompt tokens, H width of the Llama,
D action dimensions, T steps of a chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vla_inference.openvla.config import ModelConfig


class ActionDecoder(ABC):
    """Decodes actions token by token, or all at once (OpenVLA-OFT).

    What passes between the parts is embeddings, so each part can be run by another engine.
    """

    config: ModelConfig

    # -- the parts ----------------------------------------------------------------------------

    @abstractmethod
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Normalised images [B, images * vision encoders * 3, S, S] -> [B, P, H]"""

    @abstractmethod
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """[B, n] -> [B, n, H]"""

    @abstractmethod
    def embed_proprio(self, proprio: Tensor) -> Tensor:
        """Normalised state [B, S] -> [B, 1, H]"""

    @abstractmethod
    def embed_slots(self, count: int) -> Tensor:
        """Embeddings of the action slots for parallel decoding: [1, count, H]"""

    @abstractmethod
    def prefill(self, embeddings: Tensor) -> tuple[Tensor, Any]:
        """[B, n, H] -> hidden state of the last position [B, H], and the cache."""

    @abstractmethod
    def decode(self, embedding: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """One more position: [B, 1, H] -> its hidden state [B, H], and the extended cache."""

    @abstractmethod
    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        """Bidirectional attention: [B, n, H] -> hidden states [B, n, H].

        padding: bool [B, n], True where a position holds no token and must not be seen.
        """

    @abstractmethod
    def action_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the action tokens alone [..., 256], lowest token id first."""

    @abstractmethod
    def all_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the whole vocabulary."""

    @abstractmethod
    def read_chunk(self, hidden: Tensor) -> Tensor:
        """The L1 head: hidden states of the action slots -> normalised actions [B, T, D]"""

    # -- from inputs to actions ---------------------------------------------------------------

    def context(self, ids: Tensor, pixels: Tensor, proprio: Tensor | None = None) -> Tensor:
        """BOS, patches, [proprio,] rest of the prompt: [B, P + n (+ 1), H]"""
        text = self.embed_tokens(ids)
        parts = [text[:, :1], self.embed_images(pixels)]
        if self.config.head.proprio_dim:
            assert proprio is not None  # a policy refuses observations without it
            parts.append(self.embed_proprio(proprio))
        return torch.cat([*parts, text[:, 1:]], dim=1)

    def generate(
        self, context: Tensor, lengths: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Greedy action tokens one after the other, from the 256 action tokens only.

        Yields the ids [B] and the hidden states [B, H] they were read from, for each token of an
        answer (`HeadConfig.num_tokens`).
        lengths: real length of each context [B], where shorter ones are padded on the right; for
        engines that say they can (`Engine.pads`).
        """
        assert lengths is None
        hidden, cache = self.prefill(context)
        for left in reversed(range(self.config.head.num_tokens)):
            token = self.argmax(self.action_logits(hidden))
            yield token, hidden
            if left:
                embedding = self.embed_tokens(token.clamp(min=0)[:, None])
                hidden, cache = self.decode(embedding, cache)

    def generate_text(self, context: Tensor, limit: int) -> Iterator[int]:
        """Greedy tokens of the whole vocabulary that go on from one context [1, n, H].

        Ends with the stop token, which is yielded, or after `limit` tokens. Where logits are not
        finite the token is -1, and the last.
        """
        hidden, cache = self.prefill(context)
        for left in reversed(range(limit)):
            token = self.best_token(hidden)
            yield int(token)
            if not left or int(token) in (-1, self.config.stop_token_id):
                return
            hidden, cache = self.decode(self.embed_tokens(token[:, None]), cache)

    def best_token(self, hidden: Tensor) -> Tensor:
        """Ids of the most likely of all tokens [B]; -1 where logits are not finite."""
        logits = self.all_logits(hidden).float()
        return torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1)

    def generate_tokens(self, context: Tensor) -> Tensor:
        """All of `generate`'s tokens: ids [B, D]"""
        return torch.stack([token for token, _ in self.generate(context)], dim=1)

    def differs(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Whether the most likely of all tokens is not the given one: bool, shaped like
        `tokens`.

        hidden: the states that the tokens were read from [..., H]
        """
        return self.all_logits(hidden).argmax(-1) != tokens

    def argmax(self, logits: Tensor) -> Tensor:
        """Ids of the most likely action tokens; -1 where logits are not finite."""
        ids = logits.argmax(-1) + self.config.action_vocab_end - self.config.n_action_bins
        return torch.where(logits.isfinite().all(-1), ids, -1)

    def action_hidden(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Hidden states of the action slots, all in one pass: [B, slots, H]

        As in OpenVLA-OFT each is read one position early, beginning with the last prompt token.
        lengths: real length of each context [B], where shorter ones are padded on the right.
        """
        b, n, h = context.shape
        count = self.config.head.num_slots
        stop = self.embed_tokens(context.new_full((1, 1), self.config.stop_token_id).long())
        tail = torch.cat([self.embed_slots(count).to(context), stop.to(context)], dim=1)
        sequence = torch.cat([context, tail.expand(b, -1, -1)], dim=1)
        if lengths is None:
            return self.encode(sequence)[:, n - 1 : n - 1 + count]
        # Close the gap between each context's end and the slots: the padding goes last.
        position = torch.arange(n + count + 1, device=context.device)[None]
        gap, lengths = n - lengths[:, None], lengths[:, None]
        source = torch.where(position < lengths, position, position + gap)
        padding = source >= n + count + 1
        source = source.clamp(max=n + count)
        sequence = sequence.gather(1, source[..., None].expand(-1, -1, h))
        hidden = self.encode(sequence, padding)
        where = lengths - 1 + torch.arange(count, device=context.device)
        return hidden.gather(1, where[..., None].expand(-1, -1, h))

    def patch_hidden(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """`action_hidden`, and of the same pass the hidden states of the patches: [B, P, H]"""
        b, n, _ = context.shape
        count, head = self.config.head.num_slots, self.config.head
        stop = self.embed_tokens(context.new_full((1, 1), self.config.stop_token_id).long())
        tail = torch.cat([self.embed_slots(count).to(context), stop.to(context)], dim=1)
        hidden = self.encode(torch.cat([context, tail.expand(b, -1, -1)], dim=1))
        patches = head.num_images * self.config.num_patches
        return hidden[:, n - 1 : n - 1 + count], hidden[:, 1 : 1 + patches]

    def predict_chunk(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised actions by the L1 head: [B, T, D]"""
        return self.read_chunk(self.action_hidden(context, lengths))

    def parallel_tokens(self, context: Tensor) -> Tensor:
        """Action token ids of a whole chunk in one pass: [B, T, D]"""
        return self.chunk_tokens(self.action_hidden(context))

    def chunk_tokens(self, hidden: Tensor) -> Tensor:
        """`parallel_tokens` from the hidden states of the slots [B, T * D, H]."""
        head = self.config.head
        ids = self.argmax(self.action_logits(hidden))
        return ids.unflatten(1, (head.chunk, head.action_dim))
