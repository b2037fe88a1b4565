"""RoboCasa's datasets, as HDF5 and in LeRobot's form, are read with the meaning of each number."""

import json

import h5py
import numpy as np
import pytest
from foreign_hdf5 import COUNT, SENTENCE, osc_1_5, robocasa
from foreign_lerobot import robocasa_v2

from vla_inference.episodes.robocasa import STATE, from_robocasa, robocasa_spec
from vla_inference.errors import DataError
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset

RAW = np.random.default_rng(0).uniform(-1, 1, (COUNT, 12))
SIZES = (3, 4, 3, 4, 2)  # of the parts of a state


def kitchen(path, actions=RAW, robot="PandaOmron"):
    """A file as RoboCasa's collection leaves it, its states included."""
    robocasa(path)
    env = osc_1_5()
    env["env_kwargs"]["robots"] = robot
    with h5py.File(path, "a") as file:
        file["data"].attrs["env_args"] = json.dumps(env)
        demo = file["data/demo_0"]
        del demo["actions"]
        demo["actions"] = actions
        for number, (name, size) in enumerate(zip(STATE, SIZES, strict=True)):
            demo[f"obs/{name}"] = np.full((COUNT, size), float(number))
    return path


def test_twelve_numbers_are_read_in_si(tmp_path):
    data = open_dataset(kitchen(tmp_path / "demo.hdf5"))
    assert data.spec == robocasa_spec() and not data.notes
    np.testing.assert_array_equal(data.actions(0), from_robocasa(RAW))
    episode = data[0]
    assert episode.instructions == [SENTENCE] * COUNT
    assert episode.states.shape == (COUNT, 16)
    np.testing.assert_array_equal(episode.states[0], np.repeat(range(5), SIZES))
    np.testing.assert_allclose(data.actions(0)[:, :3], 0.05 * RAW[:, :3])
    assert data.cameras()[0] == "robot0_agentview_left"


def test_other_robots_and_numbers_out_of_range_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has shape \(8, 12\)"):
        open_dataset(kitchen(tmp_path / "panda.hdf5", robot="Panda")).actions(0)
    far = RAW.copy()
    far[3, 1] = 1.5
    with pytest.raises(DataError, match=r"'y' of step 3 is 1.5, the controller takes up to 1"):
        open_dataset(kitchen(tmp_path / "far.hdf5", far)).actions(0)


def test_it_is_the_same_in_our_lerobot_form(tmp_path):
    here = open_dataset(kitchen(tmp_path / "demo.hdf5"))
    convert(tmp_path / "demo.hdf5", tmp_path / "out", "lerobot", workers=1)
    there = open_dataset(tmp_path / "out")
    assert there.spec == here.spec
    np.testing.assert_allclose(there.actions(0), here.actions(0), atol=1e-7)
    np.testing.assert_array_equal(there[0].states, here[0].states)


def test_lerobots_order_is_that_of_its_modality_file(tmp_path):
    data = open_dataset(robocasa_v2(tmp_path / "set", RAW))
    assert data.spec == robocasa_spec() and not any("unknown units" in n for n in data.notes)
    np.testing.assert_allclose(data.actions(0), from_robocasa(RAW.astype("f4")), atol=1e-7)
    assert data[0].states.shape == (COUNT, 16)
    assert data[0].instructions == ["Open the left drawer."] * COUNT


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "modality.json cannot be read"),
        ('{"state": {}}', "modality.json cannot be read"),
        ('{"action": 7}', "modality.json cannot be read"),
    ],
)
def test_a_broken_modality_file_is_one_error(tmp_path, text, problem):
    path = robocasa_v2(tmp_path / "set", RAW)
    (path / "meta" / "modality.json").write_text(text)
    with pytest.raises(DataError, match=problem):
        open_dataset(path)


def test_columns_that_overlap_are_refused(tmp_path):
    path = robocasa_v2(tmp_path / "set", RAW)
    file = path / "meta" / "modality.json"
    told = json.loads(file.read_text())
    told["action"]["control_mode"] = {"start": 3, "end": 4}
    file.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"names columns .* of 12; each part has its own"):
        open_dataset(path)
