"""The unchanged openpi-client and json-numpy, in the Python that VLA_OPENPI_PYTHON names, against
`vla serve`."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from elsewhere import elsewhere
from model_server import StubPolicy, running, serving

from vla_inference.policies.base import LoadOptions, Needs
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation

VARIABLE = "VLA_OPENPI_PYTHON"
SHIPPED = "models/stack-small"
TASK = "stack the red block on the green block"

SETUP = """
import json, sys, time
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port = int(sys.argv[1])
rng = np.random.default_rng(0)

def image(shape=(224, 224, 3)):
    return rng.integers(256, size=shape, dtype=np.uint8)

def libero(seed=0, prompt="stack the red block on the green block"):
    seen = np.random.default_rng(seed).integers(256, size=(2, 224, 224, 3), dtype=np.uint8)
    return {"observation/image": seen[0], "observation/wrist_image": seen[1],
            "observation/state": rng.random(8), "prompt": prompt}

def droid():
    return {"observation/exterior_image_1_left": image(), "observation/wrist_image_left": image(),
            "observation/joint_position": rng.random(7),
            "observation/gripper_position": rng.random(1), "prompt": "do something"}

def aloha():
    names = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    return {"state": np.ones(14), "images": {n: image((3, 224, 224)) for n in names},
            "prompt": "do something"}
"""

ANSWERS = """
client = WebsocketClientPolicy("127.0.0.1", port)
told = {"metadata": client.get_server_metadata(), "actions": {}, "same": True}
for i in range(1000):
    actions = client.infer(libero(i % 20))["actions"].tolist()
    told["same"] &= told["actions"].setdefault(i % 20, actions) == actions
client.reset()
broker = ActionChunkBroker(client, action_horizon=4)
told["steps"] = [broker.infer(libero())["actions"].tolist() for _ in range(6)]
told["forms"] = [list(client.infer(make())["actions"].shape) for make in (droid, aloha)]
print(json.dumps(told))
"""

ERRORS = """
client = WebsocketClientPolicy("127.0.0.1", port)
told = {}
for name, bad in (
    ("nothing", {"prompt": "go"}),
    ("no words", libero(prompt="")),
    ("no image", {**libero(), "observation/image": np.zeros((3, 3))}),
    ("crash", libero(prompt="crash")),
    ("nan", libero(prompt="nan")),
):
    try:
        client.infer(bad)
    except RuntimeError as error:
        told[name] = str(error)
told["after"] = list(client.infer(libero())["actions"].shape)
begun = time.monotonic()
client.infer(libero(prompt="wait 45"))  # longer than its 20 s between pings and 20 s of patience
told["long"] = time.monotonic() - begun
told["after long"] = list(client.infer(libero())["actions"].shape)
print(json.dumps(told))
"""

KEYS = """
told = []
for key in (None, "wrong", sys.argv[2]):
    try:
        client = WebsocketClientPolicy("127.0.0.1", port, api_key=key)
        told.append(list(client.infer(libero())["actions"].shape))
    except Exception as error:
        told.append(f"{type(error).__name__} {error}")
print(json.dumps(told))
"""

RESTART = """
client = WebsocketClientPolicy("127.0.0.1", port)
before = client.infer(libero())["actions"].tolist()
open("first", "w").close()
told = {}
begun = time.monotonic()
try:
    while time.monotonic() - begun < 60:
        client.infer(libero())
except Exception as error:
    told["lost"] = type(error).__name__
open("lost", "w").close()
while time.monotonic() - begun < 120:
    try:
        again = WebsocketClientPolicy("127.0.0.1", port).infer(libero())
        told["same"] = again["actions"].tolist() == before
        break
    except ConnectionRefusedError:
        time.sleep(0.2)
print(json.dumps(told))
"""

REST = """
import json, sys
import json_numpy, numpy as np, requests
json_numpy.patch()

