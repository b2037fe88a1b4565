"""Tests of the studio's node with a command node in a real ROS graph."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import aiohttp
import pytest
from std_srvs.srv import SetBool
from studio_graph import StudioGraph
from studio_server import Client, eventually

from vla_msgs.msg import ActionChunk

PATIENCE = 60


@pytest.fixture(scope="module")
def graph():
    with contextlib.closing(StudioGraph()) as found:
        yield found


@contextlib.asynccontextmanager
async def page(graph):
    """A page's websocket that has control."""
    base = graph.url.rstrip("/")
    headers = {"Origin": base}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(base + "/socket", headers=headers) as socket,
    ):
        client = Client(socket)
        await client.operate()
        yield client


async def hold(client):
    """Holds as people do: where a busy machine has stopped the robot they press again."""
    for press in itertools.count(1):
        for _ in range(100):
            await client.tell("hold", press=press)
            await asyncio.sleep(0.02)


def test_values_of_the_graph_reach_the_page(graph):
    async def go():
        async with page(graph) as client:
            status = await client.until("command", lambda data: data["chunks"] > 0)
            assert status["state"] == "disabled"
            assert (await client.until("inference"))["model"] == "stack-small"
            assert (await client.until("sim"))["successes"] == 2
            chunk = await client.until("chunk")
            assert len(chunk["actions"]) == 8 * 7 and chunk["parts"][0]["name"] == "arm"

    asyncio.run(go())


@pytest.mark.parametrize("how", ["release", "silence", "close", "server"])
def test_the_robot_moves_while_the_button_is_held_and_no_longer(graph, how):
    """server: it neither beats nor disables any more, and the command node's watchdog stops."""

    async def go():
        async with page(graph) as client:
            holding = asyncio.create_task(hold(client))
            before = len(graph.twists)
            await eventually(lambda: len(graph.twists) > before + 5, PATIENCE)
            if how == "server":
                operation = graph.node._server.operation
                operation.graph = Silent()
            holding.cancel()
            if how == "release":
                await client.tell("release")
            elif how == "close":
                await client.socket.close()
            await eventually(lambda: not graph.enabled, PATIENCE)
            if how == "server":
                assert graph.command.commander.safety.last_stop.kind == "heartbeat"
                operation.graph = graph.node._graph
        await asyncio.sleep(0.5)
        still = len(graph.twists)
        await asyncio.sleep(0.5)
        assert len(graph.twists) == still

    asyncio.run(go())


class Silent:
    """A graph that nothing reaches."""

    def heartbeat(self):
        pass

    async def call(self, name, **fields):
        return {}


def test_services_are_called_and_their_refusals_told(graph):
    async def go():
        async with page(graph) as client:
            asked = {
                "instruct": ({"instruction": "stack it"}, "inference/set_instruction"),
                "load_model": ({"model": "other"}, "inference/load_model"),
                "reset": ({}, "sim/reset"),
                "pause": ({"paused": False}, "sim/pause"),
                "step": ({}, "sim/step"),
                "record": ({"on": True}, "recorder/record"),
                "start_job": ({"kind": "generate", "arguments": "--task 'a b'"}, "training/start"),
                "jobs": ({"limit": 5}, "training/list"),
                "job_log": ({"job": "j1"}, "training/log"),
                "cancel_job": ({"job": "j1"}, "training/cancel"),
            }
            for name, (given, service) in asked.items():
                answer = await client.ask(name, **given)
                assert not answer["error"], (name, answer)
                assert graph.world.calls[service], name
        world = graph.world
        assert world.asked["inference/set_instruction"].instruction == "stack it"
        assert world.asked["sim/reset"].seed == -1
        assert len(world.asked["sim/step"].chunk.actions) == 8 * 7
        assert world.asked["training/start"].arguments == ["--task", "a b"]

    asyncio.run(go())


def test_the_speed_is_lowered_while_disabled_and_nothing_else_is_set(graph):
    async def go():
        async with page(graph) as client:
            await client.until("speed", lambda data: data == {"speed": 1.0, "scale": 1.0})
            assert not (await client.ask("speed", speed=0.25))["error"]
            await client.until("speed", lambda data: data["speed"] == 0.25)
            await client.until("command", lambda data: data["scale"] == 0.25)
            for wrong in (0, 1.5, "1", True, None):
                assert "give 0.01 to 1" in (await client.ask("speed", speed=wrong))["error"]
            holding = asyncio.create_task(hold(client))
            await eventually(lambda: graph.enabled, PATIENCE)
            assert "the robot is enabled" in (await client.ask("speed", speed=1.0))["error"]
            holding.cancel()
            await client.tell("release")
            await eventually(lambda: not graph.enabled, PATIENCE)
            assert not (await client.ask("speed", speed=1.0))["error"]

    asyncio.run(go())


def test_a_person_commands_by_the_page_and_is_no_publisher_else(graph):
    node = graph.node

    def publishers():
        return node.count_publishers("human_action")

    async def go():
        async with page(graph) as client:
            await client.until("source", lambda data: data == "model")
            other = node.create_publisher(ActionChunk, "human_action", 10)
            await eventually(lambda: publishers() == 1, PATIENCE)
            assert "more publish on" in (await client.ask("take_over", human=True))["error"]
            await eventually(lambda: publishers() == 1, PATIENCE)
            node.destroy_publisher(other)
            await eventually(lambda: publishers() == 0, PATIENCE)
            assert not (await client.ask("take_over", human=True))["error"]
            await client.until("source", lambda data: data == "human")

            async def move():
                while True:
                    await client.tell("move", shares=[0, 0, 0, 0, 0, 0.5], acts=["close"])
                    await asyncio.sleep(0.02)

            tasks = [asyncio.create_task(work) for work in (hold(client), move())]
            await client.until("executed", lambda data: data["what"] == "twist")
            turns = lambda data: abs(data["values"][-1] - 0.25) < 1e-6  # noqa: E731
            await client.until("executed", lambda data: data["what"] == "twist" and turns(data))
            for task in tasks:
                task.cancel()
            await client.tell("release")
            await eventually(lambda: not graph.enabled, PATIENCE)
            assert not (await client.ask("take_over", human=False))["error"]
            await eventually(lambda: publishers() == 0, PATIENCE)

    asyncio.run(go())


def test_a_page_enables_what_another_device_moves(graph):
    async def go():
        async with page(graph) as client:
            node = graph.node
            other = node.create_publisher(ActionChunk, "human_action", 10)
            taken = node.create_client(SetBool, "command/take_over")
            await eventually(lambda: taken.service_is_ready(), PATIENCE)
            future = taken.call_async(SetBool.Request(data=True))
            await eventually(future.done, PATIENCE)
            assert future.result().success
            await client.until("source", lambda data: data == "human")
            holding = asyncio.create_task(hold(client))
            await eventually(lambda: graph.enabled, PATIENCE)
            await asyncio.sleep(0.3)
            assert graph.enabled and node.count_publishers("human_action") == 1
            holding.cancel()
            await client.tell("release")
            assert not (await client.ask("take_over", human=False))["error"]
            node.destroy_publisher(other)
            node.destroy_client(taken)

    asyncio.run(go())
