"""A small head on a small model: how far the task is, 0 to 1, and whether it is done.

The model looks at images and sentence as it does to act; what it has made of them before it
decides on actions is what the head reads, of now and of some tenths of a second before: what is
done is at rest. The model itself stays as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from vla_inference.errors import CheckpointError, VlaError
from vla_inference.inputs.history import ImageHistory
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.system.files import Staged
from vla_inference.types import Observation

ABOUT, WEIGHTS = "estimator.json", "heads.safetensors"
WIDTH, SMALL, QUERIES = 128, 64, 4  # of the head
PAST, INTERVAL = 2, 0.2  # looks before the newest one that the head reads as well, s between them
SUCCESS, FAILURE = "success", "failure"


@dataclass(frozen=True)
class Estimate:
    """How far a task is, and whether it is done.

    progress: 0 at the beginning, 1 at success. done: how likely success is now, 0 to 1.
    suggested: the verdict if the episode ended now; a person confirms it.
    """

    progress: float
    done: float
    suggested: str = FAILURE


@dataclass(frozen=True)
class Seen:
    """What a model has made of looks.

    slots: [N, ..., S], its action slots side by side. patches: [N, P, H], of the image.
    """

    slots: Tensor
    patches: Tensor

    def __getitem__(self, which: Any) -> Seen:
        return Seen(self.slots[which], self.patches[which])

    def __len__(self) -> int:
        return len(self.slots)

    @classmethod
    def join(cls, several: Sequence[Seen]) -> Seen:
        return cls(torch.cat([s.slots for s in several]), torch.cat([s.patches for s in several]))


class Head(nn.Module):
    """The slots of now and before ask the patches of now what they want to know.

    slots [B, 1 + PAST, S], the newest first, patches [B, P, H] -> logits of progress and of being
    done [B, 2]
    """

    def __init__(self, slots: int, patches: int, hidden: int):
        super().__init__()
        self.slots = nn.Sequential(
            nn.LayerNorm((1 + PAST) * slots), nn.Linear((1 + PAST) * slots, WIDTH), nn.GELU()
        )
        self.ask = nn.Linear(WIDTH, QUERIES * SMALL)
        self.patches = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, SMALL))
        self.place = nn.Parameter(0.02 * torch.randn(patches, SMALL))
        self.keys = nn.Linear(SMALL, SMALL)
        both = WIDTH + QUERIES * SMALL
        self.answer = nn.Sequential(
            nn.LayerNorm(both),
            nn.Dropout(0.2),
            nn.Linear(both, WIDTH),
            nn.GELU(),
            nn.Dropout(0.2),
            nn.Linear(WIDTH, 2),
        )

    def forward(self, slots: Tensor, patches: Tensor) -> Tensor:
        now, past = slots[:, :1], slots[:, 1:]
        seen = self.slots(torch.cat([now, now - past], dim=1).flatten(1))
        values = self.patches(patches)
        keys = self.keys(values + self.place)
        asked = self.ask(seen).unflatten(1, (QUERIES, SMALL))
        weights = (asked @ keys.transpose(1, 2) / SMALL**0.5).softmax(-1)
        return self.answer(torch.cat([seen, (weights @ values).flatten(1)], dim=1))


class Heads(nn.Module):
    """Several heads, each trained on other episodes: the mean of their logits."""

    def __init__(self, heads: Sequence[Head]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    @classmethod
    def untrained(cls, sizes: tuple[int, int, int], count: int = 1) -> Heads:
        return cls([Head(*sizes) for _ in range(count)])

    def forward(self, slots: Tensor, patches: Tensor) -> Tensor:
        return torch.stack([head(slots, patches) for head in self.heads]).mean(0)


class Eyes:
    """A model that looks at observations as it does to act."""

    def __init__(self, model: str | Path, device: str | None = None):
        self.model = Path(model).expanduser().absolute()
        self.policy = OpenVLAPolicy.from_pretrained(self.model, device=device, engine="torch")
        if self.policy.config.head.type != "l1":
            raise VlaError(
                f"{model} gives actions as tokens, one after the other",
                "use one that gives chunks, such as the small model that ships",
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of the slots, the number of patches, and of each."""
        config = self.policy.config
        hidden, head = config.llm.hidden_size, config.head
        return hidden * head.num_slots, head.num_images * config.num_patches, hidden

    def __call__(self, observations: Sequence[Observation]) -> Seen:
        """float32 slots [N, S], patches [N, P, H]"""
        slots, patches = self.policy.look(observations)
        return Seen(slots.flatten(1).float().cpu(), patches.float().cpu())


class Estimator:
    """Estimates for looks. figures: how good it was on held-out episodes.

    threshold: of `done`, from which success is suggested.
    """

    def __init__(self, eyes: Eyes, heads: Heads, threshold: float, figures: dict[str, Any]):
        self.eyes, self.heads = eyes, heads.eval()
        self.threshold, self.figures = threshold, figures

    @torch.no_grad()
    def __call__(self, looks: Seen) -> list[Estimate]:
        """looks: slots [N, 1 + PAST, S], patches [N, P, H]"""
        found = self.heads(looks.slots.float(), looks.patches.float()).sigmoid().tolist()
        return [
            Estimate(progress, done, SUCCESS if done >= self.threshold else FAILURE)
            for progress, done in found
        ]

    def save(self, folder: Path) -> Path:
        about = {
            "model": os.path.relpath(self.eyes.model, folder.absolute())
            if self.eyes.model in folder.absolute().parents
            else str(self.eyes.model),
            "sizes": self.eyes.sizes,
            "heads": len(self.heads.heads),
            "threshold": self.threshold,
            **self.figures,
        }
        with Staged(folder) as staged:
            staged.mkdir()
            (staged / WEIGHTS).write_bytes(save(dict(self.heads.state_dict())))
            (staged / ABOUT).write_text(json.dumps(about, indent=2))
        return folder

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> Estimator:
        try:
            about = json.loads((folder / ABOUT).read_text())
            model, sizes = about.pop("model"), tuple(about.pop("sizes"))
            threshold = float(about.pop("threshold"))
            heads = Heads.untrained(sizes, int(about.pop("heads")))
            heads.load_state_dict(load((folder / WEIGHTS).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{folder} is no estimator ({reason})", "make one by vla estimate train"
            ) from error
        eyes = Eyes(folder / model, device)
        if eyes.sizes != sizes:
            raise CheckpointError(
                f"{model} is no longer the model of {folder}", "train the estimator again"
            )
        return cls(eyes, heads, threshold, about)


class Watch:
    """Follows an episode: one look at a time, in the order of their stamps."""

    def __init__(self, estimator: Estimator):
        self.estimator = estimator
        self.forget()

    def forget(self) -> None:
        """Another episode begins."""
        self._past: ImageHistory[Tensor] = ImageHistory(PAST, INTERVAL)
        self._of: tuple[str, int] | None = None

    def look(self, observation: Observation, episode: int = 0) -> Estimate:
        """episode: a number; with another one, as with another instruction, the past is none."""
        if (of := (observation.instruction, episode)) != self._of:
            self.forget()
            self._of = of
        seen = self.estimator.eyes([observation])
        slots = torch.stack([seen.slots, *self._past.put(observation.stamp, seen.slots)], dim=1)
        return self.estimator(Seen(slots, seen.patches))[0]
