"""How an episode may go: as it should, or wrong in one of several ways.

Each is a generator of SI end-effector deltas [7] that looks at the world as it is when it is
asked. `acts` has the actions of who does the task; a mishap changes them, stops them or follows
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from vla_sim_bridge.envs.robosuite_sim import Simulation
from vla_sim_bridge.evaluation.episode import SETTLE_STEPS
from vla_sim_bridge.experts.motion import close_on
from vla_sim_bridge.experts.stack import HOVER, grip_of, stack_expert
from vla_sim_bridge.tasks import Task

Actions = Iterator[np.ndarray]
Mishap = Callable[[Simulation, Actions, np.random.Generator], Actions]

NEAR = 0.09  # m between the two objects, where the carried one is about to be let go
SWAPPED = {  # expert -> the one that does the opposite of what was asked for
    "stack": partial(stack_expert, moved="cubeB", base="cubeA"),
    "stack_by_sentence": partial(stack_expert, moved="base", base="moved", stacked=0.04),
}


def mishaps_of(task: Task) -> dict[str, Mishap]:
    """Those that may befall a task, by name."""
    found: dict[str, Mishap] = {"none": none, "stopped": stopped, "dropped": dropped}
    if two_of(task)[0] != two_of(task)[1]:
        found |= {"held": held, "knocked": knocked, "taken": taken}
    if task.expert in SWAPPED:
        found["swapped"] = swapped
    return found


def two_of(task: Task) -> tuple[str, str]:
    """The objects that the task's first and last subtask are about."""
    return task.subtasks[0].object, task.subtasks[-1].object


def none(sim: Simulation, acts: Actions, rng: np.random.Generator) -> Actions:
    """All goes well, and some time passes."""
    yield from _until_settled(sim, acts, int(rng.integers(SETTLE_STEPS + 2, 25)))


def stopped(sim: Simulation, acts: Actions, rng: np.random.Generator) -> Actions:
    """The robot stops on the way."""
    for _ in range(rng.integers(5, 70)):
        yield next(acts)


def held(sim: Simulation, acts: Actions, rng: np.random.Generator) -> Actions:
    """The object is where it belongs, but never let go."""
    moved, _ = two_of(sim.task)
    grasped, left = False, int(rng.integers(10, 35))
    while left:
        action = next(acts)
        grasped = grasped or sim.holds(moved)
        if grasped:
            action = np.append(action[:6], 0.0)
        left -= _near(sim)
        yield action


def dropped(sim: Simulation, acts: Actions, rng: np.random.Generator) -> Actions:
    """The object is let go too early, too high or beside where it belongs."""
    moved, base = two_of(sim.task)
    aside = rng.uniform(-1, 1, 2) * rng.choice([0.0, 0.03, 0.06])  # m an action
    left = int(rng.integers(0, 16))
    early = rng.random() < 0.2 or moved == base
    while left:
        action = np.array(next(acts))
        if sim.holds(moved):
            action[:2] += aside
            left -= _near(sim) or early
        yield action
    for _ in range(rng.integers(0, 6)):
        yield np.array([0, 0, -0.03, 0, 0, 0, 0])
    away = rng.uniform(0.0, 0.05)
    for step in range(rng.integers(4, 12)):
        yield np.array([0, 0, away if step > 2 else 0, 0, 0, 0, 1])


def knocked(sim: Simulation, acts: Actions, rng: np.random.Generator) -> Actions:
    """What was done is pushed, and mostly undone."""
    yield from _until_settled(sim, acts, int(rng.integers(2, 20)))
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.6)
    sim.push(two_of(sim.task)[0], speed * np.array([np.cos(angle), np.sin(angle)]))


def taken(sim: Simulation, acts: Actions, rng: np.random.Generator) -> Actions:
    """What was done is undone by the hand itself."""
    yield from _until_settled(sim, acts, int(rng.integers(2, 20)))
    moved, _ = two_of(sim.task)
    for _ in range(rng.integers(15, 50)):
        eef = sim.eef_pose()
        if sim.holds(moved):
            yield np.array([0, 0, 0.03, 0, 0, 0, 0])
        else:
            yield close_on(sim, eef, grip_of(eef, sim.pose(moved)), HOVER)


def swapped(sim: Simulation, acts: Actions, rng: np.random.Generator) -> Actions:
    """The opposite of what was asked for is done."""
    expert = SWAPPED[sim.task.expert]
    moved, base = two_of(sim.task)
    left = int(rng.integers(SETTLE_STEPS, 25))
    while left:
        yield expert(sim)
        left -= sim.position(base)[2] > sim.position(moved)[2] + 0.03 and not sim.holds(base)


def rest(sim: Simulation, rng: np.random.Generator) -> Actions:
    """The hand stands still, or goes somewhere, as it happens after any end."""
    way = np.zeros(3)
    if rng.random() < 0.5:
        way = rng.uniform([-0.02, -0.02, 0.0], [0.02, 0.02, 0.03])
    for _ in range(rng.integers(4, 20)):
        yield np.array([*way, 0, 0, 0, sim.gripper])


def _until_settled(sim: Simulation, acts: Actions, lasts: int) -> Actions:
    """Actions until success has lasted for so many steps."""
    while lasts:
        yield next(acts)
        lasts -= sim.succeeded()


def _near(sim: Simulation) -> bool:
    moved, base = (sim.position(name) for name in two_of(sim.task))
    return bool(np.linalg.norm(moved - base) < NEAR)
