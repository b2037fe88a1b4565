"""Resolves checkpoint names inside one root folder and refuses paths outside it."""

from __future__ import annotations

import os
from pathlib import Path

from vla_inference.checkpoints.hub import HUB_ID
from vla_inference.errors import CheckpointError, VlaError


def find_model(root: str | os.PathLike, name: str) -> Path:
    """The checkpoint folder `name` inside `root`, with links and ".." resolved.

    name: a path relative to the root (an absolute one must lead into it), or a Hub id which the
        Hub's own cache layout holds there (models--ORG--NAME/snapshots). Nothing is fetched.
    Raises VlaError where it leads, or any of its files lead, out of the root. What there is
    outside is not told.
    """
    if not os.fspath(root):
        raise VlaError("models cannot be changed here", "set parameter 'model_root' to a folder")
    top = Path(os.path.realpath(os.path.expanduser(root)))
    if top == Path(top.anchor) or not top.is_dir():
        raise VlaError(
            f"model_root {root} is not a folder below /", "set it to the models' folder"
        )
    if not name or "\0" in name:
        raise VlaError("no model is named", "give a folder inside model_root")
    folder = _inside(top, top / name, name)
    if not folder.is_dir():
        folder = _from_cache(top, name) or folder
    if not folder.is_dir():
        raise CheckpointError(f"there is no model {name} in {top}", "give a folder inside it")
    for path in folder.iterdir():
        _inside(top, path, f"{name}/{path.name}")
    return folder


def _inside(top: Path, path: Path, name: str) -> Path:
    # Resolved link by link as the kernel does it: "link/.." is the parent of the link's target.
    found = Path(os.path.realpath(path))
    if top not in found.parents:
        raise VlaError(f"{name} leads out of model_root {top}", "give a folder inside it")
    return found


def _from_cache(top: Path, name: str) -> Path | None:
    """The folder of a Hub id in `huggingface_hub`'s cache layout, offline."""
    if not HUB_ID.fullmatch(name):
        return None
    repo = top / f"models--{name.replace('/', '--')}"
    try:
        commit = (repo / "refs" / "main").read_text().strip()
    except OSError:
        return None
    return _inside(top, repo / "snapshots" / commit, name)
