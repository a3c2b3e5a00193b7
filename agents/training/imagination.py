"""One of Stable-Baselines3's algorithms, learning in a world model's dreams: rounds, snapshots, nothing of files."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from wm_gym.acceleration import AcceleratedModel
from wm_gym.agents.learning import RoundCallback, RoundTrainer, Snapshot, derived_seed
from wm_gym.agents.policies.algorithms import ALGORITHMS
from wm_gym.agents.policies.config import AgentConfig
from wm_gym.agents.policies.from_config import make_algorithm, resolve
from wm_gym.agents.policies.network import (
    feature_statistics,
    policy_arguments,
    policy_of,
    rebuild_policy,
    set_normalisation,
)
from wm_gym.envs.dream_model import DreamModel, start_states_of
from wm_gym.envs.dream_vec_env import DreamVecEnv
from wm_gym.errors import ConfigError, TrainingError
from wm_gym.progress import progress_bar
from wm_gym.state import LatentState
from wm_gym.world_model import WorldModel

_OFF_POLICY_ROUND_STEPS = 4096  # dream steps between log rows of an algorithm that updates every few steps
_HOLD_PROBABILITY = 0.9  # of a random rollout's action: drawing one every step would hardly move a car
_CRITIC_LEARNING_RATE = 1e-3  # of a critic that learns alone: there is no policy that large steps could spoil
_REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class ImaginationTrainer(RoundTrainer):
    """Trains a policy in the dreams of a world model, round by round.

    :func:`wm_gym.agents.train_agent` wraps it with a run folder; by itself it leaves no files and takes any
    :class:`~wm_gym.envs.dream_model.DreamModel`.

    Args:
        model: The world model.
        config: The settings; resolved here where they are not yet.
        start_states: States to dream from; ``None`` for the model's own.
        initial: A policy to go on from, with its normaliser of features; of the same algorithm and sizes.
        reward_scale: The scale that ``initial`` learned its values with; ``None`` is as the settings say.
        progress: Show a progress bar.

    Attributes:
        config: The resolved settings.
        reward_scale: Factor on rewards while learning; returns are reported without it.

    Raises:
        ConfigError: A setting is not one of the algorithm, or does not fit the model.
        TrainingError: The features of the start states are not finite, or ``initial`` is of other sizes.

    Side effects: seeds the global generators of Python, NumPy and PyTorch.

    ```python
    with ImaginationTrainer(model, AgentConfig(steps=100_000)) as trainer:
        while trainer.dream_steps < trainer.config.steps:
            print(trainer.train_round()["ep_rew_mean"])
    ```
    """

    _env: _LearningRewards
    _unit = "dream steps"
    _remedy = "lower learning_rate, or check that the world model's rewards are sound"

    def __init__(
        self,
        model: DreamModel,
        config: AgentConfig,
        *,
        start_states: LatentState | None = None,
        initial: BasePolicy | None = None,
        reward_scale: float | None = None,
        progress: bool = False,
    ) -> None:
        self.config = config = resolve(config, model.simulator.action)
        assert config.num_envs is not None and config.learning_rate is not None and config.gamma is not None
        bank = start_states_of(model, start_states)
        mean, deviation = feature_statistics(model, bank)
        if not bool(torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
            raise TrainingError(
                "the features of the world model's start states are not finite; the model has diverged or is damaged, "
                "so train it again."
            )
        self._dreams = DreamVecEnv(
            config.num_envs,
            model=_dreaming(model, config),
            horizon=config.horizon,
            action=config.action,
            start_states=bank,
            termination=config.termination,
            uncertainty_limit=config.uncertainty_limit,
        )
        if reward_scale is not None:
            self.reward_scale = reward_scale
        elif config.reward_scale == "auto":
            self.reward_scale = measure_reward_scale(self._dreams, config.gamma, config.seed)
        else:
            self.reward_scale = config.reward_scale
        self._actor_learns = True
        if config.anchor and initial is None:
            raise ConfigError("anchor keeps a policy near the one that it began from; give --initial, or leave it out.")
        self._env = _LearningRewards(self._dreams, self.reward_scale, config.reward_limit)
        with warnings.catch_warnings():
            # The dream's policy belongs on the device of its world model, whatever is usual for small networks.
            warnings.filterwarnings("ignore", message="You are trying to run .* on the GPU", category=UserWarning)
            self._algorithm = make_algorithm(
                config,
                policy=policy_of(config),
                env=self._env,
                policy_kwargs=policy_arguments(config),
                learning_rate=self._learning_rate,
                device=model.device,
                seed=config.seed,
                verbose=0,
            )
        self._algorithm.set_logger(Logger(folder=None, output_formats=[]))
        if config.normalise_observations:
            set_normalisation(self._learner, mean, deviation)
        if initial is not None:
            _adopt(self._learner, initial)
            if config.anchor:
                assert isinstance(self._learner, ActorCriticPolicy)
                self._env.keep_near(self._learner, config.anchor)
        self._average: BasePolicy | None = None
        if config.policy_average > 0:
            observations, actions = self._dreams.observation_space, self._dreams.action_space
            assert isinstance(observations, spaces.Box)
            assert isinstance(actions, spaces.Box)
            self._average = rebuild_policy(config, observations, actions)
            self._average.load_state_dict(self._learner.state_dict())
            self._average.to(self._learner.device).set_training_mode(False)
        self._entry = ALGORITHMS[config.algo]
        self._round_steps, self._begins_anew = self._plan_rounds()
        self._bar = progress_bar(config.steps, "step", "train-agent", enabled=progress, unit_scale=True)

    @property
    def policy(self) -> BasePolicy:
        """The policy that the training has come to: the average where ``policy_average`` asks for one."""
        return self._learner if self._average is None else self._average

    @property
    def _learner(self) -> BasePolicy:
        return self._algorithm.policy

    @property
    def dream_steps(self) -> int:
        """Dream steps so far, summed over the dreams side by side."""
        return self._algorithm.num_timesteps

    def train_round(self) -> dict[str, Any]:
        """Dream and learn for one round: a rollout and its updates, or some thousand steps of an off-policy algorithm.

        Returns:
            ``ep_rew_mean`` and ``ep_len_mean`` of the dreams that ended (``None`` if none did; returns without
            ``reward_scale``), ``fps`` (dream steps a second), ``wall_s`` (of all rounds), and what the algorithm
            reports: losses, ``approx_kl``, ``entropy_loss``, ``learning_rate``, ….

        Raises:
            DivergedError: Parameters or losses are no longer finite; the trainer is then of no further use.
            BundleError: The world model imagined numbers that are not finite.
        """
        algorithm, before = self._algorithm, self.dream_steps
        if self._begins_anew:
            algorithm.set_env(self._env)  # lets it reset the dreams
        if self._begins_anew or before == 0:
            self._env.seed(derived_seed(self.config.seed, before))
        algorithm.action_space.seed(derived_seed(self.config.seed, before, 2))
        self._let_actor_learn(before >= self.config.critic_steps)
        watch = RoundCallback(self._bar, first_only=self._begins_anew)
        values = self._learn(self._round_steps, watch, self.config.seed)
        self._update_average(before)
        if values["ep_rew_mean"] is not None:
            self._bar.set_postfix(dream_return=f"{values['ep_rew_mean']:.1f}", refresh=False)
        return values

    def snapshot(self) -> Snapshot:
        """A copy of all that learning has changed, but for the replay buffer; see :meth:`replay`."""
        algorithm = self._algorithm
        return {
            "dream_steps": algorithm.num_timesteps,
            "wall_s": self.trained_s,
            "reward_scale": self.reward_scale,
            # TD3 updates its actor in every second update of this counter.
            "updates": algorithm._n_updates,
            "parameters": copy.deepcopy(algorithm.get_parameters()),
            "average": None if self._average is None else copy.deepcopy(self._average.state_dict()),
            "tensors": {
                name: getattr(algorithm, name).detach().clone()
                for name in self._entry.tensors
                if getattr(algorithm, name, None) is not None
            },
        }

    def replay(self) -> Snapshot | None:
        """The replay buffer's transitions as tensors, not copied; ``None`` for on-policy algorithms."""
        if not isinstance(self._algorithm, OffPolicyAlgorithm):
            return None
        buffer = self._algorithm.replay_buffer
        assert buffer is not None
        filled = buffer.buffer_size if buffer.full else buffer.pos
        arrays = {name: torch.from_numpy(getattr(buffer, name)[:filled]) for name in _REPLAY_ARRAYS}
        return {"position": buffer.pos, "full": buffer.full, **arrays}

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, with the replay buffer under ``"replay"`` where there is one.

        Raises:
            KeyError, RuntimeError, ValueError: The snapshot is of another training.
        """
        algorithm = self._algorithm
        algorithm.set_parameters(snapshot["parameters"], exact_match=True, device=algorithm.device)
        if self._average is not None:
            self._average.load_state_dict(snapshot["average"])
        for name, tensor in snapshot["tensors"].items():
            getattr(algorithm, name).data.copy_(tensor)
        algorithm.num_timesteps = int(snapshot["dream_steps"])
        algorithm._n_updates = int(snapshot["updates"])
        self.reward_scale = self._env.scale = float(snapshot["reward_scale"])
        self.trained_s = float(snapshot["wall_s"])
        self._bar.update(algorithm.num_timesteps - self._bar.n)
        if not self._begins_anew:
            self._env.seed(derived_seed(self.config.seed, algorithm.num_timesteps))
        replay = snapshot.get("replay")
        if isinstance(algorithm, OffPolicyAlgorithm) and replay is not None:
            buffer = algorithm.replay_buffer
            assert buffer is not None
            for name in _REPLAY_ARRAYS:
                getattr(buffer, name)[: len(replay[name])] = replay[name].numpy()
            buffer.pos, buffer.full = int(replay["position"]), bool(replay["full"])

    def _plan_rounds(self) -> tuple[int, bool]:
        """Dream steps in a round, and whether it begins with new dreams."""
        config = self.config
        assert config.num_envs is not None
        if self._entry.is_on_policy:
            assert config.n_steps is not None
            # A rollout of whole horizons sees every part of a dream equally often, though it cuts restarted dreams.
            return config.n_steps * config.num_envs, config.n_steps % config.horizon == 0
        return config.num_envs * math.ceil(_OFF_POLICY_ROUND_STEPS / config.num_envs), False

    def _let_actor_learn(self, learns: bool) -> None:
        self._actor_learns = learns
        for name, parameter in self._learner.named_parameters():
            if "value_net" not in name.split("."):
                parameter.requires_grad_(learns)

    def _learning_rate(self, _: float) -> float:
        # Stable-Baselines3's own progress counts from round to round.
        rate, final = self.config.learning_rate, self.config.final_learning_rate
        assert rate is not None
        if not self._actor_learns:
            return max(rate, _CRITIC_LEARNING_RATE)
        steps = self._algorithm.num_timesteps if hasattr(self, "_algorithm") else 0
        progress = min(1.0, steps / self.config.steps)
        return rate * (1.0 - (1.0 - final) * progress)

    @torch.no_grad()
    def _update_average(self, before: int) -> None:
        if self._average is None:
            return
        rounds = before // self._round_steps + 1
        # The first rounds count alike, so that the untrained policy is forgotten at once.
        share = max(1 - self.config.policy_average, 1 / rounds)
        for mean, parameter in zip(self._average.parameters(), self._learner.parameters(), strict=True):
            mean.lerp_(parameter, share)


def _dreaming(model: DreamModel, config: AgentConfig) -> DreamModel:
    """The world model as the configuration wants it to dream."""
    if config.model_precision == "fp32" and not config.compile_model:
        return model
    if not isinstance(model, WorldModel):
        raise ConfigError(
            f"model_precision and compile_model are for a WorldModel, but a {type(model).__name__} was given; leave "
            "them out."
        )
    return AcceleratedModel(model, config.model_precision, compiled=config.compile_model)


def _adopt(policy: BasePolicy, initial: BasePolicy) -> None:
    """Copy another policy's parameters and normaliser."""
    try:
        policy.load_state_dict(initial.state_dict())
    except RuntimeError as error:
        raise TrainingError(
            "training cannot go on from a policy of another algorithm or of other sizes; give the settings that it was "
            "trained with (algo, net_arch), and a world model of the same feature size."
        ) from error


