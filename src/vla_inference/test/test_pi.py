"""pi0 and pi0.5 against the original code on reference cases (data/pi05/README.md)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot_reference import DATA, error_of, pi_weight, write_checkpoint
from safetensors.numpy import load_file, save_file

from vla_inference.errors import CheckpointError, ObservationError, VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.chunking import Continuation, RealTimeChunking
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint
from vla_inference.policies.lerobot.statistics import Normaliser
from vla_inference.policies.pi05.policy import PiPolicy, bins
from vla_inference.policies.registry import check_policy, describe_policy, load_policy
from vla_inference.types import Observation

CPU = LoadOptions(device="cpu")
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb")
RENAMED = {"pi05": "time_mlp_", "pi0": "action_time_mlp_"}


@pytest.fixture(scope="module", params=["pi05", "pi0"])
def reference(request, tmp_path_factory) -> SimpleNamespace:
    """A family's checkpoint folder, cases and policy."""
    family = request.param
    folder = write_checkpoint(
        tmp_path_factory.mktemp(family) / "model", family, pi_weight, bos=True
    )
    cases = np.load(DATA / family / "cases.npz")
    return SimpleNamespace(
        family=family, folder=folder, cases=cases, policy=load_policy(folder, CPU)
    )


@pytest.fixture
def copy(reference, tmp_path) -> Path:
    return Path(shutil.copytree(reference.folder, tmp_path / "copy"))


def observation(cases, case: str) -> Observation:
    images = {n: cases[f"{case}/image.{n}"] for n in CAMERAS if f"{case}/image.{n}" in cases}
    return Observation(images, str(cases[f"{case}/instruction"]), cases[f"{case}/state"])


def answer(policy, cases, case: str = "0") -> np.ndarray:
    noise = cases[f"{case}/noise"][None]
    (chunk,) = policy.predict_batch([observation(cases, case)], noise=noise)
    return chunk.actions


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors")


# -- the reference cases ----------------------------------------------------------------------


@pytest.mark.parametrize("case", "0123")
def test_the_inputs_are_those_of_the_original(reference, case):
    cases, policy = reference.cases, reference.policy
    seen = observation(cases, case)
    found = policy.inputs([seen])
    length = int(cases[f"{case}/token_mask"].sum())
    state = policy.state(seen.state)
    np.testing.assert_allclose(state, cases[f"{case}/state_normalized"], atol=1e-6)
    assert policy.prompt(seen.instruction, state) == str(cases[f"{case}/prompt"])
    assert found.words[0].tolist() == cases[f"{case}/tokens"][:length].tolist()
    if reference.family == "pi0":
        np.testing.assert_allclose(found.state[0], cases[f"{case}/state_in"], atol=1e-6)
    pixels = found.images[0, :, :, ::5, ::5]
    np.testing.assert_allclose(pixels, cases[f"{case}/pixels"][: len(pixels)], atol=1e-4)
    assert len(pixels) == cases[f"{case}/image_masks"].sum()


@torch.inference_mode()
@pytest.mark.parametrize("case", "0123")
def test_the_prefix_and_the_first_step_are_those_of_the_original(reference, case):
    cases, model = reference.cases, reference.policy.model
    images, words, word_mask, state = reference.policy.inputs([observation(cases, case)])
    seen = model.vision(images[0])
    assert error_of(seen[:, ::11], cases[f"{case}/vision_hidden"][: len(seen)]) < 2e-5
    tokens = model.embed_images(images[0])
    assert error_of(tokens[:, ::17], cases[f"{case}/image_embeds"][: len(seen)]) < 2e-5
    prefix = model.prefix(*model.embed(images, words, word_mask), hidden=True)
    # Masked tokens are left out here, which changes the rank of those that are compared
    rank = np.cumsum(cases[f"{case}/prefix_pad"])[cases[f"{case}/prefix_index"]] - 1
    assert error_of(prefix.hidden[0, rank], cases[f"{case}/prefix_hidden"]) < 2e-5
    assert error_of(prefix.keys[1][0][:, rank], cases[f"{case}/key"]) < 2e-5
    assert error_of(prefix.values[1][0][:, rank], cases[f"{case}/value"]) < 2e-5

    noise, time = torch.from_numpy(cases[f"{case}/noise"])[None], torch.ones(1)
    past = model.read_state(state, prefix)
    embedded, condition = model.embed_actions(noise, time)
    hidden = model.velocity(noise, time, past, hidden=True)
    if reference.family == "pi0":  # whose state token is the first row
        embedded = torch.cat([model.state_proj(state)[:, None], embedded], 1)
        hidden = torch.cat([past.hidden, hidden], 1)
    else:
        assert error_of(condition[0, 0], cases[f"{case}/condition_first"]) < 3e-5
    assert error_of(embedded[0, ::3], cases[f"{case}/suffix_embeds_first"]) < 3e-5
    assert error_of(hidden[0, ::3], cases[f"{case}/suffix_hidden_first"]) < 3e-5
    assert error_of(model.velocity(noise, time, past)[0], cases[f"{case}/v_first"]) < 3e-5
    last = torch.from_numpy(cases[f"{case}/x_last"])[None]
    time = torch.from_numpy(cases[f"{case}/times"][-1:])
    assert error_of(model.velocity(last, time, past)[0], cases[f"{case}/v_last"]) < 3e-5


