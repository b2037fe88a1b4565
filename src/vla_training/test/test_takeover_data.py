"""Tests of who acted and of language annotations, in all formats."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_hdf5 import aloha
from foreign_lerobot import v2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vla_inference.cli.main import main
from vla_inference.episodes.estimates import UNKNOWN, estimates
from vla_inference.episodes.interventions import interventions
from vla_inference.episodes.language import persistent_row
from vla_inference.errors import DataError
from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_training.conversion.config import ConvertConfig
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.datasets.base import CARRIED
from vla_training.datasets.writers import DataForm, open_writer
from vla_training.evaluation.dataset_view import describe

DT = 0.05
FORMS = {
    "hdf5": {},
    "rlds": {"encoding": "png"},
    "lerobot": {"images": "png"},
    "bag": {},
    "libero": {},
}
CAMERAS = {"agentview": (16, 16), "wrist": (16, 16)}


def moment(step: int) -> float:
    """When a step is, as LeRobot's tables have it, s."""
    return float(np.float32(step * DT))


@st.composite
def language(draw, length: int) -> dict:
    """Rows for an episode of so many steps, in order of time."""
    times = st.integers(0, length - 1).map(moment)
    text = st.text(min_size=1, max_size=8)
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": "ja"}}}

    def row(role, content, style, camera=None, calls=None):
        return st.fixed_dictionaries(
            {
                "role": st.just(role),
                "content": content,
                "style": st.sampled_from(style),
                "timestamp": times,
                "camera": st.sampled_from(camera or [None]),
                "tool_calls": st.just(calls),
            }
        )

    persistent = row("assistant", text, ["subtask", "plan", "memory"])
    events = row("user", text, ["interjection"]) | row(
        "user", text, ["vqa"], ["agentview", "wrist"]
    )
    events |= row("assistant", st.none(), [None], None, [call])
    drawn = {
        "language_persistent": draw(st.lists(persistent, max_size=3)),
        "language_events": draw(st.lists(events, max_size=3)),
    }
    return {k: sorted(v, key=lambda r: r["timestamp"]) for k, v in drawn.items() if v}


@st.composite
def episodes(draw) -> list[Episode]:
    found = []
    for number in range(draw(st.integers(1, 2))):
        length = draw(st.integers(1, 6))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        acted = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        steps = [
            Step(
                Observation(
                    {c: rng.integers(0, 256, (*s, 3), np.uint8) for c, s in CAMERAS.items()},
                    "stack it",
                    rng.normal(size=8).astype(np.float32),
                ),
                np.append(0.01 * rng.normal(size=6), t % 2).astype(np.float32),
                float(t == length - 1),
                t == 0,
                t == length - 1,
                t == length - 1,
            )
            for t in range(length)
        ]
        about = {"task": "T", "seed": number, **draw(language(length))}
        told = rng.random((length, 2)).astype(np.float32)
        told[rng.random(length) < 0.3] = UNKNOWN
        told[rng.random(length) < 0.2, 1] = UNKNOWN
        columns = {"intervention": np.array(acted), "estimate": told}
        found.append(Episode(steps, eef_delta_spec(), about, columns))
    return found


def write(path, kind, made, carried=CARRIED):
    form = DataForm("made", made[0].spec, CAMERAS, 8, None, carried)
    with open_writer(path, kind, form, **FORMS[kind]) as writer:
        for episode in made:
            writer.write(episode)
    return path


def assert_same_estimates(found, wanted):
    """Also where nothing is known, or one of the two."""
    if wanted is None:
        assert found is None or (found == UNKNOWN).all()
    else:
        np.testing.assert_array_equal(found, wanted)


def assert_same(found, wanted, cameras=tuple(CAMERAS)):
    assert len(found) == len(wanted)
    for one, two in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(interventions(one), interventions(two))
        assert_same_estimates(estimates(one), estimates(two))
        for name in ("language_persistent", "language_events"):
            assert one.metadata.get(name) == two.metadata.get(name)
        for a, b in zip(one.steps, two.steps, strict=True):
            for camera in cameras:
                here, there = a.observation.images[camera], b.observation.images[camera]
                np.testing.assert_array_equal(here, there)


def some(length=6, acted=(1, 0, 0, 1, 1, 1), told=None, **about) -> Episode:
    """An episode with an intervention, or with none known. told: [T, 2], estimates."""
    look = {c: np.zeros((*s, 3), np.uint8) for c, s in CAMERAS.items()}
    steps = [
        Step(Observation(look, "go", np.zeros(8, np.float32)), np.full(7, 0.01 * t, np.float32))
        for t in range(length)
    ]
    columns = {} if acted is None else {"intervention": np.array(acted, np.uint8)}
    columns |= {} if told is None else {"estimate": np.array(told, np.float32)}
    return Episode(steps, eef_delta_spec(), about, columns)


TOLD = [[0.25, 0.5], [-1, -1], [0.5, -1], [-1, 0.5], [-1, -1], [1, 1]]


