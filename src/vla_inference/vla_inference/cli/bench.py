"""`vla bench`: how fast a model runs on this machine, with each engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.benchmark.config import BenchConfig
from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.system.files import writable, write_whole


@takes(BenchConfig)
def bench(
    config: BenchConfig,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time every engine and quantisation, from observation to action: medians, stages, floor."""
    from vla_inference.cli.benchmark.speed import lines, run, table

    if output is not None:
        writable(output)
    report = run(config, lambda text: print(text, file=sys.stderr, flush=True))
    if output is not None:
        write_whole(output, json.dumps(report, indent=1) + "\n")
        keep_options(output)
    if as_json:
        print_json(report)
    else:
        print("\n".join(lines(table(report))))
