"""Tests of the simulation's `vla` commands: options, errors, summaries."""

import json
from types import SimpleNamespace

import pytest

from vla_inference.cli.main import main
from vla_inference.errors import VlaError
from vla_sim_bridge.cli import generate as generate_command
from vla_sim_bridge.cli import rollout
from vla_sim_bridge.generation.shards import summarise
from vla_sim_bridge.tasks import TASKS


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tasks": ["Stack_D9"]}, "no task 'Stack_D9'"),
        ({"tasks": [","]}, "no task was given"),
        ({"camera_width": 4}, "--camera-width is 4; give 16 to 4096 pixels"),
        ({"noise": 2.0}, "--noise is 2.0; give 0 to 1"),
        ({"horizon": 0}, "--horizon is 0"),
        ({"parallel": 0}, "--parallel is 0"),
        ({"source": "nowhere.hdf5"}, "no source file nowhere.hdf5"),
        ({"episodes": 0}, "--episodes is 0; give at least 1"),
        ({"method": "magic"}, "--method is 'magic'; use scripted, mimicgen, corrected or endings"),
        ({"randomize": "colors"}, "'colors' cannot be randomised; use colours, camera"),
        ({"randomize_every": "day"}, "--randomize-every is 'day'; use episode or frame"),
        ({"recovery": 2.0}, "give 0 to 1"),
        ({"select_source": "best"}, "use random, nearest_neighbor_object"),
        ({"tasks": ["Stack_D0,Stack_D1"], "nearest": 0}, "give at least 1"),
    ],
)
def test_generate_refuses_by_name_before_it_begins(tmp_path, options, complaint):
    with pytest.raises(VlaError) as caught:
        generate_command.generate(**{"tasks": ["Stack_D0"], "output": tmp_path / "out", **options})
    assert complaint in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tasks_are_listed_with_a_sentence_of_each(capsys):
    assert main(["tasks", "--json"]) == 0
    found = {t["name"]: t for t in json.loads(capsys.readouterr().out)["tasks"]}
    assert set(found) == set(TASKS) and all(t["instruction"] for t in found.values())
    assert found["Stack_D0"]["demonstrations"] == ["scripted", "mimicgen"]


def test_summary_says_rate_interval_lengths_and_reasons():
    outcomes = {0: "success", 1: "no_grasp", 2: "timeout", 3: "no_grasp", 4: "success"}
    text = generate_command.summary(summarise("Stack_D0", [80, 90], 5, outcomes))
    assert text == (
        "2 episodes, 170 frames (an episode: median 85, 5th to 95th percentile 80 to 90); "
        "40.0 % of 5 attempts (95 % interval 12 to 77); failed: 2 no_grasp, 1 timeout"
    )


def test_progress_tells_counts_rate_and_time_left():
    progress = SimpleNamespace(successes=3, wanted=10, attempts=4, rate=0.5, seconds_left=14.0)
    text = generate_command.progress_text(progress)
    assert text == "3/10 episodes, 4 attempts, 30.0 per minute, 14 s left"
    progress.seconds_left = float("inf")
    assert generate_command.progress_text(progress).endswith("- left")


def test_the_model_that_ships_is_looked_for_in_the_share_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    with pytest.raises(VlaError, match=r"models/stack-small.*give --model FOLDER"):
        rollout.find_model(None)
    folder = tmp_path / "share/vla_inference/models/stack-small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert rollout.find_model(None) == rollout.find_model(str(folder)) == str(folder)


def test_tasks_and_cameras_may_be_several_words_as_tutorials_write_them(monkeypatch, tmp_path):
    made = []

    def generate(config, folder, parallel, ray_address):
        made.append((config.task, config.cameras, folder.name))
        folder.mkdir(parents=True)
        (folder / "statistics.json").write_text("{}")
        return folder / "demo.hdf5"

    monkeypatch.setattr(generate_command, "_generate_one", generate)
    words = (
        f"generate --tasks Stack_D0 Stack_L --output {tmp_path} --cameras agentview wrist --json"
    )
    assert main([*words.split(), "--json"]) == 0
    cameras = ("agentview", "robot0_eye_in_hand")
    assert made == [("Stack_D0", cameras, "Stack_D0"), ("Stack_L", cameras, "Stack_L")]
    assert main(["generate", "--episodes", "1", "2"]) == 2  # these take one word
