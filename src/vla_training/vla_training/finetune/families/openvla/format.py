"""OpenVLA's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_inference.errors import DataError
from vla_inference.openvla.config import HeadConfig, ModelConfig
from vla_inference.openvla.preprocessing import ImagePreprocessor, PromptTokenizer
from vla_inference.policies.normalisation import Normalisation
from vla_training.loader.sample_format import SampleFormat


class OpenVLAFormat(SampleFormat):
    """tokenizer: of the tokenizers library. spaces: names of the statistics that are in use."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Any,
        statistics: Mapping[str, dict],
        spaces: Sequence[str],
    ):
        head = config.head
        self.cameras, self.chunk = head.views, head.chunk
        self.history, self.interval = head.history, head.history_interval or 0.0
        self.takes_state = head.proprio_dim > 0
        self._preprocess = ImagePreprocessor(config)
        self._prompt = PromptTokenizer(config, tokenizer)
        self._actions = {
            s: _bounds(statistics, s, "action", head.action_dim, head) for s in spaces
        }
        states = spaces if self.takes_state else ()
        self._states = {
            s: _bounds(statistics, s, "proprio", head.proprio_dim, head) for s in states
        }

    def image(self, image: np.ndarray) -> np.ndarray:
        return self._preprocess.uncropped(image)

    def prompt(self, instruction: str, state: np.ndarray | None) -> list[int]:
        return self._prompt(instruction)

    def actions(self, values: np.ndarray, space: str) -> np.ndarray:
        return self._actions[space].normalise(values.astype(np.float64)).astype(np.float32)

    def state(self, values: np.ndarray, space: str) -> np.ndarray:
        return self._states[space].normalise(values.astype(np.float64)).astype(np.float32)


def _bounds(
    statistics: Mapping[str, dict], space: str, part: str, size: int, head: HeadConfig
) -> Normalisation:
    """The values of -1 and 1; part: "action" or "proprio"."""
    entry = statistics[space].get(part)
    if not isinstance(entry, Mapping):
        raise DataError(
            f"the statistics of {space!r} have no {part!r}",
            "give --action-space another name, so that they are worked out of the data",
        )
    found = Normalisation.from_statistics(entry, f"the statistics of {space!r}", head.bounds)
    if len(found) != size:
        what = "actions" if part == "action" else "states"
        raise DataError(
            f"the {what} of {space!r} have {len(found)} numbers, the model takes {size}",
            "fine-tune a model of that size",
        )
    return found
