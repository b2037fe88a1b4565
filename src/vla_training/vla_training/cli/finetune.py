"""`vla finetune` and `vla merge`: fine-tune a checkpoint, merge an adapter into it.

On several GPUs or hosts: `torchrun --nproc-per-node 8 -m vla_training.cli.finetune ...` with the
same options.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.options import Holds
from vla_inference.system import progress
from vla_inference.system.files import writable


def finetune(
    vla_path: Annotated[
        str, typer.Option(help="Checkpoint folder or Hub id to start from."), Holds.NAME_OR_PATH
    ],
    run_root_dir: Annotated[Path, typer.Option(help="Folder of runs.")],
    dataset_name: Annotated[
        str,
        typer.Option(
            help="Datasets in --data-root-dir, separated by commas; NAME:2 doubles the weight."
        ),
    ] = "",
    data_root_dir: Annotated[Path, typer.Option(help="Folder of datasets.")] = Path("."),
    run_id: Annotated[
        str, typer.Option(help="Name of the run's folder; default: generated.")
    ] = "",
    lora_rank: Annotated[int, typer.Option(help="0 trains all weights.")] = 32,
    lora_alpha: Annotated[float | None, typer.Option(help="Default: min(rank, 16).")] = None,
    quantize: Annotated[str, typer.Option(help="Quantise the frozen base: int4 (QLoRA).")] = "",
    freeze_vision: Annotated[
        bool, typer.Option("--freeze-vision", help="Do not train the vision encoders.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Samples per device and pass.")] = 16,
    grad_accumulation_steps: Annotated[int, typer.Option(help="Passes per update.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of AdamW.")] = 0.0,
    warmup_steps: Annotated[int, typer.Option(help="Updates with a rising learning rate.")] = 0,
    lr_schedule: Annotated[str, typer.Option(help="constant, cosine or linear.")] = "constant",
    max_grad_norm: Annotated[
        float, typer.Option(help="Gradients are clipped to this norm.")
    ] = 1.0,
    epochs: Annotated[float, typer.Option(help="Passes over all frames.")] = 1.0,
    max_steps: Annotated[int | None, typer.Option(help="Updates; overrides --epochs.")] = None,
    image_aug: Annotated[
        bool, typer.Option(help="Augment images: random crops and colours.")
    ] = False,
    action_head: Annotated[
        str, typer.Option(help="keep, tokens, or OpenVLA-OFT's parallel or l1.")
    ] = "keep",
    chunk: Annotated[int | None, typer.Option(help="Actions per answer (OpenVLA-OFT).")] = None,
    num_images: Annotated[int | None, typer.Option(help="Cameras the model takes.")] = None,
    cameras: Annotated[str, typer.Option(help="Their names in order, separated by commas.")] = "",
    proprio_dim: Annotated[
        int | None, typer.Option(help="Size of the model's state input; 0: none.")
    ] = None,
    dataset_type: Annotated[
        str | None, typer.Option(help="Dataset format; default: detected.")
    ] = None,
    action_space: Annotated[
        str | None,
        typer.Option(
            help="One action space for all datasets: a new name, or one of the base's, whose "
            "bounds are kept."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32.")] = "auto",
    gradient_checkpointing: Annotated[
        float, typer.Option(help="Share of layers recomputed to save memory, 0 to 1.")
    ] = 0.0,
    compile: Annotated[bool, typer.Option(help="Use torch.compile.")] = False,
    no_reshard: Annotated[
        bool, typer.Option("--no-reshard", help="Keep gathered weights between passes: faster.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that read ahead, per device.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of sampling, augmentation and new weights.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: CUDA if available.")
    ] = None,
    save_steps: Annotated[
        int, typer.Option(help="Updates between saved states; 0: only at the end.")
    ] = 1000,
    log_steps: Annotated[int, typer.Option(help="Updates between reports.")] = 10,
    val_split: Annotated[float, typer.Option(help="Share of episodes held out.")] = 0.05,
    val_steps: Annotated[int, typer.Option(help="Updates between validations; 0: none.")] = 0,
    eval_steps: Annotated[
        int, typer.Option(help="Updates between closed-loop evaluations; 0: none.")
    ] = 0,
    eval_task: Annotated[
        str, typer.Option(help="Task of the closed-loop evaluation.")
    ] = "Stack_D2",
    eval_episodes: Annotated[
        int, typer.Option(help="Episodes of the closed-loop evaluation.")
    ] = 20,
    online_tasks: Annotated[
        str, typer.Option(help="Tasks to generate while training, separated by commas.")
    ] = "",
    online_episodes: Annotated[
        int, typer.Option(help="Episodes of each task in each round.")
    ] = 50,
    online_steps: Annotated[int, typer.Option(help="Updates per round.")] = 500,
    online_parallel: Annotated[
        int, typer.Option(help="Generation workers; -1: one per core.")
    ] = -1,
    ray_address: Annotated[
        str, typer.Option(help="Ray cluster for generation."), Holds.LOCAL
    ] = "",
    no_tensorboard: Annotated[
        bool, typer.Option("--no-tensorboard", help="Write no TensorBoard files.")
    ] = False,
    wandb: Annotated[
        str, typer.Option(help="Weights & Biases project to log to as well."), Holds.LOCAL
    ] = "",
    no_merge: Annotated[
        bool, typer.Option("--no-merge", help="Do not merge the adapter at the end.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Resume from the run's newest state.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Fine-tune a checkpoint on demonstrations: LoRA, QLoRA or all weights."""
    progress.report(0, max_steps or 0, "starting")
    # Imported late: `--help` and mistakes in the options should not wait for PyTorch.
    from vla_training.finetune.config import FinetuneConfig
    from vla_training.finetune.finetune import finetune as run
    from vla_training.loader.online import Online

    named = [c for c in cameras.split(",") if c]
    sources = find_sources(data_root_dir, dataset_name, named, dataset_type)
    if num_images is None and named:
        num_images = len(named)
    tasks = tuple(filter(None, (t.strip() for t in online_tasks.split(","))))
    online = Online(tasks, online_episodes, online_steps, online_parallel, seed, ray_address)
    names = "+".join([*(Path(s.path).stem for s in sources), *tasks])
    mode = f"lora-r{lora_rank}" if lora_rank else "full"
    run_id = run_id or f"{Path(vla_path).name}+{names}+b{batch_size}+lr-{learning_rate:g}+{mode}"
    if Path(run_id).name != run_id or run_id in (".", ".."):
        raise VlaError(f"--run-id is {run_id!r}", "give a folder's name without a path")
    writable(run_root_dir / run_id, "folder")
    config = FinetuneConfig(
        vla_path,
        sources,
        str(run_root_dir / run_id),
        lora_rank,
        lora_alpha,
        not freeze_vision,
        "int4-g128-sym" if quantize == "int4" else quantize,
        batch_size,
        grad_accumulation_steps,
        learning_rate,
        weight_decay,
        warmup_steps,
        lr_schedule,
        max_grad_norm,
        epochs=epochs,
        max_steps=max_steps,
        image_aug=image_aug,
        action_head=action_head,
        chunk=chunk,
        num_images=num_images,
        proprio_dim=proprio_dim,
        action_space=action_space,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        compile=compile,
        reshard=not no_reshard,
        workers=workers,
        seed=seed,
        device=device,
        save_steps=save_steps,
        log_steps=log_steps,
        val_split=val_split,
        val_steps=val_steps,
        closed_loop_steps=eval_steps,
        closed_loop_task=eval_task,
        closed_loop_episodes=eval_episodes,
        tensorboard=not no_tensorboard,
        wandb=wandb,
        merge=not no_merge,
        online=online,
        quiet=as_json,
    )
    output = run(config, resume)
    if int(os.environ.get("RANK", 0)) == 0:
        if as_json:
            print_json({"output": str(output)})
        else:
            print(output)
    return 0


def find_sources(root: Path, names: str, cameras: list[str], kind: str | None) -> tuple:
    """Datasets by name below `root`, optionally with `:weight`."""
    from vla_training.loader.frame_index import Source

    sources = []
    for text in filter(None, (t.strip() for t in names.split(","))):
        name, weight = text, None
        head, colon, tail = text.rpartition(":")
        if colon:
            try:
                name, weight = head, float(tail)
            except ValueError:
                raise VlaError(f"{tail!r} of {text!r} is no weight", "give NAME:2") from None
            if not 0 < weight < float("inf"):
                raise VlaError(f"the weight of {name} is {weight}", "give more than 0")
        # Never above `root`: a job's names come from the network.
        below = ".." not in Path(name).parts and not Path(name).is_absolute()
        candidates = [root / name, root / f"{name}.hdf5"]
        path = next((p for p in candidates if below and p.exists()), None)
        if path is None:
            raise VlaError(f"there is no dataset {name!r} in {root}", "check --data-root-dir")
        options = {"kind": kind} if kind else {}
        sources.append(Source(str(path), weight, tuple(cameras), options))
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
    from vla_inference.quantization.write import check_free
    from vla_training.lora.adapter import merge as run
    from vla_training.lora.merge_check import verify_merge

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
