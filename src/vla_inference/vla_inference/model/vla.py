"""OpenVLA (arXiv 2406.09246) and OpenVLA-OFT (arXiv 2502.19645), end to end.

    picture --towers--> patch features --projector--> embeddings \
    sentence --tokenizer--> ids --embed_tokens--> embeddings ------> Llama --> action

Shapes: B batch, P patches (all pictures together), n prompt tokens, H width of the Llama,
D action dimensions, T steps of a chunk.
"""

from __future__ import annotations

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
            self.action_head = L1ActionHead(c.llm.hidden_size, head.action_dim)
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

    def generate_tokens(self, context: Tensor) -> Tensor:
        """Greedy action tokens, one after the other, restricted to the 256: ids [B, D]"""
        first = self.config.action_vocab_end - self.config.n_action_bins
        logits, cache = self.prefill(context)
        tokens = [logits.argmax(-1) + first]
        for _ in range(self.config.head.action_dim - 1):
            logits, cache = self.decode(self.embed_tokens(tokens[-1][:, None]), cache)
            tokens.append(logits.argmax(-1) + first)
        return torch.stack(tokens, dim=1)

    def action_hidden(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Hidden states of the T * D empty action positions, all in one pass: [B, T * D, H]

        As in OpenVLA-OFT each is read one position early, beginning with the last prompt token.
        lengths: real length of each context [B], where shorter ones are padded on the right.
        """
        b, n, h = context.shape
        slots = self.config.head.chunk * self.config.head.action_dim
        stop = self.embed_tokens(context.new_full((1, 1), self.config.stop_token_id).long())
        if lengths is None:
            empty = context.new_zeros(b, slots, h)
            sequence = torch.cat([context, empty, stop.expand(b, 1, h)], dim=1)
            hidden, _ = self.language_model.model(sequence, bidirectional=True)
            return hidden[:, n - 1 : n - 1 + slots]
        position = torch.arange(n + slots + 1, device=context.device)[None]
        lengths = lengths[:, None]
        sequence = torch.cat([context, context.new_zeros(b, slots + 1, h)], dim=1)
        sequence = torch.where((position < lengths)[..., None], sequence, 0)
        sequence = torch.where((position == lengths + slots)[..., None], stop, sequence)
        padding = position > lengths + slots
        hidden, _ = self.language_model.model(sequence, bidirectional=True, padding=padding)
        where = lengths - 1 + torch.arange(slots, device=context.device)
        return hidden.gather(1, where[..., None].expand(-1, -1, h))

    def predict_chunk(self, context: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Normalised actions by the L1 head: [B, T, D]"""
        return self.action_head(self.action_hidden(context, lengths))

    def parallel_tokens(self, context: Tensor) -> Tensor:
        """Action token ids of a whole chunk in one pass: [B, T, D]"""
        head = self.config.head
        logits = self.action_logits(self.action_hidden(context))
        ids = logits.argmax(-1) + self.config.action_vocab_end - self.config.n_action_bins
        return ids.unflatten(1, (head.chunk, head.action_dim))
