"""The OpenVLA family as one configurable model."""

from vla_inference.model.config import ModelConfig
from vla_inference.model.vla import VLA

__all__ = ["VLA", "ModelConfig"]
