"""Datasets on the Hugging Face Hub: a local one is pushed, one of the Hub is pulled into a folder.

LeRobot asks the Hub for a git tag of a dataset's `codebase_version` before it reads a file
(https://github.com/huggingface/lerobot/pull/790), so a pushed LeRobot dataset gets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_inference.checkpoints.hub import HUB_ID, TIMEOUT
from vla_inference.checkpoints.safetensors_io import read_json
from vla_inference.errors import DataError
from vla_training.datasets.base import EpisodeSet

KIND = "dataset"
NOT_DATA = [".*", "**/.*", "*.lock"]
CARD = """---
task_categories:
- robotics
tags:
- {tags}
---
{episodes} episodes, {form}, by VLA for ROS 2.
"""


def push(data: EpisodeSet, path: Path, repo: str, private: bool = False) -> str:
    """Uploads a dataset as `repo` ("user/name"), made if it is not there; returns its address.

    Files of the same names are replaced, and a card is written where there is none. data: what
    the file or folder `path` was opened as.
    """
    _check_name(repo)
    episodes, version = len(data), _lerobot_version(path)
    form = f"LeRobot {version}" if version else type(data).__module__.split(".")[-2]
    with _asking(repo) as api:
        address = str(api.create_repo(repo, repo_type=KIND, private=private, exist_ok=True))
        to: dict[str, Any] = {"repo_id": repo, "repo_type": KIND}
        if path.is_dir():
            api.upload_folder(folder_path=path, ignore_patterns=NOT_DATA, **to)
        else:
            api.upload_file(path_or_fileobj=path, path_in_repo=path.name, **to)
        if not api.file_exists(repo, "README.md", repo_type=KIND):
            tags = "LeRobot" if version else "robotics"
            card = CARD.format(tags=tags, episodes=episodes, form=form).encode()
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", **to)
        if version:
            _move_tag(api, repo, version)
    return address


def pull(repo: str, folder: Path, revision: str | None = None) -> Path:
    """Downloads a dataset into a folder; what is there already is not fetched again."""
    _check_name(repo)
    if folder.is_file():
        raise DataError(f"{folder} is a file", "give --output a folder")
    begun = (folder / ".cache" / "huggingface").is_dir()  # by an earlier pull
    if not begun and folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} has files of its own", "choose another --output")
    with _asking(repo) as api:
        api.dataset_info(
            repo, revision=revision, timeout=TIMEOUT
        )  # without a network it is refused
        api.snapshot_download(repo, repo_type=KIND, revision=revision, local_dir=folder)
    return folder


def _check_name(repo: str) -> None:
    if not HUB_ID.fullmatch(repo):
        raise DataError(f"{repo!r} is no name of a dataset on the Hub", "give USER/NAME")


def _lerobot_version(path: Path) -> str:
    """ "v3.0"; empty: it is no LeRobot dataset."""
    info = path / "meta" / "info.json"
    return str(read_json(info).get("codebase_version", "")) if info.is_file() else ""


def _move_tag(api: Any, repo: str, tag: str) -> None:
    """A tag names one commit: that of an earlier push is taken away first."""
    refs = api.list_repo_refs(repo, repo_type=KIND)
    if any(ref.name == tag for ref in refs.tags):
        api.delete_tag(repo, tag=tag, repo_type=KIND)
    api.create_tag(repo, tag=tag, repo_type=KIND)


@contextmanager
def _asking(repo: str) -> Iterator[Any]:
    """The Hub's API; its errors become one of ours."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def status(error: HfHubHTTPError) -> int:
        return getattr(error.response, "status_code", 0)

    try:
        yield HfApi()
    except GatedRepoError as error:
        raise DataError(
            f"{repo} is only given to those who accepted its terms",
            "accept them on the Hub and run `hf auth login`",
        ) from error
    except LocalTokenNotFoundError as error:
        raise DataError("nobody is logged in to the Hub", "run `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise DataError(f"{repo} has no such revision", "check --revision") from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"there is no dataset {repo} on the Hub, or not for you",
            "check the name; private ones need `hf auth login`",
        ) from error
    except HfHubHTTPError as error:
        if status(error) in (401, 403):
            raise DataError(
                f"the Hub does not let you write {repo}",
                "run `hf auth login` with a token that may write there",
            ) from error
        raise DataError(
            f"the Hub refused {repo} ({_line(error)})", "run the same again later"
        ) from error
    except (OSError, HTTPError) as error:  # no network, or a full disk
        raise DataError(
            f"{repo} did not come through ({_line(error)})",
            "check network and disk; the same command goes on from here",
        ) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.120}"
