"""What `vla bench` measures: model, paths, repeats."""

from __future__ import annotations

from dataclasses import dataclass

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure. Of the slow paths (transformers', plain) 50 observations at most."""

    model: str = option("", "Checkpoint folder or Hub id; default: random weights.")
    size: str = option("", "Size of random weights: openvla-7b (default on a GPU), small ...")
    head: str = option("", "Action head of random weights; default: that of the size.")
    paths: tuple[str, ...] = option(
        (),
        "ENGINE[:QUANTISATION], separated by commas: reference,transformers-static,plain,torch,"
        "torch:int4; "
        "default depends on the device.",
    )
    vision: str = option(
        "", "onnx:FOLDER or tensorrt:FOLDER for the vision encoders.", holds=Holds.ENGINE_FOLDER
    )
    device: str = option("", "cpu or cuda; default: CUDA if available.")
    dtype: str = option("", "float32, bfloat16 or float16.")
    repeats: int = option(50, "Observations to time.", low=1)
    pause: float = option(0.0, "Seconds between two observations.", low=0.0)
    method: str = option("rtn", "Rounding of random weights: rtn or hqq.", choices=("rtn", "hqq"))
    profile: int = option(0, "Kernels to list for each path (CUDA).", low=0)

    def check(self) -> None:
        check_options(self)
        if self.size and self.model:
            raise VlaError("both a size and a model were given", "leave one out")
        if self.model and self.head:
            raise VlaError("--head is of random weights", "leave it out with --model")
        if self.model and self.method != "rtn":
            raise VlaError("--method is of random weights", "leave it out with --model")
