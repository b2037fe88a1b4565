"""Steps of training as the trainer takes them, for both benchmarks of fine-tuning."""

from __future__ import annotations

import torch

from vla_training.loader.batch import Batch
from vla_training.loop.distributed import gradient_norm, scale_gradients
from vla_training.loop.objective import Objective

# Of `train_modules.prepare`: whether layers are compiled, and by which backend.
MODES = {"inductor": (True, "inductor"), "eager": (True, "eager"), "no": (False, "eager")}


class Loop:
    """What each step of the trainer does, on batches that already lie on the device."""

    def __init__(self, objective: Objective, learning_rate: float = 1e-5):
        self.objective = objective.train()
        self.trained = [p for p in objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=learning_rate, weight_decay=0.0, fused=True
        )

    def forward_backward(self, batch: Batch) -> torch.Tensor:
        loss, _ = self.objective(batch)
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        norm = gradient_norm(self.trained)
        scale_gradients(self.trained, (1.0 / norm).clamp(max=1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, batch: Batch) -> torch.Tensor:
        loss = self.forward_backward(batch)
        self.update()
        return loss


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
