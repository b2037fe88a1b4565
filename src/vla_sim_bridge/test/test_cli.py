from pathlib import Path
from types import SimpleNamespace

import pytest

from vla_inference.errors import VlaError
from vla_sim_bridge import cli


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tasks": ["Stack_D9"]}, "no task 'Stack_D9'"),
        ({"tasks": [","]}, "no task was given"),
        ({"camera_width": 4}, "--camera-width is 4; give 16 to 4096 pixels"),
        ({"noise": 2.0}, "--noise is 2.0; give 0 to 1"),
        ({"horizon": 0}, "--horizon is 0"),
        ({"parallel": 0}, "--parallel is 0"),
        ({"source": Path("nowhere.hdf5")}, "no source file nowhere.hdf5"),
        ({"episodes": 0}, "0 episodes were asked for; ask for at least 1"),
        ({"method": "magic"}, "no method 'magic'"),
    ],
)
def test_generate_refuses_by_name_before_it_begins(tmp_path, options, complaint):
    with pytest.raises(VlaError) as caught:
        cli.generate(**{"tasks": ["Stack_D0"], "output": tmp_path / "out", **options})
    assert complaint in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_progress_tells_counts_rate_and_time_left():
    progress = SimpleNamespace(successes=3, wanted=10, attempts=4, rate=0.5, seconds_left=14.0)
    text = cli.progress_text(progress)
    assert text == "3/10 episodes, 4 attempts, 30.0 per minute, 14 s left"
    progress.seconds_left = float("inf")
    assert cli.progress_text(progress).endswith("- left")


def test_the_model_that_ships_is_looked_for_in_the_share_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    with pytest.raises(VlaError, match=r"models/stack-small.*give --model FOLDER"):
        cli.find_model(None)
    folder = tmp_path / "share/vla_inference/models/stack-small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert cli.find_model(None) == cli.find_model(str(folder)) == str(folder)
