"""Compatibility with lerobot: each side reads what the other wrote."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from demonstrations import psnr, write_set
from elsewhere import elsewhere, skip_older_lerobot

from vla_inference.episodes.interventions import interventions
from vla_inference.episodes.language import KEYS
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
# What its annotation pipeline adds to a dataset, written as it does, and its own check of rows.
ANNOTATE = """
import pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from lerobot.datasets.language import language_feature_info
root = Path(sys.argv[1])
(file,) = root.glob("data/*/*.parquet")
table = pq.read_table(file)
say = [{"type": "function", "function": {"name": "say", "arguments": {"text": "ja"}}}]
row = lambda role, content, style, **more: {
    "role": role, "content": content, "style": style, **more, "camera": None, "tool_calls": None}
lasting = [row("assistant", "lift it", "subtask", timestamp=0.0),
           row("assistant", "put it down", "subtask", timestamp=0.2)]
spoken = row("assistant", None, None) | {"tool_calls": say}
asked = row("user", "where?", "vqa") | {"camera": "observation.images.front"}
times = table["timestamp"].to_pylist()
events = [[spoken, asked] if t == times[2] else [] for t in times]
table = table.append_column("language_persistent", pa.array([lasting] * len(times)))
pq.write_table(table.append_column("language_events", pa.array(events)), file)
info = json.loads((root / "meta/info.json").read_text())
info["features"] |= {k: v | {"shape": list(v["shape"])}
                     for k, v in language_feature_info().items()}
(root / "meta/info.json").write_text(json.dumps(info))
print(json.dumps({"acted": [bool(v) for v in table["intervention"].to_pylist()]}))
"""
READ_LANGUAGE = """
from lerobot.datasets.language_render import active_at, emitted_at
data = LeRobotDataset("local/set", root=sys.argv[1], video_backend="pyav")
items = [data[i] for i in range(len(data))]
acted = data.hf_dataset.with_format(None)["intervention"]
print(json.dumps({
    "acted": [bool(v) for v in acted], "dtype": str(items[0]["intervention"].dtype),
    "persistent": [i["language_persistent"] for i in items],
    "events": [i["language_events"] for i in items],
    "subtask": [(active_at(float(i["timestamp"]), persistent=i["language_persistent"],
                 style="subtask") or {}).get("content") for i in items],
    "times": [float(i["timestamp"]) for i in items],
    "mean": data.meta.stats["intervention"]["mean"].tolist(),
}))
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


ROWS = {
    "language_persistent": [("assistant", "reach it", "subtask", 0.0, None, None)],
    "language_events": [
        ("assistant", None, None, 0.1, None, [{"function": {"name": "say"}}]),
        ("user", "where is it?", "vqa", 0.1, "wrist", None),
    ],
}


def test_it_reads_who_acted_and_language(source, tmp_path):
    skip_older_lerobot(PYTHON, tmp_path)

    def edit(group):
        acted = np.arange(len(group["actions"])) % 3 == 1
        group["intervention"] = acted.astype(np.uint8)
        if group.name.endswith("0"):
            for name, rows in ROWS.items():
                texts = [json.dumps(dict(zip(KEYS, row, strict=True))) for row in rows]
                group[name] = np.array(texts, h5py.string_dtype())

    ours = write_set(tmp_path / "source.hdf5", edit)
    convert(ours, tmp_path / "set", "lerobot", workers=1, writing={"images": "png"})
    found = elsewhere(PYTHON, tmp_path, IMPORT + READ_LANGUAGE, tmp_path / "set")
    lengths = [len(e) for e in open_dataset(ours)]
    wanted = [t % 3 == 1 for n in lengths for t in range(n)]
    assert found["acted"] == wanted and found["dtype"] == "torch.bool"
    assert found["mean"] == [pytest.approx(np.mean(wanted))]
    subtask = dict(zip(KEYS, ROWS["language_persistent"][0], strict=True))
    first = lengths[0]
    assert found["persistent"] == [[subtask]] * first + [[]] * sum(lengths[1:])
    assert found["subtask"] == ["reach it"] * first + [None] * sum(lengths[1:])
    spoken, asked = found["events"][2]
    assert spoken["tool_calls"] == [{"function": {"name": "say"}}]
    assert asked["camera"] == "observation.images.wrist" and "timestamp" not in asked
    assert [len(rows) for rows in found["events"]] == [0, 0, 2] + [0] * (sum(lengths) - 3)


def test_we_read_its_interventions_and_language(tmp_path):
    skip_older_lerobot(PYTHON, tmp_path)
    acting = WRITE.replace(
        '"action": {',
        '"intervention": {"dtype": "bool", "shape": (1,), "names": None}, "action": {',
    ).replace('"task": f', '"intervention": np.array([t > 1]), "task": f')
    elsewhere(PYTHON, tmp_path, IMPORT + acting, tmp_path / "theirs", "image")
    told = elsewhere(PYTHON, tmp_path, "import json, sys\n" + ANNOTATE, tmp_path / "theirs")
    data = list(open_dataset(tmp_path / "theirs"))
    acted = [interventions(episode).tolist() for episode in data]
    assert acted == [[t > 1 for t in range(n)] for n in LENGTHS]
    assert [a for one in acted for a in one] == told["acted"]
    convert(tmp_path / "theirs", tmp_path / "ours", "lerobot", workers=1)
    for episode in (*data, *open_dataset(tmp_path / "ours")):
        lasting = episode.metadata["language_persistent"]
        assert [r["content"] for r in lasting] == ["lift it", "put it down"]
        spoken, asked = episode.metadata["language_events"]
        assert spoken["tool_calls"][0]["function"]["arguments"] == {"text": "ja"}
        assert asked["camera"] == "front" and asked["timestamp"] == pytest.approx(0.2)
