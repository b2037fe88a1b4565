"""Tests of a model server whose model changes while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from model_server import IMAGE, StubPolicy, connected, running, seen, talk

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.registry import load_policy
from vla_inference.serving.openpi import server as server_module
from vla_inference.serving.openpi.client.link import LinkError
from vla_inference.serving.openpi.settings import ServeSettings
from vla_inference.types import Observation


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_random_checkpoint(folder / "one", seed=1)
    write_random_checkpoint(folder / "again" / "one", seed=2)
    write_random_checkpoint(folder / "eyes", head="l1-two-cameras")
    broken = write_random_checkpoint(folder / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    return folder


@contextlib.contextmanager
def serving_one(root, **settings):
    settings = {"model_root": str(root), "device": "cpu", "num_threads": 1, **settings}
    with running(lambda: ServeSettings(**settings).load(str(root / "one")), **settings) as server:
        yield server


def change(server, model, **more) -> tuple[int, dict]:
    body = model if isinstance(model, bytes) else json.dumps({"model": model, **more}).encode()
    request = urllib.request.Request(server.http + "/model", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def answer_of(folder) -> np.ndarray:
    policy = load_policy(folder, LoadOptions(device="cpu"))
    needs = policy.needs
    images = {f"camera_{i}": IMAGE for i in range(needs.images)}
    return policy.act(Observation(images, "go", np.ones(needs.state, np.float32))).actions


def test_another_models_clients_are_sent_away_and_meet_it_when_they_return(root):
    async def go(server):
        async with connected(server.url) as client:
            before = (await client.ask(seen()))["actions"]
            code, reply = await asyncio.to_thread(change, server, "eyes")
            assert code == 200 and reply["model"] == "eyes"
            assert await client.hear() is None and client.close_code == 1012
        async with connected(server.url) as client:
            assert client.metadata["model"] == "eyes" and client.metadata["images"] == 2
            state = np.ones(client.metadata["state_dim"])
            after = await client.ask({"a": IMAGE, "b": IMAGE, "state": state, "prompt": "go"})
        return before, after["actions"]

    with serving_one(root) as server:
        before, after = talk(go, server)
        with urllib.request.urlopen(server.http + "/model", timeout=10) as reply:
            assert json.load(reply)["metadata"]["images"] == 2
        assert server.server.metrics["model_changes"] == 1
    np.testing.assert_allclose(before, answer_of(root / "one"), atol=1e-5)
    np.testing.assert_allclose(after, answer_of(root / "eyes"), atol=1e-5)


def test_a_model_of_the_same_name_and_actions_takes_over_without_a_break(root):
    async def go(server):
        async with connected(server.url) as client:
            before = (await client.ask(seen()))["actions"]
            assert (await asyncio.to_thread(change, server, "again/one"))[0] == 200
            return before, (await client.ask(seen()))["actions"]

    with serving_one(root) as server:
        before, after = talk(go, server)
    np.testing.assert_allclose(before, answer_of(root / "one"), atol=1e-5)
    np.testing.assert_allclose(after, answer_of(root / "again" / "one"), atol=1e-5)


def test_a_model_that_cannot_be_used_leaves_the_old_one(root):
    async def go(server):
        async with connected(server.url) as client:
            for name, told in (
                ("broken", "model.safetensors"),
                ("nowhere", "there is no model nowhere"),
                ("../one", "leads out of model_root"),
                ("/etc", "leads out of model_root"),
                ("", "no model is named"),
                (b"{}", "names no model"),
                (b"[", "not JSON"),
            ):
                code, reply = await asyncio.to_thread(change, server, name)
                assert code == 400 and told in reply["error"], (name, reply)
                assert "actions" in await client.ask(seen())

    with serving_one(root) as server:
        talk(go, server)
        assert threading.active_count() < 12  # the threads of failed loads have ended


def test_a_model_that_does_not_fit_the_map_leaves_the_old_one(root, tmp_path):
    (tmp_path / "mine.yaml").write_text("images: [[observation/image]]\nprompt: prompt\n")
    with serving_one(root, map=str(tmp_path / "mine.yaml")) as server:
        code, reply = change(server, "eyes")
        assert code == 400 and "takes 2 images, map mine has 1" in reply["error"]
        assert server.server.served.name == "one"


def test_the_old_model_answers_until_the_new_one_is_warm(root, monkeypatch):
    go_on = threading.Event()

    class Slow(StubPolicy):
        name = "slow"

        def warm_up(self):
            assert go_on.wait(20)
            return super().warm_up()

    monkeypatch.setattr(ServeSettings, "load", lambda *_: Slow())

    async def go(server):
        async with connected(server.url) as client:
            coming = asyncio.ensure_future(asyncio.to_thread(change, server, "one"))
            for _ in range(5):
                assert "actions" in await client.ask(seen())
                await asyncio.sleep(0.05)
            assert (await asyncio.to_thread(change, server, "one"))[0] == 409
            await client.say(seen("wait 0.5"))
            await asyncio.sleep(0.2)
            go_on.set()
            assert (await coming)[1]["model"] == "slow"
            assert "actions" in await client.hear()  # what was asked before is answered
            assert await client.hear() is None and client.close_code == 1012

    with running(StubPolicy(), model_root=str(root)) as server:
        talk(go, server)


def test_a_load_that_crashes_is_told_to_nobody_but_the_log(root, monkeypatch):
    def load(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(ServeSettings, "load", load)
    with running(StubPolicy(), model_root=str(root)) as server:
        code, reply = change(server, "one")
        assert (code, reply) == (500, {"error": server_module.FAILED})


def test_models_are_changed_only_where_that_was_allowed(root, tmp_path):
    with running(StubPolicy()) as server:
        code, reply = change(server, "one")
        assert code == 400 and "start it with --model-root" in reply["error"]
    (tmp_path / "key").write_text("0123456789abcdef")
    with running(StubPolicy(), model_root=str(root), key_file=str(tmp_path / "key")) as server:
        request = urllib.request.Request(server.http + "/model", b'{"model": "one"}')
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=10)
        request.add_header("Origin", "http://evil.example")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=10)


def test_a_load_does_not_hold_up_the_end(root, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(ServeSettings, "load", lambda *_: go_on.wait(20) and StubPolicy())

    with running(StubPolicy(), model_root=str(root)) as server:
        thread = threading.Thread(target=change_in_vain, args=(server,))
        thread.start()
        time.sleep(0.3)
        assert server.stop() < 3
        go_on.set()
        thread.join(20)


def change_in_vain(server) -> None:
    with contextlib.suppress(OSError, ValueError):
        change(server, "one")


def test_our_client_refuses_the_other_model_by_name_and_goes_on_after_a_new_load(root):
    with serving_one(root) as server:
        policy = load_policy(f"openpi:{server.url}")
        try:
            policy.act(Observation({"a": IMAGE}, "go"))
            assert change(server, "eyes")[0] == 200
            end = time.monotonic() + 10
            with pytest.raises(VlaError, match="runs another model by now: eyes, it was one"):
                while time.monotonic() < end:
                    with contextlib.suppress(LinkError):
                        policy.act(Observation({"a": IMAGE}, "go"))
        finally:
            policy.close()
        again = load_policy(f"openpi:{server.url}")
        assert again.needs.images == 2 and len(again.act(again.needs.grey())) == again.chunk
        again.close()