@pytest.mark.parametrize("kind", ["hdf5", "rlds", "lerobot", "bag"])
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=episodes())
@example(made=[some(language_persistent=[persistent_row("plan", "a\x85b\u2028", 0.0)])])
@example(made=[some(told=TOLD)])
def test_who_acted_and_language_there_and_back(tmp_path_factory, kind, made):
    folder = tmp_path_factory.mktemp("set")
    source = write(folder / "source.hdf5", "hdf5", made)
    assert_same(list(open_dataset(source)), made)
    there = folder / ("there.hdf5" if kind == "hdf5" else "there")
    convert(source, there, kind, workers=1, writing=FORMS[kind])
    assert_same(list(open_dataset(there)), made)
    convert(there, folder / "back.hdf5", "hdf5", workers=1)
    assert_same(list(open_dataset(folder / "back.hdf5")), made)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (5, 2)])
def test_what_others_call_an_estimate_is_none(tmp_path, shape):
    source = write(tmp_path / "source.hdf5", "hdf5", [some()])
    with h5py.File(source, "r+") as file:
        file["data/demo_0/estimate"] = np.zeros(shape)
    data = open_dataset(source)
    assert "estimate" in data.left_out() and "estimate" not in data.carried()
    convert(source, tmp_path / "set.hdf5", "hdf5", workers=1)
    assert estimates(open_dataset(tmp_path / "set.hdf5")[0]) is None


def test_libero_keeps_them_too(tmp_path):
    row = persistent_row("subtask", "reach", moment(2))
    asked = row | {"style": "vqa", "camera": "wrist"}
    made = some(language_persistent=[row], language_events=[asked])
    (read,) = open_dataset(write(tmp_path / "there", "libero", [made]))
    assert interventions(read).tolist() == [True, False, False, True, True, True]
    assert read.metadata["language_persistent"] == [row]
    assert read.metadata["language_events"] == [asked | {"camera": "eye_in_hand"}]


def test_steps_that_stand_for_several_and_a_column_of_subtasks(tmp_path):
    made = some()
    texts = np.array(["reach", "reach", "reach", "lift", "", "lift"], object)
    made.columns["subtask"] = texts
    source = write(tmp_path / "source.hdf5", "hdf5", [made])
    with h5py.File(source, "r+") as file:
        file["data/demo_0"].create_dataset("subtask", data=texts, dtype=h5py.string_dtype())
    config = ConvertConfig(sample_steps=2, sample_actions=2, remap={"wrist": None})
    convert(source, tmp_path / "set", "lerobot", config, workers=1)
    (read,) = open_dataset(tmp_path / "set")
    assert interventions(read).tolist() == [True, True, True]  # a tie is the person's
    rows = read.metadata["language_persistent"]
    assert [(r["style"], r["content"]) for r in rows] == [
        ("subtask", "reach"),
        ("subtask", "lift"),
    ]
    assert [r["timestamp"] for r in rows] == [0, pytest.approx(0.15)]


def test_only_episodes_in_which_a_person_acted(tmp_path, capsys):
    every = [some(), some(acted=[0] * 6), some(acted=None)]
    source = write(tmp_path / "source.hdf5", "hdf5", every)
    words = ["convert", "--dataset", str(source), "--to", "rlds", "--workers", "1"]
    assert main([*words, "--interventions", "--output", str(tmp_path / "set")]) == 0
    (read,) = open_dataset(tmp_path / "set")
    assert interventions(read).tolist() == [True, False, False, True, True, True]
    unknown = write(tmp_path / "unknown.hdf5", "hdf5", [some(acted=None)])
    words[2] = str(unknown)
    assert main([*words, "--interventions", "--output", str(tmp_path / "none")]) == 2
    assert "does not say who acted" in capsys.readouterr().err


def test_one_that_does_not_say_beside_one_that_does(tmp_path):
    known, unknown = (
        write(tmp_path / f"{name}.hdf5", "hdf5", [some(acted=acted)])
        for name, acted in (("known", [1] * 6), ("unknown", None))
    )
    done = convert([known, unknown], tmp_path / "set", "lerobot", workers=1)
    acted = [interventions(e).tolist() for e in open_dataset(tmp_path / "set")]
    assert acted == [[True] * 6, [False] * 6]
    assert any("unknown.hdf5 does not say who acted" in note for note in done.notes)


