"""Tests of `engine: tvm`: libraries compiled here for the CPU against the plain path."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from without_compiler import answers, answers_without_compiler

from vla_inference.checkpoints.load import load_model
from vla_inference.checkpoints.random_weights import TINY, random_tensors, write_random_checkpoint
from vla_inference.engines import make_engine
from vla_inference.errors import VlaError
from vla_inference.openvla.config import ModelConfig
from vla_inference.openvla.model import VLA
from vla_inference.policies.openvla.policy import OpenVLAPolicy
from vla_inference.quantization import get_format
from vla_inference.quantization.rounding import quantize_model
from vla_inference.types import Observation

pytest.importorskip("tvm", reason="needs requirements/tvm.txt")
from vla_inference.engines.base import Engine
from vla_inference.engines.compiled import RECORD
from vla_inference.engines.tvm import compile, runtime
from vla_inference.engines.tvm.engine import TvmLanguage

STACK_SMALL = Path(__file__).parents[3] / "models" / "stack-small"
# The language model of the reference outputs of the original code (data/openvla/README.md).
REFERENCE = json.loads((Path(__file__).parent / "data/openvla/config.json").read_text())
SENTENCE = "stack the red block on the green block"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def compile_to(folder: Path, checkpoint: Path, quantization: str, **more) -> Path:
    compile.compile_checkpoint(
        checkpoint, folder, target="llvm", quantization=quantization, **more
    )
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return compile_to(tmp_path_factory.mktemp("tvm") / "small", STACK_SMALL, "float32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint that decodes token by token, and its folder with int4 weights."""
    base = tmp_path_factory.mktemp("tiny")
    checkpoint = write_random_checkpoint(base / "checkpoint", "tiny", "tokens")
    return checkpoint, compile_to(base / "int4", checkpoint, "int4-g32")


def reference_model() -> VLA:
    """Random weights of the reference's shape; vision encoders of one block, which nobody asks."""
    raw = {**TINY, **{k: REFERENCE[k] for k in ("text_config", "pad_to_multiple_of")}}
    raw |= {"action_head": {"type": "tokens", "decoding": "autoregressive"}}
    config = ModelConfig.from_json(raw)
    with torch.device("meta"):
        model = VLA(config)
    model.load_state_dict(random_tensors(config, 0), assign=True)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def test_tokens_of_200_contexts_on_the_reference_shape(tmp_path):
    model = reference_model()
    llm = model.config.llm
    record = compile.compile_library(llm, "float32", "llvm", tmp_path)
    compile.write_record(tmp_path, record)
    weights = compile.weights_of("float32", "llvm", llm)
    state = model.state_dict()
    parameters: dict[str, torch.Tensor] = {}
    for entry in record["parameters"]:
        shape = (tuple(entry["shape"]), entry["dtype"])
        parameters |= dict(compile.make(entry["name"], shape, state, None, weights))
    language = TvmLanguage(tmp_path, "cpu", model.config, parameters=parameters)
    engine = Engine(model, language=language)
    generator = torch.Generator().manual_seed(0)
    lengths = [290, 270, *np.random.default_rng(0).integers(2, 32, 198).tolist()]
    for n in lengths:
        context = torch.randn(1, n, llm.hidden_size, generator=generator)
        ours, theirs = list(engine.generate(context)), list(model.generate(context))
        assert [int(t) for t, _ in ours] == [int(t) for t, _ in theirs]
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            a, b = model.action_logits(a), model.action_logits(b)
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def images(count: int, seed: int = 0) -> list[Observation]:
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [Observation({"image": c.repeat(28, 0).repeat(28, 1)}, SENTENCE) for c in cells]


