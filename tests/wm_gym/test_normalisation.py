"""Group normalisation with SiLU in one pass, against PyTorch's own in float64."""

import copy

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from wm_gym.models import normalisation
from wm_gym.models.compiled import compiled
from wm_gym.models.normalisation import NormSiLU


def maps(*shape, scale=1.0, mean=0.0):
    values = (torch.randn(shape) * scale + mean).bfloat16()
    return values.to(memory_format=torch.channels_last).requires_grad_()


def layer(channels):
    norm = NormSiLU(channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def outputs_and_gradients(norm, x, shortcut, gradient):
    inputs = [tensor for tensor in (x, shortcut, norm.weight, norm.bias) if tensor is not None]
    out = norm(x, shortcut)
    return [out, *torch.autograd.grad(out, inputs, gradient.to(out.dtype))]


@pytest.mark.parametrize("with_shortcut", [False, True])
@pytest.mark.parametrize(
    ("shape", "scale", "mean"),
    [
        ((5, 16, 12, 10), 1.0, 0.0),
        ((3, 24, 7, 5), 2.0, 30.0),
        ((2, 8, 1, 1), 1.0, 0.0),
        ((1, 64, 4, 4), 1e-3, 0.0),
        ((2, 48, 8, 8), 40.0, -5.0),
    ],
)
def test_the_kernel_gives_what_float64_gives(kernels, shape, scale, mean, with_shortcut):
    torch.manual_seed(0)
    norm, x, gradient = layer(shape[1]), maps(*shape, scale=scale, mean=mean), torch.randn(shape).bfloat16()
    shortcut = maps(*shape) if with_shortcut else None
    found = outputs_and_gradients(norm, x, shortcut, gradient)
    assert found[0].grad_fn.name() == "_NormSiLUBackward"
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    expected = outputs_and_gradients(
        copy.deepcopy(norm).double(), x.double(), None if shortcut is None else shortcut.double(), gradient
    )
    for got, wanted in zip(found, expected, strict=True):
        digits = 6e-3 if got.dtype == torch.bfloat16 else 2e-5  # bfloat16 has 8 bits
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=digits * wanted.abs().max().item() + 1e-12)


def test_far_from_zero_nothing_overflows(kernels):
    norm = NormSiLU(8)
    torch.nn.init.zeros_(norm.weight)
    values = torch.tensor([-1e30, -200.0, -90.0, -1.0, 0.0, 1.0, 90.0, 1e30])
    norm.bias.data = values.clone()
    out = norm(maps(2, 8, 3, 3))
    torch.testing.assert_close(out[1, :, 2, 1].double(), F.silu(values.bfloat16().double()), rtol=5e-3, atol=1e-7)


def test_what_is_no_number_shows(kernels):
    x = torch.zeros(2, 8, 3, 3).bfloat16().to(memory_format=torch.channels_last)
    x[1, 2, 0, 0] = float("nan")
    out = NormSiLU(8)(x)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_the_number_of_threads_changes_no_bit(kernels):
    torch.manual_seed(0)
    norm, x, shortcut, gradient = layer(32), maps(7, 32, 9, 9), maps(7, 32, 9, 9), torch.randn(7, 32, 9, 9).bfloat16()
    most = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = outputs_and_gradients(norm, x, shortcut, gradient)
        torch.set_num_threads(3)
        together = outputs_and_gradients(norm, x, shortcut, gradient)
    finally:
        torch.set_num_threads(most)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    "x",
    [
        maps(2, 16, 4, 4).float(),
        maps(2, 12, 4, 4),  # one group of 12 channels
        maps(2, 16, 4, 4).contiguous(memory_format=torch.contiguous_format),
    ],
    ids=["float32", "12 channels", "channels first"],
)
def test_other_maps_take_pytorchs_way(x):
    norm = NormSiLU(x.shape[1])
    out = norm(x)
    expected = F.silu(F.group_norm(x, norm.num_groups, norm.weight, norm.bias))
    assert "NormSiLU" not in out.grad_fn.name()
    assert torch.equal(out, expected)


def test_without_a_compiler_everything_works(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr(normalisation, "compiled", compiled.__wrapped__)
    x = maps(2, 16, 4, 4)
    norm = NormSiLU(16)
    assert torch.equal(norm(x, x), F.silu(F.group_norm(x, 2, norm.weight, norm.bias) + x))
