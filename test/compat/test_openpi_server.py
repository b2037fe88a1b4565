"""Our client against openpi's own `WebsocketPolicyServer`, in the Python that VLA_OPENPI_PYTHON
names."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from elsewhere import elsewhere_command
from model_server import serving

from vla_inference.errors import VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation

SHIPPED = "models/stack-small"
TASK = "stack the red block on the green block"

# Serves another server's model as one of its own.
RELAY = """
import sys
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from openpi_server import WebsocketPolicyServer

class Relay:
    def __init__(self):
        self.client = WebsocketClientPolicy("127.0.0.1", int(sys.argv[2]))

    def infer(self, observation):
        return {"actions": self.client.infer(observation)["actions"]}

relay = Relay()
metadata = relay.client.get_server_metadata()
WebsocketPolicyServer(relay, "127.0.0.1", int(sys.argv[1]), metadata).serve_forever()
"""

# Says what it sees, and nothing of itself.
SEES = """
import sys
import numpy as np
from openpi_server import WebsocketPolicyServer

class Sees:
    def infer(self, observation):
        if observation["prompt"] == "fail":
            raise ValueError("the model is out of order")
        images = observation["observation/image"], observation["observation/wrist_image"]
        assert [image.shape for image in images] == [(224, 224, 3)] * 2
        row = [*(image.mean() for image in images), *observation["observation/state"][:4], -1.0]
        return {"actions": np.tile(row, (10, 1))}

WebsocketPolicyServer(Sees(), "127.0.0.1", int(sys.argv[1])).serve_forever()
"""


@contextlib.contextmanager
def openpi(folder: Path, script: str, *arguments: object) -> Iterator[str]:
    """A server of openpi's class; its address, once it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, env = elsewhere_command("VLA_OPENPI_PYTHON", folder, script, port, *arguments)
    process = subprocess.Popen(command, cwd=folder, env=env)
    try:
        end = time.monotonic() + 60
        while not listens(port):
            assert process.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.1)
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def loaded(address: str) -> contextlib.closing:
    """The server's model as a policy."""
    return contextlib.closing(load_policy(address, LoadOptions()))


def test_a_hundred_answers_are_those_of_our_own_server_and_of_the_model(tmp_path):
    local, rng = load_policy(SHIPPED, LoadOptions(device="cpu")), np.random.default_rng(0)
    with contextlib.ExitStack() as stack:
        _, ours = stack.enter_context(serving(SHIPPED))
        theirs = stack.enter_context(openpi(tmp_path, RELAY, ours.rpartition(":")[2]))
        policies = [stack.enter_context(loaded(f"openpi:{url}")) for url in (ours, theirs)]
        assert policies[0].needs == policies[1].needs
        for _ in range(100):
            seen = Observation({"image": rng.integers(0, 256, (224, 224, 3), np.uint8)}, TASK)
            expected = local.act(seen).actions
            for policy in policies:
                np.testing.assert_array_equal(policy.act(seen).actions, expected)


def test_a_server_that_says_nothing_of_itself_is_read_by_a_map(tmp_path):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 224, 224, 3), np.uint8)
    seen = Observation(dict(zip(("image", "wrist"), images, strict=True)), TASK, rng.random(8))
    with openpi(tmp_path, SEES) as url, loaded(f"openpi:{url}/?map=libero") as policy:
        chunk = policy.act(seen)
        assert chunk.actions.shape == (10, 7)
        expected = [*(image.mean() for image in images), *seen.state[:4]]
        np.testing.assert_allclose(chunk.actions[0, :6], expected, rtol=1e-6)
        assert (chunk.actions[:, 6] == 1).all()  # its -1 is open
        fails = Observation(seen.images, "fail", seen.state)
        with pytest.raises(VlaError, match="ValueError: the model is out of order"):
            policy.act(fails)
        while policy._link.connected:  # it hangs up after each error
            time.sleep(0.05)
        np.testing.assert_array_equal(policy.act(seen).actions, chunk.actions)