class _LearningRewards(VecEnvWrapper):
    """Rewards as learning takes them: limited, less for leaving an anchor, and multiplied by a constant.

    The returns in ``info["episode"]`` stay as they are.
    """

    def __init__(self, venv: VecEnv, scale: float, limit: float | None) -> None:
        super().__init__(venv)
        self.scale = scale
        self.limit = math.inf if limit is None else limit
        self._policies: tuple[ActorCriticPolicy, ActorCriticPolicy] | None = None
        self._anchor_weight = 0.0
        self._observations: Any = None
        self._distance: Any = 0.0

    def keep_near(self, learner: ActorCriticPolicy, weight: float) -> None:
        """Take ``weight`` times the learner's distance from what it is now, the anchor, off every reward.

        The distance of an action is the mean over its values of ``((value - anchor's mean) / anchor's deviation)**2``,
        less the same from the learner's mean. Its expectation is the squared distance of the two means in the anchor's
        deviations. Without the second term even the anchor itself would pay for its own noise, about 1 in each step:
        where rewards are small, a dream that ends would then be better than one that goes on.
        """
        anchor = copy.deepcopy(learner)
        anchor.set_training_mode(False)
        self._policies, self._anchor_weight = (anchor, learner), weight

    def reset(self) -> Any:
        self._observations = self.venv.reset()
        return self._observations

    def step_async(self, actions: Any) -> None:
        if self._policies is not None:
            self._distance = self._distance_between(*self._policies, actions)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        self._observations, rewards, dones, infos = self.venv.step_wait()
        kept = np.minimum(rewards, self.limit).astype(np.float32) - np.float32(self._anchor_weight) * self._distance
        return self._observations, kept * np.float32(self.scale), dones, infos

    @torch.no_grad()
    def _distance_between(self, anchor: ActorCriticPolicy, learner: ActorCriticPolicy, actions: Any) -> Any:
        """``(B,)`` float32: see :meth:`keep_near`."""
        observations, _ = anchor.obs_to_tensor(self._observations)
        space: Any = self.action_space
        wanted, own = (self._normal_of(policy, observations) for policy in (anchor, learner))
        from_anchor, from_own = (
            np.square(actions - np.clip(normal.mean.cpu().numpy(), space.low, space.high)) for normal in (wanted, own)
        )
        return ((from_anchor - from_own) / np.square(wanted.stddev.cpu().numpy())).mean(axis=1, dtype=np.float32)

    @staticmethod
    def _normal_of(policy: ActorCriticPolicy, observations: Any) -> Any:
        return policy.get_distribution(observations).distribution


