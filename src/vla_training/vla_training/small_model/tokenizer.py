"""Builds a small byte-level BPE tokenizer from the tasks' sentences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vla_inference.checkpoints.load import load_tokenizer
from vla_inference.openvla.config import PROMPTS
from vla_sim_bridge.tasks import TASKS

SPECIAL = ("<pad>", "<s>", "</s>", "<empty>")  # ids 0, 1, 2, 3


def prompts(sentences: Iterable[str]) -> list[str]:
    return [PROMPTS["openvla"].format(instruction=text) for text in sentences]


def task_sentences(samples: int = 400, seed: int = 0) -> list[str]:
    """Prompts drawn from the tasks; always the same for the same arguments."""
    rng = np.random.default_rng(seed)
    sentences = []
    for task in TASKS.values():
        for _ in range(samples):
            text = task.draw_instruction(rng, task.draw_scene(rng))
            sentences.append(text)
    return prompts(sentences)


def train_tokenizer(sentences: Iterable[str], size: int = 512) -> Tokenizer:
    """A byte-level BPE with at most `size` ids; it encodes any string in any script."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def known_tokenizer(checkpoint: str | Path, size: int = 512) -> Tokenizer | None:
    """A checkpoint's own tokenizer, if it has one with at most `size` ids."""
    if not (Path(checkpoint) / "tokenizer.json").exists():
        return None
    tokenizer = load_tokenizer(Path(checkpoint))
    return tokenizer if tokenizer.get_vocab_size() <= size else None
