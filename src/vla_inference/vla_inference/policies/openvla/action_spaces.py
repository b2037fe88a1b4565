"""Action spaces of a model: the meaning of its actions, and how actions and state are scaled."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla_inference.errors import ObservationError, VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.policies.action_specs import statistics_spec
from vla_inference.policies.normalisation import Normalisation, find_statistics, unit_statistics
from vla_inference.types import ActionSpec

AskedSpace = str | Mapping | None
"""The name of statistics, statistics themselves, or None where a model has only one."""


class ActionSpaces:
    """The action spaces of one model. Methods raise VlaError if a request is not possible."""

    def __init__(self, config: ModelConfig):
        self.head, self._statistics = config.head, config.norm_stats
        self._of_state: dict[str | None, Normalisation] = {}

    @property
    def all(self) -> dict[str, Mapping]:
        """Statistics by name, "normalized" (actions in [-1, 1]) among them."""
        return {
            **self._statistics,
            "normalized": {"action": unit_statistics(self.head.action_dim)},
        }

    def find(self, asked: AskedSpace) -> tuple[str, Mapping]:
        """Name and whole entry (action, proprio, spec) of an action space."""
        name, statistics = find_statistics(self.all, asked)
        if isinstance(asked, Mapping):
            return name, asked if "action" in asked else {"action": statistics}
        return name, self.all[name]

    def spec(self, asked: AskedSpace) -> ActionSpec:
        """Name, unit, frame and polarity of each action dimension."""
        name, space = self.find(asked)
        spec = statistics_spec(space, self.head.action_dim, name)
        if len(spec) != self.head.action_dim:
            raise VlaError(
                f"the statistics' spec names {len(spec)} dimensions, the model's actions have "
                f"{self.head.action_dim}",
                "fix the statistics",
            )
        return spec

    def normalisation(self, asked: AskedSpace) -> Normalisation:
        """The normalisation of the actions."""
        _, statistics = find_statistics(self.all, asked)
        found = Normalisation.from_statistics(statistics, bounds=self.head.bounds)
        if len(found) != self.head.action_dim:
            raise VlaError(
                f"the statistics have {len(found)} dimensions, the model's actions "
                f"{self.head.action_dim}",
                "choose those it was trained with",
            )
        return found

    def normalise_state(self, state: np.ndarray | None, asked: AskedSpace) -> np.ndarray:
        """The robot's state as the model's input, float64 [P]."""
        wanted = self.head.proprio_dim
        if state is None or len(state) != wanted:
            have = "none" if state is None else len(state)
            raise ObservationError(
                f"the model needs a state of {wanted} numbers, got {have}",
                "give the robot's state",
            )
        if not np.isfinite(state).all():
            raise ObservationError("the state contains numbers that are not finite", "fix it")
        if isinstance(asked, Mapping):
            normalisation = self._state_normalisation(asked)
        else:
            if asked not in self._of_state:
                self._of_state[asked] = self._state_normalisation(asked)
            normalisation = self._of_state[asked]
        return normalisation.normalise(np.asarray(state, np.float64))

    def _state_normalisation(self, asked: AskedSpace) -> Normalisation:
        wanted = self.head.proprio_dim
        name, space = self.find(asked)
        statistics = space.get("proprio")
        if statistics is None:
            raise VlaError(f"statistics {name!r} have no 'proprio'", "add them to the checkpoint")
        normalisation = Normalisation.from_statistics(
            statistics, f"the proprio statistics {name!r}", self.head.bounds
        )
        if len(normalisation) != wanted:
            raise VlaError(
                f"the proprio statistics {name!r} have {len(normalisation)} dimensions, the "
                f"model's state {wanted}",
                "choose those it was trained with",
            )
        return normalisation


def one_name(action_space: AskedSpace, unnorm_key: AskedSpace) -> AskedSpace:
    """Checks that `action_space` and `unnorm_key`, two names of one option, are not both given."""
    if action_space is not None and unnorm_key is not None:
        raise VlaError(
            "both action_space and unnorm_key were given", "they mean the same: drop one"
        )
    return unnorm_key if action_space is None else action_space
