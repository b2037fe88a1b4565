"""`vla quantize`: write a checkpoint with a quantised decoder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError
from vla_inference.system import progress
from vla_training.cli.options import CameraOption, DatasetTypeOption, names


def quantize(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id.", metavar="MODEL")],
    output: Annotated[Path, typer.Argument(help="Folder to write.", metavar="OUTPUT")],
    format: Annotated[
        str, typer.Option(help="int4, int4-g32 ... int4-channel, int8, int8wo, fp8, q4f16_ft ...")
    ] = "int4",
    method: Annotated[
        str,
        typer.Option(
            help="hqq, rtn (to nearest), or gptq, which needs --calibration.",
            metavar="hqq|rtn|gptq",
        ),
    ] = "hqq",
    calibration: Annotated[
        Path | None, typer.Option(help="Dataset with observations for gptq.")
    ] = None,
    dataset_type: DatasetTypeOption = None,
    samples: Annotated[int, typer.Option(help="Frames of it to use, evenly spread.", min=1)] = 128,
    camera: CameraOption = None,
    device: Annotated[
        str | None, typer.Option(help="Device for rounding; default: CUDA if available.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint with a quantised language model, which every command loads."""
    if (method == "gptq") != (calibration is not None):
        raise VlaError(
            "method gptq and --calibration go together", "give both, or neither for hqq and rtn"
        )
    import torch

    from vla_inference.checkpoints.hub import resolve
    from vla_inference.checkpoints.quantize import check_free, quantize_checkpoint
    from vla_inference.quantization import get_format

    chosen, folder = get_format(format), resolve(model)
    check_free(folder, output, overwrite)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    by_layer = None
    if calibration is not None:
        from vla_inference.policies.openvla.calibration import Calibrator, LayerByLayer

        calibrator = Calibrator(folder, device, torch.float32)
        seen = calibrator(_samples(calibrator.policy, calibration, dataset_type, samples, camera))
        by_layer = LayerByLayer(calibrator.policy.config, chosen, seen)
        del calibrator

    def tell(done: int, total: int) -> None:
        progress.report(done, total, "quantising")
        if sys.stderr.isatty():
            text = f"\r{done / 1e9:.2f} of {total / 1e9:.2f} GB"
            print(text, end="" if done < total else "\n", file=sys.stderr, flush=True)

    about = quantize_checkpoint(
        folder,
        output,
        chosen,
        method,
        device=device,
        by_layer=by_layer,
        overwrite=overwrite,
        progress=tell,
    )
    sizes = [sum(f.stat().st_size for f in p.glob("*.safetensors")) for p in (folder, output)]
    if as_json:
        print_json({"output": output, **about, "bytes_before": sizes[0], "bytes": sizes[1]})
    else:
        print(
            f"{output}: {about['format']} by {about['method']}, {sizes[1] / 1e6:.1f} MB "
            f"instead of {sizes[0] / 1e6:.1f}"
        )


def _samples(policy, path: Path, kind: str | None, count: int, camera: str | None) -> Iterator:
    """Observations with their actions, evenly spread over a dataset."""
    from vla_inference.types import Observation
    from vla_training.datasets import open_dataset
    from vla_training.evaluation.compatibility import choose_cameras

    data = open_dataset(path, kind)
    given = names(camera)
    cameras = choose_cameras(policy, data, given)
    lengths = [len(data.actions(i)) for i in range(len(data))]
    total = sum(lengths)
    wanted = {round((i + 0.5) * total / count - 0.5) for i in range(min(count, total))}
    begin = 0
    for index, length in enumerate(lengths):
        mine = sorted(w - begin for w in wanted if begin <= w < begin + length)
        steps = data[index].steps if mine else []
        for at in mine:
            seen, action = steps[at].observation, steps[at].action
            images = {c: seen.images[c] for c in cameras}
            yield Observation(images, seen.instruction, seen.state), action
        begin += length