def measure_reward_scale(dreams: VecEnv, gamma: float, seed: int) -> float:
    """The factor that brings the discounted returns of random imagined rollouts to a root mean square of 1.

    Value targets then start at a size that networks and Stable-Baselines3's defaults are made for. As ``VecNormalize``,
    it looks at the returns ``R_t = gamma R_{t-1} + r_t``, but it is measured once and does not drift. Actions are
    uniform and held for ten steps on average.

    Args:
        dreams: The dreams; ``horizon`` steps are made, or 50 where it has none.
        gamma: Discount factor.
        seed: Of actions and dreams.
    """
    rng = np.random.default_rng(seed)
    space: Any = dreams.action_space
    dreams.seed(seed)
    dreams.reset()
    shape = (dreams.num_envs, *space.shape)
    actions = rng.uniform(space.low, space.high, shape)
    returns = np.zeros(dreams.num_envs)
    total, count = 0.0, 0
    for _ in range(getattr(dreams, "horizon", 50)):
        _, rewards, dones, _ = dreams.step(actions.astype(np.float32))
        returns = gamma * returns + rewards
        total += float(np.square(returns).sum())
        count += dreams.num_envs
        returns[dones] = 0.0
        is_new = rng.random(dreams.num_envs) >= _HOLD_PROBABILITY
        actions = np.where(is_new[:, None], rng.uniform(space.low, space.high, shape), actions)
    size = math.sqrt(total / count)
    return 1.0 / size if size > 0 else 1.0
