"""How a model family's samples are made of a dataset's frames."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class SampleFormat(ABC):
    """What the loader asks a family for; it travels to the worker processes.

    cameras: seen at once. history: past images of each, which follow, `interval` s apart.
    chunk: steps of its actions. takes_state: whether it has one.
    takes_instruction: whether it reads one, which then may not be missing.
    """

    cameras: int
    history: int = 0
    interval: float = 0.0
    chunk: int
    takes_state: bool
    takes_instruction: bool = True

    @abstractmethod
    def image(self, image: np.ndarray) -> np.ndarray:
        """A camera's uint8 [H, W, 3] -> uint8 of the one size that all of a batch have."""

    @abstractmethod
    def prompt(self, instruction: str, state: np.ndarray | None) -> list[int]:
        """Token ids. state: normalised."""

    @abstractmethod
    def actions(self, values: np.ndarray, space: str) -> np.ndarray:
        """Actions [T, D] in the dataset's units -> normalised float32 [T, D]

        space: name of the statistics that they are normalised by (`Mixture.spaces`).
        """

    @abstractmethod
    def state(self, values: np.ndarray, space: str) -> np.ndarray:
        """A state [P] in the dataset's units -> normalised float32 [P]"""

    def draw(self, random: np.random.Generator) -> dict[str, np.ndarray]:
        """What the loss draws at random for a sample, as fields of `Batch`: "noise", "time" and
        "seed".

        Drawn here, it follows from the seed and the sample's position alone.
        """
        return {}
