"""OpenVLA's training losses: cross-entropy on action tokens, or L1 on a chunk (OpenVLA-OFT).

Shapes: B batch, n prompt tokens (padded), T steps of a chunk, D action dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.openvla.model import VLA
from vla_training.finetune.families.openvla.train_modules import layers_of
from vla_training.loader.augment import OPENVLA, Augmentation, Pixels
from vla_training.loader.batch import Batch
from vla_training.loop.objective import Objective, masked_error


class OpenVLAObjective(Objective):
    """The model with its loss. Measures "accuracy" too, the share of tokens that are right,
    unless it is L1."""

    def __init__(self, vla: VLA, augmentation: Augmentation = OPENVLA):
        super().__init__()
        self.vla = vla
        self.pixels = Pixels(vla.config, augmentation)
        if vla.config.head.type == "l1" and not vla.language_model.tied:
            vla.language_model.output.requires_grad_(False)  # no token has a part in it
        # As ActionTokens has them, which is what tokens are decoded with.
        self.edges = torch.linspace(-1, 1, vla.config.n_action_bins, dtype=torch.float64)

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.vla.language_model.model.norm.weight.dtype

    def layers(self) -> list[nn.Module]:
        return layers_of(self.vla)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with self.low_precision():
            context, lengths = self.context(batch)
            head = self.vla.config.head
            if head.type == "l1":
                hidden = self.vla.action_hidden(context, lengths)
                return self._regression(hidden, batch)
            if head.decoding == "parallel":
                hidden = self.vla.action_hidden(context, lengths)
            else:
                hidden = self._forced(context, lengths, self.encode(batch.targets[:, 0]))
            return self._tokens(hidden, batch)

    def context(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Like `VLA.context`, in the layers' dtype, with the real lengths [B]."""
        vla, dtype = self.vla, self.dtype
        text = vla.embed_tokens(batch.ids).to(dtype)
        images = vla.embed_images(self.pixels(batch.images, batch.numbers, dtype))
        parts = [text[:, :1], images.to(dtype)]
        if vla.config.head.proprio_dim:
            projector = vla.proprio_projector
            assert batch.proprio is not None  # refused by `mix` else
            proprio = batch.proprio.to(projector.fc1.weight.dtype)
            parts.append(projector(proprio).to(dtype))
        context = torch.cat([*parts, text[:, 1:]], dim=1)
        extra = context.shape[1] - batch.ids.shape[1]
        return context, None if batch.lengths is None else batch.lengths + extra

    def encode(self, targets: Tensor) -> Tensor:
        """Normalised actions -> token ids, as `ActionTokens.encode`."""
        edges = self.edges.to(targets.device)
        bins = torch.bucketize(targets.double().clamp(-1, 1), edges, right=True)
        return self.vla.config.action_vocab_end - bins

    def decode(self, ids: Tensor) -> Tensor:
        edges = self.edges.to(ids.device)
        centers = (edges[:-1] + edges[1:]) / 2
        index = (self.vla.config.action_vocab_end - ids - 1).clamp(0, len(centers) - 1)
        return centers[index].float()

    def _forced(self, context: Tensor, lengths: Tensor | None, ids: Tensor) -> Tensor:
        """Hidden states that the D tokens are read from, all but the last given: [B, D, H]

        Padding goes last, where causal attention hides it: no mask is needed.
        """
        n, d = context.shape[1], ids.shape[1]
        given = self.vla.embed_tokens(ids[:, :-1]).to(context.dtype)
        sequence = torch.cat([context, given], dim=1)
        llama = self.vla.language_model.model
        if lengths is None:
            return llama(sequence)[0][:, n - 1 :]
        position = torch.arange(n + d - 1, device=context.device)[None]
        gap, lengths = n - lengths[:, None], lengths[:, None]
        source = torch.where(position < lengths, position, position + gap)
        source = torch.where(source < n + d - 1, source, position)  # arbitrary: it is masked
        h = context.shape[-1]
        hidden, _ = llama(sequence.gather(1, source[..., None].expand(-1, -1, h)))
        where = lengths - 1 + torch.arange(d, device=context.device)
        return hidden.gather(1, where[..., None].expand(-1, -1, h))

    def _tokens(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        steps, dim = batch.targets.shape[1:]
        wanted = self.encode(batch.targets).flatten(1)  # [B, T * D]
        logits = self.vla.language_model.logits(hidden).float()
        inside = batch.inside[..., None].expand(-1, -1, dim).flatten(1)
        each = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
        count = inside.sum().clamp(min=1)
        loss = (each * inside).sum() / count
        with torch.no_grad():
            end, bins = self.vla.config.action_vocab_end, self.vla.config.n_action_bins
            best = logits[..., end - bins : end].argmax(-1) + end - bins
            right = ((best == wanted) & inside).sum() / count
            values = self.decode(best).unflatten(1, (steps, dim))
            error = masked_error(values, batch.targets, batch.inside)
            return loss, {"accuracy": right, "error": error}

    def _regression(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        head = self.vla.action_head
        predicted = head(hidden.to(head.model.fc1.weight.dtype)).float()
        error = masked_error(predicted, batch.targets, batch.inside)
        return error.mean(), {"error": error.detach()}
