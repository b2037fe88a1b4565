"""Tests of `vision: onnx` and `vision: tensorrt`.

TensorRT-RTX parses and builds without a GPU, for real. An engine runs on a GPU only: in its place
ONNX Runtime reads and writes the addresses that it would be given. TensorRT's own library does not
load without a driver: its API is TensorRT-RTX's, with the names that its bindings have.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vla_inference.checkpoints.random_weights import (
    OPENVLA_7B,
    TINY,
    random_model,
    write_random_checkpoint,
)
from vla_inference.engines import compiled
from vla_inference.errors import VlaError
from vla_inference.openvla.config import ModelConfig
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


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="needs requirements/tensorrt_rtx.txt")


def read_graph(folder: Path) -> str:
    return str(folder / onnx.GRAPH)


@pytest.mark.parametrize(
    ("dtype", "target"),
    [("float16", "cuda:sm_75"), ("float16", "cuda:sm_120"), ("float32", "cuda:sm_89")],
)
def test_tensorrt_rtx_builds_for_a_card_that_is_not_here(made, tmp_path, rtx, dtype, target):
    record = tensorrt.build(made[1] / dtype, tmp_path / "plan", target=target)
    assert record["target"] == target and record["tensorrt_rtx"] == rtx.__version__
    assert "device" not in record  # it fits all cards of that compute capability
    plan = (tmp_path / "plan" / tensorrt.PLAN).read_bytes()
    parameters = OpenVLAPolicy.from_pretrained(made[0], device="cpu").model
    weights = sum(p.numel() for p in parameters.vision_backbone.parameters())
    assert len(plan) > weights * (2 if dtype == "float16" else 4)


def test_tensorrt_rtx_says_which_cards_it_knows(made, tmp_path, rtx):
    with pytest.raises(VlaError, match=r"does not build for cuda:sm_90.*cuda:sm_89.*cuda:sm_120"):
        tensorrt.build(made[1] / "float16", tmp_path / "plan", target="cuda:sm_90")
    assert not list(tmp_path.iterdir())


def test_building_for_this_machine_needs_its_gpu(made, tmp_path, rtx):
    with pytest.raises(VlaError, match=r"there is none.*--target"):
        tensorrt.build(made[1] / "float16", tmp_path / "plan")


def test_a_graph_that_is_not_what_its_folder_says_is_refused(made, tmp_path, rtx):
    folder = Path(shutil.copytree(made[1] / "float16", tmp_path / "graph"))
    record = json.loads((folder / compiled.RECORD).read_text())
    record["answer"][1] += 1
    (folder / compiled.RECORD).write_text(json.dumps(record))
    with pytest.raises(VlaError, match=r"has embeddings \[1, 16, 32\] instead of"):
        tensorrt.build(folder, tmp_path / "plan", target="cuda:sm_89")


def test_the_calls_are_there_in_tensorrt_11():
    """Its bindings come without the library and cannot be imported: names are looked for."""
    found = importlib.util.find_spec("tensorrt_bindings")
    if found is None:
        pytest.skip("needs requirements/tensorrt_rtx.txt")
    binary = (Path(found.origin).parent / "tensorrt.so").read_bytes()
    names = """STRONGLY_TYPED WORKSPACE INTERNAL_ERROR create_network create_builder_config
    get_input get_output set_memory_pool_limit build_serialized_network parse_from_file get_error
    deserialize_cuda_engine create_execution_context get_tensor_shape set_tensor_address
    execute_async_v3"""
    lacking = [n for n in names.split() if b"\0" + n.encode() + b"\0" not in binary]
    assert not lacking


class Context:
    """An engine's execution without a GPU: ONNX Runtime on the addresses that it is given."""

    def __init__(self, graph: str, shapes: dict[str, list[int]], fails: str):
        self.graph, self.shapes, self.fails, self.at = graph, shapes, fails, {}

    def set_tensor_address(self, name, address):
        self.at[name] = address

    def execute_async_v3(self, stream):
        import onnxruntime

        size = int(np.prod(self.shapes["pixels"]))
        raw = (ctypes.c_uint16 * size).from_address(self.at["pixels"])
        pixels = np.frombuffer(raw, np.float16).reshape(self.shapes["pixels"])
        answer = onnxruntime.InferenceSession(self.graph).run(None, {"pixels": pixels})[0]
        ctypes.memmove(self.at["embeddings"], answer.ctypes.data, answer.nbytes)
        return self.fails != "run"


