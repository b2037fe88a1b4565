"""Table_L: three to five things, and the sentence alone says which and what to do with it.

Stack it on another, lift it, bring it to an edge, put it beside another. Things are called by
colour, size, shape or where they are. Taking another ends an episode as `wrong_object`, leaving
it elsewhere as `wrong_task`.
"""

from __future__ import annotations

from vla_sim_bridge.tasks.base import Subtask, Task
from vla_sim_bridge.tasks.rules import held
from vla_sim_bridge.tasks.stack import FULL_TABLE_CAMERA
from vla_sim_bridge.tasks.table.rules import done, wrong_object, wrong_task
from vla_sim_bridge.tasks.table.sentences import HELD_OUT, TRAIN, say
from vla_sim_bridge.tasks.table.things import BLOCKS, arrange, draw_scene

TABLE_L = Task(
    name="Table_L",
    env="Blocks",
    make={"blocks": BLOCKS},
    objects={name: f"{name}_main" for name in BLOCKS},
    subtasks=(
        Subtask("moved", "grasp", offset=(10, 20), symmetry=4, until=held("moved")),
        Subtask("base", symmetry=4),
    ),
    draw_scene=draw_scene,
    arrange=arrange,
    draw_instruction=say(TRAIN),
    draw_held_out=say(HELD_OUT),
    x_range=(-0.20, 0.20),
    y_range=(-0.20, 0.20),
    camera_poses=FULL_TABLE_CAMERA,
    colour_geoms={name: f"{name}_g0" for name in BLOCKS},
    colours="episode",
    language="episode",
    success=done,
    wrong={"wrong_object": wrong_object, "wrong_task": wrong_task},
    expert="table",
    horizon=250,
)
