#!/usr/bin/env python3
"""The tutorial from an empty folder to a trained model in closed loop: time, disk, success.

    python bench/tutorial.py [--output bench/results/tutorial.json] [--curve FILE.webp]
    python bench/tutorial.py --setup-alone [--output bench/results/setup.json]

Clones this repository's HEAD, calls `make setup`, and runs the commands of the tutorial's sections
"Watch it", "Make demonstrations" and "Train" as they are printed. Packages are downloaded; pip's
cache is not used. Afterwards, and not counted, the same model is evaluated without its training.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import ROOT, add_output, keep, provenance

SECTIONS = ("Watch it", "Make demonstrations", "Train")
# What a shell that is set up hands down, and a newcomer's does not have.
OURS = ("VIRTUAL_ENV", "PYTHONPATH", "AMENT_PREFIX_PATH", "MUJOCO_GL", "PYOPENGL_PLATFORM")


def commands(page: str) -> Iterator[str]:
    """Of the fenced blocks of those sections, a line each."""
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        title = section.partition("\n")[0].partition(". ")[2]
        if title in SECTIONS:
            for block in re.findall(r"^```\n(.*?)^```", section, flags=re.M | re.S):
                yield from re.sub(r"\s*\\\n\s*", " ", block).splitlines()


def megabytes(folder: Path) -> float:
    """Disk that a folder's files take, 10^6 bytes; those linked twice count once."""
    done = subprocess.run(["du", "-s", "-B1", folder], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) / 1e6


def run(command: str, where: Path, environment: dict[str, str]) -> float:
    """Seconds."""
    begin = time.monotonic()
    subprocess.run(
        ["bash", "-c", command], cwd=where, env=environment, check=True, stdout=sys.stderr
    )
    return time.monotonic() - begin


def rollouts(where: Path) -> dict[str, str]:
    """Successes of each evaluation, by its task and model."""
    found = {}
    for path in sorted(where.glob("results/*/results.json"), key=lambda p: p.stat().st_mtime):
        result = json.loads(path.read_text())
        found[f"{result['task']} by {result['model']}"] = (
            f"{result['successes']} of {result['episodes']}"
        )
    return found


def untrained(command: str) -> str:
    """The same for a model that is not trained: after one step."""
    command = re.sub(r"--minutes \S+", "--steps 1", command)
    return command.replace("runs/first", "runs/untrained")


def draw(metrics: Path, file: Path) -> None:
    """The curve of a training run, as an image."""
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    train = [x for x in lines if x["kind"] == "train"]
    held_out = [x for x in lines if x["kind"] == "validation"]
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot([x["step"] for x in train], [x["loss"] for x in train], label="loss")
    where, error = [x["step"] for x in held_out], [x["l1"] for x in held_out]
    axes.plot(where, error, "o-", label="error of actions, held-out episodes")
    axes.set(xlabel="steps", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_output(parser)
    parser.add_argument("--curve", type=Path, help="draw the training's curve there")
    parser.add_argument(
        "--setup-alone", action="store_true", help="the disk that `make setup` takes"
    )
    arguments = parser.parse_args()
    environment = {k: v for k, v in os.environ.items() if k not in OURS}
    environment["PIP_NO_CACHE_DIR"] = "1"
    begun = provenance()  # of the commit that is cloned
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder, "clone")
        subprocess.run(["git", "clone", "-q", ROOT, where], check=True)
        seconds = {"make setup": run("make setup", where, environment)}
        sizes = {"environment_mb": megabytes(where / ".venv"), "all_mb": megabytes(where)}
        result = {"provenance": begun, **{name: round(mb) for name, mb in sizes.items()}}
        if arguments.setup_alone:
            keep(result, arguments.output)
            return
        page = (where / "docs" / "tutorial.md").read_text()
        for command in commands(page):
            seconds[command] = run(command, where, environment)
        for command in commands(page):
            if "runs/first" in command:
                run(untrained(command), where, environment)
        if arguments.curve is not None:
            draw(where / "runs" / "first" / "metrics.jsonl", arguments.curve)
        result |= {
            "seconds": {name: round(s, 1) for name, s in seconds.items()},
            "minutes": round(sum(seconds.values()) / 60, 1),
            "successes": rollouts(where),
        }
    keep(result, arguments.output)


if __name__ == "__main__":
    main()
