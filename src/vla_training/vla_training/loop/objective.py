"""The training objective: what a model family's loss must offer to the loop."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from vla_training.loader.batch import Batch

PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Objective(nn.Module):
    """A model with its loss; a call is one forward pass of training.

    autocast: what the forward pass computes in, where that is not the dtype of the weights.
    """

    autocast: torch.dtype | None = None

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and, without gradient, what is measured on the way: "error" [D], the mean
        absolute error of each normalised action dimension, at least."""

    def layers(self) -> list[nn.Module]:
        """Units of sharding; what is in none of them is one more."""
        return []

    @property
    def device(self) -> torch.device:
        """Where the weights are now; they may have been moved since the objective was made."""
        return next(self.parameters()).device

    def low_precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None)


def masked_error(predicted: Tensor, targets: Tensor, inside: Tensor) -> Tensor:
    """Mean absolute error of each dimension [D] of chunks [B, T, D], over the steps that are
    inside [B, T]."""
    error = (predicted - targets).abs() * inside[..., None]
    return error.sum((0, 1)) / inside.sum().clamp(min=1)
