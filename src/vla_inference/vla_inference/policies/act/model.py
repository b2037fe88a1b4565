"""ACT: images and state through a transformer to a chunk of actions, in one pass.

A ResNet makes each image a map of features. The transformer's encoder reads them beside the state
and a latent; its decoder answers one query for each step of the chunk. The latent is the style of
a demonstration: in training, an encoder of its own reads it off the state and the actions, as a
variational autoencoder does; at inference it is zero.

Shapes: B observations, n tokens, T steps of a chunk, W the transformer's width. Names of tensors
are those of LeRobot's checkpoints without "model.".

Source: arXiv:2304.13705; behaviour of huggingface/lerobot 0.6.1, `policies/act`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_inference.policies.act.backbone import VARIANTS, ResNet
from vla_inference.policies.act.config import ACTConfig

BASE = 10_000.0  # of position embeddings
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


# -- positions ------------------------------------------------------------------------------------


def sine_table(positions: Tensor, width: int) -> Tensor:
    """Positions [n] -> sine and cosine in turn, at falling frequencies: float64 [n, width]"""
    pair = torch.arange(width, device=positions.device) // 2
    angles = positions.double()[:, None] / BASE ** (2 * pair.double() / width)
    return torch.where(
        torch.arange(width, device=angles.device) % 2 == 0, angles.sin(), angles.cos()
    )


def map_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Of a feature map, row by row: the first half tells the row, the second the column.

    Both count from 1 and end at 2 pi, whatever the map's size: float32 [height x width, channels]
    """

    def table(count: int) -> Tensor:
        steps = torch.arange(1, count + 1, device=device, dtype=torch.float64)
        return sine_table(2 * math.pi * steps / (count + 1e-6), channels // 2)

    rows = table(height)[:, None].expand(-1, width, -1)
    columns = table(width)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1).float()


# -- the transformer ------------------------------------------------------------------------------


