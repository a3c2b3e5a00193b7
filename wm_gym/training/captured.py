"""Gradients as CUDA graphs: one launch for each micro-batch instead of thousands.

The steps of a clip follow one another, and each is many small kernels: launched one by one they keep the processor
busy for 50 to 80 ms a micro-batch, while the GPU computes for 8 (one H100, ``tiny`` and ``town``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wm_gym.clips import Clips
from wm_gym.losses import Draws

Gradients = Callable[[Clips[Tensor], Draws], tuple[Tensor, dict[str, Tensor]]]
"""Adds the gradient of a micro-batch to the parameters'; gives the loss and its terms, detached."""

_WARM_UP = 3
"""Runs before a graph is recorded, in which libraries choose their kernels and make their buffers."""


def clear_gradients(optimizer: Any, gradients: Gradients) -> None:
    """Begin the next update's gradients: anew, or in place where graphs write to them."""
    optimizer.zero_grad(set_to_none=not isinstance(gradients, CapturedGradients))


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: tuple[Tensor, dict[str, Tensor]]


class CapturedGradients:
    """Records ``gradients`` as a CUDA graph for each shape of its inputs when it first meets it, and replays that.

    The parameters' gradients lie where the graphs write to: begin an update's by :func:`clear_gradients`. Where nothing
    can be recorded, a warning says so, and ``gradients`` runs as it is.

    Args:
        gradients: What to record. Its shapes, and what it does, depend on shapes and ``Draws.context`` alone.
        module: Holds the parameters and buffers that it uses.

    Attributes:
        is_captured: False once something could not be recorded.
    """

    def __init__(self, gradients: Gradients, module: nn.Module) -> None:
        self._gradients = gradients
        self._module = module
        self._graphs: dict[Any, _Graph] = {}
        self._buffers: dict[nn.Parameter, Tensor] = {}
        self._pool: Any = None
        self.is_captured = True

    def __call__(self, clips: Clips[Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """As the function that is recorded."""
        if not self.is_captured:
            return self._gradients(clips, draws)
        given = [value for value in (*clips, *draws) if isinstance(value, Tensor)]
        kind = (draws.context, *(getattr(value, "shape", None) for value in (*clips, *draws)))
        if kind not in self._graphs:
            reason = self._record(kind, clips, draws)
            if reason and self._graphs:
                self._graphs.clear()  # those of other shapes may hold the memory that this one needs
                reason = self._record(kind, clips, draws)
            if reason:
                self.is_captured = False
                warnings.warn(
                    f"updates could not be recorded as CUDA graphs ({reason}); they run as they are.", stacklevel=2
                )
                return self._gradients(clips, draws)
        found = self._graphs[kind]
        for place, value in zip(found.inputs, given, strict=True):
            place.copy_(value)
        found.graph.replay()
        return found.outputs

    def _record(self, kind: Any, clips: Clips[Tensor], draws: Draws) -> str:
        """Add the graph of this kind; why that was not possible, or an empty text."""
        if not self._graphs:
            self._pool = None
            torch.cuda.empty_cache()
        try:
            self._graphs[kind] = self._capture(clips, draws)
        except RuntimeError as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
        return ""

    def _capture(self, clips: Clips[Tensor], draws: Draws) -> _Graph:
        """Record the graph for inputs like these; gradients, buffers and random numbers stay as they are."""
        device = clips.actions.device
        own_clips = Clips(*(value.clone() if isinstance(value, Tensor) else value for value in clips))
        own_draws = Draws(draws.context, *(None if steps is None else steps.clone() for steps in draws[1:]))
        random = torch.cuda.get_rng_state(device)
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        parameters = list(self._module.parameters())
        before = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.grad = None
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._gradients(own_clips, own_draws)
            torch.cuda.current_stream(device).wait_stream(stream)
            # The optimiser leaves alone what has no gradient, as in training without graphs.
            for parameter in parameters:
                if parameter.grad is not None and parameter not in self._buffers:
                    self._buffers[parameter] = torch.zeros_like(parameter)
                parameter.grad = self._buffers.get(parameter)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads read clips meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = self._gradients(own_clips, own_draws)
        finally:
            for parameter, value in zip(parameters, before, strict=True):
                place = self._buffers.get(parameter)
                if place is None:
                    parameter.grad = value
                else:
                    parameter.grad = place.zero_() if value is None else place.copy_(value)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            torch.cuda.set_rng_state(random, device)
        return _Graph(graph, [value for value in (*own_clips, *own_draws) if isinstance(value, Tensor)], outputs)
