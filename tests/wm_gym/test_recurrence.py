"""Clips followed by the compiled kernel, against PyTorch's own steps in float64."""

import copy

import pytest
import torch

from wm_gym.config import DynamicsConfig
from wm_gym.models.compiled import compiled
from wm_gym.models.dynamics import recurrence, rssm
from wm_gym.models.dynamics.rssm import RSSMDynamics
from wm_gym.state import LatentState
from wm_gym.training.shared_noise import SharedNoise
from wm_gym.vector import VectorField

FIELDS = (
    VectorField(name="speed", unit="m/s", low=0.0, high=30.0),
    VectorField.of_classes("light", ("none", "red", "green")),
)


def made(fields=(), **sizes):
    torch.manual_seed(0)
    config = DynamicsConfig(kind="rssm", **{"hidden_dim": 64, "groups": 8, "classes": 12, **sizes})
    dynamics = RSSMDynamics(config, 24, 2, fields).train()
    for parameter in dynamics.parameters():  # normalisations begin as if they had none
        parameter.data += 0.2 * torch.randn_like(parameter)
    return dynamics


def clips(dynamics, clips=7, steps=9):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(clips, steps, dynamics.latent_dim, generator=generator)
    return latents, torch.rand(clips, steps - 1, 2, generator=generator) * 2 - 1


def followed(dynamics, latents, actions):
    """What the dynamics made of the clips, and the gradients of a sum of all of it."""
    latents = latents.detach().requires_grad_()
    torch.manual_seed(2)
    filtered = dynamics.filter(latents, actions)
    parts = [*filtered.states, *filtered.divergence, filtered.vector_loss]
    parts = [part for part in parts if part is not None]
    generator = torch.Generator().manual_seed(3)
    total = sum((torch.randn(part.shape, generator=generator).to(part) * part).sum() for part in parts)
    inputs = [latents, *dynamics.parameters()]
    gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    names = ["latents", *(name for name, _ in dynamics.named_parameters())]
    found = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    return [part.detach() for part in parts], found


def is_by_kernel(dynamics, latents, actions):
    memory = dynamics.filter(latents, actions).states.memory
    seen, waiting = set(), [memory.grad_fn]
    while waiting:
        function = waiting.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        waiting += [before for before, _ in function.next_functions]
    return any("Follow" in function.name() for function in seen)


@pytest.mark.parametrize("fields", [(), FIELDS], ids=["frames", "vectors"])
@pytest.mark.parametrize(
    ("sizes", "count", "steps"),
    [({}, 7, 9), ({"groups": 4, "classes": 8, "hidden_dim": 32}, 1, 2), ({"groups": 64, "classes": 2}, 13, 4)],
)
def test_the_kernel_gives_what_float64_gives(kernels, sizes, count, steps, fields):
    dynamics = made(fields, **sizes)
    given = clips(dynamics, count, steps)
    assert is_by_kernel(dynamics, *given)
    parts, gradients = followed(dynamics, *given)
    exact = copy.deepcopy(dynamics).double()
    wanted, wanted_gradients = followed(exact, *(tensor.double() for tensor in given))
    assert gradients.keys() == wanted_gradients.keys()
    for found, expected in zip([*parts, *gradients.values()], [*wanted, *wanted_gradients.values()], strict=True):
        torch.testing.assert_close(
            found.double(), expected.double(), rtol=0, atol=1e-5 * expected.abs().max().item() + 1e-7
        )


def test_in_bfloat16_training_it_is_nearer_than_pytorchs_steps(kernels, monkeypatch):
    dynamics = made()
    given = clips(dynamics, 24, 12)
    wanted = followed(copy.deepcopy(dynamics).double(), *(tensor.double() for tensor in given))[1]

    def error():
        with torch.autocast("cpu", torch.bfloat16):
            gradients = followed(dynamics, *given)[1]
        parts = ("cell.gates.weight", "posterior.0.weight", "input.0.weight", "start")
        return sum(((gradients[name] - wanted[name]).norm() / wanted[name].norm()).item() for name in parts)

    by_kernel = error()
    monkeypatch.setattr(rssm, "has_kernel", lambda *_: False)
    assert by_kernel < error()


def test_the_number_of_threads_changes_no_bit(kernels):
    dynamics = made(FIELDS)
    given = clips(dynamics, 13)
    most = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = recurrence_of(dynamics, *given)
        torch.set_num_threads(3)
        together = recurrence_of(dynamics, *given)
    finally:
        torch.set_num_threads(most)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def recurrence_of(dynamics, latents, actions):
    """What the kernel itself makes, and the gradients of the frame's part, of the start and of the normalisations."""
    torch.manual_seed(2)
    latents = latents.detach().requires_grad_()
    made_of = dynamics._follow_at_once(latents.transpose(0, 1), actions.transpose(0, 1))
    inputs = [dynamics.start, dynamics.cell.norm.weight, dynamics.cell.norm.bias]
    return [*made_of, *torch.autograd.grad(sum((part * part).sum() for part in made_of), inputs)]


def test_what_is_no_number_shows_in_its_own_clip(kernels):
    dynamics = made()
    latents, actions = clips(dynamics)
    latents[3, 4, 0] = float("nan")
    torch.manual_seed(2)
    memory = dynamics.filter(latents, actions).states.memory.unflatten(0, (9, 7))
    assert memory[4, 3].isnan().any()
    others = [clip for clip in range(7) if clip != 3]
    assert memory[:, others].isfinite().all()
    assert memory[:4].isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        lambda dynamics: dynamics.eval(),
        lambda dynamics: dynamics.double(),
        lambda dynamics: dynamics.set_temperature(0.5),
    ],
    ids=["evaluation", "float64", "temperature"],
)
def test_other_uses_take_pytorchs_way(change):
    dynamics = made()
    change(dynamics)
    given = [tensor.to(dynamics.start.dtype) for tensor in clips(dynamics)]
    assert not is_by_kernel(dynamics, *given)


def test_sizes_that_the_kernel_does_not_know_take_pytorchs_way():
    dynamics = made(hidden_dim=40)
    assert not is_by_kernel(dynamics, *clips(dynamics))


def test_without_a_compiler_everything_works(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr(recurrence, "compiled", compiled.__wrapped__)
    dynamics = made()
    assert not is_by_kernel(dynamics, *clips(dynamics))


def test_processes_draw_for_their_clips_what_one_would(kernels):
    dynamics = made()
    latents, actions = clips(dynamics, 6)
    torch.manual_seed(5)
    whole = dynamics.filter(latents, actions).states.memory.unflatten(0, (9, 6))
    for rank in range(3):
        noise = SharedNoise(dynamics, rank, 3, torch.device("cpu"))
        noise.manual_seed(5)
        part = dynamics.filter(latents[rank::3], actions[rank::3]).states.memory.unflatten(0, (9, 2))
        noise.close()
        torch.testing.assert_close(part, whole[:, rank::3], rtol=0, atol=1e-6)


def test_processes_imagine_what_one_would():
    dynamics = made(FIELDS)
    count = 12  # rows: clips side by side, step after step
    state = dynamics.initial(torch.randn(count, dynamics.latent_dim))
    actions = torch.rand(count, 2) * 2 - 1
    torch.manual_seed(5)
    whole = dynamics.imagine(state, actions).memory
    for rank in range(3):
        noise = SharedNoise(dynamics, rank, 3, torch.device("cpu"))
        noise.manual_seed(5)
        rows = slice(rank, None, 3)
        part = dynamics.imagine(LatentState(*(tensor[rows] for tensor in state)), actions[rows]).memory
        noise.close()
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-6)
