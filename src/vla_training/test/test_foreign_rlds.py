"""Tests of RLDS datasets in the layouts of Open X-Embodiment."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
from foreign_files import scene
from foreign_rlds import COUNT, SENTENCE, bridge, dictionary, image, oxe, rt1, tensor, vectors

from vla_inference.errors import DataError, VlaError
from vla_inference.policies.action_specs import KNOWN, in_si, statistics_spec
from vla_inference.types import ActionChunk
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.datasets.rlds.transforms import CONVENTIONS, open_again

SEVEN = tensor("float32", 7)


def test_the_sentence_is_found_where_oxe_has_it(tmp_path):
    path = oxe(tmp_path, "cable_routing", SEVEN, {"action": vectors()})
    data = open_dataset(path)
    assert data[0].instructions == [SENTENCE] * COUNT
    assert data.left_out() == ["observation/natural_language_embedding", "discount"]
    np.testing.assert_array_equal(data.actions(0).astype(np.float32), vectors())
    seen = data[0].steps[3].observation.images["image"]
    assert np.abs(seen.astype(int) - scene(3)).mean() < 3
    convert(path, tmp_path / "out", "lerobot", workers=1)
    assert open_dataset(tmp_path / "out")[0].instructions == [SENTENCE] * COUNT


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_sentence_of_one_entry_is_a_sentence(tmp_path, shape):
    seen = {"natural_language_instruction": tensor("string", *shape)}
    data = open_dataset(oxe(tmp_path, "other", SEVEN, {"action": vectors()}, seen))
    assert data[0].instructions == [SENTENCE] * COUNT


def test_rt1_is_joined_as_openvla_joins_it(tmp_path):
    data = open_dataset(rt1(tmp_path))
    actions = data.actions(0)
    way = np.random.default_rng(0).uniform(-0.02, 0.02, (COUNT, 3))
    np.testing.assert_allclose(actions[:, :3], way, atol=1e-7)
    np.testing.assert_allclose(actions[:, 3:6], 2 * way, atol=1e-7)
    assert actions[:, 6].tolist() == [1, 0, 0, 0, 1, 1]
    assert data.spec == KNOWN["fractal20220817_data"] and data.spec.dt == 1 / 3
    left = data.left_out()
    assert "action/base_displacement_vector" in left and "action/world_vector" not in left
    assert data[0].instructions == [SENTENCE] * COUNT


@pytest.mark.parametrize(
    "moves, states",
    [
        ([0, 0, 0], [1, 1, 1]),  # never moves: open
        ([0, -1, 0], [0, 1, 1]),  # what opens was closed
        ([0, 0.05, 1], [1, 1, 0]),  # too small to be a move
        ([], []),
    ],
)
def test_relative_grippers_add_up(moves, states):
    assert open_again(np.array(moves, float)).tolist() == states


def test_bridge_of_open_x_embodiment_moves_by_its_states(tmp_path):
    data = open_dataset(bridge(tmp_path))
    state = np.cumsum(np.arange(7 * COUNT).reshape(COUNT, 7), 0) / 1000
    np.testing.assert_allclose(data.actions(0)[:, :6], np.diff(state, axis=0)[1:, :6], atol=1e-6)
    assert data.actions(0)[:, 6].tolist() == [1, 1, 0, 0]
    assert data.cameras() == ["image"] and "difference of states" in data.notes[0]


def test_a_dictionary_of_an_unknown_name_is_told_which_conventions_join_it(tmp_path):
    path = rt1(tmp_path, "my_robot")
    with pytest.raises(DataError, match=r"is a dictionary of world_vector, .* known for 'my_rob"):
        open_dataset(path)
    with pytest.raises(DataError, match="--conventions fractal20220817_data or kuka or"):
        open_dataset(path)
    assert len(open_dataset(path, conventions="viola")[0]) == COUNT
    kinds, values = dictionary({"joint_velocity": np.zeros((COUNT, 7), np.float32)})
    with pytest.raises(
        DataError, match=r"of joint_velocity, .*; convert its actions to one vector"
    ):
        open_dataset(oxe(tmp_path, "joints", kinds, values))


def test_a_known_name_in_another_form_is_read_as_an_unknown_one(tmp_path):
    data = open_dataset(oxe(tmp_path, "bridge_of_mine", SEVEN, {"action": vectors()}))
    assert "no conventions are known for 'bridge_of_mine'" in data.notes[0]


def test_depth_images_are_left_out_by_name(tmp_path):
    seen = {"depth": image(64, 64, 1, dtype="uint16", encoding="png")}
    stored = {"observation/depth": [b"\x89PNG"] * COUNT}
    data = open_dataset(oxe(tmp_path, "other", SEVEN, {"action": vectors()}, seen, stored))
    assert data.cameras() == ["image"] and "observation/depth" in data.left_out()
    assert len(data[0].steps) == COUNT and dict(data[0].steps[0].observation.images)


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_actions_and_images_as_tensors_however_they_are_encoded(tmp_path, encoding):
    pack = {"zlib": zlib.compress, "bytes": bytes, "none": None}[encoding]

    def stored(rows):
        return rows if pack is None else [pack(r.tobytes()) for r in rows]

    images = np.stack([scene(t) for t in range(COUNT)])
    path = oxe(
        tmp_path,
        "other",
        tensor("float32", 7, encoding=encoding),
        {"action": stored(vectors()), "observation/top": stored(images)},
        {"top": tensor("uint8", 64, 64, 3, encoding=encoding)},
    )
    data = open_dataset(path)
    np.testing.assert_array_equal(data.actions(0).astype(np.float32), vectors())
    assert data.cameras() == ["image", "top"]
    np.testing.assert_array_equal(data[0].steps[4].observation.images["top"], scene(4))
    convert(path, tmp_path / "out.hdf5", "hdf5", workers=1)
    again = open_dataset(tmp_path / "out.hdf5")
    np.testing.assert_array_equal(again[0].steps[4].observation.images["top"], scene(4))


def test_a_broken_encoding_says_so(tmp_path):
    good = [zlib.compress(row.tobytes()) for row in vectors()]
    for bad, why in ((b"no zlib", "incorrect header"), (zlib.compress(bytes(10**6)), "29 bytes")):
        path = oxe(
            tmp_path / why[:2],
            "other",
            tensor("float32", 7, encoding="zlib"),
            {"action": [*good[:-1], bad]},
        )
        with pytest.raises(DataError, match=f"'steps/action' is not a zlib of float32 .*{why}"):
            open_dataset(path).actions(0)


def test_what_is_no_vector_is_told_what_it_is(tmp_path):
    for number, (feature, values, why) in enumerate(
        [
            (tensor("string"), [b"left"] * COUNT, r"it is not a vector \(text\)"),
            (tensor("bfloat16", 7), vectors(), "it is of a kind that is not read"),
        ]
    ):
        with pytest.raises(DataError, match=why):
            open_dataset(oxe(tmp_path / str(number), "other", feature, {"action": values}))


def test_without_a_sentence_one_is_asked_for(tmp_path):
    seen = {"natural_language_instruction": tensor("float32", 512)}
    empty = np.zeros((COUNT, 512), np.float32)
    path = oxe(
        tmp_path,
        "other",
        SEVEN,
        {"action": vectors()},
        seen,
        {"observation/natural_language_instruction": empty},
    )
    data = open_dataset(path)
    assert "has no sentences, only observation/natural_language" in " ".join(data.notes)
    with pytest.raises(DataError, match="has no sentence; give one for all steps with --instruct"):
        convert(path, tmp_path / "out", "rlds", workers=1)
    assert open_dataset(path, instruction="lift")[0].instructions == ["lift"] * COUNT


# -- one table for datasets and checkpoints ---------------------------------------------------


def test_datasets_and_checkpoints_mean_the_same_by_the_same_name():
    for name, conventions in CONVENTIONS.items():
        if name in KNOWN:
            assert statistics_spec({}, 7, name) == conventions.spec == KNOWN[name]
            assert statistics_spec({}, 7, name + "_no_noops") == conventions.spec
    assert set(CONVENTIONS) - set(KNOWN) == {"rlds_dataset_builder"}
    stated = {"spec": {"rotation": "rpy", "dt": 0.1}}
    assert statistics_spec(stated, 7, "libero_goal").dt == 0.1  # what is stated goes first
    assert len(statistics_spec({}, 14, "libero_goal")) == 14


def test_libero_is_never_published_as_metres():
    spec = statistics_spec({}, 7, "libero_spatial_no_noops")
    assert (spec.rotation, spec.dt, spec.dims[0].unit) == ("rotvec", 0.05, "0.05 m")
    sent = in_si(ActionChunk(np.array([[1, -0.5, 0, 1, 0, 0, 1]]), spec))
    np.testing.assert_allclose(sent.actions, [[0.05, -0.025, 0, 0.5, 0, 0, 1]])
    assert [d.unit for d in sent.spec.dims] == ["m"] * 3 + ["rad"] * 3 + ["1"]
    with pytest.raises(VlaError, match="are in unit unknown, of which no m and rad can be made"):
        in_si(ActionChunk(np.zeros((1, 7)), KNOWN["taco_play"]))
    with pytest.raises(VlaError, match=r"are in unit 1, .*; choose other statistics"):
        in_si(ActionChunk(np.zeros((1, 7)), statistics_spec({}, 7, "normalized")))


def test_libero_as_rlds_says_how_its_images_stand(tmp_path):
    path = oxe(tmp_path, "libero_goal_no_noops", SEVEN, {"action": vectors()})
    data = open_dataset(path)
    assert "turned by 180 degrees" in data.notes[0]
    assert data.spec.dims[0].unit == "0.05 m" and data.spec.dt == 0.05
    convert(path, tmp_path / "out", "rlds", workers=1)
    assert json.loads((tmp_path / "out/1.0.0/action_spec.json").read_text())["dt"] == 0.05
    assert open_dataset(tmp_path / "out").spec == data.spec
