"""Tests of the openpi policy family: accepted and refused servers, lost connections."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import operator
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from aiohttp import web
from model_server import IMAGE, Running, StubPolicy, running, serving

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.main import main
from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.base import Contract, LoadOptions, Needs
from vla_inference.policies.registry import check_policy, load_policy
from vla_inference.serving.openpi.client.address import Address
from vla_inference.serving.openpi.client.link import Link, LinkError
from vla_inference.serving.openpi.metadata import write_metadata
from vla_inference.serving.openpi.observation_maps import ObservationMap, map_names
from vla_inference.serving.openpi.wire import pack, unpack
from vla_inference.types import Observation, eef_delta_spec

SEEN = Observation({"image": IMAGE}, "go")


@contextlib.contextmanager
def remote(url, **query):
    given = "&".join(f"{k}={v}" for k, v in query.items())
    policy = load_policy(f"openpi:{url}?{given}")
    try:
        yield policy
    finally:
        policy.close()


@pytest.fixture(scope="module")
def server():
    with running(StubPolicy(Needs(1, cameras=("front",)))) as found:
        yield found


class Script:
    """A server that answers as it is told, on a port that stays the same when it comes back.

    metadata: its first message. answer: called with each request; gives frames, or None to
    close without a word.
    """

    def __init__(self, answer, metadata=None, port=0):
        self.answer, self.metadata = answer, metadata if metadata is not None else {}
        self.port, self.requests, self.connections = port, [], 0
        self._ready, self._end = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        self.url = f"ws://127.0.0.1:{self.port}"

    async def _run(self):
        app = web.Application()
        app.router.add_get("/", self._serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.port = runner.addresses[0][1]
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _serve(self, request):
        ws = web.WebSocketResponse(max_msg_size=0, timeout=0.1)
        await ws.prepare(request)
        self.connections += 1
        if self.metadata == "silence":
            await asyncio.sleep(30)
        await send(ws, self.metadata)
        async for message in ws:
            self.requests.append(unpack(message.data))
            frames = self.answer(self.requests[-1])
            if frames is None:
                request.transport.abort()
                break
            for frame in frames:
                if isinstance(frame, float):
                    await asyncio.sleep(frame)
                else:
                    await send(ws, frame)
        return ws

    def close(self):
        with contextlib.suppress(RuntimeError):  # it was closed before
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)


async def send(ws, frame):
    with contextlib.suppress(ConnectionError):
        if isinstance(frame, str):
            await ws.send_str(frame)
        else:
            await ws.send_bytes(frame if isinstance(frame, bytes) else pack(frame))


@pytest.fixture
def scripted():
    made = []

    def make(*arguments, **more) -> Script:
        made.append(Script(*arguments, **more))
        return made[-1]

    yield make
    for script in made:
        script.close()


LIBERO = Observation({"a": IMAGE, "b": IMAGE}, "go", np.arange(8, dtype=np.float32))
GOOD = np.arange(14, dtype=np.float64).reshape(2, 7)


# -- our own server ---------------------------------------------------------------------------


def test_it_is_what_the_server_says_and_answers_as_its_model_does(server):
    with remote(server.url) as policy:
        assert policy.name == "stub" and policy.chunk == 5
        assert policy.needs == Needs(1, cameras=("front",))
        assert policy.action_spec() == server.policy.action_spec()
        chunk = policy.act(SEEN)
        expected = server.policy.act(SEEN).actions
        np.testing.assert_array_equal(chunk.actions[:, 0], expected[:, 0])
        assert 0 < chunk.timing["server"] < chunk.timing["total"]
        assert policy.warm_up() > 0
    assert check_policy(f"openpi:{server.url}").chunk == 5


def test_two_observations_and_a_refused_one(server):
    with remote(server.url) as policy:
        assert len(policy.predict([SEEN, SEEN])) == 2
        with pytest.raises(ObservationError, match="takes 1 images, 2 came"):
            policy.act(LIBERO)
        with_state = Observation({"front": IMAGE}, "go", np.zeros(3))
        assert (policy.act(with_state).actions[:, 2] == 0).all()  # as it does not look at it
        with pytest.raises(VlaError, match="refused: the model failed; the server's log says"):
            policy.act(Observation({"front": IMAGE}, "nan"))
        with pytest.raises(VlaError, match="refused: bad request: the instruction is empty"):
            policy.act(Observation({"front": IMAGE}, ""))
        assert len(policy.act(SEEN)) == 5 and policy._link.connected


@pytest.mark.parametrize("size", ["small", "tiny"])
def test_a_checkpoint_through_the_wire_gives_the_same_numbers(tmp_path, size):
    if size == "tiny":
        model = tmp_path / "tiny"
        write_random_checkpoint(model)
    else:
        model = "models/stack-small"
    options = LoadOptions(device="cpu", engine="plain")
    local = load_policy(model, options)
    with running(lambda: load_policy(model, options)) as server, remote(server.url) as policy:
        assert policy.action_spec() == local.action_spec() and policy.name == local.name
        for seed in range(3):
            image = np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8)
            seen = Observation({"agentview": image}, "stack the red block on the green block")
            # In two threads PyTorch may sum in another order.
            np.testing.assert_allclose(
                policy.act(seen).actions, local.act(seen).actions, atol=1e-6
            )


def test_a_state_must_fit():
    with running(StubPolicy(Needs(1, 3))) as server, remote(server.url) as policy:
        policy.act(Observation({"front": IMAGE}, "go", np.ones(3)))
        for state in (None, np.ones(4)):
            with pytest.raises(ObservationError, match=r"takes 3 numbers of state, [04] came"):
                policy.act(Observation({"front": IMAGE}, "go", state))


def test_units_and_gripper_of_a_map_come_back_as_ours():
    with running(StubPolicy(), map="libero") as server, remote(server.url) as policy:
        spec = policy.action_spec()
        assert spec.dims[0].unit == "0.05 m" and spec.dims[6].polarity == "1 open, 0 closed"
        actions = policy.act(SEEN).actions
        assert (actions[:, 6] == 0).all()
        np.testing.assert_allclose(actions[:, 0], np.float32(IMAGE.mean()) / 0.05, rtol=1e-6)


def test_key_and_its_absence(tmp_path):
    path, wrong = tmp_path / "key", tmp_path / "wrong"
    path.write_text("0123456789abcdef\n")
    wrong.write_text("fedcba9876543210\n")
    with running(StubPolicy(), key_file=str(path)) as server:
        with remote(server.url, key_file=path) as policy:
            assert len(policy.act(SEEN)) == 5
        for query in ({}, {"key_file": wrong}):
            with (
                pytest.raises(LinkError, match="the key is wrong or missing"),
                remote(server.url, **query),
            ):
                pass


def test_proxies_of_the_environment_are_not_asked(server, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with remote(server.url) as policy:
        assert len(policy.act(SEEN)) == 5


# -- what other servers answer ----------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        {"actions": GOOD, "server_timing": {"infer_ms": 1.0}},
        {"actions": GOOD[None], "state": np.zeros(8)},
        GOOD,
        GOOD[None].astype(np.float32),
        {"default": GOOD},
        {"arm": GOOD[:, :6], "gripper": GOOD[:, 6]},
    ],
    ids=["openpi", "batched", "bare", "bare batched", "one name", "parts"],
)
def test_every_kind_of_answer_is_taken(scripted, reply):
    script = scripted(lambda request: [reply])
    with remote(script.url, map="libero") as policy:
        assert policy.chunk == 2 and policy.needs.images == 2 and policy.needs.state == 8
        actions = policy.act(LIBERO).actions
    np.testing.assert_allclose(actions[:, :6], GOOD[:, :6])
    np.testing.assert_allclose(actions[:, 6], (1 - GOOD[:, 6]) / 2)  # -1 open -> 1 open
    assert set(script.requests[0]) == {
        "observation/image",
        "observation/wrist_image",
        "observation/state",
        "prompt",
    }
    assert script.requests[0]["observation/image"].shape == (224, 224, 3)


def test_parts_are_joined_in_the_order_that_the_server_says(scripted):
    reply = {"gripper": GOOD[:, 6:], "arm": GOOD[:, :6]}
    script = scripted(lambda r: [reply], {"action_keys": ["arm", "gripper"]})
    with remote(script.url, map="libero") as policy:
        np.testing.assert_allclose(policy.act(LIBERO).actions[:, :6], GOOD[:, :6])


@pytest.mark.parametrize(
    "reply, told",
    [
        ("Traceback ...\n\nValueError: no such key", "refused: ValueError: no such key"),
        ({"type": "error", "message": "no model"}, "refused: no model"),
        ({"actions": GOOD[:, :6]}, r"shape \(2, 6\), \[T, 7\] are wanted"),
        ({"actions": GOOD[:1]}, "has 1 steps, it said 2"),
        ({"actions": GOOD[0]}, r"shape \(7,\)"),
        ({"actions": GOOD[:0]}, r"shape \(0, 7\)"),
        ({"actions": np.full((2, 7), np.nan)}, "not finite"),
        ({"actions": np.full((2, 7), 1e300)}, "not finite"),
        ({"actions": GOOD > 3}, "dtype bool"),
        ({"actions": "x"}, "has no actions"),
        ({"type": np.zeros(3)}, r"shape \(3, 1\)"),
        ({}, "has no actions"),
        (b"\xc1", "cannot be read"),
        ({"actions": None, "a": GOOD, "b": GOOD[:1]}, "has no actions"),
        ("", "refused: nothing"),
    ],
)
def test_an_answer_that_is_none_is_refused_by_name(scripted, reply, told):
    replies = [{"actions": GOOD}, reply, {"actions": GOOD}]
    script = scripted(lambda request: [replies[min(2, len(script.requests) - 1)]])
    with remote(script.url, map="libero") as policy:
        with pytest.raises(VlaError, match=told):
            policy.act(LIBERO)
        assert len(policy.act(LIBERO)) == 2


@pytest.mark.parametrize(
    "metadata, query, told",
    [
        ({}, {}, "does not say what its model looks at; name it: openpi:ws://.*map=libero"),
        ({}, {"map": "free"}, "does not say what its actions mean"),
        ({}, {"map": "mars"}, "no observation map 'mars'"),
        ({"action_dim": 8}, {"map": "libero"}, "have 8 numbers, map libero has 7"),
        ({"protocol": "vla-openpi", "version": 9}, {}, "version 9 of vla-openpi, this client 1"),
        ({"protocol": "vla-openpi", "version": 1}, {}, "metadata is wrong"),
        ([1], {}, "no metadata"),
        ("hello", {}, "no metadata"),
        (b"\xc1", {}, "cannot be read"),
        ({}, {"map": "libero", "images": 3}, "3 images are to be sent, map libero has 2"),
        ({}, {"map": "libero", "timeout": "soon"}, "a number that is none"),
        ({}, {"map": "libero", "timeout": 0}, "timeout of the address is 0"),
        ({"action_dim": np.zeros(3)}, {"map": "libero"}, "numbers, map libero has 7"),
        ({"protocol": np.zeros(3), "model": np.zeros(3)}, {}, "does not say what its model"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_anything_is_sent(
    scripted, metadata, query, told
):
    script = scripted(lambda request: [{"actions": GOOD}], metadata)
    with pytest.raises(VlaError, match=told), remote(script.url, **query):
        pass
    assert not script.requests


DIM = ("actions", "parts", 0, "dims", 0)


def our_metadata() -> dict:
    contract = Contract(Needs(1), eef_delta_spec(), 5)
    return write_metadata(contract, "stub", ObservationMap.load("free"))


@pytest.mark.parametrize(
    "path, value, told",
    [
        (("embodiment",), "/dev/zero", "uses map '/dev/zero', which is not known here"),
        (("embodiment",), 3, "uses map ''"),
        (("version",), np.zeros(3), "speaks version array"),
        (("image_resolution",), [10**6, 10**6], "not 16 to 2048"),
        (("image_resolution",), [0, 224], "not 16 to 2048"),
        (("image_resolution",), 5, "not subscriptable"),
        (("images",), 10**6, "not 0 to 64"),
        (("state_dim",), True, "not 0 to 4096"),
        (("history",), 10**6, "not 0 to 64"),
        (("cameras",), ["a"] * 65, "not 0 to 64"),
        (("action_horizon",), 10**6, "not 0 to 1000"),
        (("actions",), 5, "metadata is 5"),
        (("actions", "dt"), float("inf"), "dt is inf"),
        (("actions", "parts"), [3], "server's metadata"),
        (("actions", "parts", 0, "frame"), 4, "frame is 4; give text"),
        ((*DIM, "name"), 5, "name is 5; give text"),
        ((*DIM, "unit"), 5, "unit is 5; give text"),
        ((*DIM, "unit"), "nan m", "is in unit 'nan m'"),
        ((*DIM, "unit"), "0 m", "is in unit '0 m'"),
        (("actions", "parts", 1, "dims", 0, "polarity"), 7, "polarity is 7; give text"),
        (("actions", "parts", 1, "dims", 0, "polarity"), "1 open, 1 closed", "different numbers"),
    ],
)
def test_our_metadata_with_one_wrong_value_is_refused_by_name(scripted, path, value, told):
    metadata = our_metadata()
    *above, last = path
    functools.reduce(operator.getitem, above, metadata)[last] = value
    script = scripted(lambda request: [{"actions": GOOD}], metadata)
    with pytest.raises(VlaError, match=told), remote(script.url):
        pass
    assert not script.requests


def test_cameras_that_our_server_does_not_take_are_not_left_out_in_silence(server):
    with (
        pytest.raises(VlaError, match="takes 1 images, images=2 was given"),
        remote(server.url, images=2),
    ):
        pass
    with remote(server.url, images=1) as policy:
        assert policy.needs.images == 1


def test_parts_that_the_server_names_but_does_not_send_are_missed(scripted):
    reply = {"hand": GOOD[:, 6:], "arm": GOOD[:, :6]}
    script = scripted(lambda r: [reply], {"action_keys": ["arm", "gripper"]})
    with (
        pytest.raises(VlaError, match="reply lacks gripper"),
        remote(script.url, map="libero"),
    ):
        pass


def test_user_password_and_query_of_an_address_are_not_shown(scripted, capsys):
    script = scripted(lambda request: [{"actions": GOOD}])
    address = f"openpi:ws://me:secret@127.0.0.1:{script.port}/?token=secret"
    assert main(["info", f"{address}&map=libero"]) == 0
    assert main(["info", address]) == main(["info", f"{address}&timeout=x"]) == 2
    assert main(["info", "openpi:ws://me:secret@a:b/?token=secret"]) == 2
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    assert f"openpi:ws://127.0.0.1:{script.port}/?map=libero" in said.err


def test_roboarenas_servers_are_sent_endpoint_and_session(scripted):
    metadata = {
        "image_resolution": [180, 320],
        "n_external_cameras": 2,
        "needs_wrist_camera": True,
        "needs_stereo_camera": False,
        "needs_session_id": True,
        "action_space": "cartesian_velocity",
    }
    script = scripted(lambda request: [{"actions": GOOD}], metadata)
    with remote(script.url, map="libero") as policy:
        policy.act(LIBERO)
    assert script.requests[1]["endpoint"] == "infer"
    assert script.requests[1]["session_id"] == script.requests[0]["session_id"]


def test_what_is_no_address_is_refused():
    for text in ("http://a:1", "ws://", "ws://a:b", "ws://a:99999999", "ws://[::1:1"):
        with pytest.raises(VlaError, match="not a server's address; give openpi:ws://HOST:PORT"):
            load_policy(f"openpi:{text}")
    with pytest.raises(VlaError, match="family openpi take no device"):
        load_policy("openpi:ws://127.0.0.1:1", LoadOptions(device="cpu"))
    kept = Address.parse("ws://a:1/x?token=3&map=libero&timeout=2")
    assert (kept.url, kept.map, kept.timeout) == ("ws://a:1/x?token=3", "libero", 2.0)


# -- losses -----------------------------------------------------------------------------------


def test_a_late_reply_is_never_taken_for_the_next(scripted):
    late, prompt = GOOD + 100, GOOD
    plan = {"late": [0.6, {"actions": late}], "go": [{"actions": prompt}]}
    script = scripted(lambda request: plan[request["prompt"]], {"action_horizon": 2})
    with remote(script.url, map="libero", timeout=0.3) as policy:
        with pytest.raises(LinkError, match=r"no answer within 0\.3 s"):
            policy.act(Observation(LIBERO.images, "late", LIBERO.state))
        time.sleep(0.3)
        for _ in range(4):
            np.testing.assert_allclose(policy.act(LIBERO).actions[:, 0], prompt[:, 0])
        assert script.connections == 2


def test_the_reply_to_an_interrupted_request_is_never_taken_for_the_next(scripted, monkeypatch):
    plan = {"late": [0.3, {"actions": GOOD + 100}], "go": [{"actions": GOOD}]}
    script = scripted(lambda request: plan[request["prompt"]], {"action_horizon": 2})

    def interrupted(future, timeout=None):
        time.sleep(0.1)  # it has been sent
        raise KeyboardInterrupt

    with remote(script.url, map="libero") as policy:
        policy.act(LIBERO)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(concurrent.futures.Future, "result", interrupted)
            policy.act(Observation(LIBERO.images, "late", LIBERO.state))
        assert not policy._link.connected
        for _ in range(3):
            np.testing.assert_allclose(policy.act(LIBERO).actions[:, 0], GOOD[:, 0])
            time.sleep(0.2)
        assert script.connections == 2


def test_a_link_that_was_dropped_says_so(server):
    link = Link(Address.parse(server.url))
    link.connect()
    link.drop()
    with pytest.raises(LinkError, match="it was connected to a moment ago"):
        link.connect()
    link.close()


def test_what_nobody_asked_for_ends_the_connection(scripted):
    twice = [{"actions": GOOD}, {"actions": GOOD + 100}]
    script = scripted(lambda request: twice, {"action_horizon": 2})
    with remote(script.url, map="libero") as policy:
        for _ in range(3):
            np.testing.assert_allclose(policy.act(LIBERO).actions[:, 0], GOOD[:, 0])
            time.sleep(0.3)
        assert script.connections == 3


@pytest.mark.parametrize("metadata", ["silence", {"action_horizon": 2}])
def test_every_read_has_its_deadline(scripted, metadata):
    script = scripted(lambda request: [5.0], metadata)
    begun = time.monotonic()
    with (
        pytest.raises(LinkError, match="no answer within"),
        remote(script.url, map="libero", timeout=0.3) as policy,
    ):
        policy.act(LIBERO)
    assert time.monotonic() - begun < 3


def test_a_loss_is_named_and_attempts_come_at_growing_pauses(scripted):
    script = scripted(lambda request: [{"actions": GOOD}], {"action_horizon": 2})
    with remote(script.url, map="libero") as policy:
        policy.act(LIBERO)
        script.answer = lambda request: None
        with pytest.raises(LinkError, match=f"server 127.0.0.1:{script.port}: .*(closed|gone)"):
            policy.act(LIBERO)
        script.close()
        attempts, connect = [], policy._link._run

        def counted(coroutine, timeout):
            attempts.append(time.monotonic())
            return connect(coroutine, timeout)

        policy._link._run = counted
        end = time.monotonic() + 3
        while time.monotonic() < end:
            begun = time.monotonic()
            with pytest.raises(LinkError):
                policy.act(LIBERO)
            assert time.monotonic() - begun < 0.5
            time.sleep(0.02)
        pauses = np.diff(attempts)
        assert 3 <= len(attempts) <= 6 and (np.diff(pauses) > 0).all()
        back = scripted(lambda r: [{"actions": GOOD}], {"action_horizon": 2}, port=script.port)
        end = time.monotonic() + 10
        while not back.requests:
            with contextlib.suppress(LinkError):
                policy.act(LIBERO)
            assert time.monotonic() < end
            time.sleep(0.05)
        assert len(policy.act(LIBERO)) == 2


def test_another_model_behind_the_address_is_refused():
    with running(StubPolicy()) as first, remote(first.url) as policy:
        policy.act(SEEN)
        first.stop()
        with (
            running(StubPolicy(chunk=3), port=first.port),
            pytest.raises(VlaError, match="runs another model by now"),
        ):
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with contextlib.suppress(LinkError):
                    policy.act(SEEN)


def test_an_idle_connection_outlives_the_servers_pings(server):
    link = Link(Address.parse(server.url))
    link.connect()
    (client,) = server.server._clients
    seen = threading.Event()

    async def ping():
        pongs = client.socket._reader
        await client.socket.ping()
        await asyncio.sleep(0.3)
        assert pongs is not None and not client.socket.closed
        seen.set()

    asyncio.run_coroutine_threadsafe(ping(), server.server._loop).result(10)
    assert seen.is_set() and link.connected
    link.close()


def test_a_server_that_is_killed_in_a_call_and_comes_back(tmp_path):
    model = tmp_path / "tiny"
    write_random_checkpoint(model)
    with contextlib.ExitStack() as stack:
        process, url = stack.enter_context(serving(model, "--num-threads", "1"))
        policy = stack.enter_context(remote(url))
        expected = policy.act(SEEN).actions
        threading.Timer(0.5, process.kill).start()
        end = time.monotonic() + 10
        with pytest.raises(LinkError, match=f"server {url[5:]}"):
            while time.monotonic() < end:
                policy.act(SEEN)
        process.wait()
        port = int(url.rpartition(":")[2])
        stack.enter_context(serving(model, "--num-threads", "1", port=port))
        end = time.monotonic() + 10
        while not policy._link.connected:
            assert time.monotonic() < end
            with contextlib.suppress(LinkError):
                np.testing.assert_array_equal(policy.act(SEEN).actions, expected)
            time.sleep(0.05)


# -- commands ---------------------------------------------------------------------------------


def test_info_and_infer_take_the_address(server, tmp_path, capsys):
    from PIL import Image

    assert main(["info", f"openpi:{server.url}"]) == 0
    assert "answer      5 steps of 0.05 s; arm: eef delta" in capsys.readouterr().out
    assert main(["info", f"openpi:{server.url}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["needs"]["cameras"] == ["front"]
    (tmp_path / "images").mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "images" / "0.png")
    given = ["infer", "--model", f"openpi:{server.url}", "--source", str(tmp_path / "images")]
    assert main([*given, "--instruction", "go", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["actions"]) == 5
    assert main(["info", "openpi:ws://127.0.0.1:9"]) == 2
    assert "server 127.0.0.1:9" in capsys.readouterr().err


def test_a_program_that_forgets_to_close_ends_without_a_word(server):
    code = "import sys; from vla_inference.policies.registry import load_policy\n"
    code += "policy = load_policy(sys.argv[1]); policy.warm_up()"
    command = [sys.executable, "-c", code, f"openpi:{server.url}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_maps_of_our_own_by_path(tmp_path, scripted):
    text = "images: [[camera]]\nstate: []\nprompt: task\nactions: "
    text += "{frame: base, rotation: rotvec, dt: 0.1, dims: [{name: x, unit: m}]}\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert ObservationMap.load(str(tmp_path / "mine.yaml")).name == "mine"
    script = scripted(lambda request: [np.ones((3, 1))])
    with remote(script.url, map=tmp_path / "mine.yaml") as policy:
        assert policy.act(SEEN).actions.tolist() == [[1.0]] * 3
    assert set(script.requests[0]) == {"camera", "task"}


def test_a_running_server_is_closed_twice_without_harm():
    found = Running(StubPolicy)
    assert found.stop() < 2 and found.stop() < 2


# -- embodiments ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(map_names()) - {"free"}))
def test_each_embodiment_is_a_map_alone_on_both_sides(scripted, name):
    """A published server and ours: what is sent and what comes back are what the map says."""
    used = ObservationMap.load(name)
    images = {f"camera_{i}": IMAGE for i in range(len(used.images))}
    state = np.arange(used.state_dim, dtype=np.float32)
    seen = Observation(images, "go", state)
    numbers = np.linspace(0, 1, used.chunk * len(used.spec)).reshape(used.chunk, -1)
    script = scripted(lambda request: [{"actions": numbers}], {"action_horizon": used.chunk})
    with remote(script.url, map=name) as policy:
        assert policy.needs.images == len(images) and policy.needs.state == len(state)
        spec = policy.action_spec()
        assert [(p.kind, len(p.dims)) for p in spec.parts] == [
            (p.kind, len(p.dims)) for p in used.spec.parts
        ]
        grippers = [d.polarity for p in spec.parts if p.kind == "gripper" for d in p.dims]
        assert set(grippers) == {"1 open, 0 closed"}
        assert len(policy.act(seen)) == used.chunk
    read = used.read(script.requests[0], policy.needs)
    np.testing.assert_array_equal(read.state, state)
    assert [i.shape for i in read.images.values()] == [(*(used.size or ()), 3)] * len(images)

    model = StubPolicy(Needs(len(images), len(state)), used.chunk, used.spec)
    with running(model, map=name) as server, remote(server.url) as policy:
        chunk = policy.act(seen)
        assert chunk.actions.shape == (used.chunk, len(used.spec))
        np.testing.assert_allclose(chunk.actions[:, 2], state.sum())
        assert policy.terms.observation_map.name == name
