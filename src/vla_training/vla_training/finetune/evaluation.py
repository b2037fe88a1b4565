"""Periodic evaluation during a run: held-out episodes, and closed loop in simulation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vla_inference.checkpoints.load import place
from vla_inference.policies.base import Policy
from vla_training.finetune.closed_loop import ClosedLoop
from vla_training.finetune.families.base import whole
from vla_training.loader.mixture import batches
from vla_training.loop import distributed
from vla_training.loop.logger import Meter
from vla_training.loop.objective import PRECISIONS

if TYPE_CHECKING:
    from vla_training.finetune.finetune import Finetuner


@torch.no_grad()
def validate(run: Finetuner) -> dict[str, Any] | None:
    """Loss and errors on held-out episodes, the same frames each time."""
    c, here = run.config, run.place
    if run.held is None:
        return None
    meter = Meter()
    run.objective.eval()
    frames = len(run.held.mixture)
    count = min(c.val_batches, math.ceil(frames / (c.batch_size * here.world)))
    for batch in batches(run.held, 0, count, c.batch_size, 0, here.rank, here.world):
        loss, measured = run.objective(batch.to(here.device))
        meter.add({"loss": loss, **measured})
    run.objective.train()
    values = meter.means()
    error = [here.agree(e, "avg") for e in values.pop("error")]
    values = {k: here.agree(v, "avg") for k, v in values.items()}
    values |= {"l1": sum(error) / len(error), "error": error}
    run.log.write("validation", run.progress.step, values)
    run.log.say(f"validation  loss {values['loss']:.4f}  L1 {values['l1']:.4f}")
    return values


def make_closed_loop(run: Finetuner) -> ClosedLoop:
    """The simulation for the closed loop, tested once with the model before training."""
    c, source = run.config, run.samples.mixture.sources[0]
    loop = ClosedLoop(c.eval_task, run.trainable.cameras(source), c.eval_episodes, run.place)
    with _policy(run) as policy:
        loop.try_once(policy)
    return loop


def closed_loop(run: Finetuner) -> dict[str, Any]:
    """Success in simulation; each process runs its share of the episodes."""
    with _policy(run) as policy:
        assert run.loop is not None  # asked for where there is one
        values = run.loop.play(policy)
    run.log.write("closed_loop", run.progress.step, values)
    run.log.say(f"closed loop  {values['successes']} of {values['episodes']}")
    return values


@contextlib.contextmanager
def _policy(run: Finetuner) -> Iterator[Policy]:
    """The model under training as an inference policy.

    Sharded weights are gathered into a copy for as long as it lasts: each device needs room for
    all of them in what layers compute in.
    """
    device, objective = run.place.device, run.objective
    dtype, model = next(run.trainable.model.parameters()).dtype, run.trainable.model
    if distributed.is_sharded(objective):
        dtype = PRECISIONS[run.precision]
        model = gather(run, dtype)
    objective.eval()
    # What is trained in float32 beside a bfloat16 base is run in bfloat16.
    low = torch.autocast(device.split(":")[0], dtype, enabled=dtype != torch.float32)
    with torch.no_grad(), low:
        yield run.trainable.policy(model, device, dtype)
    objective.train()


def gather(run: Finetuner, dtype: torch.dtype) -> nn.Module:
    """A plain copy of sharded weights on this device; all processes must call it together."""
    model = run.trainable.empty()
    for key, value in run.trainable.model.state_dict().items():
        place(model, key, whole(value).to(run.place.device, dtype))
    return model.eval().requires_grad_(False)
