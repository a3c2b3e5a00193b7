"""What a training in imagination spends its time on: matrix products of world model and policy, or what lies around."""

from __future__ import annotations

import time
from typing import Any

from torch._inductor import config as inductor_config
from torch.profiler import ProfilerActivity, profile

from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.training.imagination import ImaginationTrainer
from wm_gym.bench.kinds import KINDS, label
from wm_gym.bench.table import Table
from wm_gym.world_model import WorldModel

_PRODUCTS = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        # What is compiled ahead of time calls them without PyTorch's dispatcher.
        "aoti_torch_cpu_mm_out",
        "aoti_torch_cpu_addmm_out",
        "aoti_torch_cpu_bmm_out",
        "aoti_torch_cpu_baddbmm_out",
        "aoti_torch_cpu__mkl_linear",
        "aoti_torch_cpu__linear_pointwise",
        "aoti_torch_cpu__linear_pointwise_binary",
    }
)


def measure_ppo(model: WorldModel, seconds: float, *, seed: int) -> Table:
    """Dream steps a second of PPO with its defaults, learning included, and the share of the time in matrix products.

    The share is measured in rounds of their own, since the profiler slows what is not a product: the true share is a
    little higher. It is told for the CPU alone.

    Args:
        model: The world model, on its device.
        seconds: Time for each measurement.
        seed: Of the training.
    """
    rows = []
    for precision in KINDS:
        accelerated: dict[str, Any] = {}
        if precision:
            accelerated = {"compile_model": True, "model_precision": precision, "policy_precision": precision}
        with ImaginationTrainer(model, AgentConfig(seed=seed, **accelerated)) as trainer:
            # Compiles, such that the profiler sees the kernels, and fills the cache of the first episodes.
            with inductor_config.patch({"cpp.enable_kernel_profile": True}):
                trainer.train_round()
            speed = _steps_per_second(trainer, seconds)
            share = _product_share(trainer) if model.device.type == "cpu" else None
        rows.append({"model": label(precision), "steps_per_s": speed, "products": share})
    return Table(
        "ppo",
        "PPO in the dream, learning included",
        (
            ("model", "world model", ""),
            ("steps_per_s", "dream steps/s", ",.0f"),
            ("products", "share of the time in matrix products", ".2f"),
        ),
        rows,
        (
            "Matrix products are those of the world model, and of the policy's rollouts and gradients. The policy "
            "learns in the precision of the world model.",
        ),
    )


def _steps_per_second(trainer: ImaginationTrainer, seconds: float) -> float:
    before, started = trainer.dream_steps, time.perf_counter()
    while time.perf_counter() - started < seconds:
        trainer.train_round()
    return (trainer.dream_steps - before) / (time.perf_counter() - started)


def _product_share(trainer: ImaginationTrainer) -> float:
    """Time in matrix products over the time of one round."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        started = time.perf_counter()
        trainer.train_round()
        elapsed = time.perf_counter() - started
    in_products = sum(event.self_cpu_time_total for event in profiled.key_averages() if event.key in _PRODUCTS)
    return in_products / 1e6 / elapsed