url = f"http://127.0.0.1:{sys.argv[1]}/act"
image = np.random.default_rng(0).integers(256, size=(224, 224, 3), dtype=np.uint8)
task = "stack the red block on the green block"
openvla = requests.post(url, json={"image": image, "instruction": task}).json()
oft = requests.post(url, json={"full_image": image, "wrist_image": image, "state": np.ones(8),
                               "instruction": task}).json()
encoded = json_numpy.dumps({"image": image, "instruction": task})
double = json_numpy.loads(requests.post(url, json={"encoded": encoded}).json())
bad = requests.post(url, json={"instruction": task})
lists = {"openvla": openvla.tolist(), "oft": [a.tolist() for a in oft],
         "double": double.tolist(), "bad": [bad.status_code, bad.json()]}
print(json.dumps(lists))
"""


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.fixture(scope="module")
def local():
    return load_policy(SHIPPED, LoadOptions(device="cpu"))


def image_of(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(2, 224, 224, 3), dtype=np.uint8)[0]


def test_a_thousand_answers_are_what_the_model_predicts(local, tmp_path):
    with serving(SHIPPED) as (_, url):
        told = elsewhere(VARIABLE, tmp_path, SETUP + ANSWERS, port_of(url))
    assert told["same"] and told["metadata"]["model"] == "stack-small"
    for seed, actions in told["actions"].items():
        expected = local.act(Observation({"image": image_of(int(seed))}, TASK)).actions
        np.testing.assert_array_equal(np.float32(actions), expected)
    chunk = np.float32(told["actions"]["0"])
    np.testing.assert_array_equal(np.float32(told["steps"]), chunk[[0, 1, 2, 3, 0, 1]])
    assert told["forms"] == [[8, 7], [8, 7]]


def test_errors_are_its_own_kind_and_a_long_answer_keeps_the_connection(tmp_path):
    with running(StubPolicy(Needs(1, 8))) as server:
        told = elsewhere(VARIABLE, tmp_path, SETUP + ERRORS, server.port)
    assert "takes 1 images, 0 came" in told["nothing"]
    assert "instruction is empty" in told["no words"]
    assert "neither image nor vector" in told["no image"]
    assert "the server's log says why" in told["crash"] and "log says why" in told["nan"]
    assert told["after"] == told["after long"] == [5, 7] and told["long"] >= 45


def test_the_key_that_it_sends_is_looked_at(tmp_path):
    key = "0123456789abcdef"
    (tmp_path / "key").write_text(key)
    with running(StubPolicy(), key_file=str(tmp_path / "key")) as server:
        told = elsewhere(VARIABLE, tmp_path, SETUP + KEYS, server.port, key)
    assert "401" in told[0] and "401" in told[1] and told[2] == [5, 7]


def test_it_finds_a_server_that_was_killed_and_came_back(tmp_path):
    with serving(SHIPPED) as (process, url):
        port, told = port_of(url), {}
        client = threading.Thread(
            target=lambda: told.update(elsewhere(VARIABLE, tmp_path, SETUP + RESTART, port))
        )
        client.start()
        wait_for(tmp_path / "first")
        time.sleep(0.5)
        process.kill()
        wait_for(tmp_path / "lost")
        with serving(SHIPPED, port=port):
            client.join(120)
    assert told == {"lost": "ConnectionClosedError", "same": True}


def wait_for(path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"there is no {path.name}"
        time.sleep(0.05)


def test_json_numpys_clients_get_the_models_actions(local, tmp_path):
    image = np.random.default_rng(0).integers(256, size=(224, 224, 3), dtype=np.uint8)
    expected = local.act(Observation({"image": image}, TASK)).actions
    with serving(SHIPPED) as (_, url):
        told = elsewhere(VARIABLE, tmp_path, REST, port_of(url))
    np.testing.assert_array_equal(np.float32(told["openvla"]), expected[0])
    np.testing.assert_array_equal(np.float32(told["double"]), expected[0])
    np.testing.assert_array_equal(np.float32(told["oft"]), expected)
    assert told["bad"][0] == 400 and "0 came" in told["bad"][1]["error"]
