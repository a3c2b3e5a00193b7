"""The LPIPS network of the perceptual loss (Zhang et al. 2018), through the ``lpips`` package."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import nn

from wm_gym.errors import ConfigError
from wm_gym.training.checkpoint import read_torch_file

WEIGHTS_NAME = "alexnet-owt-7be5be79.pth"
"""Name of torchvision's file."""
_SWITCHES = (
    "turn the perceptual term off with --set loss.perceptual=0, or point --set loss.perceptual_weights=FILE to "
    f"torchvision's AlexNet weights ({WEIGHTS_NAME})"
)


def load_perceptual_network(weights: str | None) -> nn.Module:
    """LPIPS with the AlexNet backbone, frozen: ``(B, 3, H, W)`` pairs in [-1, 1] to ``(B, 1, 1, 1)`` distances.

    Args:
        weights: A file with torchvision's AlexNet state dict; ``None`` lets torchvision download it.

    Raises:
        ConfigError: The backbone's weights cannot be had.
    """
    import lpips

    if weights is not None:
        network = _quietly(lambda: lpips.LPIPS(net="alex", pnet_rand=True, verbose=False))
        _fill_backbone(network, Path(weights))
    else:
        try:
            network = _quietly(lambda: lpips.LPIPS(net="alex", verbose=False))
        except OSError as error:
            raise ConfigError(
                f"the perceptual loss needs AlexNet's pretrained weights, and downloading them failed; {_SWITCHES}."
            ) from error
    network.eval().requires_grad_(False)
    return network


def cached_perceptual_network() -> nn.Module | None:
    """As :func:`load_perceptual_network`, from the weights that torchvision has downloaded before; never downloads.

    Returns:
        The network; ``None`` where the weights are not here.

    Raises:
        ConfigError: The file is damaged.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
    return load_perceptual_network(str(weights)) if weights.is_file() else None


def _quietly(build: object) -> nn.Module:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        network = build()  # type: ignore[operator]
    assert isinstance(network, nn.Module)
    return network


def _fill_backbone(network: nn.Module, path: Path) -> None:
    state = read_torch_file(path, error=ConfigError, remedy=f"give the perceptual weights again: {_SWITCHES}")
    backbone = network.net
    assert isinstance(backbone, nn.Module)
    # lpips keeps torchvision's layer numbers: features.3.weight becomes slice2.3.weight.
    for name, parameter in backbone.named_parameters():
        source = f"features.{name.split('.', 1)[1]}"
        if not isinstance(state, dict) or source not in state or state[source].shape != parameter.shape:
            raise ConfigError(f"{str(path)!r} holds no torchvision AlexNet: {source!r} is missing or of another shape.")
        parameter.data.copy_(state[source])
