"""Tests of the model server over real sockets: answers, batches, refusals, keys, shutdown."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import signal
import socket
import ssl
import struct
import subprocess
import time
import urllib.error
import urllib.request
import zlib

import aiohttp
import numpy as np
import pytest
from hostile_frames import FRAMES
from model_server import IMAGE, StubPolicy, connected, post, running, seen, serving, talk
from PIL import Image

from vla_inference.errors import VlaError
from vla_inference.policies.base import Needs
from vla_inference.serving import connections
from vla_inference.serving.openpi import server as server_module
from vla_inference.serving.openpi.served import UNANSWERED
from vla_inference.serving.openpi.server import Server
from vla_inference.serving.openpi.settings import ServeSettings
from vla_inference.serving.openpi.wire import pack

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def server():
    with running(StubPolicy(Needs(1, image_size=(224, 224)))) as found:
        yield found


# -- answers ----------------------------------------------------------------------------------


def test_a_client_gets_metadata_then_an_answer_for_each_observation(server):
    async def go():
        async with connected(server.url) as client:
            return client.metadata, [await client.ask(seen()) for _ in range(3)]

    metadata, replies = talk(go)
    assert metadata["action_horizon"] == 5 and metadata["model"] == "stub"
    assert [d["unit"] for p in metadata["actions"]["parts"] for d in p["dims"]] == (
        ["m"] * 3 + ["rad"] * 3 + ["1"]
    )
    for reply in replies:
        assert reply["actions"].shape == (5, 7) and reply["actions"].dtype == np.float32
        assert reply["actions"][0, 0] == np.float32(IMAGE.mean())
    assert "prev_total_ms" not in replies[0]["server_timing"]
    assert replies[1]["server_timing"]["prev_total_ms"] > 0
    assert replies[1]["policy_timing"]["total"] == 1.0


def test_jpeg_and_png_are_taken_beside_arrays(server):
    packed = io.BytesIO()
    Image.fromarray(IMAGE).save(packed, "PNG")

    async def go():
        async with connected(server.url) as client:
            return await client.ask({"image": packed.getvalue(), "prompt": "go"})

    assert talk(go)["actions"][0, 0] == np.float32(IMAGE.mean())


def test_endpoints_and_sessions_of_roboarena_and_vllm_omni(server):
    async def go():
        async with connected(server.url) as client:
            first = await client.ask(seen(endpoint="infer", session_id="a"))
            assert await client.ask({"endpoint": "reset", "session_id": "a"}) == "reset successful"
            assert "no endpoint 'kill'" in await client.ask({"endpoint": "kill"})
            assert "no endpoint" in await client.ask({"endpoint": ["x"]})
            assert (await client.ask(seen()))["actions"].shape == first["actions"].shape
        async with connected(server.url + "/v1/realtime/robot/openpi") as client:
            assert set(await client.ask(seen())) == {"actions"}
            told = await client.ask({"endpoint": "reset"})
            assert told == {"status": "reset successful"}
            told = await client.ask({"prompt": "go"})
            assert told["type"] == "error" and "takes 1 images, 0 came" in told["message"]

    talk(go)


def test_roboarenas_metadata_has_its_six_keys_alone():
    async def go(url):
        async with connected(url) as client:
            return client.metadata

    with running(dialect="roboarena") as server:
        assert set(talk(go, server.url)) == {
            "image_resolution",
            "n_external_cameras",
            "needs_wrist_camera",
            "needs_stereo_camera",
            "needs_session_id",
            "action_space",
        }


def test_a_map_sets_the_units_on_the_wire():
    async def go(url):
        async with connected(url) as client:
            return client.metadata, await client.ask(seen())

    with running(map="libero") as server:
        metadata, reply = talk(go, server.url)
    assert metadata["actions"]["parts"][0]["dims"][0]["unit"] == "0.05 m"
    assert (reply["actions"][:, 6] == 1).all()  # the stub's 0 is closed
    with pytest.raises(VlaError, match=r"7 numbers .* 14 are wanted"), running(map="aloha"):
        pass


# -- refusals ---------------------------------------------------------------------------------


def test_every_hostile_frame_is_answered_by_a_line_and_the_socket_stays(server):
    async def go():
        async with connected(server.url) as client:
            for name, frame in FRAMES.items():
                reply = await client.ask(frame)
                assert isinstance(reply, str) and reply.startswith("bad request: "), name
                assert "\n" not in reply and len(reply) < 320
            await client.ws.send_str("hello")
            assert "a text frame came" in await client.hear()
            assert (await client.ask(seen()))["actions"].shape == (5, 7)

    talk(go)


def test_a_message_beyond_the_limit_ends_its_connection_alone():
    async def go(url):
        async with connected(url) as good:
            async with connected(url) as client:
                await client.say(b"\0" * (1 << 20) + b"\0")
                assert await client.hear() is None and client.close_code == 1009
            assert (await good.ask(seen()))["actions"].shape == (5, 7)

    with running(max_megabytes=1) as server:
        talk(go, server.url)


def test_a_models_faults_never_leave_and_strangers_are_not_told_why(server):
    async def go():
        async with connected(server.url) as client:
            for text in ("nan", "crash"):
                reply = await client.ask(seen(text))
                assert reply == "the model failed; the server's log says why"
            assert "the instruction is refused" in await client.ask(seen("refuse"))
            assert np.isfinite((await client.ask(seen()))["actions"]).all()

    talk(go)


# -- many clients -----------------------------------------------------------------------------


def test_two_that_wait_are_answered_as_one_batch_and_a_bad_one_spoils_none():
    policy = StubPolicy()

    async def go(url):
        async with connected(url) as a, connected(url) as b, connected(url) as c:
            await a.say(seen("wait 0.5"))
            await asyncio.sleep(0.2)
            await b.say(seen("b"))
            await c.say(seen("c"))
            for client in (a, b, c):
                assert "actions" in await client.hear()
            assert policy.batches[-1] == ["b", "c"]
            await a.say(seen("wait 0.5"))
            await asyncio.sleep(0.2)
            await b.say(seen("nan"))
            await c.say(seen("c"))
            assert "actions" in await a.hear() and "actions" in await c.hear()
            assert await b.hear() == "the model failed; the server's log says why"

    with running(policy) as server:
        talk(go, server.url)


def test_the_newest_observation_of_a_client_is_answered_and_replies_keep_their_order():
    async def go(url):
        async with connected(url) as client:
            await client.say(seen("wait 0.5"))
            await asyncio.sleep(0.2)
            await client.say(seen("old"))
            await asyncio.sleep(0.1)
            await client.say(seen("new"))
            first, second, third = [await client.hear() for _ in range(3)]
        assert "actions" in first and "a newer observation came" in second and "actions" in third

    policy = StubPolicy()
    with running(policy) as server:
        talk(go, server.url)
        assert policy.batches[-1] == ["new"] and server.server.metrics["replaced"] == 1


def test_who_sends_without_reading_is_cut_off_and_delays_nobody():
    async def go(url):
        async with connected(url) as bad, connected(url) as good:
            await bad.say(seen("wait 3"))
            await asyncio.sleep(0.5)  # the model is at it: the next ones cannot take its place
            for _ in range(UNANSWERED + 3):
                await bad.say(seen("more"))
            begun = time.monotonic()
            assert "actions" in await good.ask(seen())
            assert time.monotonic() - begun < 8
            while await bad.hear() is not None:
                pass
            assert bad.close_code == 1008

    with running() as server:
        talk(go, server.url)


def test_a_ping_is_answered_while_the_model_computes(server):
    async def go():
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(server.url, heartbeat=0.4) as ws,  # gives up 0.2 s after a ping
        ):
            await ws.receive()
            await ws.send_bytes(pack(seen("wait 1.5")))
            assert (await ws.receive(10)).type is aiohttp.WSMsgType.BINARY

    talk(go)


def test_one_client_too_many_is_turned_away():
    async def go(url):
        async with connected(url) as first:
            assert "actions" in await first.ask(seen())
            with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                async with connected(url):
                    pass
        async with connected(url) as again:
            assert "actions" in await again.ask(seen())

    with running(max_clients=1) as server:
        talk(go, server.url)


def test_who_asks_takes_the_place_of_who_only_waits():
    async def go(url):
        async with connected(url) as good, connected(url) as idle:
            assert "actions" in await good.ask(seen())
            async with connected(url) as newcomer:
                assert "actions" in await newcomer.ask(seen())
                assert await idle.hear() is None
                assert "actions" in await good.ask(seen())

    with running(max_clients=2) as server:
        talk(go, server.url)


def test_half_a_request_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)

    async def go(url, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: ")
        async with connected(url) as client:
            assert await asyncio.wait_for(reader.read(), 10) == b""
            await asyncio.sleep(1.5)
            assert "actions" in await client.ask(seen())
        writer.close()

    with running() as server, contextlib.suppress(ConnectionResetError):
        talk(go, server.url, server.port)


def test_bodies_that_are_still_to_come_count_as_clients():
    head = b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"

    async def go(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        await asyncio.sleep(0.2)
        another, late = await asyncio.open_connection("127.0.0.1", port)
        late.write(head)
        assert b" 503 " in await another.readline()
        writer.write(b"not JSON!")
        assert b" 400 " in await reader.readline()
        writer.close()
        late.close()

    with running(max_clients=1) as server:
        talk(go, server.port)


def test_broken_http_and_clients_that_leave_are_no_errors_in_the_log(caplog):
    upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    upgrade += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    body = b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"

    async def go(port):
        for data in (b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03" * 50, *[upgrade, body] * 20):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            reset = struct.pack("ii", 1, 0)
            peer = writer.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.write(data)
            await asyncio.sleep(0.01 if data is body else 0)
            writer.transport.abort()
        await asyncio.sleep(0.2)

    with running() as server:
        talk(go, server.port)
    assert not [r.getMessage() for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")]


# -- who may come in --------------------------------------------------------------------------


def key_file(tmp_path, key=KEY):
    path = tmp_path / "key"
    path.write_text(key + "\n")
    return str(path)


def status(url, **headers) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as r:
            return r.status
    except urllib.error.HTTPError as error:
        return error.code


def test_without_the_key_nobody_gets_in(tmp_path):
    async def go(url):
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": KEY}):
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                async with connected(url, **headers):
                    pass
        async with connected(url, Authorization=f"Api-Key {KEY}") as client:
            assert "actions" in await client.ask(seen())

    with running(key_file=key_file(tmp_path)) as server:
        talk(go, server.url)
        assert status(server.http + "/healthz") == 200
        assert status(server.http + "/metrics") == 401
        assert status(server.http + "/metrics", Authorization=f"Api-Key {KEY}") == 200


def test_a_page_in_a_browser_does_not_get_in(server):
    async def go():
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            async with connected(server.url, Origin="http://evil.example"):
                pass

    talk(go)
    assert status(server.http + "/healthz", Origin="http://evil.example") == 403


def test_a_packed_body_is_refused_unread(server):
    body, headers = zlib.compress(b"{}"), {"Content-Encoding": "deflate"}
    request = urllib.request.Request(server.http + "/act", body, headers)
    with pytest.raises(urllib.error.HTTPError, match="415"):
        urllib.request.urlopen(request)
    assert post(server.http, {"image": 3})[0] == 400  # as it is


def test_a_writer_whose_client_goes_as_a_reply_is_sent_ends_with_it(server):
    class Leaving:
        """Its handler ends while a frame is sent."""

        def __init__(self):
            self.socket, self.replies, self.sent = self, asyncio.Queue(), 0

        async def send_bytes(self, frame):
            self.sent += 1
            self.writer.cancel()

    async def reply():
        return b"x"

    async def go():
        client = Leaving()
        client.replies.put_nowait(reply())
        client.writer = asyncio.create_task(server.server._write(client))
        await asyncio.wait([client.writer], timeout=10)
        return client.sent, client.writer.cancelled()

    assert talk(go) == (1, True)


def test_another_address_takes_a_key_and_a_key_is_long(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.0.4", "robot.local", ""):
        with pytest.raises(VlaError, match="can be reached from other machines; give --key-file"):
            ServeSettings(host=host).check()
    ServeSettings(host="0.0.0.0", key_file=key_file(tmp_path)).check()
    for host in ("localhost", "127.0.0.2", "::1"):
        ServeSettings(host=host).check()
    with pytest.raises(VlaError, match="16 or more letters"):
        ServeSettings(key_file=key_file(tmp_path, "short")).key()
    with pytest.raises(VlaError, match="cannot be read"):
        ServeSettings(key_file=str(tmp_path / "none")).key()
    with pytest.raises(VlaError, match="belong together"):
        ServeSettings(tls_cert="a").check()


def test_over_tls(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)

    async def go(port):
        trusted = ssl.create_default_context(cafile=cert)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"wss://127.0.0.1:{port}", ssl=trusted) as ws,
        ):
            assert (await ws.receive(10)).type is aiohttp.WSMsgType.BINARY

    with running(tls_cert=str(cert), tls_key=str(key)) as server:
        talk(go, server.port)
    with pytest.raises(VlaError, match="cannot be used"):
        Server(StubPolicy, ServeSettings(tls_cert=str(key), tls_key=str(key)))


# -- REST -------------------------------------------------------------------------------------


def json_array(value: np.ndarray) -> dict:
    data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
    return {"__numpy__": data, "dtype": value.dtype.str, "shape": list(value.shape)}


def from_json(value: dict) -> np.ndarray:
    data = base64.b64decode(value["__numpy__"])
    return np.frombuffer(data, value["dtype"]).reshape(value["shape"])


def test_openvlas_form_is_answered_by_one_action(server):
    code, reply = post(server.http, {"image": json_array(IMAGE), "instruction": "go"})
    action = from_json(reply)
    assert code == 200 and action.shape == (7,) and reply["dtype"] == "<f8"
    assert action[0] == np.float32(IMAGE.mean())
    encoded = json.dumps({"image": json_array(IMAGE), "instruction": "go"})
    code, reply = post(server.http, {"encoded": encoded})
    assert code == 200 and from_json(json.loads(reply)).shape == (7,)


def test_ofts_form_is_answered_by_the_chunk():
    with running(StubPolicy(Needs(3, 14))) as server:
        payload = {
            "full_image": json_array(IMAGE),
            "left_wrist_image": json_array(IMAGE + 1),
            "right_wrist_image": json_array(IMAGE + 2),
            "state": json_array(np.ones(14)),
            "instruction": "go",
        }
        code, reply = post(server.http, payload)
    assert code == 200 and len(reply) == 5
    assert from_json(reply[0]).shape == (7,) and from_json(reply[0])[2] == 14


@pytest.mark.parametrize(
    "payload, told",
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([1], "not a JSON object"),
        ({"instruction": "go"}, "takes 1 images, 0 came"),
        ({"image": json_array(IMAGE)}, "instruction is empty"),
        ({"image": {"__numpy__": "!", "dtype": "|u1", "shape": [1]}}, "not base64"),
        ({"image": {"__numpy__": "", "dtype": ["a", "b"], "shape": [0]}}, "dtype"),
        ({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}, "dtype '|O'"),
        (
            {"image": json_array(IMAGE), "instruction": "go", "unnorm_key": "mars"},
            "no such unnorm_key",
        ),
        ({"image": json_array(IMAGE), "instruction": "go", "unnorm_key": 3}, "is not text"),
    ],
)
def test_a_request_that_cannot_be_used_is_refused_with_a_reason(server, payload, told):
    code, reply = post(server.http, payload)
    assert code == 400 and told in reply["error"] and "\n" not in reply["error"]


def test_numbers_beyond_any_float_are_refused_with_a_reason():
    with running(StubPolicy(Needs(1, 1))) as server:
        given = {"image": json_array(IMAGE), "state": [10**400], "instruction": "go"}
        code, reply = post(server.http, given)
        assert code == 400 and "takes 1 numbers of state, 0 came" in reply["error"]


def test_whatever_reading_a_request_raises_its_sender_gets_a_line(server, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(server_module, "read_act", broken)
    monkeypatch.setattr(server_module, "unpack_map", broken)
    said = "bad request: the message cannot be read"
    assert post(server.http, {}) == (400, {"error": said})

    async def go():
        async with connected(server.url) as client:
            assert await client.ask(seen()) == said

    talk(go)


def test_the_usual_instruction_is_that_of_both_protocols():
    async def go(url):
        async with connected(url) as client:
            return await client.ask({"observation/image": IMAGE})

    with running(policy := StubPolicy(), instruction="stack") as server:
        assert post(server.http, {"image": json_array(IMAGE)})[0] == 200
        assert "actions" in talk(go, server.url)
    assert policy.batches == [["warm up"]] * 2 + [["stack"]] * 2


def test_an_answer_that_cannot_be_sent_is_no_silence():
    class Odd(StubPolicy):
        def _chunk(self, observation):
            chunk = super()._chunk(observation)
            chunk.timing["total"] = None
            return chunk

    async def go(url):
        async with connected(url) as client:
            said = "the model failed; the server's log says why"
            assert [await client.ask(seen()) for _ in range(2)] == [said] * 2

    with running(Odd()) as server:
        talk(go, server.url)


def test_rest_tells_no_stranger_why_the_model_failed(server):
    code, reply = post(server.http, {"image": json_array(IMAGE), "instruction": "crash"})
    assert code == 500 and reply == {"error": "the model failed; the server's log says why"}


def test_metrics_count_what_happened():
    with running() as server:
        assert post(server.http, {"image": json_array(IMAGE), "instruction": "go"})[0] == 200
        assert post(server.http, {"instruction": "go"})[0] == 400
        with urllib.request.urlopen(server.http + "/metrics", timeout=10) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            lines = reply.read().decode().splitlines()
    assert {"vla_answers_total 1", "vla_refused_total 1", "vla_requests_total 1"} <= set(lines)
    assert 'vla_predict_seconds_bucket{le="+Inf"} 1' in lines
    assert "vla_batch_size_sum 1" in lines and 'vla_model{name="stub"} 1' in lines


# -- its end ----------------------------------------------------------------------------------


def test_open_sockets_do_not_hold_up_its_end():
    async def go(server):
        async with connected(server.url) as client:
            assert await asyncio.to_thread(server.stop) < 2
            assert await client.hear() is None and client.close_code == 1001

    with running() as server:
        talk(go, server)


def test_silence_ends_a_socket_where_that_was_asked_for():
    async def go(url):
        async with connected(url) as client:
            assert await client.hear() is None and client.close_code == 1001

    with running(idle=0.3) as server:
        talk(go, server.url)


def test_the_command_serves_until_it_is_told_to_end(tmp_path):
    from vla_inference.checkpoints.random_weights import write_random_checkpoint

    write_random_checkpoint(tmp_path / "tiny")
    with serving(tmp_path / "tiny", "--num-threads", "1") as (process, url):

        async def go():
            async with connected(url) as client:
                assert client.metadata["model"] == "tiny"
                assert (await client.ask(seen("stack")))["actions"].shape[1] == 7
                process.send_signal(signal.SIGTERM)
                begun = time.monotonic()
                assert await client.hear() is None and client.close_code == 1001
                return begun

        begun = talk(go)
        assert process.wait(10) == 0 and time.monotonic() - begun < 2


def test_the_command_refuses_what_it_cannot_serve(capsys, tmp_path):
    from vla_inference.cli.main import main

    assert main(["serve", "nowhere", "--host", "0.0.0.0"]) == 2
    assert "can be reached from other machines" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "nowhere")]) == 2
    assert main(["serve", "x", "--map", "mars"]) == 2
    assert "no observation map 'mars'" in capsys.readouterr().err