class FeedForward(nn.Module):
    """What the layers of encoder and decoder share: two linear layers, and where norms go."""

    def __init__(self, c: ACTConfig):
        super().__init__()
        self.pre_norm, self.activation = c.pre_norm, ACTIVATIONS[c.activation]
        self.linear1, self.linear2 = nn.Linear(c.width, c.mlp), nn.Linear(c.mlp, c.width)
        self.dropout = nn.Dropout(c.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(c.width), nn.LayerNorm(c.width)

    def add(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """x and what a branch makes of it, normed before or after."""
        if self.pre_norm:
            return x + self.dropout(branch(norm(x)))
        return norm(x + self.dropout(branch(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class EncoderLayer(FeedForward):
    def __init__(self, c: ACTConfig):
        super().__init__(c)
        self.self_attn = attention(c)

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor | None = None) -> Tensor:
        def attend(y: Tensor) -> Tensor:
            at = y + positions
            return self.self_attn(at, at, y, padding, need_weights=False)[0]

        return self.add(self.add(x, self.norm1, attend), self.norm2, self.feed_forward)


class DecoderLayer(FeedForward):
    def __init__(self, c: ACTConfig):
        super().__init__(c)
        self.norm3 = nn.LayerNorm(c.width)
        self.self_attn, self.multihead_attn = attention(c), attention(c)

    def forward(self, x: Tensor, queries: Tensor, read: Tensor, positions: Tensor) -> Tensor:
        """x: [B, T, W] at `queries` [T, W], which reads tokens [B, n, W] at `positions` [n, W]"""

        def attend(y: Tensor) -> Tensor:
            at = y + queries
            return self.self_attn(at, at, y, need_weights=False)[0]

        def look(y: Tensor) -> Tensor:
            return self.multihead_attn(y + queries, read + positions, read, need_weights=False)[0]

        x = self.add(self.add(x, self.norm1, attend), self.norm2, look)
        return self.add(x, self.norm3, self.feed_forward)


def attention(c: ACTConfig) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(c.width, c.heads, c.dropout, batch_first=True)


class Encoder(nn.Module):
    def __init__(self, c: ACTConfig, layers: int):
        super().__init__()
        self.layers = cast(
            "Sequence[EncoderLayer]", nn.ModuleList(EncoderLayer(c) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(c.width) if c.pre_norm else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor | None = None) -> Tensor:
        """x: [B, n, W] at positions [n, W]; padding: bool [B, n], True: nothing is there."""
        for layer in self.layers:
            x = layer(x, positions, padding)
        return self.norm(x)


class Decoder(nn.Module):
    def __init__(self, c: ACTConfig):
        super().__init__()
        self.layers = cast(
            "Sequence[DecoderLayer]",
            nn.ModuleList(DecoderLayer(c) for _ in range(c.decoder_layers)),
        )
        self.norm = nn.LayerNorm(c.width)

    def forward(self, x: Tensor, queries: Tensor, read: Tensor, positions: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, queries, read, positions)
        return self.norm(x)


# -- the whole model ------------------------------------------------------------------------------


class Latent(NamedTuple):
    """A distribution for each demonstration [B, latent]; log_variance: 2 log(sigma)."""

    mean: Tensor
    log_variance: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        return self.mean + (self.log_variance / 2).exp() * noise

    def divergence(self) -> Tensor:
        """Kullback and Leibler's, from a normal distribution around zero: [B]"""
        v = self.log_variance
        return (self.mean.square() + v.exp() - v - 1).sum(-1) / 2


class ACT(nn.Module):
    """vae: with the encoder of the latent, which training alone needs."""

    def __init__(self, config: ACTConfig, vae: bool = False):
        super().__init__()
        self.config = c = config
        variant = VARIANTS[c.backbone]
        self.backbone = ResNet(variant, c.dilated)
        self.encoder, self.decoder = Encoder(c, c.encoder_layers), Decoder(c)
        self.encoder_latent_input_proj = nn.Linear(c.latent, c.width)
        if c.state_dim:
            self.encoder_robot_state_input_proj = nn.Linear(c.state_dim, c.width)
        self.encoder_img_feat_input_proj = nn.Conv2d(variant.channels, c.width, 1)
        self.encoder_1d_feature_pos_embed = nn.Embedding(2 if c.state_dim else 1, c.width)
        self.decoder_pos_embed = nn.Embedding(c.chunk, c.width)
        self.action_head = nn.Linear(c.width, c.action_dim)
        if vae and c.vae_layers:
            self._add_vae(c)

    def _add_vae(self, c: ACTConfig) -> None:
        self.vae_encoder = Encoder(c, c.vae_layers)
        self.vae_encoder_cls_embed = nn.Embedding(1, c.width)
        if c.state_dim:
            self.vae_encoder_robot_state_input_proj = nn.Linear(c.state_dim, c.width)
        self.vae_encoder_action_input_proj = nn.Linear(c.action_dim, c.width)
        self.vae_encoder_latent_output_proj = nn.Linear(c.width, 2 * c.latent)
        tokens = torch.arange(1 + bool(c.state_dim) + c.chunk)
        self.register_buffer("vae_encoder_pos_enc", sine_table(tokens, c.width).float()[None])

    def embed(
        self, images: Iterable[Tensor], state: Tensor | None, latent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The encoder's tokens [B, n, W] and their positions [n, W]: latent, state, then each
        camera's features row by row.

        images: of each camera [B, 3, H, W], normalised; sizes may differ. state: [B, state_dim].
        """
        tokens = [self.encoder_latent_input_proj(latent)[:, None]]
        positions = [self.encoder_1d_feature_pos_embed.weight]
        if self.config.state_dim:
            tokens.append(self.encoder_robot_state_input_proj(state)[:, None])
        for image in images:
            seen = self.encoder_img_feat_input_proj(self.backbone(image))
            tokens.append(seen.flatten(2).transpose(1, 2))
            height, width = seen.shape[2:]
            place = map_positions(height, width, self.config.width, seen.device)
            positions.append(place.to(seen.dtype))
        return torch.cat(tokens, 1), torch.cat(positions)

    def decode(self, read: Tensor, positions: Tensor) -> Tensor:
        """The encoder's output [B, n, W] at positions [n, W] -> states of the steps [B, T, W]"""
        queries = self.decoder_pos_embed.weight
        begin = queries.new_zeros(len(read), *queries.shape)
        return self.decoder(begin, queries, read, positions)

    def forward(
        self, images: Sequence[Tensor], state: Tensor | None, latent: Tensor | None = None
    ) -> Tensor:
        """Normalised actions [B, T, action_dim]; see `embed`. latent: zero where it is None."""
        if latent is None:
            latent = images[0].new_zeros(len(images[0]), self.config.latent)
        tokens, positions = self.embed(images, state, latent)
        return self.action_head(self.decode(self.encoder(tokens, positions), positions))

    def infer_latent(self, state: Tensor | None, actions: Tensor, padding: Tensor) -> Latent:
        """Of demonstrations: actions [B, T, action_dim], normalised; padding: bool [B, T]"""
        b = len(actions)
        tokens = [self.vae_encoder_cls_embed.weight.expand(b, 1, -1)]
        if self.config.state_dim:
            tokens.append(self.vae_encoder_robot_state_input_proj(state)[:, None])
        known = padding.new_zeros(b, len(tokens))
        x = torch.cat([*tokens, self.vae_encoder_action_input_proj(actions)], 1)
        positions = self.get_buffer("vae_encoder_pos_enc")[0]
        x = self.vae_encoder(x, positions, torch.cat([known, padding], 1))
        return Latent(*self.vae_encoder_latent_output_proj(x[:, 0]).chunk(2, -1))
