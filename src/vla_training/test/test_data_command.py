"""Tests of `vla convert` and `vla data`, as commands and as jobs."""

from __future__ import annotations

import io
import json
import time

import av
import numpy as np
import pytest
from demonstrations import LENGTHS, SIZE
from PIL import Image

from vla_inference.cli.main import main as vla
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.jobs import JobRunner


def test_the_subcommand_tells_what_it_left_out(source, tmp_path, capsys):
    args = ["--dataset", str(source), "--convert", "rlds", "--output", str(tmp_path / "set")]
    more = ["--remap-keys", "agentview:image,wrist:None", "--lossless", "--workers", "1"]
    assert vla(["convert", *args, *more]) == 0
    assert "left out: states, wrist" in capsys.readouterr().out
    assert vla(["convert", *args, *more]) == 2
    assert "exists; choose another output" in capsys.readouterr().err
    assert vla(["convert", *args, "--option", "qualty=3"]) == 2
    assert "known: encoding=" in capsys.readouterr().err


def test_a_job_converts(source, tmp_path):
    (tmp_path / "demo.hdf5").write_bytes(source.read_bytes())
    runner = JobRunner(tmp_path)
    try:
        job = runner.start(
            "convert",
            [
                "--dataset",
                "demo.hdf5",
                "--convert",
                "lerobot",
                "--output",
                "made/set",
                "--workers",
                "1",
            ],
        )
        end = time.monotonic() + 200
        while runner.running() and time.monotonic() < end:
            runner.poll()
            time.sleep(0.05)
        done = next(j for j in runner.all() if j.job_id == job.job_id)
        assert done.state == "succeeded", done
        assert (done.step, done.total) == (3, 3)
        assert len(open_dataset(tmp_path / "made/set")) == 3
    finally:
        runner.close()


@pytest.mark.parametrize("kind", ["hdf5", "rlds", "lerobot", "bag"])
def test_data_info_of_any_format(source, tmp_path, capsys, kind):
    path = source
    if kind != "hdf5":
        path = tmp_path / "set"
        convert(source, path, kind, workers=1)
    assert vla(["data", "info", str(path), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["episodes"], info["frames"]) == (3, sum(LENGTHS))
    assert (info["length"]["min"], info["length"]["max"]) == (4, 7)
    assert info["cameras"] == {"agentview": list(SIZE), "wrist": list(SIZE)}
    assert info["instruction_episodes"]["now wait"] == 3
    every = np.concatenate([e.actions for e in open_dataset(source)])
    np.testing.assert_allclose(info["action"]["max"], every.max(0), rtol=1e-6)
    assert sum(info["histograms"][0]["counts"]) == sum(LENGTHS)
    assert vla(["data", "info", str(path)]) == 0
    assert "4 to 7 steps" in capsys.readouterr().out


def test_data_images(source, tmp_path, capsys):
    def run(*args) -> int:
        return vla(["data", args[0], str(source), *args[1:]])

    sheet, plot, film = (tmp_path / n for n in ("sheet.png", "plot.png", "film.mp4"))
    assert run("show", "--output", str(sheet), "--camera", "wrist") == 0
    with Image.open(io.BytesIO(sheet.read_bytes())) as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 1000
    assert run("plot", "--output", str(plot)) == 0
    assert "█" in capsys.readouterr().out
    assert run("video", "--episode", "2", "--output", str(film), "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == LENGTHS[2]
    with av.open(str(film)) as container:
        assert len(list(container.decode(video=0))) == LENGTHS[2]
    before = film.read_bytes()
    assert run("video", "--output", str(film)) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert film.read_bytes() == before
    assert run("video", "--episode", "9", "--output", str(tmp_path / "x.mp4")) == 2
    assert "has 3 episodes; 9 is not one of 0 to 2" in capsys.readouterr().err
    assert run("show", "--camera", "top", "--output", str(tmp_path / "x.png")) == 2
    assert "cameras: agentview, wrist" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.mp4", "plot.png", "sheet.png"]
