"""Writes RLDS datasets as TFDS stores them, without TensorFlow.

PATH/1.0.0 holds features.json, dataset_info.json, action_spec.json and shards of about one size;
`tfds.builder_from_directory(PATH/1.0.0)` and `tfds.builder(NAME, data_dir=PARENT)` read it.
Source: tensorflow/datasets core/features, core/dataset_info (format).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np

from vla_inference.episodes.estimates import ESTIMATE, UNKNOWN, estimates
from vla_inference.episodes.interventions import INTERVENTION, interventions
from vla_inference.episodes.language import COLUMNS, rows_of
from vla_inference.options import option
from vla_inference.policies.action_specs import spec_to_json
from vla_inference.types import Episode, Step
from vla_training.datasets.action_form import SPEC_FILE
from vla_training.datasets.images import encode_image, image_encoding
from vla_training.datasets.rlds.reader import METADATA, OBSERVATION, TEMPLATE
from vla_training.datasets.rlds.tf_example import build_example
from vla_training.datasets.rlds.tfrecord import write_record
from vla_training.datasets.writers import DataForm, EpisodeWriter

VERSION = "1.0.0"
TFDS = "tensorflow_datasets.core.features"


@dataclass(frozen=True)
class RldsOptions:
    encoding: str = option("jpeg", "jpeg, or png which loses nothing", choices=("jpeg", "png"))
    quality: int = option(95, "of JPEGs, 1 to 100 (95)", low=1, high=100)
    shard_mb: float = option(200.0, "size of a shard in MB (200)")


class RldsWriter(EpisodeWriter):
    """One split, "train"."""

    Options = RldsOptions

    def begin(self) -> None:
        self.name = re.sub(r"\W", "_", self.path.name)
        if not re.match(r"[A-Za-z]", self.name):
            self.name = f"set_{self.name}"
        if self.name != self.path.name:
            self.notes.append(f"the dataset's name is {self.name!r}: TFDS takes no other")
        self.folder = self.partial / VERSION
        self._shard: IO[bytes] | None = None
        self._lengths: list[int] = []  # episodes of each shard
        self._num_bytes = self._in_shard = 0  # of all episodes, of those in the last shard
        self.folder.mkdir(parents=True)

    def encoder(self) -> RldsEncoder:
        return RldsEncoder(self.form, self.options.encoding, self.options.quality)

    def add(self, encoded: bytes) -> None:
        if self._in_shard + len(encoded) > 1e6 * self.options.shard_mb:
            self.release()
        if self._shard is None:
            number = len(self._lengths)
            self._shard = (self.folder / f"{self.name}-train.tfrecord-{number:05d}").open("wb")
            self._lengths.append(0)
            self._in_shard = 0
        write_record(self._shard, encoded)
        self._lengths[-1] += 1
        self._in_shard += len(encoded)
        self._num_bytes += len(encoded)

    def finish(self) -> None:
        self.release()
        count = len(self._lengths)
        for number in range(count):
            shard = self.folder / f"{self.name}-train.tfrecord-{number:05d}"
            shard.rename(f"{shard}-of-{count:05d}")
        for name, value in (
            ("features.json", self._features()),
            ("dataset_info.json", self._info()),
            (SPEC_FILE, spec_to_json(self.form.spec)),
        ):
            (self.folder / name).write_text(json.dumps(value, indent=2), encoding="utf-8")

    def release(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            shard.close()

    def _info(self) -> dict:
        return {
            "description": "Actions: see action_spec.json beside this file.",
            "fileFormat": "tfrecord",
            "moduleName": "vla_training.datasets.rlds.writer",
            "name": self.name,
            "releaseNotes": {VERSION: "Written by vla convert."},
            "splits": [
                {
                    "filepathTemplate": TEMPLATE,
                    "name": "train",
                    "numBytes": str(self._num_bytes),
                    "shardLengths": [str(n) for n in self._lengths],
                }
            ],
            "version": VERSION,
        }

    def _features(self) -> dict:
        form = self.form
        observation = {
            name: {
                "pythonClassName": f"{TFDS}.image_feature.Image",
                "image": {
                    "shape": {"dimensions": [str(n) for n in (*size, 3)]},
                    "dtype": "uint8",
                    "encodingFormat": self.options.encoding,
                },
            }
            for name, size in form.cameras.items()
        }
        if form.state:
            observation["state"] = _tensor("float32", form.state)
        steps = {
            "action": _tensor("float32", len(form.spec)),
            "observation": _group(observation),
            "language_instruction": _text(),
            "reward": _tensor("float32"),
            "discount": _tensor("float32"),
            "is_first": _tensor("bool"),
            "is_last": _tensor("bool"),
            "is_terminal": _tensor("bool"),
        }
        if INTERVENTION in form.carried:
            steps[INTERVENTION] = _tensor("bool")
        if ESTIMATE in form.carried:
            steps[ESTIMATE] = _tensor("float32", 2)
        texts = ("file_path", METADATA, *(c for c in COLUMNS if c in form.carried))
        return _group(
            {
                "steps": {
                    "pythonClassName": f"{TFDS}.dataset_feature.Dataset",
                    "sequence": {"feature": _group(steps), "length": "-1"},
                },
                "episode_metadata": _group({name: _text() for name in texts}),
            }
        )


def _group(features: Mapping[str, dict]) -> dict:
    return {
        "pythonClassName": f"{TFDS}.features_dict.FeaturesDict",
        "featuresDict": {"features": dict(features)},
    }


def _tensor(dtype: str, size: int | None = None) -> dict:
    kind = "scalar.Scalar" if size is None else "tensor_feature.Tensor"
    shape = {} if size is None else {"dimensions": [str(size)]}
    return {
        "pythonClassName": f"{TFDS}.{kind}",
        "tensor": {"shape": shape, "dtype": dtype, "encoding": "none"},
    }


def _text() -> dict:
    return {"pythonClassName": f"{TFDS}.text_feature.Text", "text": {}}


@dataclass(frozen=True)
class RldsEncoder:
    """Episode -> bytes of its tf.train.Example."""

    form: DataForm
    encoding: str
    quality: int

    def __call__(self, episode: Episode) -> bytes:
        steps, length = episode.steps, len(episode)
        metadata = {k: v for k, v in episode.metadata.items() if k not in COLUMNS}
        features: dict = {
            "steps/action": episode.actions,
            "steps/language_instruction": [t.encode() for t in episode.instructions],
            "steps/reward": episode.rewards.astype(np.float32),
            "steps/discount": np.ones(length, np.float32),
            "steps/is_first": np.array([s.is_first for s in steps]),
            "steps/is_last": np.array([s.is_last for s in steps]),
            "steps/is_terminal": episode.terminal,
            "episode_metadata/file_path": [str(episode.metadata.get("source", "")).encode()],
            f"episode_metadata/{METADATA}": [json.dumps(metadata).encode()],
        }
        if INTERVENTION in self.form.carried:
            acted = interventions(episode)
            features[f"steps/{INTERVENTION}"] = np.zeros(length, bool) if acted is None else acted
        if ESTIMATE in self.form.carried:
            told = estimates(episode)
            unknown = np.full((length, 2), UNKNOWN, np.float32)
            features[f"steps/{ESTIMATE}"] = unknown if told is None else told
        for name in (c for c in COLUMNS if c in self.form.carried):
            rows = rows_of(episode.metadata, name, str(metadata.get("source", "an episode")))
            features[f"episode_metadata/{name}"] = [json.dumps(rows).encode()]
        for camera in self.form.cameras:
            features[OBSERVATION + camera] = [self._image(s, camera) for s in steps]
        if self.form.state:
            features[OBSERVATION + "state"] = episode.states
        return build_example(features)

    def _image(self, step: Step, camera: str) -> bytes:
        """An encoded image; kept unchanged if it already is, since a second JPEG would lose
        quality."""
        images = step.observation.images
        if hasattr(images, "encoded"):
            data = images.encoded(camera)
            if data and image_encoding(data) == self.encoding:
                return data
        return encode_image(images[camera], self.encoding, self.quality)
