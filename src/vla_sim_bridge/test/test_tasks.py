"""Tests of the task registry, success rules and sentences."""

import re

import numpy as np
import pytest

from vla_inference.errors import VlaError
from vla_sim_bridge.tasks import TASKS, get_task, stack_language
from vla_sim_bridge.tasks.stack import PALETTE

SENTENCE = re.compile(
    r"(stack|place|put) the (?P<small>\w+) (block|cube) (on the|on top of the) "
    r"(?P<big>\w+) (block|cube|one)"
)


def test_tasks_are_found_by_name_and_without_a_variant():
    assert [f"Stack_D{i}" for i in range(5)] == list(TASKS)[:5]
    assert get_task("stack_d2") is TASKS["Stack_D2"]
    assert get_task("stack") is TASKS["Stack_D0"]


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


def sentences(task, language, n=400):
    rng = np.random.default_rng(2)
    return {task.instruct(rng, task.draw_scene(rng), language) for _ in range(n)}


def words(said):
    return {word for sentence in said for word in re.findall(r"[\w-]+", sentence)}


@pytest.mark.parametrize("name", TASKS)
def test_held_out_sentences_are_new_and_their_words_known(name):
    task = get_task(name)
    train, held_out = sentences(task, "train", 3000), sentences(task, "held-out")
    assert len(held_out) >= 3 and not train & held_out
    # Stack_D0 and D1 have one sentence: what their family says counts
    family = [t for t in TASKS.values() if t.env == task.env]
    known = words(train).union(*(words(sentences(t, "train")) for t in family))
    assert words(held_out) <= known
    with pytest.raises(VlaError, match="language is 'french'; give train"):
        task.instruct(
            np.random.default_rng(0), task.draw_scene(np.random.default_rng(0)), "french"
        )


def test_free_sentences_name_both_colours_and_belong_to_stack_l_alone():
    task, rng = get_task("Stack_L"), np.random.default_rng(0)
    for _ in range(100):
        scene = task.draw_scene(rng)
        said = re.findall(r"\w+", task.instruct(rng, scene, "free"))
        assert [said.count(c) for c in scene.colours.values()] == [1, 1]
    with pytest.raises(VlaError, match="Lift_D0 has no free sentences; use language train"):
        task = get_task("Lift_D0")
        task.instruct(rng, task.draw_scene(rng), "free")


def test_stack_l_has_thirty_templates_and_only_the_sentence_tells_which_goes_on_which():
    assert len(stack_language.TRAIN.templates) >= 30
    values = {"a": "red", "b": "blue"}
    said, held_out = (
        set(g.sentences(**values)) for g in (stack_language.TRAIN, stack_language.HELD_OUT)
    )
    assert not said & held_out
    swapped = set(stack_language.TRAIN.sentences(a="blue", b="red"))
    assert not (said | held_out) & swapped  # no sentence can mean both
    task, rng = get_task("Stack_L"), np.random.default_rng(0)
    scenes = [task.draw_scene(rng) for _ in range(400)]
    share = np.mean([s.roles["moved"] == "cubeA" for s in scenes])
    assert share == pytest.approx(0.5, abs=0.1)
    for scene in scenes[:50]:
        assert {*scene.roles.values()} == {"cubeA", "cubeB"}
        assert {*scene.colours.values()} <= words([task.instruct(rng, scene, "train")])
