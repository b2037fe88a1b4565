"""LIBERO's own HDF5 layout: published files are read right, ours are written as they are."""

import json

import h5py
import numpy as np
import pytest
from foreign_files import scene
from foreign_hdf5 import COUNT, LIBERO_TASKS, libero_generated, libero_published

from vla_inference.errors import DataError
from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.datasets.hdf5.libero_writer import robot_states
from vla_training.loader.frame_reader import FrameReader

NAME = "open_the_top_drawer_demo.hdf5"
# Names, shapes after [T] and types of a published demonstration.
PUBLISHED = {
    "actions": ((7,), "f8"),
    "dones": ((), "u1"),
    "rewards": ((), "u1"),
    "robot_states": ((9,), "f8"),
    "states": ((17,), "f8"),
    "obs/agentview_rgb": ((64, 64, 3), "u1"),
    "obs/ee_ori": ((3,), "f8"),
    "obs/ee_pos": ((3,), "f8"),
    "obs/ee_states": ((6,), "f8"),
    "obs/eye_in_hand_rgb": ((64, 64, 3), "u1"),
    "obs/gripper_states": ((2,), "f8"),
    "obs/joint_states": ((7,), "f8"),
}


@pytest.fixture
def generated(tmp_path):
    return libero_generated(tmp_path / "demo.hdf5")


# -- reading --------------------------------------------------------------------------------------


def test_a_published_file_is_read_with_each_action_after_what_was_seen(tmp_path):
    data = open_dataset(libero_published(tmp_path / NAME))
    assert "observations after its actions" in " ".join(data.notes)
    episode = data[0]
    assert len(episode) == len(data.actions(0)) == COUNT - 1
    with h5py.File(tmp_path / NAME) as file:
        stored = file["data/demo_0/actions"][:]
    for t, step in enumerate(episode.steps, start=1):  # the moments 1 ... COUNT - 1
        np.testing.assert_allclose(step.action[:3], 0.05 * stored[t, :3], rtol=1e-6)
        np.testing.assert_array_equal(step.observation.images["agentview"], scene(t))
        assert (
            step.observation.state.tolist()
            == np.float32([t] * 3 + [0, 3.5, t, 0.04, -0.04]).tolist()
        )
        assert episode.columns["states"][t - 1, 0] == pytest.approx(0.05 * t)
        assert episode.columns["obs/joint_states"][t - 1, 0] == pytest.approx(0.1 * t - 0.005)
    assert episode.terminal.tolist() == [False] * (COUNT - 2) + [True]
    images, text = FrameReader(data, ("eye_in_hand",), 1).read(0, 2)  # as training reads
    np.testing.assert_array_equal(images[0], scene(3))
    assert text == "open the top drawer"
    assert len(data.columns(0, ["agentview"])["agentview"].all()) == COUNT - 1


def test_the_sentence_is_that_of_the_name_but_in_perturbed_suites(tmp_path):
    plain = open_dataset(libero_published(tmp_path / NAME))
    assert set(plain[0].instructions) == {"open the top drawer"}
    (tmp_path / "lan").mkdir()
    perturbed = open_dataset(libero_published(tmp_path / "lan" / NAME, "libero_goal_lan"))
    assert set(perturbed[0].instructions) == {"open the top layer of the drawer"}


def test_images_are_mirrored_where_released_models_want_them(tmp_path):
    data = open_dataset(libero_published(tmp_path / NAME), mirrored=True)
    np.testing.assert_array_equal(
        data[0].steps[2].observation.images["agentview"], scene(3)[:, ::-1]
    )


# -- writing --------------------------------------------------------------------------------------


def test_a_file_per_task_in_the_published_layout(generated, tmp_path):
    done = convert(generated, tmp_path / "datasets", "libero", workers=1)
    assert done.left_out == [] and done.episodes == 3
    files = sorted(str(p.relative_to(done.path)) for p in done.path.rglob("*.hdf5"))
    assert files == [f"libero_goal/{task}_demo.hdf5" for task in LIBERO_TASKS]
    with h5py.File(done.path / files[1]) as file:
        data = file["data"]
        assert sorted(data) == ["demo_0", "demo_1"]
        assert (data.attrs["num_demos"], data.attrs["total"]) == (2, 2 * COUNT)
        assert data.attrs["macros_image_convention"] == "opengl"
        assert data.attrs["env_name"] == "Libero_Tabletop_Manipulation"
        bddl = "libero/libero/bddl_files/libero_goal/open_the_top_drawer.bddl"
        assert data.attrs["bddl_file_name"] == bddl
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "do 1"
        found = {}
        data["demo_1"].visititems(
            lambda name, item: (
                found.update({name: item}) if isinstance(item, h5py.Dataset) else None
            )
        )
        shapes = {n: (d.shape[1:], d.dtype.str[1:]) for n, d in found.items()}
        assert shapes == PUBLISHED
        with h5py.File(generated) as ours:
            before = ours["data/demo_2"]
            np.testing.assert_allclose(found["actions"], before["actions"], atol=1e-7)
            upright = before["obs/agentview_image"][3][:, ::-1]  # no longer mirrored
            np.testing.assert_array_equal(found["obs/agentview_rgb"][3], upright[::-1])
            np.testing.assert_array_equal(data["demo_1"].attrs["init_state"], before["states"][0])


