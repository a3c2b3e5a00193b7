"""Deterministic attention over the last steps (docs/guide.md, "Dynamics"; Vaswani et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from wm_gym.config import DynamicsConfig
from wm_gym.models.blocks import MLP
from wm_gym.models.dynamics.base import Dynamics
from wm_gym.models.dynamics.gru import FiLM
from wm_gym.state import LatentState


class AttentionLayer(nn.Module):
    """Multi-head self-attention and an MLP, each behind a layer norm and beside a residual connection.

    It computes only the newest positions that it is asked for: of the last layer, one is needed.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.merge = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(dropout))
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            width = max(1, round(dim * mlp_ratio))
            self.mlp = nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, dim), nn.Dropout(dropout)
            )

    def forward(self, x: Tensor, bias: Tensor, newest: int) -> Tensor:
        """``x`` ``(B, L, dim)`` to the outputs of its last ``newest`` positions ``(B, newest, dim)``.

        Args:
            x: Tokens, the oldest first.
            bias: ``(B, heads, L, L)``, added to the logits; minus infinity where a query must not see a key.
            newest: How many positions to compute.
        """
        normed = self.norm(x)
        query = self._heads(self.query(normed[:, -newest:]))
        key, value = (self._heads(part) for part in self.key_value(normed).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias[:, :, -newest:].to(query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        output: Tensor = x[:, -newest:] + self.merge(attended.transpose(1, 2).flatten(2))
        return output if self.mlp is None else output + self.mlp(output)

    def _heads(self, x: Tensor) -> Tensor:
        """``(B, L, dim)`` to ``(B, heads, L, dim / heads)``."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TransformerDynamics(Dynamics):
    """``z' = z + MLP(h)`` with ``h`` the causal attention's output for the newest of ``context_length`` tokens.

    The token of a step is the latent under FiLM by the action. The memory ``(B, context_length, hidden_dim + 1)``
    holds ``h`` in its first row and the past tokens, the oldest first, in the others; the last column is 1 where a row
    holds a token: an episode that has just begun has none. The features are the latent and ``h``.

    A token's place is known to the others by its distance alone, as a learned bias on the attention's logits (Press et
    al. 2022, arXiv 2108.12409, for its start), so a window that slides gives what one long sequence gives.
    """

    distances: Tensor
    is_past: Tensor
    is_self: Tensor

    def __init__(self, config: DynamicsConfig, latent_dim: int, action_dim: int) -> None:
        super().__init__(config, latent_dim, action_dim)
        hidden, length, heads = config.hidden_dim, config.context_length, config.num_heads
        self.feature_dim = latent_dim + hidden
        self.film = FiLM(action_dim, latent_dim, hidden)
        self.input = nn.Linear(latent_dim, hidden)
        self.layers = nn.ModuleList(
            AttentionLayer(hidden, heads, config.mlp_ratio, config.dropout) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(hidden)
        self.output = MLP(hidden, hidden, latent_dim, zero_init=True)
        slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
        self.distance_bias = nn.Parameter(-slopes.unsqueeze(1) * torch.arange(length))
        steps = torch.arange(length)
        distances = steps.unsqueeze(1) - steps
        self.register_buffer("distances", distances.clamp(min=0), persistent=False)
        self.register_buffer("is_past", distances > 0, persistent=False)
        self.register_buffer("is_self", distances == 0, persistent=False)

    def initial(self, latent: Tensor) -> LatentState:
        """The memory is empty."""
        shape = (latent.shape[0], self.config.context_length, self.config.hidden_dim + 1)
        return LatentState(latent, latent.new_zeros(shape))

    def imagine(self, state: LatentState, action: Tensor, noise: Tensor | None = None) -> LatentState:
        """One deterministic step; ``noise`` is not used."""
        token = self.input(self.film(state.latent, action))
        newest = F.pad(token, (0, 1), value=1.0).unsqueeze(1)
        window = torch.cat((state.memory[:, 1:], newest), dim=1)
        hidden = self.attend(window)
        memory = torch.cat((F.pad(hidden, (0, 1)).unsqueeze(1), window[:, 1:]), dim=1)
        return LatentState(state.latent + self.output(hidden), memory)

    def attend(self, window: Tensor) -> Tensor:
        """``h`` ``(B, hidden_dim)`` of the newest token of a window ``(B, context_length, hidden_dim + 1)``."""
        is_token = window[..., -1] > 0.5
        # Rows that hold no token see themselves, or their softmax would be over nothing; no token sees them.
        is_seen = (self.is_past & is_token[:, None, None, :]) | self.is_self
        bias = torch.where(is_seen, self.distance_bias[:, self.distances], -torch.inf)
        x = torch.where(is_token.unsqueeze(-1), window[..., :-1], 0.0)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x, bias, newest=1 if index == last else x.shape[1])
        hidden: Tensor = self.norm(x[:, -1])
        return hidden

    def features(self, state: LatentState) -> Tensor:
        """``(B, Z + hidden)``."""
        return torch.cat((state.latent, state.memory[:, 0, :-1]), dim=-1)
