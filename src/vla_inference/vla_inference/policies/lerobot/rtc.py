"""Real-time chunking of a flow: guidance towards the old chunk's rest.

Source: arXiv:2506.07339; behaviour of huggingface/lerobot 0.6.1, whose guidance takes the
network's Jacobian as the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vla_inference.errors import VlaError
from vla_inference.policies.chunking import RealTimeChunking, Schedule
from vla_inference.policies.lerobot.flow import Guide

__all__ = ["RealTimeChunking", "guidance_weight", "guide_to", "prefix_weights"]


def guide_to(previous: Tensor, delay: int, chunk: int, by: RealTimeChunking) -> Guide:
    """The guide for `flow.sample`.

    previous: the old chunk's steps [B, P, D] that were not executed when the model began, as the
        network gives them (normalised, padded to its width). delay: steps executed until it ends.
    """
    length = min(previous.shape[1], chunk)
    left = previous.new_zeros(len(previous), chunk, previous.shape[2])
    left[:, :length] = previous[:, :length]
    horizon = min(by.horizon, length) if by.horizon else length
    weights = prefix_weights(delay, horizon, chunk, by.schedule).to(left)[:, None]

    def guided(v: Tensor, x: Tensor, time: float) -> Tensor:
        error = (left - (x - time * v)) * weights
        return v - guidance_weight(time, by.limit) * error

    return guided


def prefix_weights(delay: int, horizon: int, length: int, schedule: Schedule) -> Tensor:
    """How much each step of a chunk follows the old one: float32 [length], 1 to 0."""
    held, end = min(delay, horizon), min(horizon, length)
    weights = torch.zeros(length)
    if schedule == "ONES":
        weights[:end] = 1
    elif schedule == "ZEROS":
        weights[:held] = 1
    elif schedule in ("LINEAR", "EXP"):
        falling = torch.linspace(1, 0, max(end - held, 0) + 2)[1:-1]
        if schedule == "EXP":
            falling = falling * torch.expm1(falling) / (math.e - 1)
        weights[:held] = 1
        weights[held : held + len(falling)] = falling
    else:
        raise VlaError(f"unknown schedule {schedule!r}", "use LINEAR, EXP, ONES or ZEROS")
    return weights


def guidance_weight(time: float, limit: float) -> float:
    """How hard the guidance pulls at a time from 1 (noise) to 0 (actions)."""
    done = 1 - time
    if done == 0:
        return limit
    return min(limit, time / done * (time**2 + done**2) / time**2) if time else limit
