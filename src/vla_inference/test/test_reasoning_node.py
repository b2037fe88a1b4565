"""`~/reasoning` of the inference node, in a real ROS graph."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from graphs import InferenceGraph

from vla_inference.checkpoints.random_weights import TINY, byte_tokenizer, write_random_checkpoint
from vla_inference.openvla.config import PROMPTS
from vla_inference.ros import qos
from vla_msgs.msg import Reasoning

TEXT = (
    " lift it. PLAN: reach, lift. SUBTASK: reach it. MOVE: down. GRIPPER POSITION: [9, 8] ACTION:"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_random_checkpoint(tmp_path_factory.mktemp("model") / "tiny", TINY, "tokens")
    reasons = {"prompt": PROMPTS["ecot"], "reasoning_tokens": 120}
    (folder / "vla.json").write_text(json.dumps(reasons))
    return folder


@pytest.fixture
def graph(checkpoint):
    parameters = {"model": str(checkpoint), "instruction": "lift it", "reasoning_every": 3}
    g = InferenceGraph({**parameters, "num_threads": 1})
    yield g
    g.close()


def test_what_it_thinks_is_told_as_it_comes_and_then_kept(graph):
    heard: list[Reasoning] = []
    graph.client.create_subscription(Reasoning, "inference/reasoning", heard.append, qos.LATCHED)
    says(graph, TEXT)
    graph.meet()
    graph.until(lambda: any(m.kept for m in heard), "a kept reasoning")
    whole = next(m for m in heard if m.whole)
    assert (whole.plan, whole.move, whole.subtask) == ("reach, lift.", "down.", "reach it.")
    assert (whole.model, whole.instruction) == ("tiny", "lift it") and whole.tokens == len(TEXT)
    assert graph.node.policy.on_reasoning is None
    # Cut off: nothing moves, the status says why, and the topic shows how far it came.
    graph.chunks.clear()
    heard.clear()
    says(graph, TEXT[:40])
    graph.node.policy.forget()
    graph.images.publish(graph.frame())
    graph.until(lambda: "came to no action" in graph.status.last_refusal, "a refusal")
    graph.until(lambda: heard and heard[-1].tokens == 40, "what it came to")
    assert not graph.chunks and not heard[-1].whole and heard[-1].plan.startswith("reach")


def says(graph, text: str) -> None:
    """Has the model write this."""

    def write(context, limit):
        yield from islice(byte_tokenizer().encode(text).ids, limit)
        yield graph.node.policy.config.stop_token_id

    graph.node.policy.engine.generate_text = write
