"""`vla convert`: convert a dataset to another format."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.options import options
from vla_inference.system import progress
from vla_training.cli.options import DatasetOptions, InstructionOption
from vla_training.conversion.config import ConvertConfig

WRITTEN = ("rlds", "hdf5", "libero", "lerobot", "bag")
LOSSLESS = {
    "rlds": {"encoding": "png"},
    "lerobot": {"images": "png"},
    "bag": {"images": "png"},
}


@takes(ConvertConfig, DatasetOptions)
def convert(
    config: ConvertConfig,
    source: DatasetOptions,
    dataset: Annotated[
        list[Path],
        typer.Option(help="Dataset, a folder or file; several, one after the other, become one."),
    ],
    output: Annotated[Path, typer.Option(help="Output path; a file NAME.hdf5 for hdf5.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            "--convert",
            help="Format to write; default: the first dataset's own.",
            metavar="|".join(WRITTEN),
        ),
    ] = None,
    remap_keys: Annotated[
        str,
        typer.Option(help="Rename cameras: agentview:image,wrist:None; None drops one."),
    ] = "",
    lossless: Annotated[bool, typer.Option(help="Store images losslessly.")] = False,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for the writer, such as quality=90.")
    ] = None,
    instruction: InstructionOption = None,
    workers: Annotated[int, typer.Option(help="Worker processes; -1: one per core.")] = -1,
    overwrite: Annotated[bool, typer.Option(help="Replace a dataset at --output.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Convert datasets to another format; merge, split, filter and rename them."""
    from vla_training.conversion.convert import convert as run
    from vla_training.datasets.base import kind_of

    to = to or kind_of(dataset[0].expanduser(), source.dataset_type)
    config = replace(config, remap=parse_remap(remap_keys))
    writing = parse_options(to, option or (), lossless)
    begun = shown = time.monotonic()

    def follow(done: int, total: int, frames: int) -> None:
        nonlocal shown
        now = time.monotonic()
        rate = frames / (now - begun) if now > begun else 0.0
        progress.report(done, total, f"{frames} frames, {rate:.0f} frames/s")
        if not as_json and (now - shown > 1 or done == total):
            left = (total - done) * (now - begun) / done
            print(
                f"{done}/{total} episodes  {frames} frames  {rate:.0f} frames/s  "
                f"{left:.0f} s left",
                flush=True,
            )
            shown = now

    result = run(
        dataset,
        output,
        to,
        config,
        dataset_type=source.dataset_type,
        reading={"instruction": instruction} | source.reading(),
        writing=writing,
        overwrite=overwrite,
        workers=workers,
        report=follow,
    )
    keep_options(result.path)
    if as_json:
        print_json(result)
        return 0
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"left out: {', '.join(result.left_out) or 'nothing'}")
    print(
        f"{result.path}: {result.episodes} episodes, {result.frames} frames in "
        f"{result.seconds:.1f} s ({result.frames / result.seconds:.0f} frames/s)"
    )
    return 0


def parse_remap(text: str) -> dict[str, str | None]:
    """Parses "agentview:image,wrist:None" into new names by old name."""
    found: dict[str, str | None] = {}
    for pair in text.replace(",", " ").split():
        old, colon, new = pair.partition(":")
        if not colon or not old or not new:
            raise VlaError(f"--remap-keys has {pair!r}", "give OLD:NEW pairs, separated by commas")
        if old in found:
            raise VlaError(f"--remap-keys names {old!r} twice", "give each key once")
        found[old] = None if new == "None" else new
    return found


def parse_options(kind: str, pairs: Sequence[str], lossless: bool) -> dict[str, Any]:
    """Parses --option and --lossless into the types of the writer's defaults."""
    from vla_training.datasets.writers import get_writer

    offered = list(options(get_writer(kind).Options))
    kinds: dict[str, Any] = {f.name: type(f.default) for f, _ in offered}
    found: dict[str, Any] = {}
    if lossless:
        found |= LOSSLESS.get(kind, {})
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in kinds:
            listed = "; ".join(f"{f.name}={about.help}" for f, about in offered)
            raise VlaError(f"--option {pair!r} is none of {kind}'s", f"known: {listed}")
        try:
            found[name] = kinds[name](value)
        except ValueError:
            wanted = kinds[name].__name__
            raise VlaError(f"--option {name} is {value!r}", f"give a {wanted}") from None
    return found
