#!/usr/bin/env python3
"""Rate of the RLDS reader against tensorflow-datasets on the same data, with a check for equality.

    VLA_TF_PYTHON=/path/to/venv/bin/python \
        python bench/data/rlds_reader.py [--data FOLDER] [--repeat 5]

VLA_TF_PYTHON names an interpreter with tensorflow and tensorflow-datasets; without it only our
reader is measured. Two ways of reading: "steps" gives each step with all its images decoded
(the usual loop over tensorflow-datasets); "encoded" leaves images as they are stored
(SkipDecoding, whole episodes at once, as dlimp reads them). The best of the repeats counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import add_output, keep

ROOT = Path(__file__).resolve().parents[2]


def best_rate(read, repeat: int) -> float:
    """Steps per second of `read`, which returns how many it saw; one call warms up."""
    read()
    rates = []
    for _ in range(repeat):
        begun = time.perf_counter()
        steps = read()
        rates.append(steps / (time.perf_counter() - begun))
    return round(max(rates), 1)


# -- ours -------------------------------------------------------------------------------------


def ours(folder: Path, repeat: int) -> tuple[dict, dict]:
    from vla_training.datasets.images import decode_image
    from vla_training.datasets.rlds.reader import RldsEpisodes

    data = RldsEpisodes(folder, conventions="bridge_raw")

    def steps() -> int:
        seen = 0
        for episode in data:
            for step in episode.steps:
                for camera in step.observation.images:
                    step.observation.images[camera]
                seen += 1
        return seen

    def encoded() -> int:
        return sum(len(data.raw(i)["steps/action"]) for i in range(len(data)))

    rates = {"steps": best_rate(steps, repeat), "encoded": best_rate(encoded, repeat)}
    columns: dict[str, list] = {}
    for i in range(len(data)):
        raw = data.raw(i)
        for name, feature in data.features.items():
            if not name.startswith("steps/"):
                continue
            values = raw[name]
            if feature.kind == "image":
                columns.setdefault(name + ":encoded", []).extend(values)
                values = [decode_image(v, name) for v in values]
            columns.setdefault(name, []).extend(values)
    return rates, {k: as_array(v) for k, v in columns.items()}


# -- tensorflow-datasets, in an interpreter of its own ----------------------------------------


def theirs(folder: Path, repeat: int, output: Path) -> dict:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    images = {
        k: tfds.decode.SkipDecoding()
        for k, f in builder.info.features["steps"]["observation"].items()
        if isinstance(f, tfds.features.Image)
    }
    skip = {"steps": {"observation": images}}
    options = tf.data.Options()
    options.deterministic = True

    def open_set(decoders=None, whole=False):
        read = tfds.ReadConfig(interleave_cycle_length=1)
        data = builder.as_dataset(split="train", decoders=decoders, read_config=read)
        data = data.with_options(options)
        if whole:
            data = data.map(lambda e: e["steps"].batch(1_000_000).get_single_element())
        return data

    def steps() -> int:
        return sum(1 for episode in open_set() for _ in episode["steps"].as_numpy_iterator())

    def flat() -> int:
        data = open_set().flat_map(lambda e: e["steps"]).prefetch(tf.data.AUTOTUNE)
        return sum(1 for _ in data.as_numpy_iterator())

    def encoded() -> int:
        return sum(len(e["action"]) for e in open_set(skip, True).as_numpy_iterator())

    rates = {"steps": best_rate(flat, repeat), "encoded": best_rate(encoded, repeat)}
    rates["steps, nested loop"] = best_rate(steps, 1)
    columns: dict[str, list] = {}
    for suffix, decoders in (("", None), (":encoded", skip)):
        for episode in open_set(decoders):
            for step in episode["steps"].as_numpy_iterator():
                nested = {f"steps/observation/{k}": v for k, v in step["observation"].items()}
                for name, value in {
                    **{f"steps/{k}": v for k, v in step.items()},
                    **nested,
                }.items():
                    if name == "steps/observation" or (
                        suffix and name.split("/")[-1] not in images
                    ):
                        continue
                    columns.setdefault(name + suffix, []).append(value)
    np.savez(output, **{k.replace("/", "|"): as_array(v) for k, v in columns.items()})
    rates["versions"] = {"tensorflow": tf.__version__, "tensorflow_datasets": tfds.__version__}
    return rates


def as_array(values: list) -> np.ndarray:
    """Bytes become rows of equal width behind their length, so that no pickle is needed."""
    if isinstance(values[0], bytes):
        width = max(map(len, values))
        rows = [len(v).to_bytes(4, "big") + v.ljust(width, b"\0") for v in values]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(len(values), width + 4)
    return np.stack(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("VLA_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default) / "bridge_rlds")
    parser.add_argument("--repeat", type=int, default=5)
    add_output(parser)
    parser.add_argument("--tensorflow", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tensorflow:
        print(json.dumps(theirs(args.data, args.repeat, args.tensorflow)))
        return
    if not args.data.is_dir():
        print(f"there is no data at {args.data}; give --data or set VLA_TEST_DATA")
        return
    from vla_training.datasets.rlds.reader import find_version

    folder = find_version(args.data)
    rates, mine = ours(folder, args.repeat)
    result = {"steps": len(mine["steps/action"]), "steps_per_s": {"vla": rates}}
    python = os.environ.get("VLA_TF_PYTHON")
    if not python:
        result["tensorflow_datasets"] = "not measured: VLA_TF_PYTHON names no interpreter"
    else:
        result |= compare(python, folder, args.repeat, mine)
        other = result["steps_per_s"] = {"vla": rates, "tfds": result.pop("tfds")}
        result["times_faster"] = {
            k: round(rates[k] / other["tfds"][k], 1) for k in ("steps", "encoded")
        }
    keep(result, args.output)


def compare(python: str, folder: Path, repeat: int, mine: dict) -> dict:
    """Rates of the other reader, and every stored value against ours."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "tfds.npz")
        # Our environment's paths would shadow the other interpreter's packages.
        hidden = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
        done = subprocess.run(
            [python, __file__, "--data", folder, "--repeat", str(repeat), "--tensorflow", output],
            capture_output=True,
            text=True,
            env={k: v for k, v in os.environ.items() if k not in hidden},
        )
        if done.returncode:
            sys.exit(f"{python} failed:\n{done.stderr[-2000:]}")
        with np.load(output) as file:
            other = {k.replace("|", "/"): file[k] for k in file.files}
    equal = {
        k: k in other
        and mine[k].dtype == other[k].dtype
        and mine[k].tobytes() == other[k].tobytes()
        for k in mine
    }
    return {
        "tfds": json.loads(done.stdout.splitlines()[-1]),
        "features_equal": sum(equal.values()),
        "features_different": sorted(k for k, v in equal.items() if not v),
        "features_not_ours": sorted(set(other) - set(mine)),
    }


if __name__ == "__main__":
    main()
