import re

import numpy as np
import pytest

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks import TASKS, get_task
from vla_sim_bridge.tasks.stack import PALETTE

SENTENCE = re.compile(
    r"(stack|place|put) the (?P<small>\w+) (block|cube) (on the|on top of the) "
    r"(?P<big>\w+) (block|cube|one)"
)


def test_five_stack_tasks():
    assert list(TASKS) == [f"Stack_D{i}" for i in range(5)]
    assert get_task("stack_d2") is TASKS["Stack_D2"]


def test_unknown_task_lists_the_known_and_guesses():
    with pytest.raises(VlaError, match=r"no task 'Stack_D9'; did you mean .* known tasks: "):
        get_task("Stack_D9")
    with pytest.raises(VlaError, match="known tasks: Stack_D0, Stack_D1"):
        get_task("")


@pytest.mark.parametrize("name", ["Stack_D0", "Stack_D1"])
def test_plain_variants_have_one_sentence(name):
    task, rng = get_task(name), np.random.default_rng(0)
    scene = task.draw_scene(rng)
    assert scene.colours == {}
    said = {task.draw_instruction(rng, scene) for _ in range(20)}
    assert said == {"stack the red block on top of the green block"}


@pytest.mark.parametrize("name", ["Stack_D2", "Stack_D3", "Stack_D4"])
def test_sentences_follow_the_grammar_and_name_the_scenes_colours(name):
    task, rng = get_task(name), np.random.default_rng(1)
    adjectives = {"small": [], "big": []}
    for _ in range(800):
        scene = task.draw_scene(rng)
        a, b = scene.colours["cubeA"], scene.colours["cubeB"]
        assert a != b and {a, b} <= set(PALETTE)
        match = SENTENCE.fullmatch(task.draw_instruction(rng, scene))
        assert match, "a sentence outside the grammar"
        assert match["small"] in {a, "small", "smaller", "little"}
        assert match["big"] in {b, "big", "larger", "other"}
        adjectives["small"].append(match["small"] == a)
        adjectives["big"].append(match["big"] == b)
    for by_colour in adjectives.values():
        assert np.mean(by_colour) == pytest.approx(5 / 8, abs=0.06)


def test_the_same_generator_draws_the_same():
    task = get_task("Stack_D2")

    def draw(seed):
        rng = np.random.default_rng(seed)
        scene = task.draw_scene(rng)
        return scene, task.draw_instruction(rng, scene)

    assert draw(5) == draw(5)
    assert len({draw(i)[1] for i in range(50)}) > 30
