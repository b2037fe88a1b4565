"""Writes a run in Prismatic's own layout as a checkpoint folder that every command takes.

python -m vla_inference.checkpoints.prismatic.convert RUN OUTPUT
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vla_inference.checkpoints.load import (
    load_config,
    load_tokenizer,
    no_answer_needs,
    raw_config,
)
from vla_inference.checkpoints.prismatic.run_config import is_run
from vla_inference.checkpoints.prismatic.weights import read_run
from vla_inference.checkpoints.safetensors_io import read_json
from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.system.files import Staged, replaceable, write_whole

STATISTICS, IMAGES = "dataset_statistics.json", "preprocessor_config.json"
SHARD_BYTES = 5_000_000_000


def convert(
    run: Path,
    output: Path,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """The same model in the released layout, weights in their dtype; whole or not at all."""
    if not is_run(read_json(run / "config.json")):
        raise CheckpointError(
            f"{run} is no training run of Prismatic's own", "give a folder with checkpoints/*.pt"
        )
    if output.resolve() == run.resolve():
        raise VlaError(f"{output} is the run itself", "name another folder")
    replaceable(output, overwrite, "config.json", "checkpoint folder")
    config, unused = load_config(run), no_answer_needs(load_config(run))
    tensors = {k: t for k, t in read_run(run, config).items() if not unused(k)}
    statistics = run / STATISTICS
    constants = [{"mean": list(t.mean), "std": list(t.std)} for t in config.encoders]
    with Staged(output) as staged:
        save_checkpoint(
            staged,
            raw_config(run),
            tensors,
            load_tokenizer(run),
            read_json(statistics) if statistics.is_file() else None,
            shard_bytes=SHARD_BYTES,
            progress=progress,
        )
        write_whole(staged / IMAGES, json.dumps({"tvf_normalize_params": constants}, indent=2))
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="Replace the folder.")
    given = parser.parse_args(arguments)
    try:
        print(convert(given.run, given.output, given.overwrite))
    except VlaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
