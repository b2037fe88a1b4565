"""Compatibility with lerobot: each side reads what the other wrote."""

from __future__ import annotations

import numpy as np
import pytest
from demonstrations import psnr
from elsewhere import elsewhere, skip_older_lerobot

from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset

PYTHON = "VLA_LEROBOT_PYTHON"
IMPORT = """
import json, sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
"""
READ = """
data = LeRobotDataset("local/set", root=sys.argv[1], video_backend="pyav")
items = [data[i] for i in range(len(data))]
print(json.dumps({
    "episodes": data.num_episodes, "fps": data.fps,
    "actions": [i["action"].tolist() for i in items],
    "state": [i["observation.state"].tolist() for i in items],
    "texts": [i["task"] for i in items],
    "pixels": [(255 * i["observation.images.agentview"][:, 15, 15]).tolist() for i in items],
    "stats": data.meta.stats["action"]["mean"].tolist(),
}))
"""
# Its features are what our own reader finds without being told: names, shapes, tasks.
WRITE = """
import numpy as np
root, kind = sys.argv[1:]
names = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
image = {"dtype": kind, "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
data = LeRobotDataset.create("local/theirs", fps=10, root=root, use_videos=kind == "video",
    features={
        "observation.images.front": image,
        "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
        "action": {"dtype": "float32", "shape": (7,), "names": names},
    })
for episode, length in enumerate((5, 8, 3)):
    for t in range(length):
        frame = np.full((48, 64, 3), 40, np.uint8)
        frame[8:24, 8:24] = (200, 20 * t, 60 * episode)
        data.add_frame({
            "observation.images.front": frame,
            "observation.state": np.arange(8, dtype=np.float32) + t,
            "action": np.array([0.01 * t, 0, 0.02 * episode, 0, 0, 0, t % 2], np.float32),
            "task": f"task {episode}",
        })
    data.save_episode()
getattr(data, "finalize", lambda: None)()
import lerobot
print(json.dumps({"version": lerobot.__version__}))
"""
# `lerobot-dataset-viz`, without a viewer; the recording is read again by Rerun.
SHOW = """
import json, sys
from pathlib import Path
import lerobot.scripts.lerobot_dataset_viz as viz
root, folder = sys.argv[1:]
sys.argv[1:] = ["--repo-id=local/set", f"--root={root}", "--episode-index=1", "--save=1",
                f"--output-dir={folder}", "--num-workers=0", "--mode=local"]
viz.main()
(path,) = Path(folder).rglob("*.rrd")
import rerun as rr
schema = rr.recording.load_recording(path).schema()
print(json.dumps({"shown": sorted({c.entity_path for c in schema.component_columns()})}))
"""
LENGTHS = (5, 8, 3)


@pytest.mark.parametrize("images, apart", [("video", 12), ("png", 0.01)])
def test_it_reads_ours(source, tmp_path, images, apart):
    writing = {"images": images, "file_mb": 0.002}  # several files of each kind
    convert(source, tmp_path / "set", "lerobot", workers=1, writing=writing)
    found = elsewhere(PYTHON, tmp_path, IMPORT + READ, tmp_path / "set")
    steps = [s for e in open_dataset(source) for s in e.steps]
    assert (found["episodes"], found["fps"], len(found["texts"])) == (3, 20, len(steps))
    assert found["texts"] == [s.observation.instruction for s in steps]
    for key, wanted in (
        ("actions", [s.action for s in steps]),
        ("state", [s.observation.state for s in steps]),
    ):
        np.testing.assert_array_equal(np.array(found[key], np.float32), wanted)
    pixels = [s.observation.images["agentview"][15, 15] for s in steps]
    np.testing.assert_allclose(found["pixels"], pixels, atol=apart)


def test_its_viewer_shows_ours(source, tmp_path):
    skip_older_lerobot(PYTHON, tmp_path)
    convert(source, tmp_path / "set", "lerobot", workers=1, writing={"images": "png"})
    (tmp_path / "shown").mkdir()
    found = elsewhere(PYTHON, tmp_path, SHOW, tmp_path / "set", tmp_path / "shown")
    wanted = {"/observation.images.agentview", "/action", "/state"}
    assert wanted <= set(found["shown"]), found


@pytest.mark.parametrize("kind", ["video", "image"])
def test_we_read_its_own(tmp_path, kind):
    elsewhere(PYTHON, tmp_path, IMPORT + WRITE, tmp_path / "theirs", kind)
    data = open_dataset(tmp_path / "theirs")
    assert [len(e.steps) for e in data] == list(LENGTHS)
    for number, episode in enumerate(data):
        assert episode.instructions == [f"task {number}"] * LENGTHS[number]
        actions = [[0.01 * t, 0, 0.02 * number, 0, 0, 0, t % 2] for t in range(len(episode.steps))]
        np.testing.assert_array_equal(episode.actions, np.array(actions, np.float32))
        for t, step in enumerate(episode.steps):
            frame = np.full((48, 64, 3), 40, np.uint8)
            frame[8:24, 8:24] = (200, 20 * t, 60 * number)
            (seen,) = step.observation.images.values()
            assert np.array_equal(seen, frame) or (kind == "video" and psnr(seen, frame) > 28)
