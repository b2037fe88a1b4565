"""Models that reason before they act: the text, its fields, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_inference.checkpoints.load import load_config
from vla_inference.checkpoints.random_weights import (
    STATISTICS,
    TINY,
    byte_tokenizer,
    random_config,
    random_model,
    write_random_checkpoint,
)
from vla_inference.engines import Engine
from vla_inference.engines.cpu.engine import CpuEngine
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import PROMPTS
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.policies.openvla.reasoning import NoAction, ReasoningPolicy, Renewal
from vla_inference.policies.reasoning import TAGS, Reasoning
from vla_inference.policies.registry import load_policy
from vla_inference.types import Observation

TEXT = (
    " put the mushroom in the pot. PLAN: reach, grasp, lift. VISIBLE OBJECTS: a red mushroom "
    "[12, 30, 60, 81], pot [100, 90, 180, 200] SUBTASK REASONING: it is far away. SUBTASK: reach "
    "the mushroom. MOVE REASONING: it is to the left. MOVE: move left. GRIPPER POSITION: "
    "[120, 44, 118, 47] ACTION:"
)
REASONS = {**TINY, "prompt": PROMPTS["ecot"], "reasoning_tokens": 400}
GREY = np.full((64, 64, 3), 128, np.uint8)


# -- the text -------------------------------------------------------------------------------------


def test_fields_of_a_text():
    r = Reasoning.parse(TEXT, 90)
    assert r.task == "put the mushroom in the pot." and r.subtask == "reach the mushroom."
    assert r.subtask_reasoning == "it is far away." and r.move == "move left."
    assert r.boxes == {"a red mushroom": (12, 30, 60, 81), "pot": (100, 90, 180, 200)}
    assert r.gripper == [(120, 44), (118, 47)] and r.whole and r.tokens == 90
    assert Reasoning.parse(r.text(), 90) == r


@given(st.integers(0, len(TEXT)))
def test_a_text_that_was_cut_off_has_the_fields_before(end):
    r, whole = Reasoning.parse(TEXT[:end]), Reasoning.parse(TEXT)
    for _, name in TAGS.items():
        assert getattr(whole, name).startswith(getattr(r, name).split(" ")[0])
    assert r.whole == (end == len(TEXT))


PIECES = st.lists(st.sampled_from([*TAGS, "ACTION", ":", "[1, 2,", " ", "x"])).map("".join)


@given(st.text() | PIECES)
def test_any_text_has_fields(text):
    r = Reasoning.parse(text)
    assert isinstance(r.boxes, dict) and isinstance(r.gripper, list)
    assert Reasoning.parse(r.text()).whole


# -- tokens ---------------------------------------------------------------------------------------


def reference(model, context: torch.Tensor, count: int) -> list[int]:
    """transformers' Llama and its generate on the same weights, in float32."""
    transformers = pytest.importorskip("transformers")
    c = model.config.llm
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            rms_norm_eps=c.rms_norm_eps,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )
    ).eval()
    llama.load_state_dict(model.language_model.state_dict())
    ids = llama.generate(
        inputs_embeds=context,
        attention_mask=torch.ones(context.shape[:2], dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=model.config.stop_token_id,
        pad_token_id=0,
    )
    return ids[0].tolist()


@pytest.mark.parametrize("kind", [Engine, CpuEngine])
def test_text_is_that_of_transformers(kind):
    """On to a multiple of the length that a cache begins with."""
    model = random_model(random_config(REASONS, "tokens"))
    engine = kind(model)
    context = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        found = list(engine.generate_text(context, 200))
    assert found == reference(model, context, 200) and len(set(found)) > 3


@pytest.mark.parametrize("kind", [Engine, CpuEngine])
def test_text_ends_at_the_stop_token(kind):
    model = random_model(random_config(REASONS, "tokens"))
    context = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        free = list(kind(model).generate_text(context, 30))
        stop = free[10]
        model.config = replace(model.config, stop_token_id=stop)
        found = list(kind(model).generate_text(context, 30))
    assert found == free[: free.index(stop) + 1] == reference(model, context, 30)


def test_text_that_is_not_finite_ends():
    model = random_model(random_config(REASONS, "tokens"))
    model.language_model.model.norm.weight.data[3] = float("nan")
    with torch.inference_mode():
        assert list(Engine(model).generate_text(torch.ones(1, 4, 32), 9)) == [-1]


# -- answers --------------------------------------------------------------------------------------


class Writer(Engine):
    """An engine whose model writes what it is told; it acts by its weights."""

    def __init__(self, model, says: str):
        super().__init__(model)
        self.says, self.texts = says, 0
        self.seen: list[torch.Tensor] = []

    def generate_text(self, context, limit):
        self.texts += 1
        yield from islice(byte_tokenizer().encode(self.says).ids, limit)
        yield self.config.stop_token_id

    def generate(self, context, lengths=None):
        self.seen.append(context)
        return super().generate(context, lengths)


def writer(says: str = TEXT, renewal: Renewal = Renewal(), **more) -> ReasoningPolicy:
    config = {**random_config({**REASONS, **more}, "tokens"), "norm_stats": STATISTICS}
    model = random_model(config)
    engine = Writer(model, says)
    policy = ReasoningPolicy(model, byte_tokenizer(), "cpu", torch.float32, engine=engine)
    policy.renewal = renewal
    return policy


def see(stamp: float = 1.0, text: str = "lift it") -> Observation:
    return Observation({"image": GREY}, text, stamp=stamp)


def test_an_action_follows_what_was_written():
    policy, told = writer(), []
    policy.on_reasoning = told.append
    chunk = policy.act(see())
    assert chunk.reasoning == Reasoning.parse(TEXT, len(TEXT)) and chunk.reasoning.whole
    assert chunk.timing["reasoning"] >= 0
    # The action's tokens are those of a plain model whose prompt has the text in it.
    raw = {**TINY, "prompt": PROMPTS["ecot"] + TEXT}
    plain = OpenVLAPolicy(
        random_model({**random_config(raw, "tokens"), "norm_stats": STATISTICS}),
        byte_tokenizer(),
        "cpu",
        torch.float32,
    )
    assert (plain.act(see()).tokens == chunk.tokens).all()
    # It was told of as it came: field by field, then whole.
    counts = [len(list(r.said())) for r in told]
    assert counts == sorted(counts) and len(told) > 5 and told[-1].whole


def test_a_kept_reasoning_is_renewed_by_answers_time_sentence_and_clock():
    policy = writer(renewal=Renewal(every=3))
    kept = [policy.act(see(t)).reasoning.kept for t in range(1, 8)]
    assert kept == [False, True, True, False, True, True, False]
    assert not policy.act(see(8, "drop it")).reasoning.kept
    assert policy.act(see(9, "drop it")).reasoning.kept
    assert not policy.act(see(2, "drop it")).reasoning.kept  # another episode
    policy.forget()
    assert not policy.act(see(3, "drop it")).reasoning.kept
    timed = writer(renewal=Renewal(seconds=2.0))
    assert [timed.act(see(t)).reasoning.kept for t in (1, 2, 2.9, 3, 4)] == [0, 1, 1, 0, 1]


def test_what_was_being_written_when_another_run_began_is_not_kept():
    policy = writer(renewal=Renewal(every=100))
    policy.on_reasoning = lambda told: policy.forget()
    assert policy.act(see(1)).reasoning.whole
    policy.on_reasoning = None
    assert not policy.act(see(2)).reasoning.kept
    assert policy.act(see(3)).reasoning.kept


def test_a_reasoning_is_kept_whatever_action_space_is_asked_for():
    policy = writer(renewal=Renewal(every=100))
    for number in range(3):
        name = next(iter(policy.config.norm_stats))
        chunk = policy.in_space(name).predict([see(1 + number)])[0]
        assert chunk.reasoning.kept == (number > 0)


def test_several_observations_are_reasoned_about_each():
    policy = writer(renewal=Renewal(every=100))
    chunks = policy.predict([see(1), see(1, "drop it"), see(1)])
    assert policy.engine.texts == 3 and not any(c.reasoning.kept for c in chunks)
    assert not policy.act(see(1)).reasoning.kept


@pytest.mark.parametrize(
    "says, more",
    [
        ("", {}),
        (TEXT.removesuffix("ACTION:"), {}),
        (TEXT, {"reasoning_tokens": 50}),  # cut off
        ("lorem ipsum [[[ TASK: ACTION", {}),
    ],
)
def test_without_an_action_nothing_moves(says, more):
    policy, told = writer(says, Renewal(every=5), **more), []
    policy.on_reasoning = told.append
    for _ in range(2):
        with pytest.raises(NoAction, match="came to no action"):
            policy.act(see())
    assert policy.engine.texts == 2 and not policy.engine.seen  # nothing was kept
    assert told and not told[-1].whole
    assert policy.warm_up() > 0


def test_a_reasoning_that_fails_does_not_live_on():
    policy = writer(renewal=Renewal(every=2))
    policy.act(see(1)), policy.act(see(2))
    policy.engine.says = "nothing"
    with pytest.raises(NoAction):
        policy.act(see(3))
    with pytest.raises(NoAction):
        policy.act(see(4))


# -- checkpoints ----------------------------------------------------------------------------------


def test_a_published_name_reasons(tmp_path):
    folder = write_random_checkpoint(tmp_path / "ecot-openvla-7b-bridge", TINY, "tokens")
    config = load_config(folder)
    assert config.prompt.endswith("ASSISTANT: TASK:") and config.reasoning_tokens == 1024
    assert "ECoT" in config.assumed[0]
    (folder / "vla.json").write_text('{"reasoning_tokens": 2048}')
    more = load_config(folder)
    assert more.prompt == config.prompt and more.reasoning_tokens == 2048
    (folder / "vla.json").unlink()
    policy = load_policy(str(folder), reasoning_every=4)
    assert isinstance(policy, ReasoningPolicy) and policy.renewal == Renewal(4)
    ids = policy.prompt("Lift It")
    assert policy.prompt.tokenizer.decode(ids[1:]) == PROMPTS["ecot"].format(instruction="lift it")
    with pytest.raises(VlaError, match="runs no model that reasons"):
        load_policy(str(folder), engine="mlc:here")


def test_refusals(tmp_path):
    folder = write_random_checkpoint(tmp_path / "tiny", TINY, "tokens")
    with pytest.raises(VlaError, match="does not reason"):
        load_policy(str(folder), reasoning_seconds=1.0)
    (folder / "vla.json").write_text('{"reasoning_tokens": 100000}')
    with pytest.raises(CheckpointError, match="reasoning_tokens"):
        load_config(folder)
    assert LoadOptions().reasoning_every == 0