@pytest.mark.parametrize("case", "0123")
def test_the_actions_are_those_of_the_original(reference, case):
    found = answer(reference.policy, reference.cases, case)
    assert error_of(found, reference.cases[f"{case}/actions"]) < 2e-5


@pytest.mark.parametrize("name", ["rtc0", "rtc1", "rtc2"])
def test_real_time_chunking_is_that_of_the_original(reference, name):
    cases, policy = reference.cases, unscaled(reference.policy)
    after = Continuation(
        cases[name + "/prev"],
        int(cases[name + "/inference_delay"]),
        RealTimeChunking(
            int(cases[name + "/execution_horizon"]),
            float(cases[name + "/max_guidance_weight"]),
            str(cases[name + "/schedule"]),
        ),
    )
    seen = observation(cases, str(cases[name + "/case"]))
    noise = cases[name + "/noise"][None]
    (chunk,) = policy.predict_batch([seen], noise=noise, after=after)
    assert error_of(chunk.actions, cases[name + "/actions_normalized"]) < 2e-5


def unscaled(policy: PiPolicy) -> PiPolicy:
    """The policy with actions as its network gives them: the last of the reference's has no
    range, which leaves nothing of a chunk's values in the robot's units."""
    same = Normaliser.find("IDENTITY", {}, "action")
    known = policy.checkpoint
    known = replace(known, normalisers={**known.normalisers, "action": same})
    return PiPolicy(
        policy.model, known, policy.tokenizer, LoadOptions(device="cpu", dtype="float32")
    )


def test_a_batch_gives_what_its_observations_give_one_by_one(reference):
    cases = reference.cases
    several = ["0", "2", "3"]  # of prompts of different lengths
    noise = np.stack([cases[f"{c}/noise"] for c in several])
    seen = [observation(cases, c) for c in several]
    for chunk, case in zip(
        reference.policy.predict_batch(seen, noise=noise), several, strict=True
    ):
        assert error_of(chunk.actions, cases[f"{case}/actions"]) < 2e-5


def test_bfloat16_answers_nearly_the_same(reference):
    policy = load_policy(reference.folder, LoadOptions(device="cpu", dtype="bfloat16"))
    assert error_of(answer(policy, reference.cases), reference.cases["0/actions"]) < 0.05


@torch.inference_mode()
def test_actions_may_have_times_of_their_own(reference):
    cases, policy = reference.cases, reference.policy
    velocity = policy.begin(policy.inputs([observation(cases, "3")]))
    noise = torch.from_numpy(cases["3/noise"])[None]
    times = torch.full((1, 50), 0.5)
    same = velocity(noise, times)
    torch.testing.assert_close(same, velocity(noise, times[:, 0]))
    times[:, :4] = 0
    assert error_of(velocity(noise, times)[0], same[0]) > 1e-3


@pytest.mark.parametrize("format, gate", [("int8", 0.02), ("fp8", 0.05), ("int4-g32", 0.15)])
def test_a_quantised_language_model_answers_nearly_the_same(reference, format, gate):
    policy = load_policy(reference.folder, LoadOptions(device="cpu", quantization=format))
    error = error_of(answer(policy, reference.cases), reference.cases["0/actions"])
    assert 1e-6 < error < gate and policy.name == f"model:{format}"


