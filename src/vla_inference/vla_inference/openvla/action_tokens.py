"""Converts between action tokens and normalised actions.

Source: openvla/openvla prismatic/vla/action_tokenizer.py and modeling_prismatic.py (behaviour).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla_inference.errors import VlaError


@dataclass(frozen=True)
class ActionTokens:
    """256 bins over [-1, 1] at the end of the vocabulary; the highest value has the lowest id.

    vocab_end: one past the last action token (32000 for Llama-2).
    """

    vocab_end: int
    n_bins: int = 256

    @cached_property
    def edges(self) -> np.ndarray:
        return _read_only(np.linspace(-1.0, 1.0, self.n_bins))

    @cached_property
    def centers(self) -> np.ndarray:
        """The `n_bins - 1` values a token can mean."""
        return _read_only((self.edges[:-1] + self.edges[1:]) / 2)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Normalised actions -> token ids; values outside [-1, 1] are clipped."""
        return self.vocab_end - np.digitize(np.clip(actions, -1.0, 1.0), self.edges)

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Token ids -> normalised actions (float64). The two lowest ids share the last value."""
        ids = np.asarray(ids)
        if ids.size and (ids.min() < self.vocab_end - self.n_bins or ids.max() >= self.vocab_end):
            raise VlaError(f"{ids} are not all action tokens", "decode only tokens of this model")
        return self.centers[np.clip(self.vocab_end - ids - 1, 0, self.n_bins - 2)]


def _read_only(x: np.ndarray) -> np.ndarray:
    x.setflags(write=False)  # it is kept: who writes into it would change every later action
    return x
