"""Tests of `vision: onnx` and `vision: tensorrt` (against a stand-in of its API).

TensorRT's own library does not load without an NVIDIA driver: what is checked of it here is the
order of calls, their arguments, and what becomes of failures. The stand-in's engine runs the ONNX
graph and reads and writes the addresses it is given.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vla_inference.checkpoints.random_weights import TINY, write_random_checkpoint
from vla_inference.engines import compiled
from vla_inference.errors import VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.types import Observation

pytest.importorskip("onnxruntime", reason="needs requirements/onnx.txt")
pytest.importorskip("onnxscript", reason="needs requirements/onnx.txt")
from vla_inference.engines.vision import onnx, tensorrt

TWIN = {  # as OpenVLA has them: prefix tokens and layer scale in one, neither in the other
    **TINY,
    "arch_specifier": "no-align+fused-gelu-mlp",
    "vision_towers": [
        {**TINY["vision_towers"][0], "cls_token": True, "reg_tokens": 4, "layer_scale": True},
        {**TINY["vision_towers"][0], "key": "fused_featurizer", "embed_dim": 48, "mlp_hidden": 70},
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("vision")
    checkpoint = write_random_checkpoint(base / "checkpoint", TWIN, "parallel")
    for dtype in ("float32", "float16"):
        onnx.export(checkpoint, base / dtype, dtype=dtype)
    return checkpoint, base


def observations(count: int) -> list[Observation]:
    cells = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [Observation({"image": c.repeat(16, 0).repeat(16, 1)}, "lift it") for c in cells]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3)])
def test_the_graph_answers_as_pytorch_does(made, dtype, tolerance):
    checkpoint, base = made
    plain = OpenVLAPolicy.from_pretrained(checkpoint)
    ours = OpenVLAPolicy.from_pretrained(checkpoint, vision=f"onnx:{base / dtype}")
    assert next(ours.model.projector.parameters()).is_meta  # not loaded a second time
    pixels = onnx.test_pixels(plain.config, 3, seed=1)
    with torch.inference_mode():
        a, b = ours.engine.embed_images(pixels), plain.engine.embed_images(pixels)
    assert onnx.relative_error(a, b) < tolerance
    record = compiled.read_record(base / dtype, "onnx")
    assert 0 < record["relative_error"] < tolerance
    same = [
        np.array_equal(ours.predict_action(o).tokens, plain.predict_action(o).tokens)
        for o in observations(20)
    ]
    assert np.mean(same) >= (1.0 if dtype == "float32" else 0.9)


def truncate(name: str, honest: bool = True):
    """Cut a file short; `honest` folders say its old length."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        if not honest:
            record = json.loads((folder / compiled.RECORD).read_text())
            record["files"][name] = path.stat().st_size
            (folder / compiled.RECORD).write_text(json.dumps(record))

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate("vision.onnx"), r"bytes instead of \d+"),
        (truncate("vision.onnx", honest=False), "cannot be loaded"),
        (truncate("vision.onnx.data", honest=False), "cannot be loaded"),
        (lambda f: (f / "vision.onnx.data").unlink(), "lacks vision.onnx.data"),
    ],
)
def test_a_damaged_graph_is_named(made, tmp_path, damage, words):
    checkpoint, base = made
    folder = Path(shutil.copytree(base / "float16", tmp_path / "folder"))
    damage(folder)
    with pytest.raises(VlaError, match=words):
        OpenVLAPolicy.from_pretrained(checkpoint, vision=f"onnx:{folder}")


def test_the_graph_of_another_model_is_refused(made, tmp_path):
    other = write_random_checkpoint(tmp_path / "other", TWIN, "parallel", seed=1)
    with pytest.raises(VlaError, match="was made for digest"):
        OpenVLAPolicy.from_pretrained(other, vision=f"onnx:{made[1] / 'float32'}")


def test_an_export_that_is_too_far_off_leaves_nothing(made, tmp_path, monkeypatch):
    monkeypatch.setitem(onnx.TOLERANCE, "float32", 0.0)
    with pytest.raises(VlaError, match="differs from PyTorch by"):
        onnx.export(made[0], tmp_path / "out", dtype="float32")
    assert not list(tmp_path.iterdir())


# -- TensorRT ---------------------------------------------------------------------------------


