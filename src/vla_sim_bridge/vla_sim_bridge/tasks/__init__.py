"""The registry of tasks."""

from __future__ import annotations

import difflib

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks.base import LANGUAGES, Language, Placement, Scene, Subtask, Task
from vla_sim_bridge.tasks.door import DOOR
from vla_sim_bridge.tasks.libero_suites import libero_task
from vla_sim_bridge.tasks.lift import LIFT_TASKS
from vla_sim_bridge.tasks.mimicgen_package import PREFIX, mimicgen_task
from vla_sim_bridge.tasks.nut_assembly import NUT_TASKS
from vla_sim_bridge.tasks.pick_place import PICK_PLACE
from vla_sim_bridge.tasks.robocasa_package import PREFIX as ROBOCASA
from vla_sim_bridge.tasks.robocasa_package import robocasa_task
from vla_sim_bridge.tasks.rover import ROVER_TASKS
from vla_sim_bridge.tasks.stack import STACK_HIDDEN, STACK_TASKS
from vla_sim_bridge.tasks.stack_language import STACK_L
from vla_sim_bridge.tasks.stack_three import STACK_THREE_TASKS
from vla_sim_bridge.tasks.table import TABLE_L

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *STACK_TASKS,
        STACK_HIDDEN,
        STACK_L,
        *STACK_THREE_TASKS,
        *LIFT_TASKS,
        *NUT_TASKS,
        PICK_PLACE,
        DOOR,
        TABLE_L,
        *ROVER_TASKS,
    )
}


def get_task(name: str) -> Task:
    """The task of that name (case-insensitive; without a variant: D0), or an error listing the
    known ones.

    `mimicgen/NAME` is the installed package's, see `mimicgen_package`; `libero_SUITE` and
    `libero_SUITE/INDEX` are LIBERO's, see `libero_suites`; `robocasa/NAME` an installed
    RoboCasa's, see `robocasa_package`.
    """
    if name.lower().startswith("libero_"):
        return libero_task(name)
    if name.lower().startswith(PREFIX):
        return mimicgen_task(name)
    if name.lower().startswith(ROBOCASA):
        return robocasa_task(name)
    by_name = {known.lower(): task for known, task in TASKS.items()}
    for wanted in (name.lower(), f"{name.lower()}_d0"):
        if wanted in by_name:
            return by_name[wanted]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise VlaError(f"there is no task {name!r}", f"{hint}known tasks: {', '.join(TASKS)}")


__all__ = [
    "LANGUAGES",
    "TASKS",
    "Language",
    "Placement",
    "Scene",
    "Subtask",
    "Task",
    "get_task",
]
