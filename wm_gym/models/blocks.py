"""Building blocks shared by the encoder, the decoder and the heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from wm_gym.models.normalisation import NormSiLU


def norm_act(channels: int) -> list[nn.Module]:
    """Group normalisation and SiLU, as two entries of a sequence, whose places name the parameters of a file."""
    return [NormSiLU(channels), nn.Identity()]


def conv_norm_act(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (with a stride of 2 halves it), group normalisation and SiLU."""
    return [nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False), *norm_act(out_channels)]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; a 1x1 projection where the shape changes (He et al. 2016, fig. 2).

    With ``inner_ratio < 1`` the 3x3 convolutions work on fewer channels between two 1x1 convolutions (fig. 5, right).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 keeps the size, 2 halves it.
        inner_ratio: Channels of the 3x3 convolutions over ``out_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, inner_ratio: float = 1.0) -> None:
        super().__init__()
        if inner_ratio == 1:
            layers = [*conv_norm_act(in_channels, out_channels, 3, stride), *conv_norm_act(out_channels, out_channels)]
        else:
            inner = max(8, round(out_channels * inner_ratio / 8) * 8)
            layers = [*conv_norm_act(in_channels, inner, 1), *conv_norm_act(inner, inner, 3, stride)]
            layers += [*conv_norm_act(inner, inner), *conv_norm_act(inner, out_channels, 1)]
        self.residual = nn.Sequential(*layers[:-1])  # the last activation follows the sum with the shortcut
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H / stride, W / stride)``."""
        *layers, last = self.residual
        out = x
        for layer in layers:
            out = layer(out)
        activated: Tensor = last(out, self.shortcut(x))
        return activated


class SpatialAttention(nn.Module):
    """Multi-head self-attention over the cells of a feature map, with a residual connection.

    Cells carry no position of their own after convolutions, so a learned position embedding is added to queries and
    keys' input.

    Args:
        channels: Channels of the feature map.
        size: Its height and width.
        num_heads: Attention heads; must divide ``channels``.
    """

    def __init__(self, channels: int, size: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.position = nn.Parameter(torch.randn(1, size[0] * size[1], channels) * 0.02)
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        cells = x.flatten(2).transpose(1, 2)  # (B, H * W, C)
        query = self.norm(cells) + self.position
        attended, _ = self.attention(query, query, query, need_weights=False)
        return x + attended.transpose(1, 2).reshape(x.shape)


class MLP(nn.Sequential):
    """Linear layers with layer norm and SiLU between them.

    Args:
        in_dim: Size of the input.
        hidden_dim: Size of each hidden layer.
        out_dim: Size of the output.
        num_layers: Hidden layers.
        zero_init: Start with an output of zero (heads, residual updates).
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int = 1, zero_init: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        for width_in in (in_dim, *[hidden_dim] * (num_layers - 1)):
            layers += [nn.Linear(width_in, hidden_dim), nn.LayerNorm(hidden_dim), nn.SiLU()]
        output = nn.Linear(hidden_dim, out_dim)
        if zero_init:
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)
        super().__init__(*layers, output)


def at_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities ``(..., classes)`` to the power of ``1 / temperature``, made to sum to one again."""
    return probabilities if temperature == 1.0 else (probabilities.log() / temperature).softmax(-1)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """One-hot vectors of what ``uniform`` ``(...)`` in [0, 1) draws from probabilities ``(..., classes)``."""
    # Rounding may leave the sum of all probabilities below a number close to one: the last bound is not asked.
    bounds = probabilities.cumsum(-1)[..., :-1]
    is_above = (bounds <= uniform.to(probabilities.dtype).unsqueeze(-1)).to(probabilities.dtype)
    return F.pad(is_above, (1, 0), value=1.0) - F.pad(is_above, (0, 1))