def test_data_shows_them(tmp_path, capsys):
    row = persistent_row("subtask", "reach", 0.0)
    made = [some(language_persistent=[row]), some(acted=[0] * 6)]
    path = str(write(tmp_path / "source.hdf5", "hdf5", made))
    assert main(["data", "info", path]) == 0
    told = capsys.readouterr().out
    assert "takeovers a person acted in 33.3 % of 12 steps, in 1 of 2 episodes" in told
    assert "language  1 subtask" in told
    assert main(["data", "episode", path]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["interventions"] == [1, 0, 0, 1, 1, 1]
    assert shown["language_persistent"] == [row]
    dataframe = pytest.importorskip("rerun.dataframe", reason="needs requirements/rerun.txt")
    assert main(["data", "rerun", path, "--output", str(tmp_path / "e.rrd")]) == 0
    entities = dataframe.load_recording(tmp_path / "e.rrd").schema().component_columns()
    assert "/person" in {column.entity_path for column in entities}


BAD_ROWS = [
    ({"role": None}, "role, content and style are texts"),
    ({"style": "vqa"}, "rows of vqa and trace name one, no others do"),
    ({"camera": "wrist"}, "rows of vqa and trace name one, no others do"),
    ({"timestamp": -1.0}, "write seconds from the start"),
    ({"content": None}, "a row without tool_calls has content and style"),
    ({"more": 1}, "a row has role, content"),
]


@pytest.mark.parametrize("kind", ["hdf5", "rlds", "lerobot", "bag"])
def test_bad_rows_and_columns_are_refused_and_leave_nothing(tmp_path, kind):
    for change, remedy in BAD_ROWS if kind == "lerobot" else BAD_ROWS[:1]:
        made = some(language_persistent=[persistent_row("subtask", "reach", 0.0) | change])
        with pytest.raises(DataError, match=remedy):
            write(tmp_path / "set.hdf5", kind, [made])
    for column in ([0, 1, 2, 0, 0, 0], [0, 1]):
        with pytest.raises(DataError, match="intervention is"):
            write(tmp_path / "set.hdf5", kind, [some(acted=column)])
    assert not list(tmp_path.iterdir())


def test_a_file_whose_column_is_too_short_is_refused(tmp_path):
    source = write(tmp_path / "source.hdf5", "hdf5", [some(acted=None)])
    with h5py.File(source, "r+") as file:
        file["data/demo_0/intervention"] = [1, 0]
    with pytest.raises(DataError, match="intervention has 2 entries for 6 actions"):
        open_dataset(source)[0]


def test_hil_serls_name_in_version_2_and_rows_as_lerobot_annotates_them(tmp_path):
    path = v2(tmp_path / "old", [4, 3], "v2.1")
    name, call = "complementary_info.is_intervention", {"function": {"name": "say"}}
    row = {"role": "assistant", "content": None, "style": None, "camera": None}
    for file in path.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        acted = pa.array(np.arange(len(table)) == 1, pa.bool_()).cast(pa.float32())
        events = [[row | {"tool_calls": [call]}] if t == 2 else [] for t in range(len(table))]
        table = table.append_column(name, acted)
        pq.write_table(table.append_column("language_events", pa.array(events)), file)
    info = json.loads((path / "meta/info.json").read_text())
    info["features"][name] = {"dtype": "float32", "shape": [1], "names": None}
    info["features"]["language_events"] = {"dtype": "language", "shape": [1], "names": None}
    (path / "meta/info.json").write_text(json.dumps(info))
    data = open_dataset(path)
    assert data.left_out() == [] and data.carried() == {"intervention", "language_events"}
    assert [interventions(e).tolist() for e in data] == [[0, 1, 0, 0], [0, 1, 0]]
    said = row | {"tool_calls": [call], "timestamp": pytest.approx(0.2)}
    assert [e.metadata["language_events"] for e in data] == [[said]] * 2


def test_subtasks_of_an_older_lerobot_become_rows(tmp_path):
    path = v2(tmp_path / "old", [4, 3], "v2.1")
    for file in path.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        numbers = pa.array([t // 2 for t in range(len(table))], pa.int64())
        pq.write_table(table.append_column("subtask_index", numbers), file)
    names = pa.table({"subtask_index": [0, 1], "subtask": ["reach", "lift"]})
    pq.write_table(names, path / "meta/subtasks.parquet")
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["subtask_index"] = {"dtype": "int64", "shape": [1], "names": None}
    (path / "meta/info.json").write_text(json.dumps(info))
    data = open_dataset(path)
    assert data.left_out() == [] and data.carried() == {"language_persistent"}
    assert describe(data)["language"] == {"subtask": 4}
    convert(path, tmp_path / "new", "lerobot", workers=1)
    rows = open_dataset(tmp_path / "new")[0].metadata["language_persistent"]
    assert [(r["timestamp"], r["content"]) for r in rows] == [
        (0, "reach"),
        (pytest.approx(0.2), "lift"),
    ]
    (path / "meta/subtasks.parquet").unlink()
    with pytest.raises(DataError, match=r"subtasks\.parquet cannot be read"):
        open_dataset(path)


def test_aloha_files_may_say_who_acted(tmp_path):
    path = aloha(tmp_path / "episode_0.hdf5")
    with h5py.File(path, "r+") as file:
        file["intervention"] = [0, 1, 1, 0, 0, 0]
    data = open_dataset(path)
    assert interventions(data[0]).tolist() == [False, True, True, False, False, False]
    assert data.carried() == {"intervention"} and "intervention" not in data.left_out()


def test_damaged_language_is_one_error(tmp_path):
    row = persistent_row("subtask", "reach", 0.0)
    ours = write(tmp_path / "ours", "lerobot", [some(language_persistent=[row])])
    (file,) = ours.glob("data/*/*.parquet")
    table = pq.read_table(file)
    at = table.column_names.index("language_persistent")
    broken = table.set_column(at, "language_persistent", pa.array(["reach"] * 6))
    pq.write_table(broken, file)
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(ours)[0]
