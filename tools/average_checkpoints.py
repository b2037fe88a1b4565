#!/usr/bin/env python3
"""Averages two checkpoints of one shape (weights, number by number).

    python tools/average_checkpoints.py BEFORE AFTER OUTPUT [--share 0.75]

Weights are (1 - share) BEFORE + share AFTER, number by number (Wortsman et al. 2022, "Model
soups", arXiv 2203.05482); everything else is AFTER's. Both must have one tokenizer.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--share", type=float, default=0.75, help="of AFTER, 0 to 1")
    args = parser.parse_args()
    if args.output.exists():
        sys.exit(f"{args.output} is there already: remove it or name another folder")
    if not 0 <= args.share <= 1:
        sys.exit(f"--share is {args.share}: give a number from 0 to 1")
    for folder in (args.before, args.after):
        for name in ("model.safetensors", "tokenizer.json", "config.json"):
            if not (folder / name).is_file():
                sys.exit(f"there is no {folder / name}: name a checkpoint in one file")
    before, after = (load_file(f / "model.safetensors") for f in (args.before, args.after))
    shapes = [{k: tuple(v.shape) for k, v in w.items()} for w in (before, after)]
    if shapes[0] != shapes[1]:
        sys.exit(f"{args.before} and {args.after} are not of one shape")
    words = [(f / "tokenizer.json").read_bytes() for f in (args.before, args.after)]
    if words[0] != words[1]:
        sys.exit(f"{args.before} and {args.after} have different tokenizers")
    share = args.share
    mixed = {
        k: before[k].float().lerp(v.float(), share).to(v.dtype).contiguous()
        for k, v in after.items()
    }
    unfinished = args.output.with_name(args.output.name + ".tmp")  # half of it never looks whole
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(args.after, unfinished, ignore=shutil.ignore_patterns("model.safetensors"))
    path = unfinished / "model.safetensors"
    save_file(mixed, path, {"format": "pt"})
    shutil.copymode(unfinished / "config.json", path)  # the library's own is its owner's alone
    unfinished.rename(args.output)


if __name__ == "__main__":
    main()
