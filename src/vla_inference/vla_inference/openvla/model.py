"""OpenVLA (arXiv 2406.09246), OpenVLA-OFT (arXiv 2502.19645) and MiniVLA, end to end.

    image --vision encoders--> patch features --projector--> embeddings \
    sentence --tokenizer--> ids --embed_tokens--> embeddings ------> Llama --> action
"""

from __future__ import annotations

from torch import Tensor, nn

from vla_inference.openvla.action_codec import ActionCodec
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.decoding import ActionDecoder
from vla_inference.openvla.heads import L1ActionHead, ProprioProjector
from vla_inference.openvla.llama import KVCache, LanguageModel
from vla_inference.openvla.vision import Projector, VisionBackbone


class VLA(nn.Module, ActionDecoder):
    """The model in plain PyTorch; `ActionDecoder` decodes actions from its parts."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        c, head = config, config.head
        vision_dim = sum(t.embed_dim for t in c.encoders)
        self.vision_backbone = VisionBackbone(c.encoders)
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
        if head.codec:
            self.action_codec = ActionCodec(head.codec, head.chunk * head.action_dim)

    def embed_images(self, pixels: Tensor) -> Tensor:
        return self.projector(self.vision_backbone(pixels))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.language_model.model.embed_tokens(ids)

    def embed_proprio(self, proprio: Tensor) -> Tensor:
        return self.proprio_projector(proprio)

    def embed_slots(self, count: int) -> Tensor:
        if self.config.head.slots == "learned":
            return self.action_slots.weight[None]
        words = self.language_model.model.embed_tokens.weight
        return words.new_zeros(1, count, words.shape[1])

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, KVCache]:
        hidden, cache = self.language_model.model(embeddings)
        return hidden[:, -1], cache

    def decode(self, embedding: Tensor, cache: KVCache) -> tuple[Tensor, KVCache]:
        hidden, cache = self.language_model.model(embedding, cache)
        return hidden[:, -1], cache

    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.language_model.model(embeddings, bidirectional=True, padding=padding)[0]

    def action_logits(self, hidden: Tensor) -> Tensor:
        end = self.config.action_vocab_end
        rows = self.language_model.output[end - self.config.n_action_bins : end]
        return hidden @ rows.T

    def all_logits(self, hidden: Tensor) -> Tensor:
        return self.language_model.logits(hidden)

    def read_chunk(self, hidden: Tensor) -> Tensor:
        return self.action_head(hidden)
