"""Tests of CUDA kernels shipped as machine code, which load without nvcc.

No GPU is needed: TVM asks for kernels while it loads a library, before it asks the driver for
anything; so a libcuda.so.1 of empty functions is enough to see that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vla_inference.checkpoints.random_weights import TINY
from vla_inference.errors import CheckpointError
from vla_inference.openvla.config import ModelConfig

pytest.importorskip("tvm", reason="needs requirements/tvm.txt")
from vla_inference.engines.compiled import RECORD, host_triple, llama_sizes, write_record
from vla_inference.engines.tvm import compile, engine
from vla_inference.engines.tvm import kernels as tvm_kernels

CONFIG = ModelConfig.from_json(TINY)
CHIPS = ("sm_87", "sm_90")
NVCC = shutil.which("nvcc")
DRIVER = (
    "cuDeviceGetName cuFuncSetAttribute cuGetErrorName cuGetErrorString cuLaunchKernelEx "
    "cuModuleGetFunction cuModuleLoadData cuModuleUnload cuTensorMapEncodeTiled"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder a chip."""
    if NVCC is None:
        pytest.skip("needs nvcc")
    found = {}
    for chip in CHIPS:
        found[chip] = folder = tmp_path_factory.mktemp(chip)
        record = compile.compile_library(
            CONFIG.llm, "float16", f"cuda:{chip}", folder, decoding="parallel"
        )
        write_record(folder, record)
    return found


def record_of(folder: Path) -> dict:
    return json.loads((folder / RECORD).read_text())


def source_in(folder: Path) -> bytes:
    """CUDA source as it lies in the library: its length in 8 bytes, then itself."""
    content = (folder / record_of(folder)["library"]).read_bytes()
    begin = content.index(b"\n#ifdef __CUDACC_RTC__")
    return content[begin:][: int.from_bytes(content[begin - 8 : begin], "little")]


@pytest.mark.parametrize("chip", CHIPS)
def test_machine_code_for_the_chip_lies_beside_the_library(compiled, chip):
    folder = compiled[chip]
    (entry,) = record_of(folder)["kernels"]
    assert entry["source"] == hashlib.sha256(source_in(folder)).hexdigest()
    content = (folder / entry["file"]).read_bytes()
    assert content[:4] == bytes.fromhex("50ed55ba")  # a fatbin, whose first entry begins at 16:
    assert content[16:18] == b"\2\0"  # machine code, not PTX
    assert int.from_bytes(content[44:48], "little") == int(chip.removeprefix("sm_"))


IN_A_PROCESS = """
import json, sys
from pathlib import Path
from vla_inference.engines.tvm import runtime as r
from vla_inference.engines.tvm.kernels import CALLBACK, read_kernels
from vla_inference.errors import VlaError
folder, source, device = Path(sys.argv[1]), Path(sys.argv[2]).read_text(), sys.argv[3]
record = json.loads((folder / "engine.json").read_text())
library = folder / record["library"]
tvm = r.import_runtime(device)
assert tvm.base._RUNTIME_ONLY
def load(*kernels):
    try:
        return r.load_library(tvm, library, *kernels)
    except VlaError as error:
        return error
before = load()
loaded = load(read_kernels(folder, record))
ask = tvm.get_global_func(CALLBACK)
try:
    other = ask("// not the library's")
except Exception as error:
    other = error
if not isinstance(loaded, VlaError):
    loaded = f"loaded {loaded.kind}"
print(json.dumps([str(before), str(loaded), bytes(ask(source)).hex(), str(other)]))
"""


def load_elsewhere(folder: Path, scratch: Path, device: str, **environment: str) -> list[str]:
    """In a process with TVM's runtime alone and without nvcc, by IN_A_PROCESS."""
    (scratch / "source.cu").write_bytes(source_in(folder))
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, folder, scratch / "source.cu", device],
        env={
            **os.environ,
            "TVM_USE_RUNTIME_LIB": "1",
            "PATH": str(Path(sys.executable).parent),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_tvms_runtime_alone_gets_the_machine_code(compiled, tmp_path):
    folder = compiled["sm_87"]
    *_, code, other = load_elsewhere(folder, tmp_path, "cpu")
    (entry,) = record_of(folder)["kernels"]
    assert bytes.fromhex(code) == (folder / entry["file"]).read_bytes()
    assert "contains CUDA source, which cannot be compiled here" in other


def test_a_library_loads_with_its_kernels_and_not_without(compiled, tmp_path):
    toolkit = Path(NVCC).resolve().parent.parent
    runtimes = [
        *toolkit.glob("lib*/libcudart.so.13"),
        *Path("/usr/local").glob("cuda*/lib*/libcudart.so.13"),
    ]
    if not runtimes or not shutil.which("g++"):
        pytest.skip("needs libcudart.so.13 and g++")
    (tmp_path / "driver.cc").write_text(
        "".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in DRIVER.split())
    )
    driver = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-o", driver, tmp_path / "driver.cc"], check=True, timeout=60
    )
    paths = (tmp_path, runtimes[0].parent, os.environ.get("LD_LIBRARY_PATH", ""))
    folder = compiled["sm_90"]
    before, loaded, *_ = load_elsewhere(
        folder, tmp_path, "cuda", LD_LIBRARY_PATH=":".join(map(str, paths))
    )
    assert f"{record_of(folder)['library']}: this library contains CUDA source" in before
    assert "compile it with `vla compile --engine tvm`" in before
    assert loaded == "loaded relax.VMExecutable"


# -- damage, which is found before TVM is asked for anything ----------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a record as `vla compile` writes it; its library is never reached."""
    kernels = tvm_kernels.write_kernels(tmp_path, {"source": b"machine code"})
    (tmp_path / "decoder.so").write_bytes(b"library")
    record = {
        "engine": "tvm",
        "target": "cuda:sm_90",
        "host": host_triple(),
        "llm": llama_sizes(CONFIG.llm),
        "decoding": CONFIG.head.decoding,
        "library": "decoder.so",
        "kernels": kernels,
    }
    write_record(tmp_path, record)
    monkeypatch.setattr(engine, "chip", lambda device: "cuda:sm_90")
    return tmp_path


def alter(folder: Path) -> None:
    next(folder.glob("*.fatbin")).write_bytes(b"MACHINE CODE")


def change(folder: Path, **fields) -> None:
    (folder / RECORD).write_text(json.dumps({**record_of(folder), **fields}))


def forget(folder: Path) -> None:
    record = record_of(folder)
    del record["kernels"]
    (folder / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: next(f.glob("*.fatbin")).unlink(), r"lacks kernels-\w+\.fatbin"),
        (
            lambda f: next(f.glob("*.fatbin")).write_bytes(b"machine"),
            r"kernels-\w+\.fatbin has 7 bytes instead of 12",
        ),
        (alter, r"kernels-\w+\.fatbin was altered"),
        (forget, "contains CUDA source without its machine code; compile it again"),
        (lambda f: change(f, kernels=[]), "contains CUDA source without its machine code"),
        (lambda f: change(f, kernels=[{"file": "decoder.so"}]), r"cannot be read \(KeyError"),
        (
            lambda f: change(f, kernels=[{"file": "../x", "digest": "", "source": ""}]),
            r"cannot be read \(KeyError\('\.\./x'\)\); compile it again",
        ),
    ],
)
def test_damaged_kernels_are_named(folder, damage, words):
    damage(folder)
    with pytest.raises(CheckpointError, match=words):
        engine.TvmLanguage(folder, "cpu", CONFIG)
