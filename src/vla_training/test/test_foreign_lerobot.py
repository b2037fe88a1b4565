"""Tests of LeRobot folders from other projects: versions, names, videos with gaps."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_files import scene
from foreign_lerobot import TASKS, v2, v3

from vla_inference.errors import DataError
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.loader.frame_reader import FrameReader

TOP = "observation.images.top"
EVERY = [10 * n for n in range(12)]


def one_film(levels=EVERY, times=None, begins=((0, 0.6), (0.6, 1.2))) -> dict:
    """Two episodes of six steps at 10 fps in one film."""
    return {
        TOP: (levels, [n / 10 for n in range(len(levels))] if times is None else times, begins)
    }


def greys(data, index: int, order=range(6), camera: str = "top") -> list[int]:
    """Level of the images of an episode, read in some order, given in that of the steps."""
    steps = data[index].steps
    seen = {t: int(steps[t].observation.images[camera].mean().round()) for t in order}
    return [seen[t] for t in range(6) if t in seen]


def assert_levels(found: list[int], wanted: list[int]) -> None:
    np.testing.assert_allclose(found, wanted, atol=1)  # YUV rounds


def test_a_film_that_lacks_an_image_is_refused_by_name_and_step(tmp_path):
    there = [n for n in range(12) if n != 3]
    films = one_film([10 * n for n in there], [n / 10 for n in there])
    path = v3(tmp_path / "set", 10, [6, 6], films)
    data = open_dataset(path)
    message = r"top/chunk-000/file-000.mp4 has no image at 0.3000 s, step 3 of episode 0"
    with pytest.raises(DataError, match=message):
        greys(data, 0)
    with pytest.raises(DataError, match=message):
        convert(path, tmp_path / "out.hdf5", "hdf5", workers=1)
    assert not (tmp_path / "out.hdf5").exists()
    assert_levels(greys(data, 0, (5, 0, 4, 1)), [0, 10, 40, 50])
    assert_levels(greys(data, 1), EVERY[6:])


@pytest.mark.parametrize("order", [range(6), (5, 2, 4, 0, 3, 1), range(5, -1, -1)])
@pytest.mark.parametrize("late", [0.0, 0.01])
def test_images_are_the_same_in_any_order(tmp_path, order, late):
    """A film of 30 images a second, of steps that come ten a second."""
    levels = [min(250, 3 * n) for n in range(40)]
    path = v3(tmp_path / "set", 10, [6, 6], one_film(levels, [n / 30 + late for n in range(40)]))
    data = open_dataset(path)
    assert_levels(greys(data, 0, order), [levels[3 * t] for t in range(6)])
    assert_levels(greys(data, 1, order), [levels[18 + 3 * t] for t in range(6)])


def test_an_image_off_by_more_than_the_tolerance_is_refused_or_asked_for(tmp_path):
    path = v3(tmp_path / "set", 10, [6, 6], one_film(times=[n / 10 + 0.04 for n in range(12)]))
    with pytest.raises(
        DataError, match=r"at 0.0000 s, step 0 .* nearest is at 0.0400.*tolerance="
    ):
        greys(open_dataset(path), 0)
    assert_levels(greys(open_dataset(path, tolerance=0.05), 1), EVERY[6:])


def test_a_film_that_ends_early_is_refused(tmp_path):
    path = v3(tmp_path / "set", 10, [6, 6], one_film(EVERY[:11]))
    assert_levels(greys(open_dataset(path), 0), EVERY[:6])
    with pytest.raises(DataError, match=r"no image at 1.1000 s, step 5 of episode 1"):
        greys(open_dataset(path), 1)


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_version_2_is_read_as_version_3_is(tmp_path, version):
    path = v2(tmp_path / "set", [6, 5, 6], version, chunks_size=2)
    data = open_dataset(path)
    assert data.cameras() == ["top"] and data.left_out() == [] and data.spec.dt == 0.1
    assert data.spec.names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert [len(e) for e in data] == [6, 5, 6]
    for index in range(3):
        length, start = len(data[index]), 60 * index
        found = greys(data, index, [t for t in (3, 0, 5, 1) if t < length])
        assert_levels(found, [start + 10 * t for t in (0, 1, 3, 5) if t < length])
        assert data[index].instructions == [TASKS[index % 2]] * length
        np.testing.assert_allclose(data.actions(index)[:, 0], 0.01 * np.arange(length), atol=1e-7)
        assert data[index].steps[0].observation.state[0] == index
    images, text = FrameReader(data, (), 1).read(1, 4)
    assert_levels([images[0].mean()], [100])
    assert text == TASKS[1]
    convert(path, tmp_path / "new", "lerobot", workers=1)
    again = open_dataset(tmp_path / "new")
    assert_levels(greys(again, 2), greys(data, 2))
    np.testing.assert_array_equal(again.actions(1), data.actions(1))


def test_openpi_names_actions_state_and_images_its_own_way(tmp_path):
    image = one_film()[TOP]
    films = {"image": image, "wrist_image": image}
    data = open_dataset(v3(tmp_path / "new", 10, [6, 6], films, "actions", "state"))
    assert data.cameras() == ["image", "wrist_image"] and data.left_out() == []
    assert_levels(greys(data, 1, camera="wrist_image"), EVERY[6:])
    assert data[1].steps[0].observation.state.tolist() == [1.0] * 8
    old = open_dataset(v2(tmp_path / "old", [6, 6], images=True))
    assert old.cameras() == ["image"]
    seen = old[1].steps[3].observation.images["image"]
    assert np.abs(seen.astype(int) - scene(3)).mean() < 3
    np.testing.assert_array_equal(old.actions(0), data.actions(0))


def test_libero_as_lerobot_has_its_units_where_they_are_named(tmp_path):
    """Its files say 10 frames a second of steps that last 0.05 s, and gripper 1 for closed."""
    image = one_film()[TOP]
    films = {"observation.images.image": image, "observation.images.image2": image}
    path = v3(tmp_path / "libero", 10, [6, 6], films)
    data = open_dataset(path, conventions="libero")
    assert data.cameras() == ["image", "image2"]
    assert (data.spec.dims[0].unit, data.spec.dt) == ("0.05 m", 0.05)
    assert "turned by 180 degrees" in data.notes[0]
    np.testing.assert_allclose(data.actions(1)[:, 0], 0.01 * np.arange(6), atol=1e-7)
    assert (data.actions(1)[:, 6] == 0).all() and data[0].steps[0].action[6] == 0
    with pytest.raises(DataError, match="bridge_orig are not for a LeRobot dataset with actions"):
        open_dataset(path, conventions="bridge_orig")


def edit_info(path, **changes) -> None:
    file = path / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_cannot_be_read_is_named(tmp_path):
    path = v2(tmp_path / "set", [6, 6])
    features = json.loads((path / "meta/info.json").read_text())["features"]
    edit_info(path, features={"torque" if k == "action" else k: v for k, v in features.items()})
    with pytest.raises(DataError, match="no feature action or actions; there is torque, obser"):
        open_dataset(path)
    edit_info(path, features=features, codebase_version="v1.6")
    with pytest.raises(DataError, match=r"of version v1.6, we read v2.0, v2.1, v3.0"):
        open_dataset(path)
    edit_info(path, codebase_version="v2.1", total_episodes=3)
    with pytest.raises(DataError, match=r"episodes.jsonl lists 2 episodes, info.json 3"):
        open_dataset(path)
    edit_info(path, total_episodes=2)
    (path / "data/chunk-000/episode_000000.parquet").write_bytes(
        (path / "data/chunk-000/episode_000001.parquet").read_bytes()
    )
    with pytest.raises(DataError, match="contains other frames than episode 0's"):
        open_dataset(path).actions(0)
    (path / "meta/tasks.jsonl").unlink()
    with pytest.raises(DataError, match=r"tasks.parquet cannot be read"):
        open_dataset(path)


def test_the_tasks_file_may_have_any_of_its_forms(tmp_path):
    path = v3(tmp_path / "set", 10, [6, 6], one_film())
    for name in ("task", "__index_level_0__", "tasks"):
        tasks = {name: pa.array(TASKS, pa.large_string()), "task_index": pa.array([0, 1])}
        pq.write_table(pa.table(tasks), path / "meta/tasks.parquet")
        assert open_dataset(path)[1].instructions == [TASKS[1]] * 6
    (path / "meta/tasks.parquet").unlink()
    lines = [json.dumps({"task_index": i, "task": t}) for i, t in enumerate(TASKS)]
    (path / "meta/tasks.jsonl").write_text("\n".join(lines))
    assert open_dataset(path)[0].instructions == [TASKS[0]] * 6