# -- properties -------------------------------------------------------------------------------


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40))
def test_each_number_of_a_state_lies_in_its_bin(state):
    state = np.array(state, np.float32)
    for x, i in zip(state, bins(state), strict=True):
        assert -1 <= i <= 255
        assert i == -1 or x >= -1 + i / 128
        assert i == 255 or x < -1 + (i + 1) / 128


@given(st.text(max_size=40))
def test_a_prompt_of_pi05_is_one_line_of_task_and_state(policy05, task):
    text = policy05.prompt(task, np.zeros(8, np.float32))
    head, state = text.rsplit(", State: ", 1)
    assert state == f"{' '.join(['128'] * 8)};\nAction: "
    assert head.startswith("Task: ") and not set("_\n") & set(head)


@pytest.fixture(scope="module")
def policy05(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("pi") / "model", "pi05", pi_weight, bos=True)
    return load_policy(folder, CPU)


def test_the_order_of_camera_images_does_not_depend_on_the_observation(reference):
    seen = observation(reference.cases, "0")
    turned = Observation(dict(reversed(seen.images.items())), seen.instruction, seen.state)
    a, b = (reference.policy.inputs([o]).images for o in (seen, turned))
    assert torch.equal(a, b)


def test_the_state_is_seen(reference):
    """Through the prompt or through its token."""
    cases, policy = reference.cases, reference.policy
    seen, noise = observation(cases, "3"), cases["3/noise"][None]
    moved = Observation(seen.images, seen.instruction, seen.state + 0.2)
    a, b = (policy.predict_batch([o], noise=noise)[0].actions for o in (seen, moved))
    assert error_of(b, a) > 1e-5


# -- checkpoints ------------------------------------------------------------------------------


def test_the_family_is_found_described_and_checked(reference):
    contract = check_policy(reference.folder, CPU)
    assert contract.needs.cameras == CAMERAS and contract.needs.state == 8
    assert contract.chunk == 50 and len(contract.spec) == 7
    told = describe_policy(reference.folder)
    assert told.values["family"] == reference.family and "10 of flow matching" in str(told)
    with pytest.raises(VlaError, match=rf"family {reference.family} have engine 'torch' on CUDA"):
        check_policy(reference.folder, LoadOptions(engine="torch", device="cpu"))
    with pytest.raises(VlaError, match=f"family {reference.family} have no engine 'mlc'"):
        check_policy(reference.folder, LoadOptions(engine="mlc", device="cpu"))


def test_names_without_model_and_a_head_in_place_of_the_embedding_are_read(reference, copy):
    def as_published(weights):
        bare = {k.removeprefix("model."): v for k, v in weights.items()}
        embedding = bare.pop(
            "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
        )
        return {**bare, "paligemma_with_expert.paligemma.lm_head.weight": embedding}

    edit_weights(copy, as_published)
    found = answer(load_policy(copy, CPU), reference.cases)
    assert error_of(found, reference.cases["0/actions"]) < 2e-5


def test_the_names_of_the_other_familys_time_network_are_read(reference, copy):
    old = RENAMED[reference.family]
    new = next(n for n in RENAMED.values() if n != old)
    edit_weights(
        copy, lambda w: {k.replace("model." + old, "model." + new): v for k, v in w.items()}
    )
    found = answer(load_policy(copy, CPU), reference.cases)
    assert error_of(found, reference.cases["0/actions"]) < 2e-5


