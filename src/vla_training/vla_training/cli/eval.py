"""`vla eval` (and `ros2 run vla_training evaluate`): offline evaluation of a model."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.options import Holds, check_options
from vla_inference.policies.base import LoadOptions, RunOptions
from vla_inference.system import progress
from vla_inference.system.files import writable
from vla_training.cli.options import (
    DatasetOptions,
    ModelOption,
    ReportOption,
    check_report,
)
from vla_training.evaluation.config import EvalConfig


@takes(EvalConfig, DatasetOptions, RunOptions)
def evaluate(
    config: EvalConfig,
    source: DatasetOptions,
    run: RunOptions,
    dataset: Annotated[Path, typer.Option(help="Dataset: a folder or file.")],
    model: ModelOption = None,
    reference_model: Annotated[
        str | None,
        typer.Option(help="Second checkpoint, to count equal tokens."),
        Holds.PATH,
    ] = None,
    save_stats: Annotated[
        Path | None, typer.Option(help="JSON file for the metrics of every frame.")
    ] = None,
    report: ReportOption = None,
    verbose: Annotated[bool, typer.Option(help="Print a line for every frame.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Evaluate a model offline: compare its predictions with a dataset, frame by frame."""
    check_options(config)
    if save_stats is not None:
        writable(save_stats)
    check_report(report)
    # The dataset first: a mistake in it shows before a large model is loaded.
    data = source.open(dataset)
    from vla_inference.policies.registry import load_policy
    from vla_sim_bridge.cli.rollout import find_model
    from vla_sim_bridge.evaluation.report import write_json
    from vla_training.evaluation import report as eval_report
    from vla_training.evaluation.evaluate import evaluate as compare

    policy = load_policy(model or find_model(None), LoadOptions.of(run))
    reference = None
    if reference_model is not None:
        plain = LoadOptions(device=run.device, dtype=run.dtype, engine="plain")
        reference = load_policy(reference_model, plain)

    line = ProgressLine()

    def follow(frame) -> None:
        progress.report(frame.number, frame.total)
        if verbose and not as_json:
            tell(frame)
        else:
            line.show(frame)

    result = compare(policy, data, config, reference, follow)
    statistics = result.statistics()
    written = {}
    if save_stats is not None:
        written["figures"] = write_json(save_stats, statistics)
        keep_options(save_stats)
    if report is not None:
        written["report"] = eval_report.write_report(report, result, statistics)
        keep_options(report)
    if as_json:
        print_json({**statistics, "files": written})
    else:
        show(statistics, written)
    return 0 if result.complete else 130


class ProgressLine:
    """One line on stderr, anew every second on a terminal, elsewhere every 10 s."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._began = self._told = time.monotonic()

    def show(self, frame) -> None:
        now, last = time.monotonic(), frame.number == frame.total
        if now - self._told < (1 if self.terminal else 10) and not (last and self.terminal):
            return
        self._told = now
        rate = frame.number / max(1e-9, now - self._began)
        text = (
            f"frame {frame.number} of {frame.total}, accuracy so far {frame.mean_accuracy:.3f}, "
            f"{rate:.1f} per second, {(frame.total - frame.number) / rate:.0f} s left"
        )
        end = "\n" if last or not self.terminal else ""
        print(f"\r\x1b[K{text}" if self.terminal else text, end=end, file=sys.stderr, flush=True)


def tell(frame) -> None:
    """Prints one line for each frame."""
    print(
        f"{frame.number}/{frame.total}  predicted {_row(frame.predicted)}  "
        f"true {_row(frame.truth)}  "
        f"accuracy {frame.accuracy_clipped:.4f} clipped (mean {frame.mean_accuracy_clipped:.4f})"
        f" {frame.accuracy:.4f} raw (mean {frame.mean_accuracy:.4f})  "
        f"{1e3 * frame.latency:.1f} ms  {1 / frame.latency:.1f} Hz",
        flush=True,
    )


def _row(action) -> str:
    return "[" + " ".join(f"{v:+.4f}" for v in action) + "]"


def show(statistics: dict, written: dict[str, Path]) -> None:
    """Prints the final table, notes and output paths."""
    from vla_training.evaluation.report import summary_rows

    rows = summary_rows(statistics)
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    print()
    print(f"{'error':<10}{'mean':>10}{'median':>10}{'95 %':>10}{'largest':>10}")
    for d in statistics["dimensions"]:
        values = "".join(f"{d[k]:>10.3f}" for k in ("mean", "median", "p95", "max"))
        print(f"{d['name']:<10}{values}  {d['unit']}")
    for note in statistics["notes"]:
        print(f"note: {note}", file=sys.stderr)
    if not statistics["complete"]:
        print("vla eval: stopped before the end", file=sys.stderr)
    for what, path in written.items():
        with contextlib.suppress(ValueError):
            path = path.relative_to(Path.cwd())
        print(f"{what:<8} {path}", flush=True)


def main() -> int:
    """`ros2 run vla_training evaluate ...` is `vla eval ...`."""
    from vla_inference.cli.main import main as vla

    return vla(["eval", *sys.argv[1:]])
