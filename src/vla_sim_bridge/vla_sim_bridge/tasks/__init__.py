"""The registry of tasks: one place to look a task up by name."""

from __future__ import annotations

import difflib

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks.base import Scene, Subtask, Task
from vla_sim_bridge.tasks.stack import STACK_TASKS

TASKS: dict[str, Task] = {task.name: task for task in STACK_TASKS}


def get_task(name: str) -> Task:
    """The task of that name (case-insensitive); an unknown one lists what there is."""
    for known, task in TASKS.items():
        if known.lower() == name.lower():
            return task
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise VlaError(f"there is no task {name!r}", f"{hint}known tasks: {', '.join(TASKS)}")


__all__ = ["TASKS", "Scene", "Subtask", "Task", "get_task"]