@pytest.mark.parametrize(
    "key, value, problem",
    [
        ("model.action_out_proj.bias", None, r"lacks 1 tensors, such as action_out_proj\.bias"),
        ("model.action_in_proj.bias", np.zeros(5, np.float32), r"bias is \[5\], the config"),
        ("model.action_in_proj.bias", np.full(128, np.nan, np.float32), "bias contains numbers"),
        ("model.extra", np.zeros(1, np.float32), r"holds model\.extra, which this family has no"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(copy, key, value, problem):
    def change(weights):
        weights.pop(key, None)
        return weights if value is None else {**weights, key: value}

    edit_weights(copy, change)
    with pytest.raises(CheckpointError, match=problem):
        load_policy(copy, CPU)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"paligemma_variant": "gemma_9b"}, "paligemma_variant is 'gemma_9b'; known: gemma_2b"),
        ({"n_obs_steps": 2}, "n_obs_steps is 2; only 1"),
        ({"image_resolution": [448, 448]}, r"is \(448, 448\), the vision encoder takes \(224,"),
        ({"max_action_dim": 4}, "do not fit a network for"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused_by_name(copy, change, problem):
    edit(copy / "config.json", **change)
    with pytest.raises(CheckpointError, match=problem):
        check_policy(copy, CPU)


def test_what_openpis_own_configuration_does_not_say_is_asked_for(copy):
    sizes = {"action_dim": 32, "action_horizon": 50, "paligemma_variant": "gemma_2b"}
    (copy / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(CheckpointError, match="is a checkpoint of openpi, whose config"):
        check_policy(copy, CPU)


def test_missing_parts_of_a_checkpoint_are_named(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"copy tokenizer\.json of google/paligemma-3b-pt"):
        load_policy(copy, CPU)
    next(copy.glob("*_normalizer_processor.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"normalizer_processor\.safetensors is missing"):
        check_policy(copy, CPU)


def test_a_sentencepiece_model_stands_in_for_the_tokenizer(reference, copy):
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    (copy / "tokenizer.json").unlink()
    words = ["Task: push the red block, State: 12 255 -1;", "Action: put it on the plate"] * 9
    with (copy / "tokenizer.model").open("wb") as file:
        trainer.train(
            sentence_iterator=iter(words),
            model_writer=file,
            vocab_size=320,
            model_type="bpe",
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            bos_piece="<bos>",
            minloglevel=2,
        )
    policy = load_policy(copy, CPU)
    ids = policy.tokens("push the red block")
    assert ids[0] == 2 and 1 < len(ids) < 12 and max(ids) < 320
    assert np.isfinite(answer(policy, reference.cases)).all()
    (copy / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is no tokenizer"):
        load_policy(copy, CPU)


def test_a_base_model_without_statistics_is_refused(copy):
    path = copy / "policy_postprocessor.json"
    steps = json.loads(path.read_text())
    del steps["steps"][0]["state_file"]
    path.write_text(json.dumps(steps))
    with pytest.raises(CheckpointError, match="of action; it is a base model"):
        check_policy(copy, CPU)


# -- relative actions -------------------------------------------------------------------------

NAMES = ["a.pos", "b.pos", "c.pos", "d.pos", "e.pos", "f.pos", "Gripper.pos"]


def make_relative(folder: Path, **settings) -> Path:
    """Switches relative actions on in both processors' files."""
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        path = folder / name
        steps = json.loads(path.read_text())["steps"]
        for step in steps:
            if step["registry_name"] == "relative_actions_processor":
                step["config"].update({"enabled": True, **settings})
            if step["registry_name"] == "absolute_actions_processor":
                step["config"]["enabled"] = True
        edit(path, steps=steps)
    return folder


def test_relative_actions_begin_at_the_state_but_for_excluded_joints(reference, copy):
    cases = reference.cases
    policy = load_policy(make_relative(copy, action_names=NAMES), CPU)
    moved = cases["0/state"][:7] * (np.arange(7) < 6)  # the gripper stays absolute
    np.testing.assert_allclose(answer(policy, cases), cases["0/actions"] + moved, atol=1e-4)

    seen, old = observation(cases, "0"), cases["0/actions"][3:20]
    after = Continuation(old + moved, 2)
    a = policy._continued(seen, after)[0]
    b = reference.policy._continued(seen, Continuation(old, 2))[0]
    x = torch.zeros(1, 50, 32)
    torch.testing.assert_close(a(x, x, 0.5), b(x, x, 0.5), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "settings, relative",
    [({"exclude_joints": [], "action_names": NAMES}, 7), ({"action_names": None}, 7)],
)
def test_without_names_or_exclusions_all_actions_are_relative(copy, settings, relative):
    make_relative(copy, **settings)
    assert sum(LeRobotCheckpoint.read(copy).relative) == relative


def test_relative_actions_that_are_not_told_completely_are_refused(copy):
    make_relative(copy, action_names=NAMES[:3])
    with pytest.raises(CheckpointError, match="are not the names of 7 numbers"):
        check_policy(copy, CPU)
    make_relative(copy, action_names=NAMES, enabled=False)
    with pytest.raises(CheckpointError, match="is enabled without the other"):
        check_policy(copy, CPU)


# -- observations -----------------------------------------------------------------------------


def test_a_camera_beyond_the_empty_ones_may_not_be_missing(reference):
    seen = observation(reference.cases, "0")
    with pytest.raises(ObservationError, match="are missing; give one per camera"):
        reference.policy.act(Observation({}, "go", seen.state))
