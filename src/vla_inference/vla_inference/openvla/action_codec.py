"""MiniVLA's action chunks: each a few tokens, the codes of a residual VQ-VAE.

Sources (behaviour): Stanford-ILIAD/openvla-mini prismatic/vla/action_tokenizer.py
(`VQActionTokenizer`) and jayLEE0301/vq_bet_official vqvae/vqvae.py (arXiv 2403.03181). The
original executes the first step of a chunk; here the whole chunk is the answer.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.errors import VlaError
from vla_inference.openvla.config import CodecConfig


class Perceptron(nn.Module):
    """Linear layers with ReLU between them. Names are the published file's."""

    def __init__(self, inputs: int, outputs: int, c: CodecConfig):
        super().__init__()
        widths = [inputs, *[c.hidden] * (1 + c.layers)]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.fc = nn.Linear(c.hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(x))


class ActionCodec(nn.Module):
    """Normalised chunks as codes, and back.

    codebooks: [groups, codes, latent]. A chunk's latent vector is the sum of one entry each; each
    is the one nearest to what those before it left over.
    """

    def __init__(self, c: CodecConfig, numbers: int):
        """numbers: of a whole chunk, steps times dimensions."""
        super().__init__()
        self.scale = c.scale
        self.codebooks = nn.Parameter(torch.zeros(c.groups, c.codes, c.latent))
        self.encoder = Perceptron(numbers, c.latent, c)
        self.decoder = Perceptron(c.latent, numbers, c)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, groups] -> chunks [B, numbers]"""
        groups = torch.arange(len(self.codebooks), device=codes.device)
        latent = self.codebooks[groups, codes].sum(1)
        return self.decoder(latent) * self.scale

    def encode(self, chunks: Tensor) -> Tensor:
        """Chunks [B, numbers] -> codes [B, groups]"""
        rest, codes = self.encoder(chunks / self.scale), []
        for book in self.codebooks:
            nearest = torch.cdist(rest, book).argmin(1)
            codes.append(nearest)
            rest = rest - F.embedding(nearest, book)
        return torch.stack(codes, 1)


class ChunkTokens:
    """Converts between tokens of a chunk and normalised chunks; code 0 has the highest token id.

    vocab_end: one past the last action token.
    """

    def __init__(self, codec: ActionCodec, vocab_end: int, dim: int):
        """dim: numbers of one step."""
        # Small, and wanted on the host in float32, as the original has it.
        self.codec = copy.deepcopy(codec).float().cpu()
        self.vocab_end, self.dim, self.n_bins = vocab_end, dim, codec.codebooks.shape[1]

    @torch.inference_mode()
    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Normalised chunks [..., steps, D] -> token ids [..., groups]"""
        *batch, steps, dim = actions.shape
        flat = torch.from_numpy(np.asarray(actions, np.float32)).reshape(-1, steps * dim)
        codes = self.codec.encode(flat).numpy()
        return (self.vocab_end - 1 - codes).reshape(*batch, -1)

    @torch.inference_mode()
    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [B, 1, groups] -> normalised chunks [B, steps, D] (float64)"""
        codes = self.vocab_end - 1 - np.asarray(ids)
        if codes.size and (codes.min() < 0 or codes.max() >= self.n_bins):
            raise VlaError(f"{ids} are not all action tokens", "decode only tokens of this model")
        chunks = self.codec.decode(torch.from_numpy(codes.reshape(-1, codes.shape[-1])))
        return chunks.double().numpy().reshape(len(codes), -1, self.dim)
