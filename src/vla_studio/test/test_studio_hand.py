"""Tests of moving the robot by hand from the page, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from studio_server import StubGraph, eventually, with_studio

from vla_inference.errors import VlaError
from vla_inference.teleop.wish import STILL
from vla_studio.presets import load_preset

AHEAD = [1.0, 0, 0, 0, 0, 0]


@contextlib.asynccontextmanager
async def holding(page, shares=None):
    """The button is held meanwhile, and the page says how to move if it does."""

    async def tell():
        while True:
            await page.tell("hold", press=1)
            if shares is not None:
                await page.tell("move", shares=shares, acts=[])
            await asyncio.sleep(0.02)

    task = asyncio.create_task(tell())
    try:
        yield
    finally:
        task.cancel()


async def by_hand(page):
    await page.operate()
    assert not (await page.ask("take_over", human=True))["error"]
    await page.until("source", lambda data: data == "human")


def moves(graph):
    return [wish for wish in graph.driven if wish is not None and wish.shares != STILL]


@pytest.mark.parametrize("how", ["release", "silence", "close", "stop", "give back"])
def test_it_moves_while_the_button_is_held_and_each_way_to_let_go_halts_once(how):
    async def test(studio, graph):
        async with studio.page() as page:
            await by_hand(page)
            async with holding(page, AHEAD):
                await eventually(lambda: moves(graph))
                assert moves(graph)[-1].shares == tuple(AHEAD) and moves(graph)[-1].held
                if how == "give back":
                    await page.ask("take_over", human=False)
                    await eventually(lambda: graph.driven[-1] is None)
            if how == "close":
                await page.socket.close()
            elif how in ("release", "stop"):
                await page.tell(how)
            await eventually(lambda: graph.driven[-1] is None)
            count = len(graph.driven)
            await asyncio.sleep(0.2)
            assert len(graph.driven) == count

    with_studio(test)


def test_a_held_button_without_a_key_says_no_motion_again_and_again():
    async def test(studio, graph):
        async with studio.page() as page:
            await by_hand(page)
            async with holding(page, AHEAD):
                await eventually(lambda: moves(graph))
            async with holding(page):  # the page says nothing of the keys any more
                await eventually(lambda: [w.shares for w in graph.driven[-3:]] == [STILL] * 3)

    with_studio(test)


def test_while_the_model_commands_nothing_is_said_by_hand():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            async with holding(page, AHEAD):
                await eventually(lambda: graph.enabled)
                await asyncio.sleep(0.2)
            assert not graph.driven

    with_studio(test)


def test_only_the_page_that_operates_takes_over_and_moves():
    async def test(studio, graph):
        async with studio.page() as page, studio.page() as other:
            await by_hand(page)
            async with holding(page):
                await eventually(lambda: graph.driven)
                assert "only watches" in (await other.ask("take_over", human=False))["error"]
                answer = await other.ask("move", shares=AHEAD, acts=[])
                assert "only watches" in answer["error"]
                await asyncio.sleep(0.1)
            assert not moves(graph)

    with_studio(test)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"shares": [2, 0, 0, 0, 0, 0], "acts": []},
        {"shares": [float("nan"), 0, 0, 0, 0, 0], "acts": []},
        {"shares": [True, 0, 0, 0, 0, 0], "acts": []},
        {"shares": AHEAD[:5], "acts": []},
        {"shares": "ahead", "acts": []},
        {"shares": AHEAD, "acts": [1]},
        {"shares": AHEAD, "acts": ["open"] * 99},
    ],
)
def test_what_is_no_motion_moves_nothing(given):
    async def test(studio, graph):
        async with studio.page() as page:
            await by_hand(page)
            async with holding(page):
                await eventually(lambda: graph.driven)
                assert (await page.ask("move", **given))["error"]
                await asyncio.sleep(0.1)
            assert not moves(graph)

    with_studio(test)


def test_the_gripper_is_told_once_a_press():
    async def test(studio, graph):
        async with studio.page() as page:
            await by_hand(page)
            async with holding(page, AHEAD):
                await eventually(lambda: moves(graph))
                await page.tell("move", shares=AHEAD, acts=["gripper", "take_over"])
                await asyncio.sleep(0.2)
            assert [w.acts for w in moves(graph) if w.acts] == [("gripper",)]

    with_studio(test)


class Unknown(StubGraph):
    def drive(self, wish):
        raise VlaError("the command node has not said which parts it drives")


def test_a_robot_that_cannot_be_moved_is_told_once():
    async def test(studio, graph):
        async with studio.page() as page:
            await by_hand(page)
            async with holding(page, AHEAD):
                await page.until("event", lambda e: "nothing moves: the command" in e["text"])
                await asyncio.sleep(0.2)
            told = [e for kind, e in page.heard if kind == "event" and "nothing" in e["text"]]
            assert len(told) == 1

    with_studio(test, Unknown())


def test_a_preset_says_how_fast_a_hand_moves_its_robot(tmp_path):
    assert load_preset("simulation").speeds == {"linear_speed": 0.4, "angular_speed": 2.0}
    for text, words in (
        ("{linear_speed: 9}", r"linear-speed is 9; give 0.001 to 2"),
        ("{linear_speed: fast}", "numbers"),
        ("{speed: 1}", "speeds has angular_speed"),
        ("[1]", "speeds has"),
    ):
        (tmp_path / "preset.yaml").write_text(f"speeds: {text}\n")
        with pytest.raises(VlaError, match=words):
            load_preset(str(tmp_path / "preset.yaml"))
