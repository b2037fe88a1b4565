"""Compatibility with robomimic: it reads our files, and we read one it has written into."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
from demonstrations import LENGTHS, write_set
from elsewhere import elsewhere
from foreign_hdf5 import libero_generated

from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset

PYTHON = "VLA_ROBOMIMIC_PYTHON"
READ = """
import json, sys
import robomimic.utils.obs_utils as ObsUtils
from robomimic.utils.dataset import SequenceDataset
ObsUtils.initialize_obs_utils_with_obs_specs(
    {"obs": {"low_dim": ["robot0_state"], "rgb": ["agentview_image"]}})
data = SequenceDataset(sys.argv[1], obs_keys=("robot0_state", "agentview_image"),
    dataset_keys=("actions", "rewards", "dones"), hdf5_cache_mode=None, seq_length=1,
    load_next_obs=False)
items = [data[i] for i in range(len(data))]
print(json.dumps({
    "demos": data.n_demos,
    "actions": [i["actions"][0].tolist() for i in items],
    "pixels": [i["obs"]["agentview_image"][0][15, 15].tolist() for i in items],
}))
"""
WHO_ACTED = """
import json, sys
import robomimic.utils.obs_utils as ObsUtils
from robomimic.utils.dataset import SequenceDataset
ObsUtils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["robot0_state"], "rgb": []}})
data = SequenceDataset(sys.argv[1], obs_keys=("robot0_state",), load_next_obs=False,
    dataset_keys=("actions", "intervention"), hdf5_cache_mode="all", seq_length=1)
print(json.dumps([int(data[i]["intervention"][0]) for i in range(len(data))]))
"""
# As LIBERO's own loader has it read (`lifelong/datasets.py`): names of its default config.
LIBERO = """
import json, sys
import robomimic.utils.file_utils as FileUtils
import robomimic.utils.obs_utils as ObsUtils
from robomimic.utils.dataset import SequenceDataset
modality = {"rgb": ["agentview_rgb", "eye_in_hand_rgb"], "depth": [],
            "low_dim": ["gripper_states", "joint_states"]}
ObsUtils.initialize_obs_utils_with_obs_specs({"obs": modality})
shapes = FileUtils.get_shape_metadata_from_dataset(
    dataset_path=sys.argv[1], all_obs_keys=modality["rgb"] + modality["low_dim"], verbose=False)
data = SequenceDataset(sys.argv[1], obs_keys=shapes["all_obs_keys"], dataset_keys=["actions"],
    load_next_obs=False, frame_stack=1, seq_length=3, pad_frame_stack=True, pad_seq_length=True,
    get_pad_mask=False, goal_mode=None, hdf5_cache_mode="low_dim", hdf5_use_swmr=False,
    hdf5_normalize_obs=None, filter_by_attribute=None)
env = FileUtils.get_env_metadata_from_dataset(sys.argv[1])
items = [data[i] for i in range(len(data))]
print(json.dumps({
    "demos": data.n_demos, "env": env["env_name"], "shapes": shapes["all_shapes"],
    "rate": env["env_kwargs"]["control_freq"],
    "actions": [i["actions"][0].tolist() for i in items],
    "joints": [i["obs"]["joint_states"][0].tolist() for i in items],
    "pixels": [i["obs"]["agentview_rgb"][0][15, 15].tolist() for i in items],
}))
"""
WRITE = """
import json, sys
from robomimic.utils.file_utils import create_hdf5_filter_key
lengths = create_hdf5_filter_key(sys.argv[1], demo_keys=["demo_2", "demo_0"], key_name="train")
print(json.dumps([int(n) for n in lengths]))
"""


def test_it_reads_ours(source, tmp_path):
    convert(source, tmp_path / "set", "rlds", workers=1, writing={"encoding": "png"})
    convert(tmp_path / "set", tmp_path / "back.hdf5", "hdf5", workers=1)
    found = elsewhere(PYTHON, tmp_path, READ, tmp_path / "back.hdf5")
    with h5py.File(source) as file:
        raw = [file[f"data/demo_{i}/actions"][:] for i in range(3)]
    np.testing.assert_allclose(found["actions"], np.concatenate(raw), rtol=1e-5, atol=1e-7)
    steps = [s for e in open_dataset(source) for s in e.steps]
    pixels = [s.observation.images["agentview"][15, 15].tolist() for s in steps]
    assert (found["demos"], found["pixels"]) == (3, pixels)


def test_it_reads_who_acted(tmp_path):
    def edit(group):
        group["intervention"] = np.arange(len(group["actions"])) % 2 == 0

    source = write_set(tmp_path / "source.hdf5", edit)
    convert(source, tmp_path / "ours.hdf5", "hdf5", workers=1)
    acted = elsewhere(PYTHON, tmp_path, WHO_ACTED, tmp_path / "ours.hdf5")
    assert acted == [t % 2 == 0 for n in LENGTHS for t in range(n)]


def test_it_reads_liberos_layout_as_libero_has_it_read(tmp_path):
    path = libero_generated(tmp_path / "demo.hdf5")
    convert(path, tmp_path / "out", "libero", workers=1)
    written = tmp_path / "out" / "libero_goal" / "open_the_top_drawer_demo.hdf5"
    found = elsewhere(PYTHON, tmp_path, LIBERO, written)
    with h5py.File(path) as file:
        ours = [file[f"data/demo_{i}"] for i in (0, 2)]
        actions = np.concatenate([demo["actions"][:] for demo in ours])
        joints = np.concatenate([demo["obs/robot0_joint_pos"][:] for demo in ours])
        raw = np.concatenate([demo["obs/agentview_image"][:] for demo in ours])[:, ::-1, ::-1]
    np.testing.assert_allclose(found["actions"], actions, atol=1e-6)
    np.testing.assert_allclose(found["joints"], joints, atol=1e-6)
    assert found["pixels"] == raw[:, 15, 15].tolist()
    assert (found["demos"], found["env"]) == (2, "Libero_Tabletop_Manipulation")
    assert found["rate"] == 20 and found["shapes"]["joint_states"] == [7]


def test_we_read_a_file_with_its_filter_keys(source, tmp_path):
    path = tmp_path / "filtered.hdf5"
    shutil.copy(source, path)
    lengths = elsewhere(PYTHON, tmp_path, WRITE, path)
    ours = {len(e.steps) for i, e in enumerate(open_dataset(source)) if i in (0, 2)}
    assert set(lengths) == ours
    for theirs, wanted in zip(open_dataset(path), open_dataset(source), strict=True):
        np.testing.assert_array_equal(theirs.actions, wanted.actions)
        assert theirs.instructions == wanted.instructions
