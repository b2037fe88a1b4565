"""Tests of the studio's server over real sockets: who comes in, who operates, what ends motion."""

from __future__ import annotations

import asyncio
import json
import random

import aiohttp
import numpy as np
import pytest
import simplejpeg
from studio_server import StubGraph, eventually, with_studio

from vla_inference.errors import VlaError
from vla_studio.settings import StudioSettings
from vla_studio.web.cameras import encode
from vla_studio.web.server import StudioServer

TOKEN = "0123456789abcdefghij"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return str(path)


async def hold(client, press=1, seconds=0.2):
    """Signs that the button is down, as the page sends them."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        await client.tell("hold", press=press)
        await asyncio.sleep(0.02)


# -- who may come in --------------------------------------------------------------------------


def test_an_address_that_others_reach_needs_a_token(token_file):
    with pytest.raises(VlaError, match="other machines"):
        StudioSettings(host="0.0.0.0").check()
    StudioSettings(host="0.0.0.0", token_file=token_file).check()


@pytest.mark.parametrize("path", ["/", "/main.js", "/socket", "/enter?code=", "/enter?code=guess"])
def test_nothing_is_shown_without_a_link(token_file, path):
    async def test(studio, graph):
        async with studio.session.get(
            studio.base + path, headers={"Origin": studio.base}
        ) as answer:
            assert answer.status == 401

    with_studio(test, token_file=token_file)


def test_a_link_lets_one_browser_in_once(token_file):
    async def test(studio, graph):
        link = studio.server.url(studio.port)
        async with studio.session.get(link, allow_redirects=False) as answer:
            assert answer.status == 303
            cookie = answer.cookies["studio"]
            assert cookie["httponly"] and cookie["samesite"] == "Lax"
        async with studio.session.get(link, allow_redirects=False) as again:
            assert again.status == 401
        async with studio.page(cookie=cookie.value) as page:
            assert (await page.until("hello"))["role"] == "operator"

    with_studio(test, token_file=token_file)


def test_the_token_makes_links_for_viewers_who_cannot_operate_but_stop(token_file):
    async def test(studio, graph):
        async def ask(token):
            headers = {"Authorization": f"Bearer {token}"}
            url = studio.base + "/link?role=viewer"
            async with studio.session.post(url, headers=headers) as answer:
                return answer.status, (await answer.text()).strip()

        assert (await ask("guess"))[0] == 401
        status, link = await ask(TOKEN)
        assert status == 200
        async with studio.session.get(link, allow_redirects=False) as answer:
            cookie = answer.cookies["studio"].value
        async with studio.page(cookie=cookie) as page:
            assert "watching" in (await page.ask("take"))["error"]
            assert "only watches" in (await page.ask("instruct", instruction="x"))["error"]
            assert "only watches" in (await page.ask("hold", press=1))["error"]
            assert "watching" in (await page.ask("invite", role="operator"))["error"]
            await page.tell("stop")
            await eventually(lambda: ("enable", {"data": False}) in graph.calls)
        assert ("enable", {"data": True}) not in graph.calls

    with_studio(test, token_file=token_file)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://evil.example", "Host": "evil.example"},  # DNS rebinding
    ],
)
def test_other_sites_pages_are_refused(headers):
    async def test(studio, graph):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await studio.session.ws_connect(studio.base + "/socket", headers=headers)
        assert refused.value.status == 403

    with_studio(test)


@pytest.mark.parametrize(
    "path",
    ["/../setup.py", "/%2e%2e/setup.py", "/vendor/..%2f..%2fsettings.py", "//etc/passwd", "/x\0"],
)
def test_paths_lead_to_the_pages_files_alone(path):
    async def test(studio, graph):
        reader, writer = await asyncio.open_connection("127.0.0.1", studio.port)
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        status = (await asyncio.wait_for(reader.read(), 20)).split(b" ", 2)[1]
        assert status in (b"404", b"400")
        writer.close()

    with_studio(test)


def test_the_page_is_whole_and_allows_nothing_inline():
    async def test(studio, graph):
        total = 0
        for path in ("/", "/style.css", "/main.js", "/vendor/uplot.js", "/vendor/uplot.css"):
            async with studio.session.get(studio.base + path) as answer:
                assert answer.status == 200
                text = await answer.text()
                total += len(text)
                policy = answer.headers["Content-Security-Policy"]
                assert "unsafe" not in policy and policy.startswith("default-src 'none'")
                if path == "/":
                    assert " style=" not in text and " onclick=" not in text
        assert total < 1 << 20

    with_studio(test)


# -- what may be asked ------------------------------------------------------------------------


def test_requests_outside_the_list_reach_no_service():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            for name in ("enable", "publish", "__class__", "call", ""):
                assert (await page.ask(name, data=True))["error"]
            bad = {"instruct": {"instruction": 5}, "reset": {"seed": "x"}, "pause": {"paused": 1}}
            for name, given in bad.items():
                assert (await page.ask(name, **given))["error"]
            assert "one line" in (await page.ask("instruct", instruction="a\nb"))["error"]
            assert not graph.calls
            assert not (await page.ask("instruct", instruction="stack it"))["error"]
        assert graph.calls[0] == ("instruct", {"instruction": "stack it"})

    with_studio(test)


def test_fuzzed_frames_change_nothing():
    draw = random.Random(20)
    values = [None, True, -1, 2**70, 1e308, "", "x" * 3000, [], {}, [[]], {"a": 1}, "\u2028"]
    names = ["hold", "release", "take", "verdict", "drawn", "hand_over", "load_model", "nothing"]
    names += ["move", "take_over"]

    def frame():
        kind = draw.randrange(4)
        if kind == 0:
            return "".join(chr(draw.randrange(1, 0xD7FF)) for _ in range(draw.randrange(60)))
        if kind == 1:
            return "[" * draw.randrange(5000)
        keys = ["do", "id", "press", "text", "agreed", "camera", "model", "shares", "human"]
        return json.dumps(
            {"do": draw.choice(names), **{draw.choice(keys): draw.choice(values) for _ in "abc"}}
        )

    async def test(studio, graph):
        async with studio.page() as good:
            await good.operate()
            async with studio.page() as bad:
                for _ in range(400):
                    await bad.socket.send_str(frame())
                await bad.tell("jobs", id=77)
                await bad.until("answer", lambda data: data["id"] == 77)
            assert graph.calls == [("jobs", {"limit": 20})] and not graph.driven
            assert not (await good.ask("pause", paused=True))["error"]

    with_studio(test, max_rate=10000.0)


@pytest.mark.parametrize("what", ["binary", "too large", "too many"])
def test_a_page_that_sends_too_much_is_closed(what):
    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            if what == "binary":
                await page.socket.send_bytes(b"x")
            elif what == "too large":
                await page.socket.send_str("x" * 20000)
            else:
                for _ in range(500):
                    await page.tell("drawn", camera="image")
            while (await asyncio.wait_for(page.socket.receive(), 20)).type in (
                aiohttp.WSMsgType.TEXT,
                aiohttp.WSMsgType.BINARY,
            ):
                pass
            assert page.socket.close_code in (1008, 1009)
        async with studio.page() as other:
            await other.operate()  # the seat is free again

    with_studio(test, max_rate=100.0)


def test_a_thousand_silent_sockets_do_not_keep_a_page_out():
    async def test(studio, graph):
        silent = [await asyncio.open_connection("127.0.0.1", studio.port) for _ in range(1000)]
        async with studio.page() as page:
            await page.operate()
            assert not (await page.ask("pause", paused=True))["error"]
        for _, writer in silent:
            writer.close()

    with_studio(test)


def test_there_are_only_so_many_pages():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.until("hello")
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with studio.page():
                    pass
            assert refused.value.status == 503

    with_studio(test, max_clients=1)


# -- who operates -----------------------------------------------------------------------------


def test_control_is_handed_over_where_both_see_it():
    async def test(studio, graph):
        async with studio.page() as first, studio.page() as second:
            await first.operate()
            name = (await second.until("hello"))["name"]
            await second.tell("take")
            assert (await first.until("operation", lambda d: d["asking"]))["asking"] == name
            assert "only watches" in (await second.ask("pause", paused=True))["error"]
            await first.tell("hand_over", agreed=True)
            await second.until("operation", lambda d: d["operator"] == name)
            assert "only watches" in (await first.ask("pause", paused=True))["error"]
            assert not (await second.ask("pause", paused=True))["error"]

    with_studio(test)


# -- hold-to-enable ---------------------------------------------------------------------------


def test_it_enables_while_the_page_says_so():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            holding = asyncio.create_task(hold(page, seconds=1.0))
            await eventually(lambda: graph.enabled)
            before = graph.beats
            await holding
            assert graph.beats > before and graph.enabled
            await page.tell("release")
            await eventually(lambda: not graph.enabled)

    with_studio(test, hold_timeout=0.2)


@pytest.mark.parametrize("how", ["release", "silence", "close", "abort", "stop", "hand over"])
def test_each_way_to_let_go_disables(how):
    async def test(studio, graph):
        async with studio.page() as page, studio.page() as other:
            await page.operate()
            await other.until("hello")
            holding = asyncio.create_task(hold(page, seconds=30.0))
            await eventually(lambda: graph.enabled)
            if how in ("release", "silence", "close", "abort"):
                holding.cancel()
            if how == "release":
                await page.tell("release")
            elif how == "close":
                await page.socket.close()
            elif how == "abort":
                page.socket._response.connection.transport.abort()
            elif how == "stop":
                await other.tell("stop")
            elif how == "hand over":
                await other.tell("take")
                await page.until("operation", lambda data: data["asking"])
                await page.tell("hand_over", agreed=True)
            await eventually(lambda: not graph.enabled)
            await asyncio.sleep(0.3)  # further signs of the same press count no more
            beats = graph.beats
            await asyncio.sleep(0.2)
            assert (graph.enabled, graph.beats) == (False, beats)
            holding.cancel()

    with_studio(test)


def test_what_the_command_node_stopped_takes_another_press():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            holding = asyncio.create_task(hold(page, press=1, seconds=30.0))
            await eventually(lambda: graph.enabled)
            graph.enabled = False
            studio.server.tell("command", {"state": "stopped"})
            await eventually(lambda: not studio.server.operation.hold.held)
            await asyncio.sleep(0.2)
            assert not graph.enabled
            holding.cancel()
            again = asyncio.create_task(hold(page, press=2, seconds=30.0))
            await eventually(lambda: graph.enabled)
            again.cancel()

    with_studio(test)


@pytest.mark.parametrize("timeout", [0.0, 1.0])
def test_without_the_command_nodes_own_watchdog_nothing_is_enabled(timeout):
    async def test(studio, graph):
        async with studio.page() as page:
            await page.operate()
            holding = asyncio.create_task(hold(page, seconds=30.0))
            event = await page.until("event", lambda data: "heartbeat_timeout" in data["text"])
            assert "disabled" in event["text"]
            holding.cancel()
        assert ("enable", {"data": True}) not in graph.calls

    with_studio(test, StubGraph(timeout))


# -- what is shown ----------------------------------------------------------------------------


class Image:
    """Fields of a sensor_msgs/Image."""

    def __init__(self, number: int):
        self.encoding, self.height, self.width, self.step = "rgb8", 16, 16, 48
        self.data = np.full(16 * 48, number, np.uint8)
        self.is_bigendian = 0
        stamp = type("Stamp", (), {"sec": number, "nanosec": 0})
        self.header = type("Header", (), {"stamp": stamp})


async def frame(page):
    """What the next image's header says."""
    kinds = aiohttp.WSMsgType
    while (message := await asyncio.wait_for(page.socket.receive(), 20)).type is not kinds.BINARY:
        pass
    about, _, jpeg = message.data.partition(b"\n")
    assert simplejpeg.decode_jpeg(jpeg).shape == (16, 16, 3)
    return json.loads(about)


