"""Bags written for the tests of several files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_inference.types import Episode, Observation, Step, eef_delta_spec
from vla_training.datasets.bag.episode_bag import EpisodeBag, make_message
from vla_training.datasets.bag.files import message_types as types
from vla_training.datasets.bag.writer import BagWriter, _header
from vla_training.datasets.writers import DataForm
from vla_training.ros.recording import ReceivedMessage

SPEC = eef_delta_spec("rotvec", "base", 0.05)


class Maker:
    """`make` as bags have it, for `_header`."""

    store = types.known_types()

    def make(self, kind, /, **fields):
        return make_message(self.store, kind, **fields)

    def heard(self, role, kind, stamp, log, **fields):
        message = self.make(kind, header=_header(self, stamp, "base"), **fields)
        data = bytes(self.store.serialize_cdr(message, kind))
        return ReceivedMessage(role, f"/{role}", kind, log, data)


def put_image(bag: EpisodeBag, topic: str, stamp: int, pixels: np.ndarray) -> None:
    """pixels: uint8 [H, W] grey, or [H, W, 3] RGB; stamp: ns."""
    height, width, *channels = pixels.shape
    image = bag.make(
        types.IMAGE,
        header=_header(bag, stamp, "cam"),
        height=height,
        width=width,
        encoding="rgb8" if channels else "mono8",
        step=pixels.nbytes // height,
        data=pixels.ravel(),
    )
    bag.put(topic, types.IMAGE, stamp, image)


def convert_words(source: Path, output: Path, **reading: str) -> list[str]:
    """The command line that converts a dataset to HDF5 in one process."""
    words = ["convert", "--dataset", str(source), "--convert", "hdf5", "--workers", "1"]
    words += ["--output", str(output)]
    return words + [w for k, v in reading.items() for w in ("--read", f"{k}={v}")]


def write_bags(path, lengths=(6, 4), size=64, **options):
    """Step t of episode i has an image all of grey 20 i + t."""
    rng = np.random.default_rng(0)
    with BagWriter(path, DataForm("mine", SPEC, {"front": (size, size)}), **options) as writer:
        for i, length in enumerate(lengths):
            steps = [
                Step(
                    Observation({"front": np.full((size, size, 3), 20 * i + t, np.uint8)}, "go"),
                    np.append(rng.uniform(-0.01, 0.01, 6), t % 2).astype(np.float32),
                )
                for t in range(length)
            ]
            writer.write(Episode(steps, SPEC, {"outcome": "success"}))
    return path
