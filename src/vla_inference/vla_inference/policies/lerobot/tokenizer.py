"""The tokenizer of a checkpoint, which LeRobot leaves out of its folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vla_inference.checkpoints.load import load_tokenizer
from vla_inference.errors import CheckpointError, VlaError
from vla_inference.policies.lerobot.checkpoint import LeRobotCheckpoint

FAST, PIECES = "tokenizer.json", "tokenizer.model"


def find_tokenizer(checkpoint: LeRobotCheckpoint, source: str, rows: int) -> Any:
    """tokenizer.json beside the weights, or else tokenizer.model (SentencePiece).

    source: the model that it comes from, where the processors' files don't say. rows: of the
        embedding; added tokens, which no prompt holds, may lie beyond.
    """
    folder = checkpoint.folder
    if (folder / FAST).is_file():
        name, tokenizer = FAST, load_tokenizer(folder)
    elif (folder / PIECES).is_file():
        name, tokenizer = PIECES, SentencePiece(folder / PIECES)
    else:
        source = checkpoint.step("tokenizer_processor").get("tokenizer_name", source)
        raise CheckpointError(
            f"{folder / FAST} is missing", f"copy {FAST} of {source} there, or its {PIECES}"
        )
    words = tokenizer.get_vocab_size(with_added_tokens=False)
    if words > rows:
        raise CheckpointError(
            f"{folder / name} has {words} tokens, the model {rows} embeddings",
            "the two must come from one vision-language model",
        )
    return tokenizer


class SentencePiece:
    """A SentencePiece model with the methods of a `tokenizers.Tokenizer` that policies use."""

    def __init__(self, path: Path):
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise VlaError(
                f"{path} needs sentencepiece, which is not installed",
                f"pip install -r requirements/sentencepiece.txt, or give {FAST}",
            ) from None
        self._pieces = SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path} is no tokenizer ({error})", "copy it again") from error

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return self._pieces.GetPieceSize()

    def token_to_id(self, token: str) -> int | None:
        found = self._pieces.PieceToId(token)
        return found if self._pieces.IdToPiece(found) == token else None

    def encode(self, text: str, add_special_tokens: bool = False) -> SimpleNamespace:
        """ids: without <bos>, whatever `add_special_tokens` says."""
        return SimpleNamespace(ids=self._pieces.EncodeAsIds(text))
