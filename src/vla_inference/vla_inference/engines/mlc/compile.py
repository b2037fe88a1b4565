"""`vla compile --engine mlc`: runs an installed mlc_llm to make a folder for `engine: mlc`.

OpenVLA's language model goes out as the plain Llama that mlc_llm expects, in float16; its three
commands convert, configure and compile that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_inference.checkpoints.load import load_config, load_tokenizer
from vla_inference.checkpoints.openvla_compat import checkpoint_name
from vla_inference.checkpoints.safetensors_io import Tensors
from vla_inference.checkpoints.save import save_checkpoint
from vla_inference.engines.compiled import (
    check_free,
    chip,
    digest_of,
    host_triple,
    new_folder,
    write_record,
)
from vla_inference.engines.tvm.runtime import import_runtime
from vla_inference.errors import VlaError
from vla_inference.openvla.config import ModelConfig

INSTALL = (
    "build it for your board (https://llm.mlc.ai/docs/install/mlc_llm.html), take a container "
    "that has it (docs/how-to.md), or use engine tvm, which needs no mlc_llm"
)
PREFIX = "language_model."
CONTEXT = 1024  # positions: an image's 256, a sentence, an answer
LIBRARY = "lib.so"


def find_cli() -> str:
    found = shutil.which("mlc_llm")
    if found is None:
        raise VlaError("mlc_llm is not installed", INSTALL)
    return found


def llama_config(config: ModelConfig) -> dict[str, Any]:
    """The same Llama's config.json in transformers' form."""
    c = config.llm
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.stop_token_id,
        "torch_dtype": "float16",
    }


def export_llama(
    checkpoint: Path, output: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Writes a checkpoint's language model as a plain Llama folder."""
    config, tensors = load_config(checkpoint), Tensors(checkpoint)
    names = [n for n in tensors if n.startswith(PREFIX)]

    def values() -> Iterator[tuple[str, Tensor]]:
        for name in names:
            yield name.removeprefix(PREFIX), tensors[name].half()

    shapes = {
        n.removeprefix(PREFIX): torch.empty(tensors.shape(n), dtype=torch.float16, device="meta")
        for n in names
    }
    return save_checkpoint(
        output,
        llama_config(config),
        shapes,
        load_tokenizer(checkpoint),
        stream=values(),
        shard_bytes=5_000_000_000,
        progress=progress,
    )


def compile_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    target: str = "",
    quantization: str = "q4f16_1",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Compiles a checkpoint's language model with mlc_llm into `output`; returns its record.

    target: mlc_llm compiles for the card it finds; another one asked for is refused.
    quantization: one of mlc_llm's names, such as q4f16_1, q4f16_ft, q8f16_1.
    """
    check_free(output, overwrite)
    cli = find_cli()
    tvm = import_runtime()
    here = chip("cuda" if torch.cuda.is_available() else "cpu")
    if target and target != here:
        raise VlaError(
            f"mlc_llm compiles for this machine's {here}, not for {target}",
            "run it on the machine it is for, or use engine tvm",
        )
    config = load_config(checkpoint)
    device = here.partition(":")[0]
    with new_folder(output, overwrite) as folder:
        llama = export_llama(checkpoint, folder / "llama", progress)
        sizes = ["--context-window-size", str(CONTEXT), "--prefill-chunk-size", str(CONTEXT)]
        quantized = ["--quantization", quantization]
        to = ["--output", str(folder)]
        _run([cli, "convert_weight", str(llama), *quantized, "--device", device, *to])
        _run([cli, "gen_config", str(llama), *quantized, "--conv-template", "LM", *sizes, *to])
        made = ["--output", str(folder / LIBRARY)]
        where = str(folder / "mlc-chat-config.json")
        _run([cli, "compile", where, *quantized, "--device", device, *made])
        shutil.rmtree(llama)
        record = {
            "engine": "mlc",
            "model": checkpoint_name(checkpoint),
            "digest": digest_of("mlc", checkpoint, config),
            "target": here,
            "host": host_triple(),
            "tvm": tvm.__version__,
            "quantization": quantization,
        }
        return write_record(folder, record)


def _run(command: list[str]) -> None:
    """Runs one of mlc_llm's commands and passes its output through."""
    done = subprocess.run(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    if done.returncode:
        raise VlaError(
            f"mlc_llm {command[1]} ended with status {done.returncode}",
            "see what it printed above",
        )
