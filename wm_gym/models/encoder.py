"""The encoder: a frame, and the vector beside it where there is one, to a latent vector (docs/guide.md, "Encoder")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_gym.config import ModelConfig
from wm_gym.models.blocks import MLP, ResidualBlock, SpatialAttention, conv_norm_act
from wm_gym.models.vector import EMBEDDING_DIM, VectorEncoder
from wm_gym.vector import Fields


class SpatialEncoder(nn.Module):
    """7x7 stem, residual stages, spatial self-attention, pooling and an MLP.

    At the guide's sizes: (3, 256, 256) -> stem (64, 64, 64) -> stages (128, 64, 64), (256, 32, 32), (512, 16, 16)
    -> attention -> average pool (512,) -> latent (256,). The embedding of a vector is joined before the last MLP.

    Args:
        config: Sizes.
        fields: Of the observation's vector.
    """

    def __init__(self, config: ModelConfig, fields: Fields = ()) -> None:
        super().__init__()
        encoder = config.encoder
        stem = conv_norm_act(3, encoder.stem_channels, 7, 2)
        if encoder.stem_pool:
            stem.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*stem)

        blocks: list[nn.Module] = []
        channels = encoder.stem_channels
        for stage, out_channels in enumerate(encoder.stages):
            for block in range(encoder.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ResidualBlock(channels, out_channels, stride, encoder.inner_ratio))
                channels = out_channels
        self.stages = nn.Sequential(*blocks)

        size = (config.frame_size[0] // config.encoder_stride, config.frame_size[1] // config.encoder_stride)
        self.attention: nn.Module = nn.Identity()
        if encoder.attention_heads:
            self.attention = SpatialAttention(channels, size, encoder.attention_heads)
        if encoder.pooling == "average":
            self.pool: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            pooled = channels
        else:
            self.pool = nn.Flatten()
            pooled = channels * size[0] * size[1]
        self.vector: nn.Module | None = None
        if fields:
            self.vector = VectorEncoder(fields)
            pooled += EMBEDDING_DIM
        self.projection = MLP(pooled, max(config.latent_dim, channels), config.latent_dim)

    def forward(self, images: Tensor, vectors: Tensor) -> Tensor:
        """``(B, 3, H, W)`` float in [-1, 1] and ``(B, V)`` to ``(B, Z)``."""
        pooled = self.pool(self.attention(self.stages(self.stem(images))))
        if self.vector is not None:
            pooled = torch.cat((pooled, self.vector(vectors)), dim=-1)
        latent: Tensor = self.projection(pooled)
        return latent
