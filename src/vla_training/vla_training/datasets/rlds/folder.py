"""An RLDS dataset's folder as TFDS lays it out: versions, splits, shards, records."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from vla_inference.errors import DataError
from vla_training.datasets.rlds.tf_example import ExampleError, parse_example
from vla_training.datasets.rlds.tfrecord import RecordFile

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
COPY_AGAIN = "the dataset is incomplete or mixed with another: copy it again"


@dataclass(frozen=True)
class Split:
    """Files of a split and the number of episodes in each (None if not recorded)."""

    files: tuple[Path, ...]
    lengths: tuple[int, ...]


class RecordShards:
    """The records of a split over its files, one per episode; one file is open at a time."""

    def __init__(self, split: Split):
        self._split = split
        self._shards: dict[int, RecordFile] = {}
        self._open = -1  # number of the one shard that is held open
        self._ends = list(accumulate(split.lengths))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def record(self, index: int) -> tuple[dict, str]:
        """An episode's features as stored in its Example, and its place for messages."""
        number = bisect.bisect_right(self._ends, index)
        at = index - (self._ends[number - 1] if number else 0)
        shard = self._shard(number)
        where = f"{shard.path}, record {at}"
        try:
            return parse_example(shard[at]), where
        except ExampleError as error:
            raise DataError(f"{where} is not a tf.train.Example ({error})", COPY_AGAIN) from error

    def _shard(self, number: int) -> RecordFile:
        if number not in self._shards:
            file, wanted = self._split.files[number], self._split.lengths[number]
            if not file.is_file():
                raise DataError(f"shard {file} is missing", COPY_AGAIN)
            records = RecordFile(file)
            if len(records) != wanted:
                raise DataError(
                    f"{file} contains {len(records)} episodes, shardLengths in dataset_info.json "
                    f"says {wanted}",
                    COPY_AGAIN,
                )
            self._shards[number] = records
        if number != self._open:
            if self._open in self._shards:
                self._shards[self._open].close()
            self._open = number
        return self._shards[number]


def find_version(path: Path) -> Path:
    """The folder with features.json: `path`, its newest version, or the only dataset in it."""
    if not path.is_dir():
        raise DataError(f"there is no dataset folder {path}", "check the path")
    for pattern in ("features.json", "*/features.json", "*/*/features.json"):
        found = [f.parent for f in path.glob(pattern)]
        if not found:
            continue
        names = {f.parent for f in found}
        if len(found) > 1 and len(names) > 1:
            raise DataError(
                f"{path} contains several datasets ({', '.join(sorted(n.name for n in names))})",
                "name one of them",
            )
        folder = max(found, key=lambda f: [int(n) for n in re.findall(r"\d+", f.name)])
        if not (folder / "dataset_info.json").is_file():
            raise DataError(f"{folder / 'dataset_info.json'} is missing", COPY_AGAIN)
        return folder
    raise DataError(f"{path} has no features.json", "give the folder NAME/VERSION of a dataset")


def read_splits(folder: Path, info: Mapping) -> dict[str, Split]:
    """Splits by name, from dataset_info.json."""
    where = folder / "dataset_info.json"
    kind = info.get("fileFormat", "tfrecord")
    if kind != "tfrecord":
        raise DataError(f"{where}: fileFormat {kind!r} is not read", "store it as tfrecord")
    splits = {}
    try:
        for entry in info["splits"]:
            lengths = tuple(int(n) for n in entry["shardLengths"])
            template = entry.get("filepathTemplate") or TEMPLATE
            names = [
                template.format(
                    DATASET=info["name"],
                    SPLIT=entry["name"],
                    FILEFORMAT=kind,
                    SHARD_INDEX=f"{i:05d}",
                    NUM_SHARDS=f"{len(lengths):05d}",
                    SHARD_X_OF_Y=f"{i:05d}-of-{len(lengths):05d}",
                )
                for i in range(len(lengths))
            ]
            files = tuple(folder / Path(n).name for n in names)
            splits[str(entry["name"])] = Split(files, lengths)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where} is not laid out as TFDS has it ({error!r})") from error
    return splits


def read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error})", "copy the dataset again") from error
