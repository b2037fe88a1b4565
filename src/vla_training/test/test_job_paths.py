"""Tests of job paths: none leads out of the root."""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
from demonstrations import write_set

from vla_inference.errors import DataError, VlaError
from vla_training.conversion.convert import convert
from vla_training.datasets import open_dataset
from vla_training.jobs import KINDS, JobRunner
from vla_training.jobs.confined import check, opened
from vla_training.jobs.kinds import command_words
from vla_training.jobs.paths import check_root, confine


def test_roots_that_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for root, reason in (
        ("", "no root"),
        ("/", "whole file system"),
        (tmp_path / "no", "does not exist"),
        (tmp_path / "file", "not a folder"),
        (f"{tmp_path}/{'../' * 50}", "whole file system"),
    ):
        with pytest.raises(VlaError, match=reason):
            check_root(root)


def test_no_path_leads_out(tmp_path):
    """Random paths over a tree with links of every sort: what is let through is inside.

    Judged by the kernel: the file is made at the path given, and looked for afterwards.
    """
    root = tmp_path / "root"
    for folder in ("root/a/b", "root/c", "outside/deep", "root-twin"):
        (tmp_path / folder).mkdir(parents=True)
    links = {
        "out": "../outside",
        "a/up": "..",
        "a/b/upup": "../..",
        "abs": str(tmp_path / "outside"),
        "twin": "../root-twin",
        "c/chain": "../out/deep",
        "in": "a/b",
        "loop": "loop",
        "dangling": "../outside/new",
        "a/home": str(root),
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    root = check_root(root)
    pieces = [
        "a",
        "b",
        "c",
        "up",
        "upup",
        "out",
        "abs",
        "twin",
        "chain",
        "in",
        "loop",
        "dangling",
        "home",
        "..",
        "..",
        ".",
        "",
        "deep",
        "root",
        "root-twin",
        "new",
        "~",
        "a b",
        "\u00e9",
    ]
    starts = ["", "", "", str(root), str(tmp_path), "/", f"{root}-twin"]
    rng = random.Random(0)
    counts = {True: 0, False: 0}
    for _ in range(4000):
        start, words = rng.choice(starts), rng.choices(pieces, k=rng.randint(1, 6))
        value = "/".join([start, *words] if start else words)
        try:
            path = confine(root, value)
        except VlaError:
            allowed = False
        else:
            allowed = True
            assert path == root or root in path.parents
            assert os.path.realpath(path) == str(path)
            confined_again = confine(root, str(path))
            assert confined_again == path
        counts[allowed] += 1
        # What the kernel says of the folder it names, where there is one.
        given = os.path.join(root, value)
        with contextlib.suppress(OSError, ValueError):
            there = Path(os.path.realpath(given, strict=True))
            inside = there == root or root in there.parents
            assert allowed == inside or (not value and inside), value
    assert min(counts.values()) > 500


def test_names_are_confined_where_they_could_be_paths(tmp_path):
    root = check_root(tmp_path)
    (root / "stats.json").touch()

    def words(value):
        return command_words(KINDS["eval"], ["--action-space", value], root)[1]

    assert words("normalized") == "--action-space=normalized"
    assert words("stats.json") == f"--action-space={root}/stats.json"
    for value in ("..", "/etc/passwd", "a/../../b"):
        with pytest.raises(VlaError, match="leads out"):
            words(value)


# -- what lies inside -------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A root with a dataset, and something beside it that is none of a job's business."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "datasets" / "mine" / "deep", outside):
        folder.mkdir(parents=True)
    (outside / "secret.txt").write_text("secret")
    with h5py.File(outside / "secret.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
    return check_root(root), outside


def link(root, outside):
    (root / "datasets" / "mine" / "deep" / "link.bin").symlink_to(outside / "secret.txt")


def folder_link(root, outside):
    (root / "inner").mkdir()
    (root / "datasets" / "mine" / "again").symlink_to(root / "inner")  # inside: followed
    (root / "inner" / "out").symlink_to(outside)


def external_link(root, outside):
    with h5py.File(root / "datasets" / "mine" / "x.hdf5", "w") as file:
        file["data"] = h5py.ExternalLink("../../../outside/secret.hdf5", "/data")


def external_storage(root, outside):
    with h5py.File(root / "datasets" / "mine" / "x.hdf5", "w") as file:
        secret = [(str(outside / "secret.txt"), 0, 6)]
        file.create_dataset("data/demo_0/obs/image", (6,), np.uint8, external=secret)


def virtual_dataset(root, outside):
    with h5py.File(root / "datasets" / "mine" / "x.hdf5", "w") as file:
        layout = h5py.VirtualLayout((3, 7), float)
        layout[:] = h5py.VirtualSource(outside / "secret.hdf5", "data/demo_0/actions", (3, 7))
        file.create_virtual_dataset("data/demo_0/actions", layout)


def second_file(root, outside):
    """A file inside names another one inside, which names one outside."""
    external_link(root, outside)
    (root / "datasets" / "mine" / "x.hdf5").rename(root / "other.hdf5")
    with h5py.File(root / "other.hdf5", "w") as file:
        file["data"] = h5py.ExternalLink(str(outside / "secret.hdf5"), "/data")
    with h5py.File(root / "datasets" / "mine" / "x.hdf5", "w") as file:
        file["data"] = h5py.ExternalLink("../../other.hdf5", "/data")


WAYS = (link, folder_link, external_link, external_storage, virtual_dataset, second_file)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("subcommand", ["eval", "finetune"])
def test_nothing_inside_a_dataset_leads_out(tree, way, subcommand):
    root, outside = tree
    words = {
        "eval": ["--dataset", "datasets/mine"],
        "finetune": ["--data-root-dir", "datasets", "--dataset-name", "mine:2"],
    }[subcommand]
    words = command_words(KINDS[subcommand], words, root)
    for path in opened(words):
        check(path, root)
    way(root, outside)
    with pytest.raises(VlaError, match=r"outside|leads out of the root folder"):
        for path in opened(words):
            check(path, root)


def test_a_linked_dataset_is_refused_by_name_and_others_beside_it_are_not(tree):
    root, outside = tree
    (root / "datasets" / "big").symlink_to(outside)
    for name, refused in (("mine", False), ("big", True), ("mine,big/x", True), ("big:3", True)):
        words = ["--data-root-dir=datasets", f"--dataset-name={name}"]
        paths = list(opened(command_words(KINDS["finetune"], words, root)))
        with pytest.raises(VlaError, match=r"big.* leads out of") if refused else nullcontext():
            for path in paths:
                check(path, root)


def test_a_job_that_would_read_outside_ends_with_one_line(tree):
    root, outside = tree
    external_link(root, outside)
    runner = JobRunner(root)
    try:
        job = runner.start("eval", ["--dataset", "datasets/mine"])
        end = time.monotonic() + 120
        while not job.over and time.monotonic() < end:
            runner.poll()
            time.sleep(0.05)
        said = runner.log(job.job_id)
    finally:
        runner.close()
    assert job.exit_code == 2 and said.count("\n") == 1
    assert "vla eval: " in said and "/data is in " in said and "outside of the root" in said


def test_a_lerobot_set_names_no_file_outside_itself(tmp_path):
    source = write_set(tmp_path / "demo.hdf5")
    out = convert(source, tmp_path / "set", "lerobot", workers=1).path
    info = out / "meta" / "info.json"
    before = json.loads(info.read_text())
    for key, value in (
        ("data_path", "../set/data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"),
        ("video_path", f"{out}/videos/{{video_key}}/chunk-000/file-000.mp4"),
    ):
        info.write_text(json.dumps({**before, key: value}))
        with pytest.raises(DataError, match="names a file outside the dataset"):
            open_dataset(out)[0].steps[0].observation.images["agentview"]
