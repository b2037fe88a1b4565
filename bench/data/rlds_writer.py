#!/usr/bin/env python3
"""Rate and memory of HDF5 -> RLDS against tensorflow-datasets' own writer on the same file.

    VLA_TF_PYTHON=/path/to/venv/bin/python python bench/data/rlds_writer.py [--data demo.hdf5]

VLA_TF_PYTHON names an interpreter with tensorflow, tensorflow-datasets and h5py; without it only
our writer is measured. --data is a file of `vla generate`; without it images of 224x224 are
made up. Its episodes are repeated (by links) up to --episodes. Both sides start from the same
compressed file and write JPEGs of quality 95: ours in --workers processes, the other's
GeneratorBasedBuilder in one, as it does. Ours counts the start of its processes, the other not its
imports. Memory is the largest process' peak, at --episodes and at
four times as many. The median of --repeat runs counts; CPU time, which other work on the machine
changes less, covers start-up and imports too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import h5py
import numpy as np
from common import add_output, keep

HIDDEN = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


def made_up(path: Path, episodes: int = 8, length: int = 80, size: int = 224) -> None:
    """Two blocks that move over a textured table, in `vla generate`'s layout."""
    from vla_inference.episodes.hdf5 import write_columns, write_header

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    table = 160 + 30 * np.sin(x / 31) + 20 * np.cos(y / 17)
    texture = rng.normal(0, 2, (size, size, 3))
    with h5py.File(path, "w") as file:
        write_header(file, "Stack_D2", episodes * length, {})
        for e in range(episodes):
            images = np.empty((length, size, size, 3), np.uint8)
            colours = rng.integers(0, 256, (2, 3))
            for t in range(length):
                image = table[..., None] + texture
                for k, colour in enumerate(colours):
                    at = 60 + 60 * k + t // (k + 1)
                    image[at : at + 24, at : at + 24] = colour
                images[t] = image.clip(0, 255)
            data = {
                "actions": rng.uniform(-1, 1, (length, 7)),
                "states": np.zeros((length, 45)),
                "rewards": np.zeros(length),
                "dones": np.arange(length) == length - 1,
                "instructions": ["stack the red block on the green one"] * length,
                "obs": {
                    "agentview_image": images,
                    "robot0_state": rng.normal(size=(length, 8)).astype(np.float32),
                },
            }
            write_columns(file.create_group(f"data/demo_{e}"), data)


def repeated(source: Path, path: Path, episodes: int) -> int:
    """A file of so many links to the episodes of another; returns its frames."""
    frames = 0
    with h5py.File(source) as old, h5py.File(path, "w") as new:
        names = list(old["data"])
        data = new.create_group("data")
        for key, value in old["data"].attrs.items():
            data.attrs[key] = value
        for i in range(episodes):
            name = names[i % len(names)]
            data[f"demo_{i}"] = h5py.ExternalLink(str(source), f"data/{name}")
            frames += len(old["data"][name]["actions"])
    return frames


# -- the two sides, each in a process of its own ------------------------------------------------


def ours(source: Path, output: Path, workers: int) -> float:
    """Seconds, processes and all."""
    from vla_training.conversion.config import ConvertConfig
    from vla_training.conversion.convert import convert

    config = ConvertConfig(remap={"agentview": "image"})
    return convert(source, output, "rlds", config, workers=workers).seconds


