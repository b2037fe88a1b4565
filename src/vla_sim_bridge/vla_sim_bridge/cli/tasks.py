"""`vla tasks`: the tasks that can be evaluated and generated."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_inference.cli.output import JsonOption, print_json
from vla_sim_bridge.tasks import TASKS
from vla_sim_bridge.tasks.base import Task

PERIOD = 0.05  # s a control step


def tasks(as_json: JsonOption = False) -> int:
    """List the tasks of the simulation, with a sentence of each."""
    found = [about(task) for task in TASKS.values()]
    if as_json:
        print_json({"tasks": found})
        return 0
    width = max(len(t["name"]) for t in found)
    for one in found:
        made = " and ".join(one["demonstrations"]) or "none"
        print(f"{one['name']:<{width}}  {one['instruction']}")
        print(f"{'':<{width}}  {one['seconds']:g} s at most; demonstrations: {made}")
    print("\nlibero_spatial, libero_object, ...: LIBERO's")
    print("mimicgen/NAME, robocasa/NAME: those of an installed mimicgen or RoboCasa")
    return 0


def about(task: Task) -> dict[str, Any]:
    """A task's name, a sentence, its time limit and how demonstrations of it are made."""
    rng = np.random.default_rng(0)
    made = {"scripted": task.expert, "mimicgen": task.human}
    return {
        "name": task.name,
        "instruction": task.draw_instruction(rng, task.draw_scene(rng)),
        "seconds": task.horizon * PERIOD,
        "demonstrations": [name for name, there in made.items() if there],
    }
