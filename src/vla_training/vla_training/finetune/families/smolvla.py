"""SmolVLA as fine-tuning sees it.

As published, the action expert and the projections of actions, time and state are trained, and the
vision-language model stays as it is.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, cast

from torch import nn

from vla_inference.policies.base import LoadOptions
from vla_inference.policies.lerobot.tokenizer import find_tokenizer
from vla_inference.policies.smolvla.config import SmolVLAConfig, read_config
from vla_inference.policies.smolvla.model import SmolVLA
from vla_inference.policies.smolvla.policy import SmolVLAPolicy
from vla_inference.policies.smolvla.weights import our_name
from vla_training.finetune.families.lerobot.flow import FlowTrainable


class SmolVLATrainable(FlowTrainable):
    family = "smolvla"
    vlm = ("vision.", "connector.", "language.")

    @cached_property
    def sizes(self) -> SmolVLAConfig:
        return read_config(self.start)

    @property
    def room(self) -> tuple[int, int]:
        return self.sizes.state_dim, self.sizes.action_dim

    @property
    def layers(self) -> int:
        return self.sizes.text.layers

    def find_tokenizer(self) -> Any:
        source = self.start.settings.text("vlm_model_name")
        return find_tokenizer(self.start, source, self.sizes.text.vocabulary)

    def make(self) -> SmolVLA:
        return SmolVLA(self.sizes)

    def our_name(self, published: str) -> str | None:
        return our_name(published)

    def make_policy(self, model: nn.Module, options: LoadOptions) -> SmolVLAPolicy:
        return SmolVLAPolicy(cast("SmolVLA", model), self.fitted, self.tokenizer, options)