def test_a_page_that_does_not_draw_gets_the_newest_image_later():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.until("hello")
            for number in range(1, 11):
                studio.server.show("image", Image(number))
                await asyncio.sleep(0.1)
            stamps = [(await frame(page))["stamp"] for _ in range(2)]
            await page.tell("drawn", camera="image")
            newest = await frame(page)
            assert stamps == [1, 2] and newest["stamp"] == 10 and newest["dropped"] == 7

    with_studio(test)


def test_images_are_sent_at_a_bounded_rate_and_the_newest_counts():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.until("hello")
            studio.server.show("image", Image(1))
            assert (await frame(page))["stamp"] == 1
            for number in range(2, 6):
                studio.server.show("image", Image(number))
            newest = await frame(page)
            assert (newest["stamp"], newest["dropped"]) == (5, 3)

    with_studio(test, max_image_rate=1.0)


def test_of_a_value_the_newest_is_sent_and_of_a_series_everything():
    async def test(studio, graph):
        async with studio.page() as page:
            await page.until("operation")
            for number in range(1, 6):
                studio.server.tell("instruction", f"number {number}")
                studio.server.sample("chunk", number)
            await page.until("chunk", lambda data: data == 5)
            heard = [data for name, data in page.heard if name == "chunk"]
            assert heard == [1, 2, 3, 4, 5]
            assert await page.until("instruction") == "number 5"
            assert [name for name, _ in page.heard].count("instruction") <= 2

    with_studio(test)


