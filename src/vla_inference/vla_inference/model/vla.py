"""OpenVLA (arXiv 2406.09246) and OpenVLA-OFT (arXiv 2502.19645), end to end.

    picture --towers--> patch features --projector--> embeddings \
    sentence --tokenizer--> ids --embed_tokens--> embeddings ------> Llama --> action

Shapes: B batch, P patches (all pictures together), n prompt tokens, H width of the Llama,
D action dimensions, T steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vla_inference.model.config import ModelConfig
from vla_inference.model.heads import L1ActionHead, ProprioProjector
from vla_inference.model.llama import KVCache, LanguageModel
from vla_inference.model.vision import Projector, VisionBackbone


class VLA(nn.Module):
    """The model's parts and its two ways to an action.

    `embed_pictures`, `embed_tokens`, `prefill` and `decode` are the seams: what passes between
    them is embeddings, so each can be run by another engine.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        c, head = config, config.head
        vision_dim = sum(t.embed_dim for t in c.towers)
        self.vision_backbone = VisionBackbone(c.towers)
        self.projector = Projector(c.projector, vision_dim, c.llm.hidden_size)
        self.language_model = LanguageModel(c.llm)
        if head.type == "l1":
            self.action_head = L1ActionHead(
                c.llm.hidden_size, head.action_dim, head.slots_per_step
            )
        if head.slots == "learned":
            self.action_slots = nn.Embedding(head.num_slots, c.llm.hidden_size)
        if head.proprio_dim:
            self.proprio_projector = ProprioProjector(head.proprio_dim, c.llm.hidden_size)

    # -- the seams ----------------------------------------------------------------------------

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """[B, images * towers * 3, S, S] -> [B, P, H]"""
        return self.projector(self.vision_backbone(pixels))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """[B, n] -> [B, n, H]"""
        return self.language_model.model.embed_tokens(ids)

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, KVCache]:
        """[B, n, H] -> logits of the action tokens after the last position [B, 256], and cache."""
        hidden, cache = self.language_model.model(embeddings)
        return self.action_logits(hidden[:, -1]), cache

    def decode(self, embedding: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        """One more position: [B, 1, H] -> logits of the action tokens [B, 256], and cache."""
        hidden, cache = self.language_model.model(embedding, cache)
        return self.action_logits(hidden[:, -1]), cache

    def action_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the action tokens alone [..., 256], lowest token id first."""
        end = self.config.action_vocab_end
        rows = self.language_model.lm_head.weight[end - self.config.n_action_bins : end]
        return hidden @ rows.T

    # -- from inputs to actions ---------------------------------------------------------------

    def context(self, ids: Tensor, pixels: Tensor, proprio: Tensor | None = None) -> Tensor:
        """BOS, patches, [proprio,] rest of the prompt: [B, P + n (+ 1), H]"""
        text = self.embed_tokens(ids)
        parts = [text[:, :1], self.embed_pictures(pixels)]
        if self.config.head.proprio_dim:
            parts.append(self.proprio_projector(proprio))
        return torch.cat([*parts, text[:, 1:]], dim=1)

    def generate(self, context: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Greedy action tokens, one after the other, restricted to the 256.

        Yields the ids [B] and the hidden states [B, H] they were read from, D times.
        """
        hidden, cache = self.language_model.model(context)
        for left in reversed(range(self.config.head.action_dim)):
            last = hidden[:, -1]
            token = self.likeliest(self.action_logits(last))
            yield token, last
            if left:
                embedding = self.embed_tokens(token.clamp(min=0)[:, None])
                hidden, cache = self.language_model.model(embedding, cache)

    def generate_tokens(self, context: Tensor) -> Tensor:
        """All of `generate`'s tokens: ids [B, D]"""
        return torch.stack([token for token, _ in self.generate(context)], dim=1)

    def differs(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Where the likeliest of all tokens is another one: bool, shaped like `tokens`.

        hidden: the states that the tokens were read from [..., H]
        """
        return self.language_model.lm_head(hidden).argmax(-1) != tokens

    def likeliest(self, logits: Tensor) -> Tensor:
        """Ids of the likeliest action tokens; -1 where logits are not finite (argmax hides it)."""
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
        slots = context.new_zeros(1, count, h)
        if self.config.head.slots == "learned":
            slots = self.action_slots.weight[None].to(context.dtype)
        tail = torch.cat([slots, stop.to(context.dtype)], dim=1).expand(b, -1, -1)
        sequence = torch.cat([context, tail], dim=1)
        if lengths is None:
            hidden, _ = self.language_model.model(sequence, bidirectional=True)
            return hidden[:, n - 1 : n - 1 + count]
        # Close the gap between each context's end and the slots: the padding goes last.
        position = torch.arange(n + count + 1, device=context.device)[None]
        gap, lengths = n - lengths[:, None], lengths[:, None]
        source = torch.where(position < lengths, position, position + gap)
        padding = source >= n + count + 1
        source = source.clamp(max=n + count)
        sequence = sequence.gather(1, source[..., None].expand(-1, -1, h))
        hidden, _ = self.language_model.model(sequence, bidirectional=True, padding=padding)
        where = lengths - 1 + torch.arange(count, device=context.device)
        return hidden.gather(1, where[..., None].expand(-1, -1, h))

    def predict_chunk(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised actions by the L1 head: [B, T, D]"""
        return self.action_head(self.action_hidden(context, lengths))

    def parallel_tokens(self, context: Tensor) -> Tensor:
        """Action token ids of a whole chunk in one pass: [B, T, D]"""
        return self.chunk_tokens(self.action_hidden(context))

    def chunk_tokens(self, hidden: Tensor) -> Tensor:
        """The same from the hidden states of the slots [B, T * D, H]."""
        head = self.config.head
        ids = self.likeliest(self.action_logits(hidden))
        return ids.unflatten(1, (head.chunk, head.action_dim))
