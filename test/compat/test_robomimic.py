"""Compatibility with robomimic: it reads our files, and we read one it has written into."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
from elsewhere import elsewhere

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


def test_we_read_a_file_with_its_filter_keys(source, tmp_path):
    path = tmp_path / "filtered.hdf5"
    shutil.copy(source, path)
    lengths = elsewhere(PYTHON, tmp_path, WRITE, path)
    ours = {len(e.steps) for i, e in enumerate(open_dataset(source)) if i in (0, 2)}
    assert set(lengths) == ours
    for theirs, wanted in zip(open_dataset(path), open_dataset(source), strict=True):
        np.testing.assert_array_equal(theirs.actions, wanted.actions)
        assert theirs.instructions == wanted.instructions