def test_an_encoded_image_looks_like_the_message():
    image = simplejpeg.decode_jpeg(encode(Image(200), 90))
    assert np.abs(image.astype(int) - 200).max() < 8


def test_a_newcomer_is_told_the_newest_values_and_the_events():
    async def test(studio, graph):
        studio.server.tell("instruction", "first")
        studio.server.tell("instruction", "second")
        async with studio.page() as page:
            await page.operate()
        async with studio.page() as page:
            assert await page.until("instruction") == "second"
            assert "has control" in (await page.until("event"))["text"]

    with_studio(test)


def test_a_newcomer_to_a_long_day_is_greeted_first():
    async def test(studio, graph):
        for number in range(500):
            studio.server.happened(f"number {number}")
        async with studio.page() as page:
            await page.until("event", lambda data: data["text"] == "number 499")
            assert page.heard[0][0] == "hello"

    with_studio(test)


def test_verdicts_are_kept_with_their_episode(tmp_path):
    path = tmp_path / "deep" / "verdicts.jsonl"

    async def test(studio, graph):
        studio.server.tell("sim", {"episode": {"task": "Stack_D0", "seed": 3, "index": 1}})
        async with studio.page() as page:
            await page.operate()
            assert "use success" in (await page.ask("verdict", verdict="perhaps"))["error"]
            assert not (await page.ask("verdict", verdict="failure", note="slipped"))["error"]
        entry = json.loads(path.read_text())
        assert (entry["verdict"], entry["note"], entry["seed"]) == ("failure", "slipped", 3)

    with_studio(test, verdicts=str(path))