@pytest.mark.parametrize("stated", [True, False])
def test_what_was_written_is_read_back_equal(generated, tmp_path, stated):
    convert(generated, tmp_path / "datasets", "libero", workers=1)
    again = list(open_dataset(tmp_path / "datasets", mirrored=True))
    source = list(open_dataset(generated))
    for there, here in zip(again, (source[i] for i in (1, 0, 2)), strict=True):
        np.testing.assert_array_equal(there.actions, here.actions)
        np.testing.assert_array_equal(there.states, here.states)
        assert there.instructions == here.instructions
        assert (there.rewards == here.rewards).all() and (there.terminal == here.terminal).all()
        np.testing.assert_array_equal(there.columns["states"], here.columns["states"])
        for name, ours in (("agentview", "agentview"), ("eye_in_hand", "robot0_eye_in_hand")):
            for one, two in zip(there.steps, here.steps, strict=True):
                np.testing.assert_array_equal(
                    one.observation.images[name], two.observation.images[ours]
                )
    # once more: what is not mirrored is written as it is, and what is, is turned again
    for mirrored in (False, True):
        other = tmp_path / f"again{mirrored}"
        reading = {"mirrored": mirrored}
        convert(tmp_path / "datasets", other, "libero", reading=reading, workers=1)
        folders = (tmp_path / "datasets", other)
        one, two = (h5py.File(f / "libero_goal" / NAME)["data/demo_0/obs"] for f in folders)
        np.testing.assert_array_equal(one["agentview_rgb"], two["agentview_rgb"])


def test_without_a_note_of_the_task_the_sentence_names_the_file(source, tmp_path):
    done = convert(
        source,
        tmp_path / "out",
        "libero",
        ConvertConfig(max_episodes=2),
        reading={"instruction": "Stack the red block, then wait."},
        writing={"mirrored": "no"},
        workers=1,
    )
    assert [p.name for p in done.path.iterdir()] == ["stack_the_red_block_then_wait_demo.hdf5"]
    assert any("no joint_states" in note for note in done.notes)
    assert open_dataset(done.path)[0].instructions[0] == "Stack the red block, then wait."


def test_what_another_task_asks_for_in_a_scene_has_a_file_of_its_own(generated, tmp_path):
    with h5py.File(generated, "a") as file:
        texts = file["data/demo_2/instructions"]
        texts[:] = ["close the drawer"] * COUNT
    convert(generated, tmp_path / "out", "libero", workers=1)
    names = sorted(p.name for p in (tmp_path / "out/libero_goal").iterdir())
    assert names == [f"{LIBERO_TASKS[0]}_demo.hdf5", "close_the_drawer_demo.hdf5", NAME]


@pytest.mark.parametrize(
    ("remap", "instruction", "problem"),
    [
        ({"wrist": None}, "go", "a camera in front and one at the hand, this has agentview"),
        ({"state": None}, "go", "8 numbers of state .*, not 0"),
        ({}, None, "an episode has 2 sentences"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(source, tmp_path, remap, instruction, problem):
    with pytest.raises(DataError, match=problem):
        convert(
            source,
            tmp_path / "out",
            "libero",
            ConvertConfig(remap=remap),
            reading={"instruction": instruction},
            workers=1,
        )
    assert not (tmp_path / "out").exists()


def test_the_quaternion_keeps_its_sign():
    state = np.array([[0.1, 0.2, 0.3, 0.0, 4.0, 0.0, 0.04, -0.04]])
    quaternion = robot_states(state)[0, 5:]
    np.testing.assert_allclose(quaternion, [0, np.sin(2), 0, np.cos(2)])
    assert quaternion[3] < 0
