"""Tests of `engine: mlc` on a library in mlc_llm's layout, built here with TVM.

Functions, their arguments and the tensor cache are those of a Llama compiled by mlc_llm's CLI
(q4f32_1: packed as q4f16_1, arithmetic in float32, which a CPU can check).
"""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest
import torch
from without_compiler import answers, answers_without_compiler

from vla_inference.checkpoints.load import load_model
from vla_inference.checkpoints.random_weights import write_random_checkpoint
from vla_inference.checkpoints.safetensors_io import Tensors
from vla_inference.engines import make_engine
from vla_inference.errors import VlaError
from vla_inference.policies.openvla.policy import OpenVLAPolicy

pytest.importorskip("tvm", reason="needs requirements/tvm.txt")
import tvm
from tvm import relax
from tvm.contrib import tvmjs
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from vla_inference.engines.mlc import compile
from vla_inference.engines.tvm import build
from vla_inference.engines.tvm.compile import sources
from vla_inference.engines.tvm.model import Decoder, Linear, Weights
from vla_inference.quantization.linear import pack

GROUP, TOP = 32, 7  # q4*_1: nibbles 0 .. 14 stand for -7 .. 7


class MlcLlama(Decoder):
    """With lm_head, and answering with logits."""

    def __init__(self, c, w):
        super().__init__(c, w)
        self.lm_head = Linear(c.hidden_size, c.vocab_size, w, out="float32")

    def prefill(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache):
        hidden, cache = super().prefill(input_embed, paged_kv_cache)
        return self.lm_head(hidden), cache

    def decode(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache):
        hidden, cache = super().decode(input_embed, paged_kv_cache)
        return self.lm_head(hidden), cache

    def spec(self, decoding: str = "autoregressive"):
        names = {"x": "input_embed", "cache": "paged_kv_cache", "$": "$"}
        return {f: {names[k]: v for k, v in s.items()} for f, s in super().spec(decoding).items()}


def q4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales as mlc_llm's group_quantization makes them."""
    grouped = weight.view(len(weight), -1, GROUP)
    scale = grouped.abs().amax(-1, keepdim=True) / TOP
    codes = (grouped / scale).round().add(TOP).clamp(0, 2 * TOP).to(torch.uint8)
    return codes.flatten(1), scale[..., 0].half()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint; a folder as mlc_llm leaves it; the plain model on the same rounded weights."""
    base = tmp_path_factory.mktemp("mlc")
    folder = base / "mlc"
    folder.mkdir()
    checkpoint = write_random_checkpoint(base / "checkpoint", "tiny", "tokens")
    model = load_model(checkpoint)
    llm = model.config.llm
    llama = MlcLlama(llm, Weights("float32", GROUP, TOP))
    target = build.make_target("llvm")
    mod, names = build.lower(llama, llama.spec(), target)
    mod = build.add_cache(mod, llm, "float32", target)
    state, parameters = model.state_dict(), {}
    for name in names:
        if name.endswith(".q_scale"):
            continue
        parts = [f"language_model.{n}" for n in sources(name.replace("q_weight", "weight"))]
        weight = torch.cat([state[p] for p in parts])
        if not name.endswith(".q_weight"):
            parameters[name] = weight
            continue
        codes, scale = q4(weight)
        parameters[name] = pack(codes).view(torch.uint32)
        parameters[name.replace("q_weight", "q_scale")] = scale
        rounded = (codes.float() - TOP) * scale.float().repeat_interleave(GROUP, 1)
        rows = [len(state[p]) for p in parts]
        for part, tensor in zip(parts, rounded.split(rows), strict=True):
            state[part].copy_(tensor)
    metadata = {
        "model_type": "llama",
        "quantization": "q4f32_1",
        "context_window_size": 1024,
        "prefill_chunk_size": 128,
        "sliding_window_size": -1,
        "tensor_parallel_shards": 1,
        "kv_cache": {
            "num_hidden_layers": llm.num_hidden_layers,
            "num_attention_heads": llm.num_attention_heads,
            "num_key_value_heads": llm.num_key_value_heads,
            "head_dim": llm.head_dim,
        },
        "params": [{"name": n, "shape": s, "dtype": d} for n, (s, d) in names.items()],
    }
    builder = relax.BlockBuilder(mod)
    with builder.function("_metadata", params=[]):
        builder.emit_func_output(tvm.ir.StringImm(json.dumps(metadata)))
    build.finish(builder.finalize(), target, folder / "lib.so", shutil.which("g++"))
    arrays = {k: v.numpy() for k, v in parameters.items()}
    tvmjs.dump_tensor_cache(arrays, str(folder), encode_format="raw", show_progress=False)
    return checkpoint, folder, model


@torch.inference_mode()
def test_tokens_equal_on_the_same_rounded_weights(made):
    checkpoint, folder, model = made
    engine = make_engine(f"mlc:{folder}", load_model(checkpoint), checkpoint=checkpoint)
    generator = torch.Generator().manual_seed(0)
    for n in (2, 9, 17, 40):
        x = torch.randn(2, n, model.config.llm.hidden_size, generator=generator)
        ours, theirs = list(engine.generate(x)), list(model.generate(x))
        for (a, logits), (b, hidden) in zip(ours, theirs, strict=True):
            assert a.tolist() == b.tolist()
            torch.testing.assert_close(
                engine.action_logits(logits), model.action_logits(hidden), atol=1e-4, rtol=1e-4
            )


def test_a_machine_without_the_compiler_answers_alike(made):
    checkpoint, folder, _ = made
    libraries, tokens = answers_without_compiler(checkpoint, f"mlc:{folder}")
    assert "tvm_compiler" not in libraries and "tvm_runtime_extra" in libraries
    assert tokens == answers(checkpoint, f"mlc:{folder}")


def test_more_than_the_library_can_take_is_told(made):
    checkpoint, folder, model = made
    engine = make_engine(f"mlc:{folder}", load_model(checkpoint))
    with pytest.raises(VlaError, match="132 positions are more than the library's 128"):
        engine.prefill(torch.zeros(1, 125, model.config.llm.hidden_size))


def without_library(folder: Path) -> None:
    (folder / "lib.so").unlink()


def truncated_shard(folder: Path) -> None:
    shard = next(folder.glob("params_shard_*.bin"))
    shard.write_bytes(shard.read_bytes()[:-4])


def missing_parameter(folder: Path) -> None:
    path = folder / "tensor-cache.json"
    content = json.loads(path.read_text())
    content["records"][0]["records"].pop(0)
    path.write_text(json.dumps(content))


def older(folder: Path) -> None:
    (folder / "tensor-cache.json").rename(folder / "ndarray-cache.json")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_library, "must hold one library"),
        (truncated_shard, "instead of"),
        (missing_parameter, "lacks model.layers.0"),
        (older, "older mlc_llm"),
        (lambda f: (f / "lib.so").write_bytes(b"nothing"), "cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_named(made, tmp_path, damage, words):
    checkpoint, folder, _ = made
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(VlaError, match=words):
        OpenVLAPolicy.from_pretrained(checkpoint, engine=f"mlc:{copy}")


def test_another_model_is_refused(made, tmp_path):
    other = write_random_checkpoint(tmp_path / "other", "small", "tokens")
    with pytest.raises(VlaError, match="has num_hidden_layers 2, the model 8"):
        OpenVLAPolicy.from_pretrained(other, engine=f"mlc:{made[1]}")
    parallel = write_random_checkpoint(tmp_path / "parallel", "tiny", "l1")
    with pytest.raises(VlaError, match="all at once; use engine tvm"):
        OpenVLAPolicy.from_pretrained(parallel, engine=f"mlc:{made[1]}")


CLI = """#!{python}
import shutil, sys
from pathlib import Path
with open("{log}", "a") as log:
    print(*sys.argv[1:], file=log)