def test_an_estimate_suggests_a_verdict_and_decides_nothing(tmp_path):
    path = tmp_path / "verdicts.jsonl"
    said = {"instruction": "lift it", "progress": 0.9, "done": 0.97, "suggested": "success"}

    async def test(studio, graph):
        studio.server.tell("instruction", "lift it")
        studio.server.tell("estimate", {**said, "instruction": "another task"})
        studio.server.tell("estimate", said)
        async with studio.page() as page:
            assert await page.until("estimate") == said
            await page.operate()
            assert not path.exists() and not graph.calls
            assert not (await page.ask("verdict", verdict="failure"))["error"]
            studio.server.tell("instruction", "put it down")
            await page.until("estimate", lambda value: value is None)
            assert not (await page.ask("verdict", verdict="success"))["error"]
            about, again = {"seed": 3, "index": 0}, {**said, "instruction": "put it down"}
            studio.server.tell("sim", {"episode": about})
            for change in ({"step": 9}, {"step": 0, "index": 1}, {"index": 1, "seed": 4}):
                studio.server.tell("estimate", again)
                await page.until("estimate", lambda value: value == again)
                about = {**about, **change}
                studio.server.tell("sim", {"episode": about})
                await page.until("sim", lambda value, about=about: value["episode"] == about)
                known = studio.server._values["estimate"]  # of this episode alone
                assert known == (again if change == {"step": 9} else None)
        first, second = map(json.loads, path.read_text().splitlines())
        assert (first["verdict"], first["suggested"], first["done"]) == (
            "failure",
            "success",
            0.97,
        )
        assert second["verdict"] == "success" and "suggested" not in second

    with_studio(test, verdicts=str(path))


def test_a_port_in_use_is_named():
    async def test(studio, graph):
        other = StudioServer(StudioSettings(port=studio.port), graph)
        with pytest.raises(VlaError, match="cannot listen"):
            await other.run()

    with_studio(test)


def test_what_nobody_takes_is_told_as_refused_and_not_as_done():
    async def test(studio, graph):
        async def call(name, **fields):
            raise VlaError("nobody offers it", "start its node")

        graph.call = call
        async with studio.page() as page:
            await page.operate()
            answer = await page.ask("instruct", instruction="stack it")
            assert answer["error"] == "nobody offers it; start its node"
            studio.server.happened("the end")
            await page.until("event", lambda data: data["text"] == "the end")
            assert not [data for _, data in page.heard if "stack it" in str(data)]

    with_studio(test)


def test_a_hold_that_a_finished_episode_ends_says_so():
    async def test(studio, graph):
        tell = studio.server.tell
        async with studio.page() as page:
            await page.operate()
            holding = asyncio.create_task(hold(page, seconds=10))
            await page.until("event", lambda data: data["text"] == "enabled")
            tell("sim", {"episode": {"seed": 1, "index": 0, "step": 50, "done": True}})
            tell("command", {"state": "disabled"})
            await page.until("event", lambda data: "the episode is over" in data["text"])
            holding.cancel()

    with_studio(test)
