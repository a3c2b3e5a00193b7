"""The decoder: a feature vector to a frame (docs/guide.md, "Decoder")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_gym.config import ModelConfig
from wm_gym.models.blocks import conv_norm_act, norm_act

_FARTHEST = 0.9
"""Of a colour to begin at: closer to black or white, tanh is too flat to leave it soon."""


class StateDecoder(nn.Module):
    """MLP to a small feature map, PixelShuffle x2 stages with refinement, 3x3 convolution and tanh.

    A literal linear layer from 256 values to 512 x 16 x 16 has 33.5 M parameters, four times the guide's own budget
    for the whole decoder. So the latent is expanded to few channels (``base_expand``) and widened by a 1x1
    convolution; every later shape is the guide's.
    """

    def __init__(self, config: ModelConfig, in_dim: int) -> None:
        super().__init__()
        decoder = config.decoder
        self.base_shape = (
            decoder.base_expand,
            config.frame_size[0] // config.decoder_stride,
            config.frame_size[1] // config.decoder_stride,
        )
        cells = self.base_shape[0] * self.base_shape[1] * self.base_shape[2]
        self.expand = nn.Sequential(nn.Linear(in_dim, cells), nn.SiLU())
        self.widen = nn.Sequential(
            nn.Conv2d(decoder.base_expand, decoder.base_channels, 1), *norm_act(decoder.base_channels)
        )
        stages: list[nn.Module] = []
        channels = decoder.base_channels
        for out_channels, num_refinements in zip(decoder.stages, decoder.refine, strict=True):
            stages += [nn.Conv2d(channels, 4 * out_channels, 1), nn.PixelShuffle(2), nn.SiLU()]
            for _ in range(num_refinements):
                stages += conv_norm_act(out_channels, out_channels)
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.output = nn.Conv2d(channels, 3, 3, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, in_dim)`` to ``(B, 3, H, W)`` float in [-1, 1]."""
        base = self.expand(features).view(-1, *self.base_shape)
        return torch.tanh(self.output(self.stages(self.widen(base))))

    @torch.no_grad()
    def begin_at(self, colour: Tensor) -> None:
        """Let an untrained decoder show one colour, about which its frames differ.

        Where it begins at grey, all channels first go to the side of the mean at once. Pixels on its other side can be
        driven into the flat end of tanh there, and it takes hundreds of updates until they are back.

        Args:
            colour: ``(3,)`` in [-1, 1]: the mean of the frames that it is to show.
        """
        assert self.output.bias is not None
        self.output.bias.copy_(torch.atanh(colour.clamp(-_FARTHEST, _FARTHEST)))
