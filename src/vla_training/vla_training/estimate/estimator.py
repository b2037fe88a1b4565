"""A small head on a small model: how far the task is, 0 to 1, and whether it is done.

The model looks at images and sentence as it does to act; what it has made of them before it
decides on actions is what the head reads. The model itself stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.system.files import Staged
from vla_inference.types import Observation

ABOUT, WEIGHTS = "estimator.json", "head.safetensors"
WIDTH = 128
LAST = 5  # estimates at an episode's end that suggest its verdict
SUCCESS, FAILURE = "success", "failure"


@dataclass(frozen=True)
class Estimate:
    """How far a task is, and whether it is done.

    progress: 0 at the beginning, 1 at success. done: how likely success is now, 0 to 1.
    """

    progress: float
    done: float


class Head(nn.Module):
    """hidden [B, H] -> logits of progress and of being done [B, 2]"""

    def __init__(self, size: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(size), nn.Linear(size, WIDTH), nn.GELU(), nn.Linear(WIDTH, 2)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers(hidden)


class Eyes:
    """What a model has made of an observation: the mean of its action slots, [H]"""

    def __init__(self, model: str | Path, device: str | None = None):
        self.model = Path(model).expanduser().absolute()
        self.policy = OpenVLAPolicy.from_pretrained(self.model, device=device)
        if self.policy.config.head.type != "l1":
            raise VlaError(
                f"{model} gives actions as tokens, one after the other",
                "use one that gives chunks, such as the small model that ships",
            )
        self._seen: Tensor | None = None
        self.policy.model.action_head.register_forward_hook(self._keep)

    @property
    def size(self) -> int:
        return self.policy.config.llm.hidden_size

    def _keep(self, _module: nn.Module, given: tuple[Tensor, ...], _answer: Tensor) -> None:
        self._seen = given[0]

    def __call__(self, observation: Observation) -> Tensor:
        """float32 [H]"""
        self.policy.predict([observation])
        assert self._seen is not None  # the head was asked
        return self._seen[0].mean(0).float().cpu()


class Estimator:
    """Estimates for observations. figures: how good it was on held-out episodes."""

    def __init__(self, eyes: Eyes, head: Head, figures: dict[str, Any]):
        self.eyes, self.head, self.figures = eyes, head.eval(), figures

    @torch.no_grad()
    def __call__(self, observation: Observation) -> Estimate:
        progress, done = self.head(self.eyes(observation)[None])[0].sigmoid().tolist()
        return Estimate(progress, done)

    def save(self, folder: Path) -> Path:
        about = {"model": str(self.eyes.model), "hidden": self.eyes.size, **self.figures}
        with Staged(folder) as staged:
            staged.mkdir()
            (staged / WEIGHTS).write_bytes(save(dict(self.head.state_dict())))
            (staged / ABOUT).write_text(json.dumps(about, indent=2))
        return folder

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> Estimator:
        try:
            about = json.loads((folder / ABOUT).read_text())
            model, size = about.pop("model"), about.pop("hidden")
            head = Head(size)
            head.load_state_dict(load((folder / WEIGHTS).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{folder} is no estimator ({reason})", "make one by vla estimate train"
            ) from error
        eyes = Eyes(model, device)
        if eyes.size != size:
            raise CheckpointError(
                f"{model} is no longer the model of {folder}", "train the estimator again"
            )
        return cls(eyes, head, about)


def suggested(estimates: Sequence[Estimate]) -> str:
    """The verdict that an episode's last estimates suggest; a person confirms it."""
    if not estimates:
        raise VlaError("the episode has no step", "leave it out")
    return SUCCESS if np.mean([e.done for e in estimates[-LAST:]]) > 0.5 else FAILURE
