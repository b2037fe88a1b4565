"""Resolves a path or a Hugging Face Hub id to a local folder. Fetches data only, never code."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vla_inference.checkpoints.foreign_formats import check_files
from vla_inference.checkpoints.openvla_compat import COMPONENTS, check_names
from vla_inference.errors import CheckpointError
from vla_inference.system.prefixes import share_folders

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TIMEOUT = 10.0  # s, for the Hub to say what it has
WANTED = ["*.json", "*.safetensors", *(f"{part}--*.pt" for part in COMPONENTS)]


def resolve(model: str | os.PathLike, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched from the Hub if `model` is an id like
    `openvla/openvla-7b`, or the folder of a model that is installed, such as `stack-small`.

    Downloads show their progress and resume where they stopped. Without a network a complete
    earlier download is used; of an incomplete one the missing files are named.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    for installed in share_folders("vla_inference", "models", folder.name):
        if folder.parent == Path() or folder == Path("models", folder.name):
            return installed
    # A path that was mistyped must not become a question to the network.
    parent = folder.parent
    local = folder.exists() or (parent != Path() and parent.is_dir())
    if local or not HUB_ID.fullmatch(os.fspath(model)):
        raise CheckpointError(
            f"there is no checkpoint folder {folder}",
            "check the path, or give a Hub id such as openvla/openvla-7b",
        )
    return fetch(os.fspath(model), revision)


def fetch(repo: str, revision: str | None = None) -> Path:
    """Download the parts of a checkpoint that we read, or find them in the cache."""
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise CheckpointError(
            f"{repo} is not a folder, and huggingface_hub, which fetches from the Hub, is not "
            "installed",
            "install huggingface_hub or give a folder",
        ) from error

    try:
        # Refuse before some 15 GB have come.
        # One question, asked once: listing files is tried again and again without a network.
        told = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
        names = [s.rfilename for s in told.siblings or () if "/" not in s.rfilename]
        check_names(names, repo)
        check_whole([s.rfilename for s in told.siblings or ()], repo)
        if "adapter_config.json" not in names:  # what that is, the folder tells
            check_files(names, repo)
        found = snapshot_download(
            repo, revision=revision, allow_patterns=WANTED, ignore_patterns=["*/*"]
        )
        return Path(found)
    except GatedRepoError:
        raise CheckpointError(
            f"{repo} is only given to those who accepted its licence",
            "accept it on the Hub and run `hf auth login`",
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        at = f" at revision {revision}" if revision else ""
        raise CheckpointError(
            f"there is no folder {repo}, nor a model of that name on the Hub{at}",
            "check the name (private ones need `hf auth login`)",
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # offline mode, no route, a time-out, half a download
        return _from_cache(repo, revision, error)


def check_whole(names: list[str], repo: str) -> None:
    """Refuses a training run of Prismatic's own, to which the Hub has but a part."""
    run = any(n.startswith("checkpoints/") and n.endswith(".pt") for n in names)
    if run and not any(n.endswith(".safetensors") for n in names):
        raise CheckpointError(
            f"{repo} is a training run in Prismatic's own layout, which lacks its tokenizer",
            f"run `hf download {repo} --local-dir FOLDER`, put the language model's "
            "tokenizer.json there (Qwen/Qwen2.5-0.5B has MiniVLA's), where it answers by codes "
            "its VQ-VAE in FOLDER/vq, and give FOLDER",
        )


def _from_cache(repo: str, revision: str | None, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download

    why = f"{type(reason).__name__}: {' '.join(str(reason).split()):.120}"
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # the library's own kinds are among them
        raise CheckpointError(
            f"there is no folder {repo}, it was never downloaded from the Hub, and the Hub cannot "
            f"be reached ({why})",
            "check the path, or connect once",
        ) from None
    missing = missing_files(folder)
    if missing:
        raise CheckpointError(
            f"the download of {repo} is not complete (missing: {', '.join(missing)}) and the Hub "
            f"cannot be reached ({why})",
            f"connect and run again, or copy them into {folder}",
        ) from None
    return folder


def missing_files(folder: Path) -> list[str]:
    """Names of missing files, as far as the existing ones show."""
    from vla_inference.checkpoints.safetensors_io import INDEX, read_json

    missing = [n for n in ("config.json", "tokenizer.json") if not (folder / n).is_file()]
    index = folder / INDEX
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing += [n for n in shards if not (folder / n).is_file()]
    elif not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    return missing
