"""Paths that a job is given: none leads out of its root."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from vla_inference.errors import VlaError
from vla_training.jobs import KINDS
from vla_training.jobs.kinds import command_words
from vla_training.jobs.paths import check_root, confine


def test_roots_that_are_refused(tmp_path):
    (tmp_path / "file").touch()
    for root, reason in (
        ("", "no root"), ("/", "whole file system"), (tmp_path / "no", "does not exist"),
        (tmp_path / "file", "not a folder"), (f"{tmp_path}/{'../' * 50}", "whole file system"),
    ):  # fmt: skip
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
        "out": "../outside", "a/up": "..", "a/b/upup": "../..", "abs": str(tmp_path / "outside"),
        "twin": "../root-twin", "c/chain": "../out/deep", "in": "a/b", "loop": "loop",
        "dangling": "../outside/new", "a/home": str(root),
    }  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    root = check_root(root)
    pieces = [
        "a", "b", "c", "up", "upup", "out", "abs", "twin", "chain", "in", "loop", "dangling",
        "home", "..", "..", ".", "", "deep", "root", "root-twin", "new", "~", "a b", "\u00e9",
    ]  # fmt: skip
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
