"""Tests that pyarrow and PyAV read what is written here; other libraries are in test/compat."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet as pq
from demonstrations import LENGTHS, image, psnr

from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset


def test_the_lerobot_layout_by_pyarrow_and_av(source, tmp_path):
    out = tmp_path / "set"
    convert(source, out, "lerobot", ConvertConfig(remap={"agentview": "top"}), workers=1)
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", 20)
    assert (info["total_episodes"], info["total_frames"]) == (3, sum(LENGTHS))
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [r["length"] for r in rows] == list(LENGTHS)
    assert [r["dataset_to_index"] for r in rows] == list(np.cumsum(LENGTHS))
    table = pq.read_table(out / info["data_path"].format(chunk_index=0, file_index=0))
    assert pq.ParquetFile(out / "data/chunk-000/file-000.parquet").num_row_groups == 3
    assert table.column("index").to_pylist() == list(range(sum(LENGTHS)))
    tasks = pq.read_table(out / "meta/tasks.parquet")
    index = json.loads(tasks.schema.metadata[b"pandas"])["index_columns"]
    assert index == ["task"] and tasks.column("task_index").to_pylist() == [0, 1, 2, 3]
    names = [tasks.column("task")[n].as_py() for n in table.column("task_index").to_pylist()]
    data = open_dataset(source)
    assert names == [t for e in data for t in e.instructions]
    np.testing.assert_array_equal(
        np.array(table.column("action").to_pylist(), np.float32),
        np.concatenate([e.actions for e in data]),
    )
    stats = json.loads((out / "meta/stats.json").read_text())
    every = np.concatenate([e.actions for e in data]).astype(float)
    np.testing.assert_allclose(stats["action"]["mean"], every.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["action"]["std"], every.std(0), atol=1e-6)
    assert np.shape(stats["observation.images.top"]["mean"]) == (3, 1, 1)
    key = "observation.images.top"
    film = out / info["video_path"].format(video_key=key, chunk_index=0, file_index=0)
    with av.open(str(film)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == sum(LENGTHS)
    assert [Fraction(f.pts) * f.time_base for f in frames] == [
        Fraction(n, 20) for n in range(len(frames))
    ]
    begins = round(rows[1][f"videos/{key}/from_timestamp"] * 20)
    seen = frames[begins + 2].to_ndarray(format="rgb24")
    assert psnr(seen, image(2, 0)) > 35