def theirs(source: Path, output: Path) -> float:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    with h5py.File(source) as file:
        first = file["data/demo_0"]
        shape = first["obs/agentview_image"].shape[1:]
        state = first["obs/robot0_state"].shape[1]

    class Rival(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            f = tfds.features
            flags = {k: np.bool_ for k in ("is_first", "is_last", "is_terminal")}
            observation = f.FeaturesDict(
                {
                    "image": f.Image(shape=shape, dtype=np.uint8, encoding_format="jpeg"),
                    "state": f.Tensor(shape=(state,), dtype=np.float32),
                }
            )
            steps = {
                "action": f.Tensor(shape=(7,), dtype=np.float32),
                "observation": observation,
                "language_instruction": f.Text(),
                "reward": np.float32,
                "discount": np.float32,
                **flags,
            }
            features = {
                "steps": f.Dataset(steps),
                "episode_metadata": f.FeaturesDict({"file_path": f.Text()}),
            }
            return tfds.core.DatasetInfo(builder=self, features=f.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            with h5py.File(source) as file:
                for name in sorted(file["data"], key=lambda d: int(d.split("_")[1])):
                    yield name, self._episode(file["data"][name], name)

        def _episode(self, group, name):
            action = group["actions"][:].astype(np.float32)
            text, reward = group["instructions"][:], group["rewards"][:].astype(np.float32)
            images, state = group["obs/agentview_image"], group["obs/robot0_state"][:]
            last = len(action) - 1
            steps = [
                {
                    "action": action[t],
                    "observation": {"image": images[t], "state": state[t].astype(np.float32)},
                    "language_instruction": text[t].decode(),
                    "reward": reward[t],
                    "discount": 1.0,
                    "is_first": t == 0,
                    "is_last": t == last,
                    "is_terminal": t == last,
                }
                for t in range(len(action))
            ]
            return {"steps": steps, "episode_metadata": {"file_path": name}}

    builder = Rival(data_dir=str(output))
    begun = time.perf_counter()
    builder.download_and_prepare()
    return time.perf_counter() - begun


def measured(
    python: str, side: str, source: Path, workers: int, clean: bool
) -> tuple[float, float, int]:
    """Seconds, CPU seconds of all its processes, and the peak of the largest one in MB."""
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        result = Path(scratch, "seconds")
        hidden = HIDDEN if clean else ()
        process = subprocess.Popen(
            [
                python,
                __file__,
                "--side",
                side,
                "--data",
                source,
                "--folder",
                Path(scratch, "out"),
                "--workers",
                str(workers),
                "--result",
                result,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if k not in hidden},
        )
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{side} failed:\n{errors[-2000:]}")
        cpu = usage.ru_utime + usage.ru_stime
        return float(result.read_text()), cpu, usage.ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    add_output(parser)
    for hidden in ("--side", "--folder", "--result"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        if args.side == "vla":
            seconds = ours(args.data, Path(args.folder), args.workers)
        else:
            seconds = theirs(args.data, Path(args.folder))
        Path(args.result).write_text(str(seconds))
        return
    with tempfile.TemporaryDirectory() as scratch:
        base = args.data.resolve() if args.data else Path(scratch, "made_up.hdf5")
        if args.data is None:
            made_up(base)
        small, large = Path(scratch, "small.hdf5"), Path(scratch, "large.hdf5")
        frames = repeated(base, small, args.episodes)
        more = repeated(base, large, 4 * args.episodes)
        keep(compare(args, small, frames, large, more), args.output)


def compare(args, small: Path, frames: int, large: Path, more: int) -> dict:
    rival = os.environ.get("VLA_TF_PYTHON")
    sides = {"vla": (sys.executable, args.workers, False)}
    if rival:
        sides["tfds"] = (rival, 1, True)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    memory = []
    for _ in range(args.repeat):
        for side, (python, workers, clean) in sides.items():
            seconds, used, peak = measured(python, side, small, workers, clean)
            rates[side].append(frames / seconds)
            cpu[side].append(1e3 * used / frames)
            if side == "vla":
                memory.append(peak)
    *_, peak = measured(sys.executable, "vla", large, args.workers, False)
    result = {
        "episodes": args.episodes,
        "frames": frames,
        "workers": args.workers,
        "frames_per_s": {k: round(statistics.median(v)) for k, v in rates.items()},
        "cpu_ms_per_frame": {k: round(statistics.median(v), 2) for k, v in cpu.items()},
        "largest_process_mb": {
            f"{frames} frames": statistics.median(memory),
            f"{more} frames": peak,
        },
    }
    if rival:
        pairs = zip(rates["vla"], rates["tfds"], strict=True)
        result["times_faster"] = round(statistics.median(a / b for a, b in pairs), 1)
    else:
        result["tensorflow_datasets"] = "not measured: VLA_TF_PYTHON names no interpreter"
    return result


if __name__ == "__main__":
    main()