def jetsons(rtx, version: str, graph: str, fails: str = "") -> SimpleNamespace:
    """TensorRT's API with TensorRT-RTX's parser and builder; without a GPU nothing is loaded."""
    calls: list[str] = []

    class Builder:
        def __init__(self, logger):
            self.builder = rtx.Builder(logger)

        def create_network(self, flags):
            calls.append(f"flags {flags}")
            return self.builder.create_network(STRONGLY_TYPED)

        def create_builder_config(self):
            return self.builder.create_builder_config()

        def build_serialized_network(self, network, config):
            config.num_compute_capabilities = 1
            config.set_compute_capability(rtx.ComputeCapability.SM86, 0)
            return self.builder.build_serialized_network(network, config)

    def load(plan):
        if fails == "load":
            return None
        record = json.loads((Path(graph).parent / compiled.RECORD).read_text())
        shapes = {"pixels": record["shape"], "embeddings": record["answer"]}
        return SimpleNamespace(
            get_tensor_shape=lambda name: tuple(shapes[name]),
            create_execution_context=lambda: Context(graph, shapes, fails),
        )

    STRONGLY_TYPED = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    flags = {} if version.startswith("11") else {"STRONGLY_TYPED": 1}
    return SimpleNamespace(
        __version__=version,
        ILogger=rtx.ILogger,
        Builder=Builder,
        OnnxParser=rtx.OnnxParser,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=load),
        NetworkDefinitionCreationFlag=SimpleNamespace(**flags),
        MemoryPoolType=rtx.MemoryPoolType,
        calls=calls,
    )


@pytest.fixture
def on_a_jetson(monkeypatch, rtx, made):
    """A machine that says it has an Orin; tensors stay on the CPU."""

    def install(version: str, fails: str = "") -> SimpleNamespace:
        fake = jetsons(rtx, version, read_graph(made[1] / "float16"), fails)
        monkeypatch.setitem(sys.modules, "tensorrt", fake)
        monkeypatch.setattr(tensorrt, "usual_library", lambda: "tensorrt")
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
    assert fake.calls == [flags]
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


def test_tensorrt_that_cannot_build_leaves_nothing(made, tmp_path, rtx):
    with pytest.raises(VlaError, match=r"cannot build .*Turing.*FP32 GEMM is not supported"):
        tensorrt.build(made[1] / "float32", tmp_path / "plan", target="cuda:sm_75")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_cannot_be_parsed_is_told_in_the_parsers_words(made, tmp_path, rtx):
    import onnx as writer

    folder = Path(shutil.copytree(made[1] / "float16", tmp_path / "graph"))
    graph = writer.load(read_graph(folder), load_external_data=False)
    graph.graph.node[-1].op_type = "Foo"
    writer.save(graph, read_graph(folder))
    record = json.loads((folder / compiled.RECORD).read_text())
    record["files"][onnx.GRAPH] = (folder / onnx.GRAPH).stat().st_size
    (folder / compiled.RECORD).write_text(json.dumps(record))
    with pytest.raises(VlaError, match=r"cannot read .*Foo"):
        tensorrt.build(folder, tmp_path / "plan", target="cuda:sm_89")
    assert not (tmp_path / "plan").exists()


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
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(VlaError, match=r"TensorRT is not installed.*apt install"):
        tensorrt.build_checkpoint(made[0], tmp_path / "plan")
    with pytest.raises(VlaError, match=r"TensorRT-RTX is not installed.*tensorrt_rtx\.txt"):
        tensorrt.build_checkpoint(made[0], tmp_path / "plan", target="cuda:sm_89")


@pytest.mark.slow
def test_the_graph_of_openvla_7bs_encoders_is_parsed_and_built(tmp_path, rtx):
    """DINOv2 ViT-L and SigLIP So400m of random weights, 224 pixels, for an RTX 4090."""
    small = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    small |= {"num_hidden_layers": 1, "intermediate_size": 256}
    text = {**OPENVLA_7B["text_config"], **small}  # which is not in the graph
    config = ModelConfig.from_json({**OPENVLA_7B, "text_config": text})
    part = onnx.ImageEncoder(random_model(config, dtype=torch.float16))
    shape, answer = list(onnx.shape_of(config)), [1, 256, 256]
    onnx.write_graph(part, tuple(shape), tmp_path / onnx.GRAPH)
    shapes = {"pixels": shape, "embeddings": answer}
    plan = tensorrt.build_plan(tmp_path / onnx.GRAPH, "tensorrt_rtx", "cuda:sm_89", shapes)
    assert shape == [1, 6, 224, 224] and len(plan) > 1.3e9
