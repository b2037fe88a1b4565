"""`vla improve`: rounds of episodes, training on corrections, and a fair comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.system import progress
from vla_inference.system.files import writable
from vla_inference.system.workspace import needs_ros
from vla_training.cli.finetune import find_sources
from vla_training.finetune.config import FinetuneConfig
from vla_training.improve.config import ImproveConfig
from vla_training.improve.versions import Version, Versions
from vla_training.loader.sample_weights import SampleWeights


@takes(ImproveConfig, FinetuneConfig, SampleWeights)
def improve(
    config: ImproveConfig,
    finetune: FinetuneConfig,
    weights: SampleWeights,
    output: Annotated[Path, typer.Option(help="Folder of the rounds and versions.")],
    dataset: Annotated[
        list[Path] | None, typer.Option(help="Older data to mix in; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Improve a model by corrections: collect, train, judge, and keep what is better.

    The same command goes on with a run that was stopped, and makes further rounds.
    """
    config.check()
    sources = find_sources(Path(), "", dataset or (), list(config.sees), None)
    each = weights.of_datasets(len(sources))
    finetune = replace(
        finetune,
        sources=tuple(replace(s, weight=w) for s, w in zip(sources, each, strict=True)),
        vla_path=str(Path(finetune.vla_path).expanduser().absolute()),
        weights=weights,
        quiet=as_json,
    )
    weights.check()
    writable(output, "folder")
    progress.report(0, config.rounds, "starting")
    # Imported late: `--help` and mistakes in the options should not wait for PyTorch.
    from vla_training.improve.rounds import Improvement
    from vla_training.improve.work import SimulationWork

    def say(text: str) -> None:
        done = len(list(Versions(output))) - 1
        progress.report(max(0, min(done, config.rounds)), config.rounds, text)
        if not as_json:
            print(text, flush=True)

    work = SimulationWork(config, finetune, output, say, _node(config.load))
    work.check()
    identity = {**config.identity(), **finetune.identity(1)}
    found = Improvement(output, work, identity, config.judged_by, say)
    try:
        current = found.run(Path(finetune.vla_path), config.rounds)
    finally:
        if output.is_dir():  # it began
            keep_options(output)
    if as_json:
        versions = [told(v) for v in found.versions]
        print_json({"current": told(current), "versions": versions})
    else:
        show(found.versions, current)
    return 0


def _node(name: str | None) -> Callable[[Path], str] | None:
    """Has the inference node of that name load a checkpoint."""
    if name is None:
        return None
    try:
        from vla_training.ros.load_model import load_model
    except ImportError as error:
        raise needs_ros(error, "source it, or leave --load out") from error
    return partial(load_model, name)


def told(version: Version) -> dict[str, Any]:
    """A version's figures, with its checkpoint's path as it is now."""
    return {**version.figures, "checkpoint": str(version.checkpoint)}


def show(versions: Iterable[Version], current: Version) -> None:
    """One line a version, and where the one to use is."""
    for version in versions:
        judged = version.figures["judged"]
        low, high = judged["success_rate_wilson95"]
        words = [
            f"version {version.number}: {judged['successes']} of {judged['episodes']} "
            f"({100 * low:.0f} to {100 * high:.0f} %)"
        ]
        if compared := version.figures.get("compared"):
            words.append(
                f"{compared['better']} episodes better, {compared['worse']} worse than version "
                f"{version.figures['from']} (p {compared['p_value']:.2g})"
            )
        words.append("in use" if version.number == current.number else "")
        words.append("" if version.kept else "not better")
        print(", ".join(filter(None, words)))
    print(current.checkpoint)
