"""`vla validate`: compare a model with recorded bags."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.options import check_options
from vla_inference.system import progress
from vla_training.cli.options import (
    DeviceOption,
    DtypeOption,
    ModelOption,
    ReportOption,
    check_report,
)
from vla_training.datasets.bag.options import BagOptions
from vla_training.evaluation.config import Thresholds, ValidateConfig


@takes(BagOptions, ValidateConfig, Thresholds)
def validate(
    reading: BagOptions,
    config: ValidateConfig,
    bounds: Thresholds,
    bag: Annotated[Path, typer.Argument(help="Bag, or folder of bags (MCAP or SQLite).")],
    model: ModelOption = None,
    report: ReportOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check a model on recorded bags: compare its answers with the recorded actions."""
    check_options(config)
    check_options(bounds)
    check_report(report)
    from vla_training.datasets import open_dataset
    from vla_training.datasets.bag.reader import BagSet
    from vla_training.evaluation.validate import validate as run

    # The bags first: a mistake in them shows before a large model is loaded.
    bags = open_dataset(bag, "bag", **asdict(reading))
    from vla_inference.policies.base import LoadOptions
    from vla_inference.policies.registry import load_policy
    from vla_sim_bridge.cli.rollout import find_model
    from vla_training.evaluation import validation_report

    options = LoadOptions.given(device=device, dtype=dtype, engine="plain")
    policy = load_policy(model or find_model(None), options)

    def follow(frame) -> None:
        progress.report(frame.number, frame.total)
        if not as_json and (frame.number % 50 == 0 or frame.number == frame.total):
            print(
                f"{frame.number}/{frame.total}  accuracy "
                f"{100 * frame.mean_accuracy_clipped:.2f} % clipped, "
                f"{100 * frame.mean_accuracy:.2f} % raw  {1e3 * frame.latency:.0f} ms",
                flush=True,
            )

    assert isinstance(bags, BagSet)  # what type "bag" opens
    result = run(policy, bags, config, follow)
    statistics = result.statistics()
    failures = bounds.failures(statistics)
    statistics["failures"] = failures
    written = None
    if report is not None:
        written = validation_report.write_report(report, result, statistics)
        keep_options(report)
    if as_json:
        print_json({**statistics, "thresholds": asdict(bounds), "report": written})
    else:
        print(f"\n{validation_report.text(statistics)}")
        for note in statistics["notes"]:
            print(f"note: {note}", file=sys.stderr)
        if written is not None:
            print(f"report {written}", flush=True)
    for failure in failures:
        print(f"vla validate: {failure}", file=sys.stderr)
    if not statistics["complete"]:
        print("vla validate: stopped before the end", file=sys.stderr)
        return 130
    return 1 if failures else 0
