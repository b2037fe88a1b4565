"""What a run measures now and then: held-out episodes, and the model at work in simulation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from vla_training import parallel
from vla_training.mixture import batches
from vla_training.run_log import Meter

if TYPE_CHECKING:
    from vla_training.finetune import Finetuner


@torch.no_grad()
def validate(run: Finetuner) -> dict[str, Any] | None:
    """Loss and errors on held-out episodes, the same frames each time."""
    c, place = run.config, run.place
    if run.held is None:
        return None
    meter = Meter()
    run.objective.eval()
    frames = len(run.held.mixture)
    count = min(c.val_batches, math.ceil(frames / (c.batch_size * place.world)))
    for batch in batches(run.held, 0, count, c.batch_size, 0, place.rank, place.world):
        loss, measured = run.objective(batch.to(place.device))
        meter.add({"loss": loss, **measured})
    run.objective.train()
    values = meter.means()
    error = [place.agree(e, "avg") for e in values.pop("error")]
    values = {k: place.agree(v, "avg") for k, v in values.items()}
    values |= {"l1": sum(error) / len(error), "error": error}
    run.log.write("validation", run.progress.step, values)
    run.log.say(f"validation  loss {values['loss']:.4f}  L1 {values['l1']:.4f}")
    return values


def closed_loop(run: Finetuner) -> dict[str, Any] | None:
    """Success in simulation, by the first process; not where weights are sharded."""
    from vla_training.closed_loop import evaluate

    c = run.config
    if parallel.is_sharded(run.objective) or not run.place.first:
        return None
    run.objective.eval()
    values = evaluate(
        run.model, run.tokenizer, run.place.device, run.objective.dtype,
        c.closed_loop_task, c.closed_loop_episodes,
    )  # fmt: skip
    run.objective.train()
    run.log.write("closed_loop", run.progress.step, values)
    run.log.say(f"closed loop  {values['successes']} of {values['episodes']}")
    return values
