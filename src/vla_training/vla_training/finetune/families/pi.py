"""pi0 and pi0.5 as fine-tuning sees them: all weights, unless the checkpoint says otherwise."""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

from torch import nn

from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.checkpoint import tensor_shapes
from vla_inference.policies.lerobot.tokenizer import find_tokenizer
from vla_inference.policies.pi05.config import PiConfig, read_config
from vla_inference.policies.pi05.model import Pi
from vla_inference.policies.pi05.policy import TOKENIZER, PiPolicy
from vla_inference.policies.pi05.weights import naming
from vla_training.finetune.families.lerobot.flow import FlowTrainable


class Pi05Trainable(FlowTrainable):
    family = "pi05"
    vlm = ("vision.", "projector.", "embedding.", "language.")
    projections = ("state_proj.", "action_", "time_mlp_")

    @cached_property
    def sizes(self) -> PiConfig:
        return read_config(self.start)

    @property
    def room(self) -> tuple[int, int]:
        # pi0.5 reads the state as text, of any length.
        return self.sizes.state_dim or self.start.settings.count(
            "max_state_dim"
        ), self.sizes.action_dim

    @property
    def layers(self) -> int:
        return self.sizes.text.layers

    def find_tokenizer(self) -> Any:
        return find_tokenizer(self.start, TOKENIZER, self.sizes.vocabulary)

    def make(self) -> Pi:
        return Pi(self.sizes)

    def our_name(self, published: str) -> str | None:
        return self._names(published)

    @cached_property
    def _names(self):
        return naming(tensor_shapes(self.base))

    def make_policy(self, model: nn.Module, options: LoadOptions) -> PiPolicy:
        return PiPolicy(cast("Pi", model), self.fitted, self.tokenizer, options)


class Pi0Trainable(Pi05Trainable):
    family = "pi0"