def stand_in(version: str, fails: str = "") -> SimpleNamespace:
    """As much of `tensorrt` as we call, with what 10 and 11 differ in."""
    calls: list[str] = []

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class Parser:
        num_errors = 1

        def __init__(self, network, logger):
            self.network = network

        def parse_from_file(self, path):
            self.network.path = path
            calls.append("parse")
            return fails != "parse"

        def get_error(self, i):
            return "no importer for Foo"

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            calls.append(f"flags {flags}")
            return SimpleNamespace(path="")

        def create_builder_config(self):
            return SimpleNamespace(set_memory_pool_limit=lambda kind, size: calls.append(kind))

        def build_serialized_network(self, network, config):
            if fails == "build":
                self.logger.log(Logger.Severity.ERROR, "out of memory")
                return None
            return memoryview(network.path.encode())

    class Context:
        def __init__(self, path, shape, answer):
            self.path, self.shapes, self.at = path, {"pixels": shape, "embeddings": answer}, {}

        def set_tensor_address(self, name, address):
            self.at[name] = address

        def execute_async_v3(self, stream):
            import onnxruntime

            size = int(np.prod(self.shapes["pixels"]))
            raw = (ctypes.c_uint16 * size).from_address(self.at["pixels"])
            pixels = np.frombuffer(raw, np.float16).reshape(self.shapes["pixels"])
            session = onnxruntime.InferenceSession(self.path)
            answer = session.run(None, {"pixels": pixels})[0]
            ctypes.memmove(self.at["embeddings"], answer.ctypes.data, answer.nbytes)
            return fails != "run"

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, plan):
            if fails == "load":
                return None
            record = json.loads((Path(plan.decode()).parent / compiled.RECORD).read_text())
            shapes = {"pixels": record["shape"], "embeddings": record["answer"]}
            return SimpleNamespace(
                get_tensor_shape=lambda name: tuple(shapes[name]),
                create_execution_context=lambda: Context(plan.decode(), *shapes.values()),
            )

    flags = {} if version.startswith("11") else {"STRONGLY_TYPED": 1}
    return SimpleNamespace(
        __version__=version,
        ILogger=Logger,
        Builder=Builder,
        OnnxParser=Parser,
        Runtime=Runtime,
        NetworkDefinitionCreationFlag=SimpleNamespace(**flags),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        calls=calls,
    )


@pytest.fixture
def on_a_jetson(monkeypatch):
    """A machine that says it has an Orin; tensors stay on the CPU."""

    def install(version: str, fails: str = "") -> SimpleNamespace:
        fake = stand_in(version, fails)
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(tensorrt, "chip", lambda device: "cuda:sm_87")
        monkeypatch.setattr(tensorrt, "device_of", lambda index: "Orin")
        stream = SimpleNamespace(cuda_stream=0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        return fake

    return install


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", "flags 2"), ("11.4.1", "flags 0")])
def test_tensorrt_builds_strongly_typed_and_reads_our_memory(
    made, tmp_path, on_a_jetson, version, flags
):
    fake = on_a_jetson(version)
    checkpoint, base = made
    record = tensorrt.build(base / "float16", tmp_path / "plan")
    assert fake.calls == [flags, "parse", "workspace"]
    assert (record["tensorrt"], record["target"]) == (version, "cuda:sm_87")
    plain = OpenVLAPolicy.from_pretrained(checkpoint, device="cpu")
    vision = tensorrt.TensorrtVision(tmp_path / "plan", "cuda", plain.config, checkpoint)
    pixels = onnx.test_pixels(plain.config, 2, seed=2)
    with torch.inference_mode():
        error = onnx.relative_error(vision(pixels), plain.model.embed_images(pixels))
    assert error < 5e-3
    on_a_jetson("10.16.1")
    with pytest.raises(VlaError, match=rf"tensorrt {version}, here it is 10\.16\.1; compile"):
        tensorrt.TensorrtVision(tmp_path / "plan", "cuda", plain.config, checkpoint)


@pytest.mark.parametrize(
    ("fails", "words"),
    [("parse", "no importer for Foo"), ("build", "out of memory")],
)
def test_what_tensorrt_cannot_build_leaves_nothing(made, tmp_path, on_a_jetson, fails, words):
    on_a_jetson("10.3.0", fails)
    with pytest.raises(VlaError, match=words):
        tensorrt.build(made[1] / "float16", tmp_path / "plan")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fails", "words"), [("load", "cannot load"), ("run", "failed")])
def test_a_plan_that_does_not_run_is_named(made, tmp_path, on_a_jetson, fails, words):
    on_a_jetson("10.3.0")
    tensorrt.build(made[1] / "float16", tmp_path / "plan")
    on_a_jetson("10.3.0", fails)
    config = OpenVLAPolicy.from_pretrained(made[0], device="cpu").config
    with pytest.raises(VlaError, match=words):
        tensorrt.TensorrtVision(tmp_path / "plan", "cuda", config)(onnx.test_pixels(config))


def test_without_tensorrt_one_error_says_what_to_install(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(VlaError, match=r"TensorRT is not installed.*apt install"):
        tensorrt.build_checkpoint(made[0], tmp_path / "plan")
