"""Runs a compiled folder with TVM's runtime alone, in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from vla_inference.checkpoints.load import load_model
from vla_inference.engines import make_engine


@torch.inference_mode()
def answers(checkpoint: str | Path, engine: str) -> list[list[int]]:
    """Tokens that the engine goes on with after two random contexts."""
    model = load_model(checkpoint)
    made = make_engine(engine, model, checkpoint=checkpoint)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 20, model.config.llm.hidden_size, generator=generator)
    return [token.tolist() for token, _ in made.generate(x)]


def answers_without_compiler(checkpoint: Path, engine: str) -> tuple[list[str], list[list[int]]]:
    """Which of TVM's libraries the process had loaded in the end, and its answers."""
    done = subprocess.run(
        [sys.executable, __file__, str(checkpoint), engine],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    libraries, tokens = json.loads(done.stdout.splitlines()[-1])
    return libraries, tokens


if __name__ == "__main__":
    found = answers(*sys.argv[1:])
    import tvm  # the engine's own, so whatever it loaded

    print(json.dumps([sorted(tvm.base._LOADED_LIBS), found]))
