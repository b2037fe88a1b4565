"""`vision: tensorrt`: the ONNX graph of `onnx.py` as a TensorRT engine.

Built on the machine that runs it, strongly typed: the graph says which precision is used where.
That is the one way there is in TensorRT 11, and 10 has it too. Engines belong to one TensorRT, one
chip and one model; the record says which.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_inference.engines.compiled import (
    check_free,
    chip,
    fitting_record,
    new_folder,
    read_record,
    require,
    write_record,
)
from vla_inference.engines.vision.onnx import DTYPES, GRAPH, INPUT, OUTPUT, OneByOne, shape_of
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import ModelConfig

INSTALL = (
    "on a Jetson: apt install python3-libnvinfer (JetPack brings it); elsewhere: pip install "
    "tensorrt"
)
PLAN = "vision.plan"
WORKSPACE = 2 << 30  # bytes the builder may give to one layer's scratch
OLDEST = 10


def import_tensorrt():
    """Imports TensorRT 10 or later, or raises one clear error."""
    try:
        import tensorrt
    except ImportError as error:
        raise VlaError(f"TensorRT is not installed ({error})", INSTALL) from None
    version = getattr(tensorrt, "__version__", "0")
    if int(version.split(".")[0]) < OLDEST:
        raise VlaError(f"TensorRT {version} is too old", f"install {OLDEST}.0 or later")
    return tensorrt


class Errors:
    """Collects TensorRT's error messages, which it logs instead of raising."""

    def __init__(self, tensorrt):
        severity = tensorrt.ILogger.Severity
        found: list[str] = []

        class Log(tensorrt.ILogger):
            def __init__(self):
                tensorrt.ILogger.__init__(self)

            def log(self, level, text):
                if level in (severity.ERROR, severity.INTERNAL_ERROR):
                    found.append(str(text))

        self.found, self.logger = found, Log()

    def __str__(self) -> str:
        return " ".join(" ".join(self.found).split())[-300:] or "it doesn't say why"


def device_of(index: int) -> str:
    """The kind of card, because engines do not fit all cards of an architecture."""
    return torch.cuda.get_device_name(index)


# -- building ---------------------------------------------------------------------------------


def build_plan(graph: Path) -> bytes:
    """A serialised engine of an ONNX graph, for this machine's GPU."""
    tensorrt = import_tensorrt()
    errors = Errors(tensorrt)
    builder = tensorrt.Builder(errors.logger)
    flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = tensorrt.OnnxParser(network, errors.logger)
    if not parser.parse_from_file(str(graph)):  # which finds the weights beside it
        told = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise VlaError(
            f"TensorRT {tensorrt.__version__} cannot read {graph} ({told[:300] or errors})",
            "use vision onnx, or a later TensorRT",
        )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, WORKSPACE)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise VlaError(
            f"TensorRT {tensorrt.__version__} cannot build {graph} ({errors})",
            "free memory and try again, or use vision onnx",
        )
    return bytes(plan)


def build(
    source: Path, output: Path, *, device: str = "cuda", overwrite: bool = False
) -> dict[str, Any]:
    """Builds the graph in `source`, a folder of `vla compile --engine onnx`, into `output`."""
    tensorrt = import_tensorrt()
    if not torch.cuda.is_available():
        raise VlaError("TensorRT builds on the GPU it builds for, and there is none", "use onnx")
    check_free(output, overwrite)
    made = read_record(source, "onnx")
    with new_folder(output, overwrite) as folder:
        plan = build_plan(Path(source) / GRAPH)
        (folder / PLAN).write_bytes(plan)
        record = {
            "engine": "tensorrt",
            **{k: made[k] for k in ("model", "digest", "dtype", "shape", "answer")},
            "relative_error_of_graph": made["relative_error"],
            "target": chip(device),
            "device": device_of(torch.device(device).index or 0),
            "tensorrt": tensorrt.__version__,
        }
        return write_record(folder, record)


def build_checkpoint(
    checkpoint: Path, output: Path, *, dtype: str = "float16", overwrite: bool = False
) -> dict[str, Any]:
    """Exports a checkpoint's graph and builds it; the graph is not kept."""
    from vla_inference.engines.vision import onnx

    import_tensorrt()  # before minutes are spent on the export
    check_free(output, overwrite)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        graph = Path(scratch) / "onnx"
        onnx.export(checkpoint, graph, dtype=dtype)
        return build(graph, output, overwrite=overwrite)


# -- running ----------------------------------------------------------------------------------


class TensorrtVision(OneByOne):
    """`Vision` on a folder of `vla compile --engine tensorrt`, on the caller's stream."""

    def __init__(
        self,
        folder: str | os.PathLike,
        device: str | torch.device,
        config: ModelConfig,
        checkpoint: str | os.PathLike | None = None,
    ):
        folder, self.device = Path(folder), torch.device(device)
        if self.device.type != "cuda":
            raise VlaError(f"vision tensorrt runs on CUDA, not on {device}", "use vision onnx")
        record = fitting_record(
            folder,
            "tensorrt",
            config,
            checkpoint,
            shape=list(shape_of(config)),
            target=chip(self.device),
            device=device_of(self.device.index or 0),
        )
        tensorrt = import_tensorrt()
        require(folder, record, tensorrt=tensorrt.__version__)
        self.dtype, errors = DTYPES[record["dtype"]], Errors(tensorrt)
        self._logger = errors.logger  # must outlive what was made with it
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine((folder / PLAN).read_bytes())
        context = self._engine and self._engine.create_execution_context()
        if not context:
            raise CheckpointError(
                f"TensorRT cannot load {folder / PLAN} ({errors})",
                "build it again by `vla compile --engine tensorrt --overwrite`",
            )
        self._context, self._errors = context, errors
        for name, shape in ((INPUT, record["shape"]), (OUTPUT, record["answer"])):
            have = list(self._engine.get_tensor_shape(name))
            if have != shape:
                raise CheckpointError(f"{folder / PLAN} has {name} {have} instead of {shape}")
        self._answer = record["answer"]

    def _one(self, pixels: Tensor) -> Tensor:
        given = pixels.to(self.dtype).contiguous()
        answer = given.new_empty(self._answer)
        self._context.set_tensor_address(INPUT, given.data_ptr())
        self._context.set_tensor_address(OUTPUT, answer.data_ptr())
        # `given` may go before the kernels have read it: PyTorch gives its memory to nobody but
        # later work on this very stream.
        if not self._context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise VlaError(f"TensorRT failed ({self._errors})", "use vision onnx")
        return answer
