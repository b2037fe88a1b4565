"""What follows from the times of Euler's steps alone, in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.policies.lerobot.cuda.expert import Entry
from vla_inference.policies.lerobot.flow import time_embedding


def embedded_times(config: Any, device: torch.device) -> Tensor:
    """The time embedding of each step [steps, W]. config: a flow-matching model's."""
    times = torch.tensor([1 - i / config.steps for i in range(config.steps)], device=device)
    width = config.expert.width
    return time_embedding(times, width, config.min_period, config.max_period).float()


def mixed_entries(
    times: Tensor, actions: nn.Linear, mlp_in: nn.Linear, mlp_out: nn.Linear
) -> list[list[Entry]]:
    """Of each step, from actions to tokens where the time is mixed into each action: what two
    products without anything in between would do, one does."""
    width = actions.out_features
    of_actions, of_time = mlp_in.weight.float().split([width, width], 1)
    bias = of_actions @ actions.bias.float() + mlp_in.bias.float()
    first = (of_actions @ actions.weight.float()).to(actions.weight.dtype)
    second = Entry(mlp_out.weight, mlp_out.bias.float())
    biases = F.linear(times, of_time, bias)
    return [[Entry(first, row, "silu"), second] for row in biases]