out = Path(sys.argv[sys.argv.index("--output") + 1])
command, given = sys.argv[1], Path(sys.argv[2])
if command == "convert_weight":
    shutil.copy(given / "config.json", "{log}.config")
    shutil.copy(given / "model.safetensors", "{log}.safetensors")
    for path in Path("{made}").glob("*[!o]"):
        shutil.copy(path, out)
elif command == "gen_config":
    (out / "mlc-chat-config.json").write_text("{{}}")
else:
    shutil.copy(Path("{made}") / "lib.so", out)
sys.exit({status})
"""


def stand_in(tmp_path, monkeypatch, made: Path, status: int = 0) -> Path:
    """An `mlc_llm` on PATH that notes how it was called and leaves the folder made here."""
    script, log = tmp_path / "bin" / "mlc_llm", tmp_path / "calls"
    script.parent.mkdir()
    script.write_text(CLI.format(python=sys.executable, log=log, made=made, status=status))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    return log


def test_mlc_llm_is_driven_to_a_folder_that_runs(made, tmp_path, monkeypatch):
    checkpoint, folder, model = made
    log = stand_in(tmp_path, monkeypatch, folder)
    out = tmp_path / "out"
    record = compile.compile_checkpoint(checkpoint, out, quantization="q4f32_1")
    subcommands = [line.split()[0] for line in log.read_text().splitlines()]
    assert subcommands == ["convert_weight", "gen_config", "compile"]
    llama = json.loads(Path(f"{log}.config").read_text())
    assert llama["architectures"] == ["LlamaForCausalLM"]
    assert llama["vocab_size"] == model.config.llm.vocab_size
    exported = tmp_path / "exported"
    exported.mkdir()
    shutil.copy(f"{log}.safetensors", exported / "model.safetensors")
    names = {n.removeprefix("language_model.") for n in model.state_dict() if "language" in n}
    assert set(Tensors(exported)) == names
    assert record["files"]["lib.so"] and not (out / "llama").exists()
    policy = OpenVLAPolicy.from_pretrained(checkpoint, engine=f"mlc:{out}")
    assert policy.warm_up() > 0


def test_what_mlc_llm_cannot_do_leaves_nothing(made, tmp_path, monkeypatch):
    checkpoint, folder, _ = made
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(VlaError, match="mlc_llm is not installed"):
        compile.compile_checkpoint(checkpoint, tmp_path / "out")
    monkeypatch.undo()
    stand_in(tmp_path, monkeypatch, folder, status=3)
    with pytest.raises(VlaError, match="convert_weight ended with status 3"):
        compile.compile_checkpoint(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
