"""Agents: training in imagination, the deployable driver, evaluation. Names are imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wm_gym.agents.behaviours import make_behaviour
    from wm_gym.agents.bundles.driver import Driver
    from wm_gym.agents.bundles.folder import load_agent, save_agent
    from wm_gym.agents.bundles.push import push_agent
    from wm_gym.agents.evaluation.evaluation import EvaluationResult, evaluate
    from wm_gym.agents.evaluation.judge import judge
    from wm_gym.agents.evaluation.reality_gap import imagine_along, side_by_side
    from wm_gym.agents.evaluation.scorecard import Scorecard, score_policies
    from wm_gym.agents.policies.algorithms import ALGORITHMS
    from wm_gym.agents.policies.config import AgentConfig, make_agent_config
    from wm_gym.agents.training.dream_training import TrainingSummary, train_agent
    from wm_gym.agents.training.imagination import ImaginationTrainer

__all__ = [
    "ALGORITHMS",
    "AgentConfig",
    "Driver",
    "EvaluationResult",
    "ImaginationTrainer",
    "Scorecard",
    "TrainingSummary",
    "evaluate",
    "imagine_along",
    "judge",
    "load_agent",
    "make_agent_config",
    "make_behaviour",
    "push_agent",
    "save_agent",
    "score_policies",
    "side_by_side",
    "train_agent",
]

_MODULES = {
    "ALGORITHMS": "wm_gym.agents.policies.algorithms",
    "AgentConfig": "wm_gym.agents.policies.config",
    "Driver": "wm_gym.agents.bundles.driver",
    "EvaluationResult": "wm_gym.agents.evaluation.evaluation",
    "ImaginationTrainer": "wm_gym.agents.training.imagination",
    "Scorecard": "wm_gym.agents.evaluation.scorecard",
    "TrainingSummary": "wm_gym.agents.training.dream_training",
    "evaluate": "wm_gym.agents.evaluation.evaluation",
    "imagine_along": "wm_gym.agents.evaluation.reality_gap",
    "judge": "wm_gym.agents.evaluation.judge",
    "load_agent": "wm_gym.agents.bundles.folder",
    "make_agent_config": "wm_gym.agents.policies.config",
    "make_behaviour": "wm_gym.agents.behaviours",
    "push_agent": "wm_gym.agents.bundles.push",
    "save_agent": "wm_gym.agents.bundles.folder",
    "score_policies": "wm_gym.agents.evaluation.scorecard",
    "side_by_side": "wm_gym.agents.evaluation.reality_gap",
    "train_agent": "wm_gym.agents.training.dream_training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *__all__))
