"""Clips followed by a recurrent state-space model in one call of a compiled kernel, for training on a processor.

A step of a small model is some sixty operations on a few rows, forward and backward as many again, and most of their
time goes into starting them (docs/scaling.md). The kernel takes each thread through its clips from first step to last;
what needs no state is made for all steps at once before it, and the gradients of its matrices after it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wm_gym.models.compiled import at, compiled

_SOURCE = Path(__file__).with_suffix(".cpp")
_PANEL = 32
"""Columns of a matrix that the kernel takes at once; sizes are multiples of it."""


class _Sizes(ctypes.Structure):
    """As in the C++ source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("threads", "steps", "clips", "hidden", "groups", "classes")),
        ("mixed", ctypes.c_float),
    )


class Recurrence(NamedTuple):
    """The parameters of a step, and what of it needs no state; all float32, with ``S = groups * classes``.

    Attributes:
        start: ``(B, H)``: ``h`` of the first step.
        before_input: ``(T - 1, B, H)``: what all but the drawn classes add to the first layer, with its bias.
        before_posterior: ``(T, B, H)``: what the frame adds to the posterior's first layer, with its bias.
        drawn_input: ``(H, S)``: weight of the drawn classes in the first layer.
        gates: ``(3 H, 2 H)``.
        posterior: ``(H, H)``: weight of ``h`` in the posterior's first layer.
        logits: ``(S, H)``: the posterior's second layer.
        logits_bias: ``(S,)``.
        weight_input: ``(H,)``, and ``bias_input``: of the layer normalisation after the first layer; likewise those
            after the gates, ``(3 H,)``, and in the posterior, ``(H,)``.
    """

    start: Tensor
    before_input: Tensor
    before_posterior: Tensor
    drawn_input: Tensor
    gates: Tensor
    posterior: Tensor
    logits: Tensor
    logits_bias: Tensor
    weight_input: Tensor
    bias_input: Tensor
    weight_gates: Tensor
    bias_gates: Tensor
    weight_posterior: Tensor
    bias_posterior: Tensor

    def follow(self, noise: Tensor, *, groups: int, mixed: float) -> tuple[Tensor, Tensor, Tensor]:
        """``h`` ``(T, B, H)``, the posterior's probabilities and what was drawn of them, both ``(T, B, S)``.

        Args:
            noise: ``(T, B, groups)`` uniform numbers in [0, 1).
            groups: Groups of classes.
            mixed: Share of a uniform distribution in the probabilities.
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        followed: tuple[Tensor, Tensor, Tensor] = _Follow.apply(
            noise, groups, mixed, dtype, *(tensor.float() for tensor in self)
        )
        return followed


def has_kernel(hidden: int, stochastic: int, norms: tuple[nn.LayerNorm, ...]) -> bool:
    """Whether the kernel is for a model of these sizes, and can be had here."""
    fits = hidden % _PANEL == 0 and stochastic % _PANEL == 0 and all(norm.eps == 1e-5 for norm in norms)
    return fits and compiled(_SOURCE) is not None


class _Follow(torch.autograd.Function):
    """By the compiled kernel."""

    @staticmethod
    def forward(
        ctx: Any, noise: Tensor, groups: int, mixed: float, dtype: torch.dtype, *given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        model, noise = Recurrence(*(tensor.contiguous() for tensor in given)), noise.contiguous()
        steps, clips, hidden = model.before_posterior.shape
        stochastic = len(model.logits)
        threads = min(torch.get_num_threads(), clips)
        sizes = _Sizes(threads, steps, clips, hidden, groups, stochastic // groups, mixed)
        hiddens = torch.empty(steps, clips, hidden)
        probabilities, draws = torch.empty(2, steps, clips, stochastic)
        normalised_posterior, posteriors = torch.empty(2, steps, clips, hidden)
        normalised_input, inputs = torch.empty(2, steps - 1, clips, hidden)
        normalised_gates = torch.empty(steps - 1, clips, 3 * hidden)
        inverses = torch.empty(steps, clips, 3)
        matrices = (
            model.drawn_input.t().contiguous(),
            *(_panels(matrix.t()) for matrix in (model.gates, model.posterior, model.logits)),
        )
        kernel = compiled(_SOURCE)
        assert kernel is not None
        kernel.filter(
            ctypes.byref(sizes),
            *at(*model[:3], noise, *matrices, *model[7:], hiddens, probabilities, draws),
            *at(normalised_input, inputs, normalised_gates, normalised_posterior, posteriors, inverses),
        )
        ctx.sizes, ctx.dtype = sizes, dtype
        ctx.save_for_backward(
            *(*model[3:7], *model[8:], hiddens, probabilities, draws),
            *(normalised_input, normalised_gates, normalised_posterior, inverses, inputs, posteriors),
        )
        return hiddens, probabilities, draws

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hiddens: Tensor, of_probabilities: Tensor, of_draws: Tensor) -> tuple[Tensor | None, ...]:
        drawn_input, gates, posterior, logits, *rest = ctx.saved_tensors
        norms, (hiddens, probabilities, draws), kept = rest[:6], rest[6:9], rest[9:13]
        inputs, posteriors = rest[13:]
        sizes = ctx.sizes
        # The kernel adds what comes from later steps to these, and they may be another's.
        of_hiddens, of_logits, of_draws = (
            gradient.clone(memory_format=torch.contiguous_format)
            for gradient in (of_hiddens, of_probabilities, of_draws)
        )
        of_input, of_gates = torch.empty_like(inputs), torch.empty_like(kept[1])
        of_posterior = torch.empty_like(posteriors)
        sums = torch.zeros(sizes.clips, 10 * sizes.hidden)
        matrices = [_panels(matrix) for matrix in (drawn_input, gates, posterior, logits)]
        kernel = compiled(_SOURCE)
        assert kernel is not None
        kernel.filter_backward(
            ctypes.byref(sizes),
            *at(hiddens, probabilities, *matrices, *norms, *kept),
            *at(of_hiddens, of_logits, of_draws, of_input, of_gates, of_posterior, sums),
        )

        def of_matrix(of_output: Tensor, given: Tensor) -> Tensor:
            of_output, given = of_output.flatten(0, 1), given.flatten(0, 1)  # (T, B, ...) to (T * B, ...)
            return (of_output.to(ctx.dtype).t() @ given.to(ctx.dtype)).float()

        widths = [size * sizes.hidden for size in (1, 3, 1)]
        weights, biases = sums.sum(0).view(2, -1)
        of_norms = [part for pair in zip(weights.split(widths), biases.split(widths), strict=True) for part in pair]
        return (
            *(None, None, None, None, of_hiddens[0], of_input, of_posterior),
            of_matrix(of_input, draws[:-1]),
            of_matrix(of_gates, torch.cat((inputs, hiddens[:-1]), dim=-1)),
            of_matrix(of_posterior, hiddens),
            of_matrix(of_logits, posteriors),
            of_logits.sum((0, 1)),
            *of_norms,
        )


def _panels(matrix: Tensor) -> Tensor:
    """``(K, N)`` to ``(N / _PANEL, K, _PANEL)``, one after the other in memory."""
    return matrix.unflatten(1, (-1, _PANEL)).transpose(0, 1).contiguous()
