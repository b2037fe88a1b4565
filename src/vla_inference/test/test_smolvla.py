"""SmolVLA against the original code on reference cases (data/smolvla/README.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_reference import DATA, error_of, smolvla_weight, write_checkpoint
from safetensors.numpy import load_file, save_file

from vla_inference.errors import CheckpointError, ObservationError, VlaError
from vla_inference.policies.base import LoadOptions
from vla_inference.policies.chunking import TRAINED, Continuation, RealTimeChunking
from vla_inference.policies.lerobot.rtc import guidance_weight, prefix_weights
from vla_inference.policies.registry import check_policy, describe_policy, load_policy
from vla_inference.types import Observation

CASES = np.load(DATA / "smolvla" / "cases.npz")
CPU = LoadOptions(device="cpu")
NAMES = {1: "front", 2: "wrist"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smolvla") / "model"
    return write_checkpoint(folder, "smolvla", smolvla_weight)


@pytest.fixture(scope="module")
def policy(folder):
    return load_policy(folder, CPU)


def observation(case: str) -> Observation:
    images = {
        name: CASES[f"{case}/image.{name}"]
        for name in ("camera1", "camera2")
        if f"{case}/image.{name}" in CASES
    }
    return Observation(images, str(CASES[f"{case}/instruction"]), CASES[f"{case}/state"])


@pytest.mark.parametrize("case", "0123")
def test_the_inputs_are_those_of_the_original(policy, case):
    found = policy.inputs([observation(case)])
    length = int(CASES[f"{case}/token_mask"].sum())
    assert policy.prompt(str(CASES[f"{case}/instruction"]), None) == str(CASES[f"{case}/prompt"])
    assert found.words[0].tolist() == CASES[f"{case}/tokens"][:length].tolist()
    np.testing.assert_allclose(found.state[0], CASES[f"{case}/state_in"], atol=1e-6)
    pixels = found.images[0, :, :, ::9, ::9]
    np.testing.assert_allclose(pixels, CASES[f"{case}/pixels"][: len(pixels)], atol=1e-4)
    assert len(pixels) == CASES[f"{case}/image_masks"].sum()


@torch.inference_mode()
@pytest.mark.parametrize("case", "0123")
def test_the_prefix_and_the_first_step_are_those_of_the_original(policy, case):
    model, inputs = policy.model, policy.inputs([observation(case)])
    seen = model.vision(inputs.images[0])
    assert error_of(seen[:, ::41], CASES[f"{case}/vision_hidden"][: len(seen)]) < 2e-5
    tokens = model.embed_images(inputs.images[0])
    assert error_of(tokens[:, ::5], CASES[f"{case}/image_embeds"][: len(seen)]) < 2e-5
    prefix = model.prefix(*model.embed(*inputs), hidden=True)
    # Masked tokens are left out here, which changes the rank of those that are compared
    rank = np.cumsum(CASES[f"{case}/prefix_pad"])[CASES[f"{case}/prefix_index"]] - 1
    assert error_of(prefix.hidden[0, rank], CASES[f"{case}/prefix_hidden"]) < 2e-5
    assert error_of(prefix.keys[1][0][:, rank], CASES[f"{case}/key"]) < 2e-5
    assert error_of(prefix.values[1][0][:, rank], CASES[f"{case}/value"]) < 2e-5
    noise, time = torch.from_numpy(CASES[f"{case}/noise"])[None], torch.ones(1)
    first = model.embed_actions(noise, time)
    assert error_of(first[0, ::3], CASES[f"{case}/suffix_embeds_first"]) < 3e-5
    hidden = model.velocity(noise, time, prefix, hidden=True)
    assert error_of(hidden[0, ::3], CASES[f"{case}/suffix_hidden_first"]) < 3e-5
    assert error_of(model.velocity(noise, time, prefix)[0], CASES[f"{case}/v_first"]) < 3e-5


@pytest.mark.parametrize("case", "0123")
def test_the_actions_are_those_of_the_original(policy, case):
    (chunk,) = policy.predict_batch([observation(case)], noise=CASES[f"{case}/noise"][None])
    assert error_of(chunk.actions, CASES[f"{case}/actions"]) < 2e-5


def test_bfloat16_answers_nearly_the_same(folder):
    policy = load_policy(folder, LoadOptions(device="cpu", dtype="bfloat16"))
    (chunk,) = policy.predict_batch([observation("0")], noise=CASES["0/noise"][None])
    assert error_of(chunk.actions, CASES["0/actions"]) < 0.05


def test_a_batch_gives_what_its_observations_give_one_by_one(policy):
    cases = ["0", "2", "3"]  # of prompts of different lengths
    noise = np.stack([CASES[f"{c}/noise"] for c in cases])
    chunks = policy.predict_batch([observation(c) for c in cases], noise=noise)
    for chunk, case in zip(chunks, cases, strict=True):
        assert error_of(chunk.actions, CASES[f"{case}/actions"]) < 2e-5
    with pytest.raises(ObservationError, match="different cameras"):
        policy.predict([observation("0"), observation("1")])


@pytest.mark.parametrize("name", ["rtc0", "rtc1", "rtc2"])
def test_real_time_chunking_is_that_of_the_original(policy, name):
    case = CASES[name + "/case"]
    action = policy.checkpoint.normalisers["action"]
    after = Continuation(
        action.denormalise(CASES[name + "/prev"]),
        int(CASES[name + "/inference_delay"]),
        RealTimeChunking(
            int(CASES[name + "/execution_horizon"]),
            float(CASES[name + "/max_guidance_weight"]),
            str(CASES[name + "/schedule"]),
        ),
    )
    noise = CASES[name + "/noise"][None]
    (chunk,) = policy.predict_batch([observation(str(case))], noise=noise, after=after)
    assert error_of(chunk.actions, CASES[name + "/actions"]) < 2e-5


def test_weights_of_real_time_chunking_are_those_of_the_original():
    for key in (k for k in CASES if k.startswith("weights/")):
        _, schedule, numbers = key.split("/")
        delay, horizon, length = map(int, numbers.split("-"))
        found = prefix_weights(delay, horizon, length, schedule)
        np.testing.assert_allclose(found, CASES[key], atol=1e-6, err_msg=key)
    times = [1 - i / 10 for i in range(10)]
    found = [guidance_weight(t, 10.0) for t in times]
    np.testing.assert_allclose(found, CASES["rtc0/guidance_weights"], rtol=1e-5)


@torch.inference_mode()
def test_actions_may_have_times_of_their_own(policy):
    inputs, noise = policy.inputs([observation("0")]), torch.from_numpy(CASES["0/noise"])[None]
    velocity = policy.begin(inputs)
    same = velocity(noise, torch.full((1, 50), 0.5))
    torch.testing.assert_close(same, velocity(noise, torch.full((1,), 0.5)))
    times = torch.full((1, 50), 0.5)
    times[:, :4] = 0
    assert error_of(velocity(noise, times)[0], same[0]) > 1e-3


def test_a_model_trained_for_real_time_chunking_holds_the_executed_steps(policy, monkeypatch):
    """`rtc_training_max_delay` of the configuration says how many at most."""
    old = policy.checkpoint.normalisers["action"].denormalise(CASES["rtc0/prev"])
    noise, form = CASES["0/noise"][None], RealTimeChunking(form=TRAINED)

    def answer(delay: int) -> np.ndarray:
        after = Continuation(old, delay, form)
        (chunk,) = policy.predict_batch([observation("0")], noise=noise, after=after)
        return chunk.actions

    with pytest.raises(VlaError, match="takes no chunking 'rtc_trained'; it takes rtc"):
        answer(3)
    monkeypatch.setattr(policy, "chunking", ("rtc", TRAINED))
    monkeypatch.setattr(policy, "trained_delay", 4)
    assert error_of(answer(0), CASES["0/actions"]) < 2e-5
    for delay, held in ((3, 3), (9, 4)):
        found = answer(delay)
        np.testing.assert_allclose(found[:held], old[:held], atol=1e-4)
        assert np.abs(found[held] - old[held]).max() > 1e-2
        assert error_of(found[held:], CASES["0/actions"][held:]) > 1e-4  # the rest goes by them


# -- how it is run ----------------------------------------------------------------------------


@pytest.mark.parametrize("format, gate", [("int8", 0.02), ("int4-g32", 0.15)])
def test_a_quantised_language_model_answers_nearly_the_same(folder, format, gate):
    policy = load_policy(folder, LoadOptions(device="cpu", quantization=format))
    (chunk,) = policy.predict_batch([observation("0")], noise=CASES["0/noise"][None])
    assert 1e-6 < error_of(chunk.actions, CASES["0/actions"]) < gate
    assert policy.name == f"model:{format}"


def test_an_engine_answers_what_fits_it(policy, monkeypatch):
    class Engine:
        """Answers with the noise, one observation at a time."""

        def fits(self, inputs):
            return len(inputs.words) == 1

        def begin(self, inputs):
            return lambda noise, guide, held: noise

        def warm_up(self):
            self.warm = True

    monkeypatch.setattr(policy, "engine", Engine())
    assert policy.warm_up() > 0 and policy.engine.warm
    noise = np.stack([CASES[f"{c}/noise"] for c in "02"])
    (chunk,) = policy.predict_batch([observation("0")], noise=noise[:1])
    actions = policy.checkpoint.normalisers["action"].denormalise(noise[0, :, :6])
    np.testing.assert_allclose(chunk.actions, actions, atol=1e-5)
    chunks = policy.predict_batch([observation(c) for c in "02"], noise=noise)
    assert error_of(chunks[0].actions, CASES["0/actions"]) < 2e-5


# -- the door, and what is refused ----------------------------------------------------------------


def test_the_family_is_found_described_and_checked(folder):
    contract = check_policy(folder, CPU)
    assert contract.needs.cameras == ("camera1", "camera2") and contract.needs.state == 6
    assert load_policy(folder, CPU).chunking == ("rtc",)
    assert contract.chunk == 50 and len(contract.spec) == 6
    assert contract.spec.parts[0].kind == "unknown"  # the checkpoint does not say
    told = describe_policy(folder)
    assert told.values["family"] == "smolvla" and "camera1, camera2" in str(told)


def test_vla_json_says_what_the_actions_are(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    joints = [{"name": f"joint_{i}", "unit": "rad"} for i in range(5)]
    parts = [
        {"name": "arm", "kind": "joint_position", "dims": joints},
        {"name": "gripper", "kind": "gripper", "dims": [{"name": "gripper", "unit": "1"}]},
    ]
    (copy / "vla.json").write_text(json.dumps({"actions": {"dt": 0.02, "parts": parts}}))
    spec = check_policy(copy, CPU).spec
    assert [p.kind for p in spec.parts] == ["joint_position", "gripper"] and spec.dt == 0.02
    (copy / "vla.json").write_text(json.dumps({"actions": {"parts": parts[:1]}}))
    with pytest.raises(CheckpointError, match="names 5 numbers of an action, the model gives 6"):
        check_policy(copy, CPU)


def test_statistics_in_the_weights_of_older_checkpoints_are_read(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    for path in copy.glob("policy_*"):
        path.unlink()
    weights = load_file(copy / "model.safetensors")
    for feature, places in (
        ("observation.state", ["normalize_inputs"]),
        ("action", ["normalize_targets", "unnormalize_outputs"]),
    ):
        for place in places:
            for name in ("mean", "std"):
                key = f"{place}.buffer_{feature.replace('.', '_')}.{name}"
                weights[key] = CASES[f"stats/{feature}.{name}"]
    save_file(weights, copy / "model.safetensors")
    policy = load_policy(copy, CPU)
    (chunk,) = policy.predict_batch([observation("0")], noise=CASES["0/noise"][None])
    assert error_of(chunk.actions, CASES["0/actions"]) < 2e-5


def test_a_robots_other_camera_names_go_by_the_rename_map(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    path = copy / "policy_preprocessor.json"
    steps = json.loads(path.read_text())
    to = {f"observation.images.{n}": f"observation.images.camera{i}" for i, n in NAMES.items()}
    steps["steps"][0]["config"]["rename_map"] = to
    path.write_text(json.dumps(steps))
    assert check_policy(copy, CPU).needs.cameras == ("front", "wrist")


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"attention_mode": "self_attn"}, "attention_mode is 'self_attn'; only 'cross_attn'"),
        ({"use_delta_joint_actions_aloha": True}, "use_delta_joint_actions_aloha is True"),
        ({"vlm_model_name": "other/vlm"}, "does not say the sizes of other/vlm; copy its config"),
        ({"num_expert_layers": 3}, "3 layers of the expert for 4 of the language model"),
        ({"max_action_dim": 4}, "do not fit a network for 32 and 4"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused_by_name(
    folder, tmp_path, change, problem
):
    copy = copy_of(folder, tmp_path)
    if "vlm_model_name" in change:
        (copy / "vlm_config.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=problem):
        check_policy(copy, CPU)


def test_missing_parts_of_a_checkpoint_are_named(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"copy tokenizer\.json of HuggingFaceTB/SmolVLM2"):
        load_policy(copy, CPU)
    (copy / "policy_preprocessor_step_5_normalizer_processor.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"normalizer_processor\.safetensors is missing"):
        check_policy(copy, CPU)


def test_weights_that_are_not_finite_are_refused_by_name(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    weights = load_file(copy / "model.safetensors")
    weights["model.state_proj.weight"][3, 1] = np.inf
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.state_proj\.weight contains numbers that"):
        load_policy(copy, CPU)


def test_a_base_model_without_statistics_is_refused(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    path = copy / "policy_postprocessor.json"
    steps = json.loads(path.read_text())
    del steps["steps"][0]["state_file"]
    path.write_text(json.dumps(steps))
    with pytest.raises(CheckpointError, match="has no mean and std of action; it is a base model"):
        check_policy(copy, CPU)


def test_a_step_of_the_processors_that_is_unknown_is_refused(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    path = copy / "policy_preprocessor.json"
    steps = json.loads(path.read_text())
    steps["steps"].insert(0, {"registry_name": "crop_processor", "config": {}})
    path.write_text(json.dumps(steps))
    with pytest.raises(CheckpointError, match="has the step crop_processor, which is not support"):
        check_policy(copy, CPU)


def test_observations_that_do_not_fit_are_refused(policy):
    good = observation("0")
    with pytest.raises(ObservationError, match="takes 6 numbers of state, 5 came"):
        policy.act(Observation(good.images, "go", good.state[:5]))
    with pytest.raises(ObservationError, match="some are not finite"):
        policy.act(Observation(good.images, "go", np.full(6, np.nan)))
    with pytest.raises(ObservationError, match="has no camera 'top'; it takes camera1"):
        policy.act(Observation({"top": good.images["camera1"]}, "go", good.state))
    with pytest.raises(ObservationError, match="camera1, camera2 are missing"):
        policy.act(Observation({}, "go", good.state))


def test_a_seed_repeats_answers(policy):
    policy.seed(5)
    first = policy.act(observation("3")).actions
    assert not np.array_equal(first, policy.act(observation("3")).actions)
    policy.seed(5)
    assert np.array_equal(first, policy.act(observation("3")).actions)


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))
