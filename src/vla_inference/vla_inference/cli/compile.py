"""`vla compile`: compile a model for TVM, mlc_llm, ONNX Runtime or TensorRT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vla_inference.checkpoints.hub import resolve
from vla_inference.cli.output import JsonOption, print_json
from vla_inference.errors import VlaError

PARTS = {"tvm": "engine", "mlc": "engine", "onnx": "vision", "tensorrt": "vision"}
USUAL = {"tvm": "int4", "mlc": "q4f16_1", "onnx": "float16", "tensorrt": "float16"}


def tell(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total}", end="", file=sys.stderr, flush=True)


def run(
    model: str,
    engine: str,
    output: Path,
    target: str,
    host: str | None,
    quantization: str,
    overwrite: bool,
) -> dict[str, Any]:
    folder = Path(resolve(model))
    if engine == "onnx" and target:
        raise VlaError("--engine onnx takes no --target: its graph fits all", "leave it out")
    if engine in ("onnx", "tensorrt") and host:
        raise VlaError(f"--engine {engine} takes no --host", "leave it out")
    if engine == "mlc" and host:
        raise VlaError("mlc_llm compiles where it runs", "leave out --host, or use engine tvm")
    wanted = quantization or USUAL[engine]
    if engine == "tvm":
        from vla_inference.engines.tvm import compile

        return compile.compile_checkpoint(
            folder,
            output,
            target=target or here(),
            quantization=wanted,
            host=host,
            overwrite=overwrite,
            progress=tell,
        )
    if engine == "mlc":
        from vla_inference.engines.mlc import compile as mlc

        return mlc.compile_checkpoint(
            folder,
            output,
            target=target,
            quantization=wanted,
            overwrite=overwrite,
            progress=tell,
        )
    if engine == "onnx":
        from vla_inference.engines.vision import onnx

        return onnx.export(folder, output, dtype=wanted, overwrite=overwrite)
    from vla_inference.engines import compiled
    from vla_inference.engines.vision import tensorrt

    if (folder / compiled.RECORD).is_file():  # an exported graph, perhaps from another machine
        if quantization:
            raise VlaError(f"the graph in {folder} has its dtype", "leave out --quantization")
        return tensorrt.build(folder, output, target=target, overwrite=overwrite)
    return tensorrt.build_checkpoint(
        folder, output, dtype=wanted, target=target, overwrite=overwrite
    )


def here() -> str:
    """The compilation target of this machine."""
    import torch

    from vla_inference.engines.compiled import chip

    return chip("cuda" if torch.cuda.is_available() else "cpu")


def line(record: dict[str, Any], engine: str, output: Path) -> str:
    """One line for people: what was made and how to use it."""
    told = [f"{record['model']} for {engine}"]
    told += [f"target {record['target']}"] if "target" in record else []
    if "relative_error" in record:
        told.append(f"{record['relative_error']:.2g} off PyTorch in float32 (relative)")
    size = sum(record["files"].values()) / 1e6
    return f"{', '.join(told)}, {size:.1f} MB\nuse it as {PARTS[engine]} {engine}:{output}"


def compile_model(
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint folder or Hub id; for tensorrt also a folder made for onnx.",
            metavar="MODEL",
        ),
    ],
    engine: Annotated[
        str,
        typer.Option(
            help="tvm or mlc (language model), onnx or tensorrt (vision encoders).",
            metavar="|".join(PARTS),
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    target: Annotated[
        str,
        typer.Option(
            help="llvm (CPU) or cuda:sm_NN for tvm; cuda:sm_NN of an RTX card for tensorrt; "
            "default: this machine's."
        ),
    ] = "",
    host: Annotated[
        str | None, typer.Option(help="Triple of the target machine: aarch64-linux-gnu.")
    ] = None,
    quantization: Annotated[
        str,
        typer.Option(
            help="tvm: float32, float16, int4-g32 ...; mlc: its own names; onnx, tensorrt: "
            "float16 or float32. Default int4, q4f16_1, float16."
        ),
    ] = "",
    overwrite: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compile a model's language model or vision encoders for an engine."""
    if engine not in PARTS:
        raise VlaError(f"there is nothing to compile for {engine!r}", f"known: {', '.join(PARTS)}")
    record = run(model, engine, output, target, host, quantization, overwrite)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if as_json:
        print_json(record)
    else:
        print(line(record, engine, output))
