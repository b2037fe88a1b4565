"""The registry of scripted experts: functions from the state of a world to an action."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from vla_inference.errors import VlaError
from vla_sim_bridge.experts.door import door_expert
from vla_sim_bridge.experts.nuts import nut_expert, nuts_expert
from vla_sim_bridge.experts.pick_place import pick_place_expert
from vla_sim_bridge.experts.rover import rover_expert
from vla_sim_bridge.experts.stack import lift_expert, stack_expert, stack_three_expert
from vla_sim_bridge.experts.table import table_expert
from vla_sim_bridge.tasks import Task

Expert = Callable[[Any], np.ndarray]  # of a `Simulation`: SI end-effector delta [7]

EXPERTS: dict[str, Expert] = {
    "stack": stack_expert,
    "stack_by_sentence": partial(stack_expert, moved="moved", base="base", stacked=0.04),
    "stack_three": stack_three_expert,
    "lift": lift_expert,
    "square": nut_expert,
    "nuts": nuts_expert,
    "pick_place": pick_place_expert,
    "door": door_expert,
    "rover": rover_expert,
    "table": table_expert,
}


def expert_for(task: Task) -> Expert:
    if task.expert not in EXPERTS:
        raise VlaError(
            f"{task.name} has no scripted expert", "generate with --method mimicgen --source FILE"
        )
    return EXPERTS[task.expert]
