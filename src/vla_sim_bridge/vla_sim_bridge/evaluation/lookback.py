"""Past images of a simulated world, for models that take several time steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from vla_inference.episodes.robosuite import CONTROL_FREQ
from vla_inference.inputs.history import past_name, past_steps, stride_of
from vla_inference.policies.base import Needs

Images = Mapping[str, np.ndarray]


class Lookback:
    """What each camera saw at the control steps of an episode, as far back as a model needs."""

    def __init__(self, needs: Needs):
        self.history = needs.history
        self._stride = stride_of(needs.interval, 1.0 / CONTROL_FREQ) if self.history else 1
        self._seen: deque[Images] = deque(maxlen=self.history * self._stride + 1)

    def begin(self) -> None:
        """An episode begins: what was seen before is not its past."""
        self._seen.clear()

    def see(self, images: Images) -> None:
        """The images of one more control step."""
        self._seen.append(images)

    def past(self) -> list[Images]:
        """Those of one interval before the last step, of two ..., and of the first step where
        the episode is younger."""
        last = len(self._seen) - 1
        return [self._seen[i] for i in past_steps(last, self.history, self._stride)]

    def images(self, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        """The last step's and those before, named as in an observation."""
        return {
            past_name(camera, ago): images[camera]
            for ago, images in enumerate([self._seen[-1], *self.past()])
            for camera in cameras
        }
