"""Machine code of a library's CUDA kernels, stored beside the library.

Where TVM's compiler runs without CUDA's driver, it puts the kernels into the library as CUDA
source, and the target compiles them while it loads, by the global function CALLBACK. TVM's own
needs nvcc and TVM's compiler there. `vla compile` runs nvcc itself; what it makes lies in the
folder as kernels-*.fatbin, and CALLBACK answers with it for the very source that it was made of.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vla_inference.engines.compiled import AGAIN, RECORD
from vla_inference.errors import CheckpointError, VlaError

CALLBACK = "tvm_callback_cuda_compile"
REMEDY = (
    "compile it with `vla compile --engine tvm`, which keeps the kernels' machine code beside the "
    "library, or install CUDA's nvcc and TVM's compiler here and set TVM_CUDA_COMPILE_MODE=nvcc"
)


def digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


# -- the folder -------------------------------------------------------------------------------


def write_kernels(folder: Path, made: Mapping[str, bytes]) -> list[dict[str, str]]:
    """Stores fatbins by their CUDA source; returns their entries for engine.json."""
    entries = []
    for source, fatbin in made.items():
        content = digest(fatbin)
        name = f"kernels-{content[:8]}.fatbin"
        (folder / name).write_bytes(fatbin)
        entries.append({"file": name, "digest": content, "source": digest(source)})
    return entries


def read_kernels(folder: Path, record: Mapping[str, Any]) -> dict[str, bytes]:
    """Digest of CUDA source -> fatbin, of a folder's record; each read whole and unaltered."""
    entries, found = record.get("kernels"), {}
    if not entries and str(record.get("target")).startswith("cuda"):
        raise CheckpointError(f"{folder} contains CUDA source without its machine code", AGAIN)
    try:
        for entry in entries or ():
            path, wanted = folder / entry["file"], entry["digest"]
            if entry["file"] not in record["files"]:
                raise KeyError(entry["file"])
            found[entry["source"]] = content = path.read_bytes()
            if digest(content) != wanted:
                raise CheckpointError(f"{path} was altered after it was made", "copy it again")
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / RECORD} cannot be read ({error!r})", AGAIN) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})", "copy it again") from None
    return found


# -- this process -----------------------------------------------------------------------------

_fatbins: dict[str, bytes] = {}  # by digest of their source; of every folder loaded so far
_lock = threading.Lock()
_thread = threading.local()  # .refused: why CALLBACK failed, which TVM wraps in its own errors
_installed = False


def provide(tvm, kernels: Mapping[str, bytes]) -> None:
    """Answers TVM's requests for CUDA kernels from `kernels`, and others as before."""
    global _installed
    with _lock:
        _fatbins.update(kernels)
        if _installed:
            return
        import tvm_ffi

        before = tvm.get_global_func(CALLBACK, allow_missing=True)
        tvm_ffi.register_global_func(CALLBACK, _answer(before), override=True)
        _installed = True


def _answer(before):
    def compiled(source: str) -> bytes:
        _thread.refused = None
        known = _fatbins.get(digest(source))
        if known is not None:
            return known
        why = "this TVM has no compiler of kernels"
        if before is not None:
            try:
                return before(source)
            except Exception as error:  # tvm_ffi raises what it likes; nvcc's ends with its words
                why = " ".join(str(error)[-200:].split())
        _thread.refused = VlaError(
            f"this library contains CUDA source, which cannot be compiled here ({why})", REMEDY
        )
        raise _thread.refused

    return compiled


def refused() -> VlaError | None:
    """Why this thread's last CUDA source could not be compiled; reported once."""
    found, _thread.refused = getattr(_thread, "refused", None), None
    return found
