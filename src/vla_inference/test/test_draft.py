"""Tests of draft decoding: the tokens equal those of plain decoding, whatever the draft."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.cli.benchmark.speed import random_policy
from vla_inference.engines import make_engine
from vla_inference.engines.base import Engine
from vla_inference.errors import VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy


@pytest.fixture(scope="module")
def model():
    return random_policy("tiny", "tokens").model.double()  # no near-ties under rounding


@given(
    seeds=st.lists(st.integers(0, 3), min_size=2, max_size=6),
    wrong=st.lists(st.integers(0, 6), max_size=3),
)
@settings(deadline=None, max_examples=25)
def test_tokens_are_those_of_plain_decoding(model, seeds, wrong):
    plain, drafting = Engine(model), make_engine("plain", model, draft=True)
    with torch.inference_mode():
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            context = torch.randn(1, 9 + seed, 32, generator=generator, dtype=torch.float64)
            want = list(plain.generate(context))
            if wrong and drafting._last is not None:  # right up to a place, and after it
                drafting._last = torch.cat([t for t, _ in want])
                drafting._last[wrong] = model.config.action_vocab_end - 1
            found = list(drafting.generate(context))
            assert [int(t) for t, _ in found] == [int(t) for t, _ in want]
            for (_, a), (_, b) in zip(found, want, strict=True):
                assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
            assert torch.equal(drafting._last, torch.cat([t for t, _ in want]))


def test_the_same_again_takes_one_pass(model):
    engine, passes = make_engine("plain", model, draft=True), []
    hook = model.language_model.model.norm.register_forward_hook(lambda *_: passes.append(1))
    context = torch.randn(1, 9, 32, dtype=torch.float64)
    with torch.inference_mode():
        engine.generate_tokens(context)
        assert len(passes) == 7
        engine.generate_tokens(context)
    hook.remove()
    assert len(passes) == 8
    assert (engine.accepted, engine.drafted) == (6, 6)


def test_what_an_answer_that_is_not_finite_leaves_is_no_draft(model):
    engine = make_engine("plain", model, draft=True)
    with torch.inference_mode():
        tokens = engine.generate_tokens(torch.full((1, 5, 32), float("nan")).double())
        assert (tokens == -1).all() and engine._last is None
        # Several observations at once take the plain way.
        both = torch.randn(2, 6, 32, dtype=torch.float64)
        assert torch.equal(engine.generate_tokens(both), Engine(model).generate_tokens(both))


def test_the_option_is_the_plain_engines(tmp_path):
    folder = write_random_checkpoint(tmp_path, head="tokens")
    assert OpenVLAPolicy.from_pretrained(folder, device="cpu", draft=True).engine.drafted == 0
    with pytest.raises(VlaError, match="'torch' takes no draft"):
        OpenVLAPolicy.from_pretrained(folder, device="cpu", engine="torch", draft=True)
