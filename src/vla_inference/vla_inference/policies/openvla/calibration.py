"""Collects the inputs of the decoder's linear layers on recorded observations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_inference.checkpoints.load import load_config, load_model, load_tokenizer
from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.engines.base import Engine
from vla_inference.errors import VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.llama import Layer, rotary
from vla_inference.policies.normalisation import Normalisation, find_statistics
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.quantization.formats import Format
from vla_inference.quantization.gptq import gptq_linear
from vla_inference.quantization.linear import QuantLinear
from vla_inference.quantization.swap import WHERE
from vla_inference.types import Observation


class InputRecorder:
    """Replaces the language model and keeps its inputs: embeddings [1, n, H].

    tokens: the action's, which token by token decoding would feed back.
    """

    def __init__(self, model: Any):
        self.model = model
        self.tokens: Tensor | None = None
        self.seen: list[Tensor] = []

    def prefill(self, embeddings: Tensor) -> tuple[Tensor, None]:
        if self.tokens is not None:
            more = self.model.embed_tokens(self.tokens[None, :-1].to(embeddings.device))
            self.seen.append(torch.cat([embeddings, more], 1))
        else:
            self.seen.append(embeddings)
        return torch.zeros_like(embeddings[:, -1]), None

    def decode(self, embedding: Tensor, cache: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(embedding[:, -1]), None

    def encode(self, embeddings: Tensor, padding: Tensor | None = None) -> Tensor:
        self.seen.append(embeddings)
        return torch.zeros_like(embeddings)


class Calibrator:
    """A checkpoint without its decoder layers that records embeddings of samples."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype):
        config = load_config(folder)
        model = load_model(folder, device, dtype, config, (f"{WHERE}.",))
        self.recorder = InputRecorder(model)
        engine = Engine(model, language=self.recorder)
        name = checkpoint_name(folder)
        self.policy = OpenVLAPolicy(model, load_tokenizer(folder), device, dtype, name, engine)

    @torch.inference_mode()
    def __call__(
        self,
        samples: Iterable[tuple[Observation, np.ndarray | None]],
        action_space: str | Mapping | None = None,
    ) -> list[Tensor]:
        """samples: observations with the action that was taken [D], in the statistics' units."""
        policy, self.recorder.seen = self.policy, []
        if action_space is None and len(policy.config.norm_stats) != 1:
            action_space = "normalized"
        for observation, action in samples:
            self.recorder.tokens = self._tokens(action, action_space)
            policy.predict_action(observation, action_space=action_space)
        if not self.recorder.seen:
            raise VlaError("there are no samples to calibrate with", "give a dataset")
        return self.recorder.seen

    def _tokens(self, action: np.ndarray | None, space: str | Mapping | None) -> Tensor | None:
        head = self.policy.config.head
        single = head.decoding == "autoregressive" and not head.codec
        if not single or action is None or len(action) != head.action_dim:
            return None
        _, statistics = find_statistics(self.policy.action_spaces, space)
        normalisation = Normalisation.from_statistics(statistics, bounds=head.bounds)
        return torch.from_numpy(self.policy.tokens.encode(normalisation.normalise(action)))


class LayerByLayer:
    """Quantises the decoder layers in turn, each on inputs that passed the quantised ones
    before."""

    def __init__(
        self, config: ModelConfig, format: Format, inputs: list[Tensor], act_order: bool = True
    ):
        self.config, self.format, self.act_order = config, format, act_order
        self.inputs = inputs
        self.causal = config.head.decoding == "autoregressive"

    @torch.inference_mode()
    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, QuantLinear]:
        """tensors: the next layer's, named as in `Layer`. -> its linear layers, by name."""
        device = self.inputs[0].device
        with torch.device("meta"):
            layer = Layer(self.config.llm)
        state = {k: v.to(device, torch.float32) for k, v in tensors.items()}
        layer.load_state_dict(state, assign=True)
        linear = {n: m for n, m in layer.named_modules() if isinstance(m, nn.Linear)}
        # Layers that read the same input share their Hessian.
        hessians: dict[str, Tensor] = {}
        readers = {
            "self_attn.q_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.o_proj": ("self_attn.o_proj",),
            "mlp.gate_proj": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down_proj": ("mlp.down_proj",),
        }
        hooks = [linear[n].register_forward_pre_hook(_collector(hessians, n)) for n in readers]
        for x in self.inputs:
            self._run(layer, x)
        for hook in hooks:
            hook.remove()
        found = {}
        for name, those in readers.items():
            for one in those:
                found[one] = gptq_linear(
                    linear[one], hessians[name], self.format, one, self.act_order
                )
                linear[one].weight.data = found[one].dequantize()
            del hessians[name]
        self.inputs = [self._run(layer, x) for x in self.inputs]
        return found

    def _run(self, layer: Layer, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        cos, sin = rotary(positions, self.config.llm)
        return layer(x.float(), cos, sin, None, self.causal, None)[0]


def _collector(into: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def add(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0].flatten(0, -2)
        into[name] = into.get(name, 0) + x.T @ x

    return add
