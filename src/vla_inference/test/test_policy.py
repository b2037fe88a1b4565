"""Tests of the OpenVLA policy: actions in the right units, or an error that says why not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_inference.checkpoints.random_weights import HEADS, STATISTICS, write_random_checkpoint
from vla_inference.errors import ObservationError, VlaError
from vla_inference.policies.normalisation import find_statistics
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
STATE = np.linspace(-0.5, 0.5, 8, dtype=np.float32)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        head: OpenVLAPolicy.from_pretrained(write_random_checkpoint(folder / head, head=head))
        for head in HEADS
    }


def views(head: str, agent: np.ndarray, wrist: np.ndarray) -> dict[str, np.ndarray]:
    """As many images as a model with that head takes."""
    images = {"agent": agent, "wrist": wrist}
    return dict(list(images.items())[: HEADS[head].get("num_images", 1)])


def observation(head: str = "l1", **changes) -> Observation:
    images = views(head, IMAGE, IMAGE[::-1].copy())
    return Observation(**{"images": images, "instruction": "lift it", "state": STATE, **changes})


@pytest.mark.parametrize("head", HEADS)
def test_every_head_answers_within_its_bounds(policies, head):
    policy = policies[head]
    chunk = policy.predict_action(observation(head))
    assert chunk.actions.shape == (policy.config.head.chunk, 7)
    assert chunk.actions.dtype == np.float32
    if policy.config.head.type == "tokens":
        low, high = (np.array(STATISTICS["random"]["action"][q]) for q in ("q01", "q99"))
        assert (chunk.actions >= low - 1e-6).all() and (chunk.actions <= high + 1e-6).all()
        assert chunk.tokens.shape == chunk.actions.shape
        assert (chunk.tokens >= 576 - 256).all() and (chunk.tokens < 576).all()
    else:
        assert (chunk.tokens is not None) == (head == "vq")  # whose codes are tokens
    assert chunk.spec.rotation == "rotvec" and chunk.spec.dt == 0.05
    stages = ["prefill", "decode"] if head in ("tokens", "vq") else ["language"]
    assert list(chunk.timing) == ["preprocess", "vision", *stages, "total"]
    assert sum(chunk.timing.values()) - chunk.timing["total"] <= chunk.timing["total"]


@pytest.mark.parametrize("head", HEADS)
def test_the_same_input_gives_the_same_actions(policies, head):
    first = policies[head].predict_action(observation(head)).actions
    policies[head].predict_action(observation(head, instruction="something else"))
    np.testing.assert_array_equal(policies[head].predict_action(observation(head)).actions, first)


@pytest.mark.parametrize("head", HEADS)
def test_image_and_sentence_both_matter(policies, head):
    def tensors(obs):
        policy = policies[head]
        pixels = torch.from_numpy(policy.preprocess(list(obs.images.values())))[None]
        proprio = torch.zeros(1, 8) if policy.config.head.proprio_dim else None
        with torch.inference_mode():
            context = policy.model.context(policy._ids(obs.instruction), pixels, proprio)
            if policy.config.head.decoding == "parallel":
                return policy.model.action_hidden(context)
            return policy.model.action_logits(policy.model.prefill(context)[0])

    plain = tensors(observation(head))
    other_image = tensors(observation(head, images=views(head, 255 - IMAGE, IMAGE)))
    other_text = tensors(observation(head, instruction="drop it"))
    assert not torch.allclose(plain, other_image, atol=1e-3)
    assert not torch.allclose(plain, other_text, atol=1e-3)


def test_a_bare_image_will_do(policies):
    a = policies["l1"].predict_action(IMAGE, "lift it").actions
    b = policies["l1"].predict_action(observation()).actions
    np.testing.assert_array_equal(a, b)


def test_case_and_white_space_of_the_instruction_do_not_matter(policies):
    a = policies["l1"].predict_action(IMAGE, "  Lift \n it ").actions
    b = policies["l1"].predict_action(IMAGE, "lift it").actions
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"instruction": ""}, "instruction is empty"),
        ({"instruction": " \n\t"}, "instruction is empty"),
        ({"instruction": "a" * 1001}, "1001 characters"),
        ({"images": {}}, "got 0"),
        ({"images": {"a": IMAGE.astype(np.float32)}}, "dtype float32"),
        ({"images": {"a": IMAGE.astype(np.uint16)}}, "dtype uint16"),
        ({"images": {"a": IMAGE[..., 0]}}, r"shape \(48, 64\)"),
        ({"images": {"a": IMAGE.transpose(2, 0, 1)}}, "shape"),
        ({"images": {"a": np.dstack([IMAGE, IMAGE[..., :1]])}}, "shape"),
        ({"images": {"a": IMAGE[:8]}}, "64x8 pixels"),
        ({"images": {"a": np.zeros((0, 0, 3), np.uint8)}}, "0x0 pixels"),
        ({"images": {"a": [[1, 2, 3]]}}, "list"),
        ({"images": {"a": None}}, "NoneType"),
    ],
)
def test_bad_observations_are_refused_by_name(policies, changes, words):
    with pytest.raises(ObservationError, match=words):
        policies["l1"].predict_action(observation(**changes))


def test_something_that_is_no_observation_is_refused(policies):
    with pytest.raises(ObservationError, match="image is a list"):
        policies["l1"].predict_action({"image": [1, 2]}, "lift it")


@pytest.mark.parametrize("state", [None, STATE[:7], np.full(8, np.nan)])
def test_a_missing_short_or_broken_state_is_refused(policies, state):
    with pytest.raises(ObservationError, match="state"):
        policies["l1-two-cameras"].predict_action(observation("l1-two-cameras", state=state))


def test_one_image_where_two_are_needed_is_refused(policies):
    with pytest.raises(ObservationError, match="needs 2 images, got 1"):
        policies["l1-two-cameras"].predict_action(observation(images={"agent": IMAGE}))


def test_images_beyond_those_it_takes_are_refused_not_dropped(policies):
    two = observation("l1-two-cameras")
    with pytest.raises(ObservationError, match=r"needs 1 images, got 2 \(agent, wrist\)"):
        policies["l1"].predict_action(two)
    with pytest.raises(ObservationError, match="and no others"):
        policies["l1"].predict_batch([observation(), two])


def test_an_unknown_unnorm_key_is_refused_with_the_known_ones(policies):
    with pytest.raises(VlaError, match=r"'bridge'.*known: random, normalized"):
        policies["l1"].predict_action(observation(), unnorm_key="bridge")


def test_several_statistics_need_a_choice(tmp_path):
    two = {"here": STATISTICS["random"], "there": STATISTICS["random"]}
    policy = OpenVLAPolicy.from_pretrained(write_random_checkpoint(tmp_path, statistics=two))
    with pytest.raises(VlaError, match="choose one of: here, there"):
        policy.predict_action(observation())
    assert len(policy.predict_action(observation(), unnorm_key="there")) == 8


def test_statistics_may_be_given_themselves(policies):
    wide = {"q01": [-2.0] * 7, "q99": [2.0] * 7}
    by_hand = policies["l1"].predict_action(observation(), unnorm_key=wide).actions
    normal = policies["l1"].predict_action(observation(), unnorm_key="normalized").actions
    np.testing.assert_allclose(by_hand[:, :6], 2 * normal[:, :6], rtol=1e-5)


def test_statistics_of_another_size_are_refused(policies):
    six = {"q01": [-1.0] * 6, "q99": [1.0] * 6}
    with pytest.raises(VlaError, match="6 dimensions, the model's actions 7"):
        policies["l1"].predict_action(observation(), unnorm_key=six)


@pytest.mark.parametrize("head", ["l1", "tokens", "parallel"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_goes_wild_is_refused(tmp_path, head, value):
    policy = OpenVLAPolicy.from_pretrained(write_random_checkpoint(tmp_path, head=head))
    policy.model.language_model.model.norm.weight.fill_(value)
    with pytest.raises(VlaError, match="not finite"):
        policy.predict_action(observation(head))


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:99", "cpu:x", ""])
def test_devices_that_are_not_there_are_refused(tmp_path, name):
    folder = write_random_checkpoint(tmp_path)
    if name == "" or (name == "cuda" and torch.cuda.is_available()):
        assert OpenVLAPolicy.from_pretrained(folder, device=name).device.type in ("cpu", "cuda")
        return
    with pytest.raises(VlaError, match=f"device {name!r}"):
        OpenVLAPolicy.from_pretrained(folder, device=name)


def test_an_unknown_dtype_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(VlaError, match="known: float32, bfloat16"):
        OpenVLAPolicy.from_pretrained(write_random_checkpoint(tmp_path), dtype="int4")


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_answers_like_float32(tmp_path, head, policies):
    folder = write_random_checkpoint(tmp_path, head=head)
    policy = OpenVLAPolicy.from_pretrained(folder, device="cpu", dtype="bfloat16")
    chunk = policy.predict_action(observation(head))
    assert np.isfinite(chunk.actions).all()
    if policy.config.head.type == "l1":
        exact = policies[head].predict_action(observation(head)).actions
        assert np.abs(chunk.actions - exact).max() < 0.1 * np.abs(exact).max()


# -- ways of asking ---------------------------------------------------------------------------


def test_action_space_and_unnorm_key_are_one_thing(policies):
    policy = policies["l1"]
    a = policy.predict_action(observation(), action_space="normalized").actions
    b = policy.predict_action(observation(), unnorm_key="normalized").actions
    np.testing.assert_array_equal(a, b)
    with pytest.raises(VlaError, match="both action_space and unnorm_key"):
        policy.predict_action(observation(), action_space="random", unnorm_key="random")


def test_suites_of_libero_are_found_by_their_plain_name():
    spaces = {"libero_goal_no_noops": {"action": {"q01": 1}}}
    assert find_statistics(spaces, "libero_goal")[0] == "libero_goal_no_noops"


def test_statistics_given_themselves_bring_their_own_spec(policies):
    own = {"action": STATISTICS["random"]["action"], "spec": {"rotation": "rpy", "dt": 0.5}}
    chunk = policies["l1"].predict_action(observation(), action_space=own)
    assert (chunk.spec.rotation, chunk.spec.dt) == ("rpy", 0.5)


@pytest.mark.parametrize("head", HEADS)
def test_tensors_hold_the_same_numbers(policies, head):
    arrays_ = policies[head].predict_action(observation(head))
    tensors = policies[head].predict_action(observation(head), return_tensors="pt")
    assert isinstance(tensors.actions, torch.Tensor)
    assert tensors.actions.dtype == torch.float32 and not tensors.actions.requires_grad
    np.testing.assert_array_equal(tensors.actions.numpy(), arrays_.actions)


def test_unknown_tensors_are_refused(policies):
    with pytest.raises(VlaError, match="'np' or 'pt'"):
        policies["l1"].predict_action(observation(), return_tensors="tf")


@pytest.mark.parametrize("head", HEADS)
def test_streamed_dimensions_are_those_of_the_chunk(policies, head):
    policy = policies[head]
    wanted = policy.predict_action(observation(head))
    heard = []
    chunk = policy.predict_action(observation(head), stream=heard.append)
    np.testing.assert_array_equal(chunk.actions, wanted.actions)
    assert [(p.step, p.index) for p in heard] == list(np.ndindex(wanted.actions.shape))
    values = np.array([p.value for p in heard], np.float32).reshape(wanted.actions.shape)
    np.testing.assert_array_equal(values, wanted.actions)
    assert [p.dim for p in heard[:7]] == list(wanted.spec.dims)
    assert list(chunk.timing) == list(wanted.timing)


def test_a_stream_may_be_left_early_and_leaves_gradients_alone(policies):
    parts = policies["tokens"].stream_action(observation())
    next(parts)
    assert not torch.is_inference_mode_enabled()
    next(parts)
    parts.close()
    assert policies["tokens"].predict_action(observation()).actions.shape == (1, 7)


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_answers_like_each_alone(policies, head):
    policy = policies[head]
    several = [
        observation(head),
        observation(head, instruction="stack the red block on the green one"),
        observation(head, images=views(head, 255 - IMAGE, IMAGE)),
    ]
    together = policy.predict_batch(several)
    for chunk, one in zip(together, several, strict=True):
        alone = policy.predict_action(one)
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-5)
        if alone.tokens is not None:
            np.testing.assert_array_equal(chunk.tokens, alone.tokens)
    assert policy.predict_batch([]) == []
    same = policy.predict_batch([observation(head)] * 2, "drop it")
    np.testing.assert_array_equal(same[0].actions, same[1].actions)
    with pytest.raises(ObservationError, match="2 observations came with 1 instructions"):
        policy.predict_batch([observation(head)] * 2, ["drop it"])


@pytest.mark.parametrize("head", ["tokens", "parallel"])
def test_tokens_that_all_of_the_vocabulary_would_have_changed_are_counted(tmp_path, head):
    policy = OpenVLAPolicy.from_pretrained(write_random_checkpoint(tmp_path, head=head))
    total = policy.config.head.chunk * 7
    assert policy.predict_action(observation(head)).unrestricted is None
    weight = policy.model.language_model.lm_head.weight
    weight[: 576 - 256] = 0  # never the most likely, as long as one of the 256 is above 0
    chunk = policy.predict_action(observation(head), count_unrestricted=True)
    assert chunk.unrestricted == 0
    weight[:] = torch.cat([weight[-256:] * 10, weight[256:]])  # every bin has a louder rival
    loud = policy.predict_action(observation(head), count_unrestricted=True)
    assert loud.unrestricted == total
    np.testing.assert_array_equal(loud.actions, chunk.actions)
    streamed = policy.predict_action(
        observation(head), count_unrestricted=True, stream=lambda part: None
    )
    assert streamed.unrestricted == total


@pytest.mark.parametrize(
    "text", ["把红色方块放在绿色方块上", "اِرفعِ المكعّب", "🤖 lift { it } \\ %s {instruction}"]
)
def test_other_scripts_and_odd_characters_are_words_too(policies, text):
    chunk = policies["l1"].predict_action(IMAGE, text)
    assert np.isfinite(chunk.actions).all()


def test_an_endless_instruction_is_refused(policies):
    with pytest.raises(ObservationError, match="5000 characters"):
        policies["l1"].predict_action(IMAGE, "a" * 5000)
