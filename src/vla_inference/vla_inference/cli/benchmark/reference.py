"""OpenVLA run by transformers' `generate`: the rivals of our engines in `vla bench`.

`reference` is how its authors run it, `transformers-static` what a careful user makes of that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vla_inference.errors import VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation


class Reference:
    """OpenVLA as its authors run it: transformers' `generate` on embeddings, eager vision,
    bf16."""

    def __init__(self, policy: OpenVLAPolicy):
        try:
            from transformers import (
                LlamaConfig,
                LlamaForCausalLM,
                Qwen2Config,
                Qwen2ForCausalLM,
            )
        except ImportError as error:
            raise VlaError(
                f"transformers is not installed ({error})",
                "pip install transformers, or name other --paths",
            ) from None

        c = policy.config.llm
        settings: dict[str, Any] = {
            "hidden_size": c.hidden_size,
            "intermediate_size": c.intermediate_size,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "num_key_value_heads": c.num_key_value_heads,
            "vocab_size": c.vocab_size,
            "rms_norm_eps": c.rms_norm_eps,
            "rope_theta": c.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
            "tie_word_embeddings": c.tie_word_embeddings,
            "attn_implementation": "sdpa",  # which LlamaConfig takes but does not declare
            "pad_token_id": 0,
        }
        config: Any = Qwen2Config(**settings) if c.qkv_bias else LlamaConfig(**settings)
        network: Any = Qwen2ForCausalLM if c.qkv_bias else LlamaForCausalLM
        with torch.device("meta"):
            self.llama = network(config)
        state = policy.model.language_model.state_dict()
        state.setdefault("lm_head.weight", policy.model.language_model.output)
        self.llama.load_state_dict(state, assign=True)
        rotary = self.llama.model.rotary_emb
        self.llama.model.rotary_emb = type(rotary)(config=config).to(policy.device)
        self.llama.eval()
        self.policy = policy
        self.options: dict[str, Any] = {}

    @torch.inference_mode()
    def __call__(self, observation: Observation) -> np.ndarray:
        p = self.policy
        pixels = torch.from_numpy(p.preprocess(list(observation.images.values())))[None]
        context = p.model.context(p._ids(observation.instruction), pixels.to(p.device, p.dtype))
        count = p.config.head.num_tokens
        out = self.llama.generate(
            **self.options,
            inputs_embeds=context,
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            attention_mask=torch.ones(context.shape[:2], dtype=torch.long, device=p.device),
        )
        return out[0, -count:].cpu().numpy()


class StaticReference(Reference):
    """The same with a cache of fixed length, and on CUDA with the decode (by transformers itself,
    as a graph) and the vision encoders compiled."""

    def __init__(self, policy: OpenVLAPolicy):
        super().__init__(policy)
        self.options = {"cache_implementation": "static"}
        if policy.device.type == "cuda":
            policy.model.vision_backbone.compile(mode="max-autotune-no-cudagraphs")


RIVALS = {"reference": Reference, "transformers-static": StaticReference}