def test_the_shipped_model_answers_alike(small):
    plain = OpenVLAPolicy.from_pretrained(STACK_SMALL)
    ours = OpenVLAPolicy.from_pretrained(STACK_SMALL, engine=f"tvm:{small}")
    layers = ours.model.language_model.model.layers
    assert next(layers.parameters()).is_meta  # compiled, so not loaded a second time
    for observation in images(4):
        a, b = (
            p.predict_action(observation, action_space="normalized").actions for p in (ours, plain)
        )
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_padding_is_not_seen(small):
    model = load_model(STACK_SMALL)
    engine = make_engine(f"tvm:{small}", model, checkpoint=STACK_SMALL)
    x = torch.randn(
        2, 24, model.config.llm.hidden_size, generator=torch.Generator().manual_seed(1)
    )
    padding = torch.arange(24)[None] >= torch.tensor([24, 15])[:, None]
    ours, theirs = engine.encode(x, padding), model.encode(x, padding)
    torch.testing.assert_close(ours[~padding], theirs[~padding], atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_int4_multiplies_by_what_the_codes_stand_for(tiny):
    checkpoint, folder = tiny
    model = load_model(checkpoint)
    engine = make_engine(f"tvm:{folder}", model, checkpoint=checkpoint)
    quantize_model(model, get_format("int4-g32"))
    x = torch.randn(
        2, 20, model.config.llm.hidden_size, generator=torch.Generator().manual_seed(2)
    )
    (a, mine), (b, past) = engine.prefill(x), model.prefill(x)  # two sequences at once
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for i in range(3):
        a, mine = engine.decode(x[:, i : i + 1], mine)
        b, past = model.decode(x[:, i : i + 1], past)
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    engine.prefill(x)
    with pytest.raises(VlaError, match="overwritten by a later prefill"):
        engine.decode(x[:, :1], mine)


def test_codes_of_a_quantised_checkpoint_are_taken_as_they_are(tiny):
    checkpoint, folder = tiny
    record = json.loads((folder / RECORD).read_text())
    model = load_model(checkpoint)
    quantize_model(model, get_format("int4-g32"))
    state = model.state_dict()
    written = load_file(folder / "parameters" / "000.safetensors")
    for entry in record["parameters"]:
        if entry["name"].endswith("q_weight") and ".layers.0." in entry["name"]:
            given = (tuple(entry["shape"]), entry["dtype"])
            for name, tensor in compile.make(entry["name"], given, state, None, None):
                torch.testing.assert_close(
                    tensor.view(torch.uint8), written[name].view(torch.uint8), atol=0, rtol=0
                )
    with pytest.raises(VlaError, match="own int4 format"):
        name = "model.layers.0.mlp.down_proj.weight"
        list(compile.make(name, ((32, 64), "float32"), state, None, None))


@torch.inference_mode()
def test_a_folder_compiled_anew_is_linked_and_loaded_anew(tiny, tmp_path, monkeypatch):
    checkpoint, made = tiny
    folder = Path(shutil.copytree(made, tmp_path / "folder"))
    model = load_model(checkpoint)
    x = torch.randn(
        1, 20, model.config.llm.hidden_size, generator=torch.Generator().manual_seed(3)
    )
    old = make_engine(f"tvm:{folder}", model)
    before, _ = old.prefill(x)
    with pytest.raises(VlaError, match="already exists"):
        compile_to(folder, checkpoint, "float32")
    with monkeypatch.context() as machine:  # without a linker, as for a foreign host
        machine.setattr(compile.shutil, "which", lambda name: None)
        compile_to(folder, checkpoint, "float32", overwrite=True)
    assert list(folder.glob("*.tar")) and not list(folder.glob("*.so"))
    exact, _ = make_engine(f"tvm:{folder}", model).prefill(x)
    torch.testing.assert_close(exact, model.prefill(x)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(old.prefill(x)[0], before)  # the first goes on


def test_a_machine_without_the_compiler_answers_alike(tiny):
    checkpoint, folder = tiny
    libraries, tokens = answers_without_compiler(checkpoint, f"tvm:{folder}")
    assert "tvm_compiler" not in libraries and "tvm_runtime_extra" in libraries
    assert tokens == answers(checkpoint, f"tvm:{folder}")


def test_what_keeps_cuda_from_being_loaded_is_named(monkeypatch, tmp_path):
    tvm = runtime.import_runtime()
    if tvm.get_global_func("device_api.cuda", allow_missing=True):
        pytest.skip("TVM's CUDA runtime is loaded here")
    libraries = dict(tvm.base._LOADED_LIBS)
    monkeypatch.setattr(tvm.base, "_LOADED_LIBS", libraries)
    with pytest.raises(VlaError, match=r"cannot be loaded \(libcu.*\.so.*LD_LIBRARY_PATH"):
        runtime.import_runtime("cuda:0")
    libraries["tvm_runtime"] = SimpleNamespace(_name=str(tmp_path / "libtvm_runtime.so"))
    with pytest.raises(VlaError, match=r"there is no libtvm_runtime_cuda\.so"):
        runtime.import_runtime("cuda")


def change(**fields):
    def apply(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        (folder / RECORD).write_text(json.dumps({**record, **fields}))

    return apply


def cut(pattern: str):
    def apply(folder: Path) -> None:
        path = next(folder.glob(pattern))
        path.write_bytes(path.read_bytes()[:-100])

    return apply


def forge(folder: Path) -> None:
    """A library of the right length that is none."""
    path = next(folder.glob("*.so"))
    path.write_bytes(b"\0" * path.stat().st_size)


def lose_a_parameter(folder: Path) -> None:
    path = folder / "parameters" / "000.safetensors"
    found = load_file(path)
    found.popitem()
    save_file(found, path)
    record = json.loads((folder / RECORD).read_text())
    record["files"]["parameters/000.safetensors"] = path.stat().st_size
    (folder / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change(target="cuda:sm_87"), "target cuda:sm_87, here it is llvm"),
        (change(host="riscv64-linux-gnu"), "host riscv64-linux-gnu"),
        (change(tvm="0.1"), r"tvm 0\.1, here it is 0\."),
        (change(digest="0" * 64), "digest 000000000000, here"),
        (change(decoding="parallel"), "decoding parallel, here it is autoregressive"),
        (change(engine="mlc"), "is for engine 'mlc'"),
        (cut("*.so"), r"bytes instead of \d+; copy it again"),
        (cut("parameters/000*"), r"bytes instead of \d+; copy it again"),
        (forge, "cannot be loaded"),
        (lose_a_parameter, "lacks model.layers.0"),
        (lambda f: (f / RECORD).unlink(), "has no engine.json"),
        (lambda f: (f / RECORD).write_text("{"), "cannot be read"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(tiny, tmp_path, damage, words):
    checkpoint, made = tiny
    folder = Path(shutil.copytree(made, tmp_path / "folder"))
    damage(folder)
    with pytest.raises(VlaError, match=words):
        OpenVLAPolicy.from_pretrained(checkpoint, engine=f"tvm:{folder}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "sm_87"}, "unknown target 'sm_87'"),
        ({"target": "llvm", "quantization": "int4-g128"}, "can't group by 128"),
        ({"target": "llvm", "quantization": "fp8"}, "engine tvm has no fp8"),
        ({"target": "llvm", "quantization": "int3"}, "no quantisation 'int3'"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_leaves_nothing(tmp_path, options, words):
    with pytest.raises(VlaError, match=words):
        compile.compile_checkpoint(STACK_SMALL, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tvm", "plain:/folder", "tvn:/folder"])
def test_engines_by_name(name):
    with pytest.raises(VlaError, match=r"compiled folder|takes no folder|there is no engine"):
        OpenVLAPolicy.from_pretrained(STACK_SMALL, engine=name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("chip", ["sm_87", "sm_110"])
def test_for_a_jetson_without_one(tmp_path, chip):
    llm = dataclasses.replace(ModelConfig.from_json(TINY).llm, hidden_size=256, vocab_size=320)
    llm = dataclasses.replace(llm, intermediate_size=512)
    record = compile.compile_library(
        llm, "int4-g32", f"cuda:{chip}", tmp_path, host="aarch64-linux-gnu"
    )
    library = tmp_path / record["library"]
    if library.suffix == ".tar":
        with tarfile.open(library) as archive:
            objects = [archive.extractfile(m).read() for m in archive if m.isfile()]
    else:
        objects = [library.read_bytes()]
    assert objects
    assert [k["file"] for k in record["kernels"]] == [p.name for p in tmp_path.glob("*.fatbin")]
    for content in objects:
        assert content[:4] == b"\x7fELF"
        assert int.from_bytes(content[18:20], "little") == 183  # aarch64
