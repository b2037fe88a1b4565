"""`LeRobotPolicy`: what all families of LeRobot have in common as a `Policy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.base import Contract, LoadOptions, Needs, Policy
from vla_inference.policies.lerobot.checkpoint import ACTION, STATE, LeRobotCheckpoint
from vla_inference.policies.stage_timer import StageTimer
from vla_inference.types import ActionChunk, ActionSpec, Observation, check_image

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LeRobotPolicy(Policy):
    """Finds the cameras and the state in observations, and the actions in numbers."""

    def __init__(self, checkpoint: LeRobotCheckpoint, options: LoadOptions, contract: Contract):
        self.checkpoint = checkpoint
        self.name = checkpoint_name(checkpoint.folder)
        self.device, self.dtype = torch.device(options.device), DTYPES[options.dtype]
        self.placement = f"{self.device} by engine plain"
        self.needs, self.spec, self.chunk = contract.needs, contract.spec, contract.chunk

    def action_spec(self) -> ActionSpec:
        return self.spec

    def cameras(self, observation: Observation) -> Mapping[str, np.ndarray]:
        """The images of the cameras that are there, in the network's order."""
        wanted, given = self.needs.cameras, dict(observation.images)
        if not set(given) <= set(wanted) and len(given) == len(wanted):
            given = dict(
                zip(wanted, given.values(), strict=True)
            )  # in order, whatever their names
        missing = [name for name in wanted if name not in given]
        if strange := set(given) - set(wanted):
            raise ObservationError(
                f"the model has no camera {', '.join(map(repr, sorted(strange)))}",
                f"it takes {', '.join(wanted)}",
            )
        if not given or len(missing) > self.checkpoint.empty:
            raise ObservationError(
                f"the model needs images {', '.join(wanted)}; {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing",
                "give one per camera it was trained with",
            )
        return {name: check_image(given[name], name) for name in wanted if name in given}

    def state(self, state: np.ndarray | None) -> np.ndarray:
        """Normalised [S]"""
        wanted = self.needs.state
        if not wanted:
            return np.zeros(0, np.float32)
        given = np.zeros(0) if state is None else np.asarray(state, np.float32).ravel()
        if len(given) != wanted or not np.isfinite(given).all():
            problem = f"{len(given)} came" if len(given) != wanted else "some are not finite"
            raise ObservationError(
                f"the model takes {wanted} numbers of state, {problem}",
                "give the state that it was trained with",
            )
        return self.checkpoint.normalisers[STATE].normalise(given)

    def origin(self, observation: Observation) -> np.ndarray:
        """What the network's actions [D] are relative to: the state, or 0."""
        relative = np.array(self.checkpoint.relative)
        if not relative.any():
            return np.zeros(len(relative), np.float32)
        return np.where(relative, np.asarray(observation.state, np.float32)[: len(relative)], 0)

    def answers(
        self, normalised: Tensor, observations: Sequence[Observation], timer: StageTimer
    ) -> list[ActionChunk]:
        """Chunks of a network's answer [B, T, action_dim or more], whose time ends here."""
        x = normalised[..., : self.checkpoint.action_dim].float().cpu().numpy()
        actions = self.checkpoint.normalisers[ACTION].denormalise(x)
        actions = actions + np.stack([self.origin(o) for o in observations])[:, None]
        if not np.isfinite(actions).all():
            raise VlaError(
                "the model answered with numbers that are not finite", "check its weights"
            )
        timing = timer.finish()
        return [ActionChunk(a, self.spec, timing=timing) for a in actions]


def contract_of(
    checkpoint: LeRobotCheckpoint, chunk: int, image_size: tuple[int, int] | None
) -> Contract:
    """image_size: as in `Needs`."""
    needs = Needs(
        images=len(checkpoint.cameras),
        state=checkpoint.state_dim,
        image_size=image_size,
        cameras=checkpoint.cameras,
    )
    return Contract(needs, checkpoint.spec, chunk)
