"""`vla finetune` and `vla merge`: fine-tune a checkpoint, merge an adapter into it.

On several GPUs or hosts: `torchrun --nproc-per-node 8 -m vla_training.cli.finetune ...` with the
same options.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.cli.config_file import keep_options
from vla_inference.cli.options import takes
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system import progress
from vla_inference.system.files import writable
from vla_training.cli.options import DatasetTypeOption
from vla_training.finetune.config import FinetuneConfig, Online
from vla_training.loader.sample_weights import SampleWeights


@takes(FinetuneConfig, SampleWeights, Online)
def finetune(
    config: FinetuneConfig,
    weights: SampleWeights,
    online: Online,
    run_root_dir: Annotated[Path, typer.Option(help="Folder of runs.")],
    dataset: Annotated[
        list[Path] | None, typer.Option(help="Dataset, file or folder; may be repeated.")
    ] = None,
    dataset_name: Annotated[
        str,
        typer.Option(
            help="Or datasets below --data-root-dir, by commas; NAME:2 has double weight."
        ),
    ] = "",
    data_root_dir: Annotated[Path, typer.Option(help="Folder of datasets.")] = Path("."),
    dataset_type: DatasetTypeOption = None,
    cameras: Annotated[
        str, typer.Option(help="Their names, separated by commas, in the model's order.")
    ] = "",
    run_id: Annotated[str, typer.Option(help="Name of the run's folder; default: made.")] = "",
    resume: Annotated[bool, typer.Option(help="Resume from the run's newest state.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Fine-tune a checkpoint on demonstrations: LoRA, QLoRA or all weights."""
    progress.report(0, config.max_steps or 0, "starting")
    named = [c for c in cameras.split(",") if c]
    # Imported late: `--help` and mistakes in the options should not wait for PyTorch.
    sources = find_sources(data_root_dir, dataset_name, dataset or (), named, dataset_type)
    if weights.dataset_weights:
        each = weights.of_datasets(len(sources))
        sources = tuple(replace(s, weight=w) for s, w in zip(sources, each, strict=True))
    config = replace(
        config,
        sources=sources,
        num_images=len(named) if config.num_images is None and named else config.num_images,
        quantize="int4-g128-sym" if config.quantize == "int4" else config.quantize,
        online=replace(online, seed=config.seed),
        weights=weights,
        quiet=as_json,
    )
    config.check()
    writable(run_root_dir, "folder")
    run_id = run_id or _run_id(config)
    if Path(run_id).name != run_id or run_id in (".", ".."):
        raise VlaError(f"--run-id is {run_id!r}", "give a folder's name without a path")
    folder = run_root_dir / run_id
    writable(folder, "folder")
    from vla_training.finetune.finetune import finetune as run

    first = int(os.environ.get("RANK", 0)) == 0
    try:
        output = run(replace(config, folder=str(folder)), resume)
    finally:
        if first and folder.is_dir():  # it began
            keep_options(folder)
    if first:
        if as_json:
            print_json({"output": str(output)})
        else:
            print(output)
    return 0


def _run_id(config: FinetuneConfig) -> str:
    from vla_training.finetune.families.base import find_trainable

    config = find_trainable(config).config  # with what the family fills in
    data = [Path(s.path).stem for s in config.sources] + [*config.online.tasks]
    mode = f"lora-r{config.lora_rank}" if config.lora_rank else config.train or "full"
    name, rate = Path(config.vla_path).name, f"lr-{config.learning_rate:g}"
    return "+".join([name, *data, f"b{config.batch_size}", rate, mode])


def find_sources(
    root: Path, names: str, paths: Sequence[Path], cameras: list[str], kind: str | None
) -> tuple:
    """Datasets by path, and by name below `root`, optionally with `:weight`."""
    from vla_training.loader.frame_index import DatasetSource

    options = {"kind": kind} if kind else {}
    for path in paths:
        if not path.exists():
            raise VlaError(f"there is no dataset {path}", "check --dataset")
    sources = [DatasetSource(str(path), None, tuple(cameras), options) for path in paths]
    for text in filter(None, (t.strip() for t in names.split(","))):
        name, weight = text, None
        head, colon, tail = text.rpartition(":")
        if colon:
            try:
                name, weight = head, float(tail)
            except ValueError:
                raise VlaError(f"{tail!r} of {text!r} is not a weight", "give NAME:2") from None
            if not 0 < weight < float("inf"):
                raise VlaError(f"the weight of {name} is {weight}", "give more than 0")
        # Never above `root`: a job's names come from the network.
        below = ".." not in Path(name).parts and not Path(name).is_absolute()
        candidates = [root / name, root / f"{name}.hdf5"]
        found = next((p for p in candidates if below and p.exists()), None)
        if found is None:
            raise VlaError(f"there is no dataset {name!r} in {root}", "check --data-root-dir")
        sources.append(DatasetSource(str(found), weight, tuple(cameras), options))
    return tuple(sources)


def merge(
    base: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id of the base.")],
    adapter: Annotated[Path, typer.Argument(help="Folder of the LoRA adapter.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    verify: Annotated[
        bool, typer.Option(help="Compare the answers before and after merging.")
    ] = True,
    device: Annotated[
        str | None, typer.Option(help="Device for the comparison; default: CUDA if available.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace --output if it exists.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Merge a LoRA adapter into its base and write a plain checkpoint."""
    import torch

    from vla_inference.checkpoints.hub import resolve
    from vla_inference.checkpoints.load import load_config
    from vla_inference.checkpoints.quantize import check_free
    from vla_training.finetune.families.openvla.merge_check import verify_merge
    from vla_training.lora.adapter import merge as run

    folder = resolve(base)
    check_free(folder, output, overwrite)
    found: dict[str, Any] = {"output": str(output)}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32

    def check(merged: Path) -> None:
        found.update(verify_merge(folder, adapter, merged, device, dtype))

    def tell(done: int, total: int) -> None:
        progress.report(done, total, "merging")

    run(folder, adapter, output, tell, check if verify else None)
    found["action_spaces"] = list(load_config(output).norm_stats)
    if as_json:
        print_json(found)
    else:
        print(output)
        print(f"action statistics: {', '.join(found['action_spaces']) or 'none'}")
        if verify:
            print(
                f"{found['equal']} of {found['answers']} answers equal, outputs differ by "
                f"{found['difference']:.1e}"
            )
    return 0


if __name__ == "__main__":
    from vla_inference.cli.main import run_alone

    sys.exit(run_alone("finetune", "vla_training.cli.finetune:finetune"))
