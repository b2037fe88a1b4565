"""`vision: tensorrt`: the ONNX graph of `onnx.py` as an engine of TensorRT or TensorRT-RTX.

Strongly typed: the graph says which precision is used where. That is the one way there is in
TensorRT 11, and 10 has it too. Engines belong to one release, one chip and one model; the record
says which. TensorRT builds on the machine that runs the engine. TensorRT-RTX, for RTX cards, has
the same calls, builds for any compute capability it knows without a GPU, and makes the kernels
when the engine is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_inference.engines.compiled import (
    AGAIN,
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

TENSORRT, RTX = "tensorrt", "tensorrt_rtx"
INSTALL = {
    TENSORRT: (
        "on a Jetson: apt install python3-libnvinfer (JetPack brings it); elsewhere: pip install "
        "tensorrt, or for RTX cards pip install -r requirements/tensorrt_rtx.txt"
    ),
    RTX: "pip install -r requirements/tensorrt_rtx.txt",
}
TITLE = {TENSORRT: "TensorRT", RTX: "TensorRT-RTX"}
OLDEST = {TENSORRT: 10, RTX: 1}
PLAN = "vision.plan"
WORKSPACE = 2 << 30  # bytes the builder may give to one layer's scratch


def import_tensorrt(name: str = TENSORRT):
    """Imports TensorRT 10 or later, or TensorRT-RTX, or raises one clear error."""
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise VlaError(f"{TITLE[name]} is not installed ({error})", INSTALL[name]) from None
    version = getattr(library, "__version__", "0")
    if int(version.split(".")[0]) < OLDEST[name]:
        raise VlaError(f"{TITLE[name]} {version} is too old", f"install {OLDEST[name]}.0 or later")
    return library


def usual_library() -> str:
    """TensorRT's name where it is installed, else that of TensorRT-RTX if that is."""
    found = importlib.util.find_spec(TENSORRT) is None and importlib.util.find_spec(RTX)
    return RTX if found else TENSORRT


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


def build_plan(graph: Path, library: str, target: str, shapes: dict[str, list[int]]) -> bytes:
    """A serialised engine of an ONNX graph.

    target: "cuda:sm_89"; TensorRT builds for this machine's GPU whatever it says. shapes: of the
    graph's input and output, by name.
    """
    tensorrt, title = import_tensorrt(library), TITLE[library]
    errors = Errors(tensorrt)
    builder = tensorrt.Builder(errors.logger)
    flag = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = tensorrt.OnnxParser(network, errors.logger)
    if not parser.parse_from_file(str(graph)):  # which finds the weights beside it
        told = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise VlaError(
            f"{title} {tensorrt.__version__} cannot read {graph} ({told[:300] or errors})",
            "use vision onnx, or a later TensorRT",
        )
    for tensor, name in ((network.get_input(0), INPUT), (network.get_output(0), OUTPUT)):
        if (tensor.name, list(tensor.shape)) != (name, shapes[name]):
            raise CheckpointError(
                f"{graph} has {tensor.name} {list(tensor.shape)} instead of {name} {shapes[name]}",
                AGAIN,
            )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, WORKSPACE)
    if library == RTX:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability(tensorrt, target), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise VlaError(
            f"{title} {tensorrt.__version__} cannot build {graph} ({errors})",
            "export it in float16, free memory and try again, or use vision onnx",
        )
    return bytes(plan)


def capability(tensorrt, target: str) -> Any:
    """TensorRT-RTX's name of a target such as "cuda:sm_89"."""
    known = tensorrt.ComputeCapability.__members__
    name = target.removeprefix("cuda:sm_")
    if f"SM{name}" not in known:
        chips = ", ".join(f"cuda:sm_{n[2:]}" for n in known if n.startswith("SM"))
        raise VlaError(
            f"TensorRT-RTX {tensorrt.__version__} does not build for {target}",
            f"it knows {chips}; use TensorRT or vision onnx on others",
        )
    return known[f"SM{name}"]


def choose(target: str) -> tuple[str, str]:
    """Library and target that are built with and for.

    target: "cuda:sm_NN", by TensorRT-RTX; empty: this machine's GPU, by what is installed.
    """
    library = RTX if target else usual_library()
    tensorrt = import_tensorrt(library)
    if not target and not torch.cuda.is_available():
        raise VlaError(
            "TensorRT builds on the GPU it builds for, and there is none",
            "use onnx, or give --target cuda:sm_89, say, to build for an RTX card",
        )
    target = target or chip("cuda")
    if library == RTX:
        capability(tensorrt, target)
    return library, target


def build(
    source: Path, output: Path, *, target: str = "", overwrite: bool = False
) -> dict[str, Any]:
    """Builds the graph in `source`, a folder of `vla compile --engine onnx`, into `output`.

    target: as in `choose`.
    """
    library, target = choose(target)
    check_free(output, overwrite)
    made = read_record(source, "onnx")
    with new_folder(output, overwrite) as folder:
        shapes = {INPUT: made["shape"], OUTPUT: made["answer"]}
        plan = build_plan(Path(source) / GRAPH, library, target, shapes)
        (folder / PLAN).write_bytes(plan)
        record = {
            "engine": "tensorrt",
            **{k: made[k] for k in ("model", "digest", "dtype", "shape", "answer")},
            "relative_error_of_graph": made["relative_error"],
            "target": target,
            **({"device": device_of(0)} if library == TENSORRT else {}),
            library: import_tensorrt(library).__version__,
        }
        return write_record(folder, record)


def build_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    dtype: str = "float16",
    target: str = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Exports a checkpoint's graph and builds it; the graph is not kept."""
    from vla_inference.engines.vision import onnx

    choose(target)  # before minutes are spent on the export
    check_free(output, overwrite)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        graph = Path(scratch) / "onnx"
        onnx.export(checkpoint, graph, dtype=dtype)
        return build(graph, output, target=target, overwrite=overwrite)


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
        )
        library = RTX if RTX in record else TENSORRT
        if library == TENSORRT:  # whose engines do not fit all cards of an architecture
            require(folder, record, device=device_of(self.device.index or 0))
        tensorrt, title = import_tensorrt(library), TITLE[library]
        require(folder, record, **{library: tensorrt.__version__})
        self.dtype, errors = DTYPES[record["dtype"]], Errors(tensorrt)
        self._logger = errors.logger  # must outlive what was made with it
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine((folder / PLAN).read_bytes())
        context = self._engine and self._engine.create_execution_context()
        if not context:
            raise CheckpointError(
                f"{title} cannot load {folder / PLAN} ({errors})",
                "build it again by `vla compile --engine tensorrt --overwrite`",
            )
        self._context, self._errors, self._title = context, errors, title
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
            raise VlaError(f"{self._title} failed ({self._errors})", "use vision onnx")
        return answer
