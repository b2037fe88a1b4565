"""`vision: onnx`: vision encoders and projector as one ONNX graph of fixed shape.

The graph takes one observation's normalised images [1, images * vision encoders * 3, S, S] to
embeddings [1, P, H]. Its precision is written into it, which is what TensorRT builds from as well.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_inference.checkpoints.load import load_config, load_model
from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.engines.compiled import (
    check_free,
    digest_of,
    fitting_record,
    new_folder,
    write_record,
)
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.openvla.preprocessing import ImagePreprocessor

INSTALL = "pip install -r requirements/onnx.txt"
GRAPH = "vision.onnx"
INPUT, OUTPUT = "pixels", "embeddings"
OPSET = 20
DTYPES = {"float32": torch.float32, "float16": torch.float16}
# Largest relative error against PyTorch in float32 that an export may have.
TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
LANGUAGE = ("language_model.",)


def import_runtime():
    try:
        import onnxruntime
    except ImportError as error:
        raise VlaError(f"ONNX Runtime is not installed ({error})", INSTALL) from None
    return onnxruntime


class ImageEncoder(nn.Module):
    """The part of a model that the graph contains."""

    def __init__(self, model: VLA):
        super().__init__()
        self.vision_backbone, self.projector = model.vision_backbone, model.projector

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projector(self.vision_backbone(pixels))


def shape_of(config: ModelConfig) -> tuple[int, ...]:
    size = config.encoders[0].image_size
    return (1, config.head.num_images * len(config.encoders) * 3, size, size)


def test_pixels(config: ModelConfig, count: int = 2, seed: int = 0) -> Tensor:
    """Normalised images of coloured cells with noise: [count, channels, S, S]"""
    rng = np.random.default_rng(seed)
    preprocess = ImagePreprocessor(config)
    size, several = config.encoders[0].image_size, []
    for _ in range(count):
        cells = rng.integers(0, 256, (config.head.num_images, 7, 7, 3))
        images = cells.repeat(-(-size // 7), 1).repeat(-(-size // 7), 2)[:, :size, :size]
        noisy = images + rng.normal(0, 12, images.shape)
        given = torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))
        several.append(preprocess.normalise(given))
    return torch.stack(several)


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the reference's."""
    return float((ours.double() - reference.double()).norm() / reference.double().norm())


# -- export -----------------------------------------------------------------------------------


def export(
    checkpoint: Path, output: Path, *, dtype: str = "float16", overwrite: bool = False
) -> dict[str, Any]:
    """Write the graph of a checkpoint's vision encoders and projector; returns its record.

    It is run by ONNX Runtime on the CPU and compared with PyTorch in float32; the difference is
    in the record, and one that is too large is refused.
    """
    runtime = import_runtime()
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise VlaError(f"ONNX cannot be written ({error})", INSTALL) from None
    if dtype not in DTYPES:
        raise VlaError(f"unknown dtype {dtype!r}", f"known: {', '.join(DTYPES)}")
    check_free(output, overwrite)
    config = load_config(checkpoint)
    digest = digest_of("onnx", checkpoint, config)
    part = ImageEncoder(load_model(checkpoint, config=config, leave_out=LANGUAGE))
    pixels = test_pixels(config)
    with new_folder(output, overwrite) as folder, torch.inference_mode():
        reference = torch.cat([part(p[None]) for p in pixels])
        write_graph(part.to(DTYPES[dtype]), shape_of(config), folder / GRAPH)
        session = open_session(runtime, folder / GRAPH, torch.device("cpu"))
        answers = torch.cat([run_on_cpu(session, p[None], DTYPES[dtype]) for p in pixels])
        off = relative_error(answers, reference)
        if not off <= TOLERANCE[dtype]:  # NaN included
            raise VlaError(
                f"the exported graph differs from PyTorch by {off:.2g} (relative), more than "
                f"{TOLERANCE[dtype]:g}",
                "export in float32" if dtype == "float16" else "please report it",
            )
        record = {
            "engine": "onnx",
            "model": checkpoint_name(checkpoint),
            "digest": digest,
            "dtype": dtype,
            "shape": list(shape_of(config)),
            "answer": list(reference[:1].shape),
            "relative_error": off,
            "opset": OPSET,
            "versions": {
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxscript": onnxscript.__version__,
                "onnxruntime": runtime.__version__,
            },
        }
        return write_record(folder, record)


def write_graph(part: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """One static graph with weights in a separate file (protobuf is limited to 2 GB)."""
    dtype = next(part.parameters()).dtype
    # It complains of a torchvision that isn't there.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            part,
            (torch.zeros(shape, dtype=dtype),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None  # with dynamo=True
        program.save(path, external_data=True)


# -- running ----------------------------------------------------------------------------------


def open_session(runtime, graph: Path, device: torch.device):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers: list = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in runtime.get_available_providers():
            raise VlaError(
                "this ONNX Runtime has no CUDA", "install onnxruntime-gpu in its place, or use cpu"
            )
        stream = str(torch.cuda.current_stream(device).cuda_stream)
        chosen = {"device_id": device.index or 0, "user_compute_stream": stream}
        providers = [("CUDAExecutionProvider", chosen), *providers]
    try:
        return runtime.InferenceSession(str(graph), options, providers)
    except Exception as error:  # the library's own kinds, derived from Exception
        words = " ".join(str(error).split())
        raise CheckpointError(
            f"{graph} cannot be loaded ({words[:160]})", "copy it again or export it again"
        ) from None


def run_on_cpu(session, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    given = pixels.to(dtype).contiguous().numpy()
    return torch.from_numpy(session.run([OUTPUT], {INPUT: given})[0])


class OneByOne:
    """`Vision` on something compiled for one image at a time."""

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.cat([self._one(row[None]) for row in pixels]).to(pixels.dtype)

    def _one(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError


class OnnxVision(OneByOne):
    """`Vision` on a folder of `vla compile --engine onnx`."""

    def __init__(
        self,
        folder: str | os.PathLike,
        device: str | torch.device,
        config: ModelConfig,
        checkpoint: str | os.PathLike | None = None,
    ):
        folder, self.device = Path(folder), torch.device(device)
        shape = list(shape_of(config))
        self.record = record = fitting_record(folder, "onnx", config, checkpoint, shape=shape)
        self.dtype = DTYPES[record["dtype"]]
        self._session = open_session(import_runtime(), folder / GRAPH, self.device)

    def _one(self, pixels: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return run_on_cpu(self._session, pixels, self.dtype)
        given = pixels.to(self.dtype).contiguous()
        answer = torch.empty(self.record["answer"], dtype=self.dtype, device=self.device)
        binding = self._session.io_binding()
        kind = np.float16 if self.dtype == torch.float16 else np.float32
        for bind, name, tensor in (
            (binding.bind_input, INPUT, given),
            (binding.bind_output, OUTPUT, answer),
        ):
            bind(
                name, "cuda", self.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr()
            )
        self._session.run_with_iobinding(binding)
        return answer
