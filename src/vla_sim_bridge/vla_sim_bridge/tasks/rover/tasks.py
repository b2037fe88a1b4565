"""The rover's tasks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from vla_inference.types import ActionSpec, base_twist_spec
from vla_sim_bridge.tasks.base import Language, Task
from vla_sim_bridge.tasks.rover import sentences
from vla_sim_bridge.tasks.rover.rules import (
    WRONG,
    at_target,
    came_round,
    collided,
    drove_on,
    followed,
    lost,
    passed,
    stopped_at_word,
    wrong_side,
)
from vla_sim_bridge.tasks.rover.scenes import (
    COPIES,
    PERSON,
    SHAPES,
    Course,
    alike,
    gate,
    round_one,
    unlike,
    walker,
)


@dataclass(frozen=True)
class RoverTask(Task):
    """Actions are velocities of the base, forwards and turning."""

    robot: str = "Rover"
    spec: ActionSpec = field(default_factory=base_twist_spec)
    course: Course = field(default_factory=Course)

    def word(self, rng: np.random.Generator, language: Language) -> str:
        """The sentence that tells it to stop."""
        return (sentences.STOP_HELD_OUT if language == "held-out" else sentences.STOP).draw(rng)


OBJECTS = {f"{shape}_{i}": f"{shape}_{i}" for shape in SHAPES for i in range(COPIES)}
REACH = RoverTask(
    name="Rover_D0",
    env="Rover",
    objects=OBJECTS,
    subtasks=(),
    draw_scene=lambda rng: unlike(rng, 3),
    draw_instruction=sentences.say(sentences.TRAIN),
    draw_held_out=sentences.say(sentences.HELD_OUT),
    colours="episode",
    language="episode",
    success=at_target,
    wrong=WRONG,
    expert="rover",
    horizon=300,
)
ANYWHERE = Course((1.1, 4.5), np.pi, anywhere=True)
ROVER_TASKS = (
    REACH,
    replace(
        REACH,
        name="Rover_D1",
        draw_scene=lambda rng: unlike(rng, 4),
        course=ANYWHERE,
        horizon=500,
    ),
    replace(
        REACH,
        name="Rover_D2",
        draw_scene=lambda rng: alike(rng, 5),
        course=replace(ANYWHERE, painted=True),
        horizon=500,
    ),
    replace(
        REACH,
        name="RoverGate_D0",
        env="RoverGate",
        draw_scene=lambda rng: gate(rng, 3),
        draw_instruction=sentences.say(sentences.GATE),
        draw_held_out=sentences.say(sentences.GATE_HELD_OUT),
        success=passed,
        wrong={"collision": collided},
        course=Course(gate=True),
    ),
    replace(
        REACH,
        name="RoverRound_D0",
        env="RoverRound",
        draw_scene=lambda rng: round_one(rng, 3),
        draw_instruction=sentences.say(sentences.ROUND),
        draw_held_out=sentences.say(sentences.ROUND_HELD_OUT),
        success=came_round,
        wrong=WRONG | {"wrong_side": wrong_side},
        course=Course(detour=True),
    ),
    replace(
        REACH,
        name="RoverFollow_D0",
        env="RoverFollow",
        objects={PERSON: PERSON, **OBJECTS},
        draw_scene=lambda rng: walker(rng, 2),
        draw_instruction=sentences.say(sentences.FOLLOW),
        draw_held_out=sentences.say(sentences.FOLLOW_HELD_OUT),
        success=followed,
        wrong={"collision": collided, "lost": lost},
        course=Course(walk=(120, 220)),
        horizon=400,
    ),
    replace(
        REACH,
        name="RoverWord_D0",
        language="step",
        success=stopped_at_word,
        wrong={"collision": collided, "drove_on": drove_on},
        course=Course(word=(8, 32)),
    ),
)
