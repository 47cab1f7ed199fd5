"""SAC on many tasks: a temperature for each task, and losses weighted by task."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch as th
from gymnasium.vector import VectorEnv
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn, Schedule
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.algorithm.learning_sac import LearningSAC
from sb3_softmod.algorithm.logs import record
from sb3_softmod.algorithm.options import (
    check_learn,
    check_normalized_rewards,
    check_observation,
    check_options,
    check_policy,
    check_reward_scaling,
    check_spaces,
)
from sb3_softmod.algorithm.task_turns import TaskTurns
from sb3_softmod.common.checks import require_integer, require_names, require_seed
from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import (
    check_finite,
    check_space,
    check_transition,
    num_tasks_of,
    require_shape,
    resolve_tasks,
    task_ids,
)
from sb3_softmod.envs.episode_statistics import EpisodeStatistics
from sb3_softmod.envs.make import as_env
from sb3_softmod.envs.normalize import MultiTaskVecNormalize, check_normalization
from sb3_softmod.envs.overlap import Overlapped
from sb3_softmod.learner.acceleration import decide_storage
from sb3_softmod.learner.aggregators import GradientSurgery
from sb3_softmod.learner.critic_objectives import CriticKind, CriticTarget
from sb3_softmod.learner.loss_weights import LossWeighting
from sb3_softmod.learner.metrics import TaskMetrics
from sb3_softmod.learner.options import OnNonFinite, Precision
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer, check_batch_size, nbytes_of
from sb3_softmod.learner.reward_scale import RewardScale, RewardScaling
from sb3_softmod.learner.temperatures import initial_temperatures, target_entropy_of
from sb3_softmod.policies import POLICIES, MultiTaskSACPolicy
from sb3_softmod.policies.value_atoms import NUM_ATOMS
from sb3_softmod.saving.checkpoint_callback import checkpoint_callbacks
from sb3_softmod.saving.loading import check_space_of
from sb3_softmod.saving.training_state import callbacks_of, go_on, settings_of

SelfMultiTaskSAC = TypeVar("SelfMultiTaskSAC", bound="MultiTaskSAC")


class MultiTaskSAC(LearningSAC):
    r"""Soft Actor-Critic (SB3's) on M tasks at once.

    Each task has a temperature :math:`\alpha_i` of its own, trained by its own samples (Eq. 2), and a loss weight
    :math:`w_i` that multiplies its part of the actor's and the critics' loss. With one task and uniform weights it is
    SB3's SAC. Arguments that are not listed are those of :class:`stable_baselines3.SAC`, of which
    ``optimize_memory_usage`` alone there is not.

    :param policy: a policy of this package, or any ``SACPolicy`` ("MlpPolicy" too)
    :param env: a multi-task env; a vector env of gymnasium, see :class:`.GymnasiumVecEnv`; or the name of a Meta-World
        task or set ("MT10"), made with ``seed``
    :param learning_starts: environment steps before learning; default 100 a task
    :param policy_at_warmup: take them by the untrained policy, as the authors' code does, instead of at random
    :param batch_size: samples in a gradient step; default 128 a task
    :param replay_buffer_class: default :class:`.MultiTaskReplayBuffer`, whose batches are balanced
    :param n_steps: the most steps of rewards in a critic's target before it bootstraps, as of
        :meth:`.MultiTaskReplayBuffer.sample`; other replay buffers are given theirs by ``replay_buffer_kwargs``
    :param ent_coef: "auto" (learned from 1), "auto_0.1" (learned from 0.1), a number, or one for each task
    :param target_entropy: "auto" (minus the action dimension A), "auto_0.5" (minus half of A), or a number
    :param critic: what the critics predict: "mse", the Q-value, by its squared error; "categorical", a distribution of
        the return on ``num_atoms`` values, by cross-entropy, whose expectation is the Q-value, see
        :class:`.CrossEntropy`; "hl_gauss", the same with another target, see :class:`.GaussianHistogram`. The last two
        need a policy of this package
    :param num_atoms: K, of a distribution
    :param v_min: the least return of a distribution
    :param v_max: the greatest; returns beyond these count as they do, so that rewards must fit. Also what
        ``reward_scaling`` makes the largest return of a task
    :param critic_target: of the critics' values, what targets are made of, and the actor maximises: "min" or "mean"
    :param policy_delay: the actor and the temperatures learn in each so manieth gradient step, the critics in all
    :param loss_weighting: "uniform", "alpha" (Eq. 10 of the paper) or "log_alpha" (the authors' code),
        see :func:`.loss_weights`
    :param max_grad_norm: clip the gradient norm of the actor and of each critic, each by itself; two numbers: of the
        actor, and of each critic, whose loss is half of its mean squared error (the authors' code clips to 1 without
        that half: ``[1, 0.5]``)
    :param gradient_surgery: how the tasks' gradients become one, for the actor and for each critic: "pcgrad", see
        :func:`.pcgrad`, another of :data:`.GRADIENT_SURGERIES`, or an aggregator of TorchJD, see :class:`.Surgery`;
        needs a policy and the replay buffer of this package
    :param gradient_surgery_kwargs: of a named one: arguments of its class in TorchJD
    :param reward_scaling: "per-task" divides the rewards of each task, when they are learned from, by a scale from its
        largest return so far and its temperature, see :class:`.RewardScale`; the replay buffer, logs and evaluations
        have them as they are. What a replay buffer holds that was loaded from a file is not counted. None: no scaling
    :param on_nonfinite: what to do about an update whose loss, gradient or temperature is NaN or infinite, and which is
        therefore not applied: "raise" ends the run with a dump; "skip" counts it and goes on, up to 100 in a row
    :param num_tasks: M; default is what the env says
    :param overlap: learn while the envs step, instead of after: the gradient steps that belong to a step of the envs
        run during the next one, so that its actions come from the policy before them
    :param precision: of matrix products while learning: "fp32"; "tf32" (GPUs); "bf16", with everything but the
        networks' layers in float32; "auto": "tf32" on GPUs that have it, else "fp32"; "fastest": "bf16" where the
        processor has instructions for it, else as "auto"
    :param compile: compile the networks with torch.compile; the first gradient step then takes a minute or two
    :param cuda_graphs: record the gradient step once and replay it; "auto": on a GPU, where the method allows it
    :param buffer_device: where the replay buffer keeps its transitions; "auto": where the model learns, if they take at
        most a quarter of the memory that is free there, else on the CPU
    :raises ConfigurationError: before any training, for what cannot work
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**SAC.policy_aliases, **POLICIES}

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | VectorEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int | None = None,
        batch_size: int | None = None,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        *,  # from here on the places are not SAC's
        n_steps: int = 1,
        ent_coef: str | float | Sequence[float] = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        critic: CriticKind = "mse",
        num_atoms: int = NUM_ATOMS,
        v_min: float = -10.0,
        v_max: float = 10.0,
        critic_target: CriticTarget = "min",
        policy_delay: int = 1,
        loss_weighting: LossWeighting = "uniform",
        max_grad_norm: float | list[float] | tuple[float, float] | None = None,
        gradient_surgery: GradientSurgery | None = None,
        gradient_surgery_kwargs: dict[str, Any] | None = None,
        reward_scaling: RewardScaling | None = None,
        on_nonfinite: OnNonFinite = "raise",
        num_tasks: int | None = None,
        overlap: bool = False,
        precision: Precision = "auto",
        compile: bool = False,
        cuda_graphs: bool | Literal["auto"] = "auto",
        buffer_device: th.device | str = "auto",
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        policy_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        require_seed(seed)
        check_policy(policy, self.policy_aliases)
        check_device("device", device)
        for name, given in (("policy_kwargs", policy_kwargs), ("replay_buffer_kwargs", replay_buffer_kwargs)):
            if given is not None:
                require_names(name, given)
        if num_tasks is not None:
            require_integer("num_tasks", num_tasks, 1)
        made = as_env(env, seed)
        if made is not None:
            check_spaces(type(self).__name__, made.action_space)
        super().__init__(
            policy,
            made,  # None while loading
            learning_rate,
            buffer_size,
            learning_starts,  # type: ignore[arg-type]  # resolved in _setup_model, when M is known
            batch_size,  # type: ignore[arg-type]
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            n_steps=n_steps,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            target_update_interval=target_update_interval,
            target_entropy=target_entropy,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=None if policy_kwargs is None else dict(policy_kwargs),  # SB3 writes into it
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.critic_kind = critic  # SB3 has the critics themselves as critic and critic_target
        self.num_atoms = num_atoms
        self.v_min = v_min
        self.v_max = v_max
        self.critic_target_kind = critic_target
        self.policy_delay = policy_delay
        self.loss_weighting = loss_weighting
        self.max_grad_norm = max_grad_norm
        self.gradient_surgery = gradient_surgery
        self.gradient_surgery_kwargs = gradient_surgery_kwargs
        self._surgery, self._surgery_to_continue = None, {}
        self.reward_scaling = reward_scaling
        self.reward_scale: RewardScale | None = None
        self.on_nonfinite = on_nonfinite
        self.nonfinite_updates = 0  # that were dropped so far
        self.policy_at_warmup = policy_at_warmup
        self.overlap = overlap
        self.precision = precision
        self.compile = compile
        self.cuda_graphs = cuda_graphs
        self.buffer_device = buffer_device
        self._postponed = None
        self._overlapped: Overlapped | None = None
        self._turns = None
        self._gradient_step = None
        self.resumed_from = None
        self._checkpoints = {}
        self._state_to_continue = None
        self._settings = {}
        #: Whether ``learn`` is under way: nobody else may step the envs then.
        self.is_learning = False
        self.normalization = None
        self.largest_returns = None
        # None until _setup_model, which takes them from the env or, when a file is loaded, from the file.
        self.num_tasks: int = num_tasks  # type: ignore[assignment]
        self.task_names = []
        self.episode_statistics: EpisodeStatistics = None  # type: ignore[assignment]
        if _init_setup_model:
            self._setup_model()
            self._acceleration()  # refuses; a loaded model may act where it could not learn

    # ------------------------------------------------------------------ set-up

    def _setup_model(self) -> None:
        M = self._resolve_tasks()
        check_options(vars(self))
        if self.batch_size is None:
            self.batch_size = 128 * M
        if self.learning_starts is None:
            self.learning_starts = 100 * M
        if self.replay_buffer_class is None:
            self.replay_buffer_class = MultiTaskReplayBuffer
        buffer_kwargs = self.replay_buffer_kwargs  # those of the user, which a file of the model keeps
        if issubclass(self.replay_buffer_class, MultiTaskReplayBuffer):
            check_batch_size(self.batch_size, M)
            needed = nbytes_of(self.buffer_size, self.observation_space, self.action_space, M)
            storage = decide_storage(self.buffer_device, self.device, needed)
            here = dict(num_tasks=M, storage_device=storage, n_steps=self.n_steps, gamma=self.gamma)
            self.replay_buffer_kwargs = {**buffer_kwargs, **here}
        if issubclass(self.policy_class, MultiTaskSACPolicy):
            self.policy_kwargs = {**self.policy_kwargs, "num_tasks": M}
            if self.critic_kind != "mse":
                self.policy_kwargs["value_atoms"] = (self.num_atoms, self.v_min, self.v_max)
        if self.episode_statistics is None:
            self.episode_statistics = EpisodeStatistics(M, self._stats_window_size)

        # SB3 knows one temperature: it sets up that, and the vector then takes its place.
        given: Any = self.ent_coef
        initial = initial_temperatures(given, M, self.loss_weighting)
        self.ent_coef = "auto" if isinstance(given, str) else float(initial[0])
        self.target_entropy = target_entropy_of(self.target_entropy, get_action_dim(self.action_space))
        n_steps, self.n_steps = self.n_steps, 1  # SB3 would warn that a buffer other than its own ignores them
        super()._setup_model()
        self.n_steps = n_steps
        if isinstance(self.replay_buffer, NStepReplayBuffer) and "gamma" not in self.replay_buffer_kwargs:
            self.replay_buffer.gamma = self.gamma
        self.ent_coef = given
        self.replay_buffer_kwargs = buffer_kwargs
        if isinstance(given, str):
            self.log_ent_coef = initial.log().to(self.device).requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        else:
            self.ent_coef_tensor = initial.to(self.device)
        if self.reward_scaling is not None:
            self.reward_scale = RewardScale(M, self.gamma, self.device)
        self._gradient_step = None
        self._metrics = TaskMetrics(M, self.device)

    def _resolve_tasks(self) -> int:
        """M, from the env or, without one, from what was saved or passed; refuses contradictions."""
        by_hand = {n for n in (self.num_tasks, self.policy_kwargs.get("num_tasks")) if n is not None}
        self.num_tasks, self.task_names = resolve_tasks(self.env, by_hand, self.task_names)
        if self.env is not None:
            self._turns = TaskTurns(self.env, self.task_names)
            self._restore_normalization()
        check_space(self.observation_space, self.num_tasks)
        return self.num_tasks

    def _restore_normalization(self) -> None:
        """Give the env the statistics that a loaded model was trained with; refuse SB3's normalisation of tasks."""
        check_normalization(self.env, self._vec_normalize_env)
        if self.normalization is not None:
            if not isinstance(self._vec_normalize_env, MultiTaskVecNormalize):
                assert self.env is not None
                self.env = self._vec_normalize_env = MultiTaskVecNormalize(self.env)
            self._vec_normalize_env.set_statistics(self.normalization)
            self.normalization = None

    def set_env(self, env: GymEnv | VectorEnv | str, force_reset: bool = True) -> None:
        """Go on with another env.

        :param env: as in the constructor; the name of a Meta-World task or set is made with the seed of the model
        :param force_reset: as in SB3
        :raises ConfigurationError: if it has another number of tasks or of envs, or other spaces
        """
        wrapped = self._wrap_env(as_env(env, self.seed), self.verbose)
        check_normalization(wrapped, unwrap_vec_normalize(wrapped))
        found = num_tasks_of(wrapped)
        if found != self.num_tasks:
            raise ConfigurationError(f"The model has {self.num_tasks} tasks, but the env {found}.")
        if wrapped.num_envs != self.n_envs:
            raise ConfigurationError(
                f"The model has {self.n_envs} envs, but these are {wrapped.num_envs}: save it, and load it with these, "
                "load(path, env=...)."
            )
        for name in ("observation_space", "action_space"):
            check_space_of(name, getattr(self, name), getattr(wrapped, name))
        normalized = unwrap_vec_normalize(wrapped)
        check_normalized_rewards(normalized, self.replay_buffer_class)
        check_reward_scaling(self.reward_scaling, self.gamma, normalized)
        if isinstance(self._vec_normalize_env, MultiTaskVecNormalize) and normalized is None:
            self.normalization = self._vec_normalize_env.statistics()  # the policy knows no other observations
        super().set_env(wrapped, force_reset)
        self._resolve_tasks()

    # ------------------------------------------------------------------ acting

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The actions for some observations; arguments as in SB3.

        :param observation: ``[O + M]`` or ``[B, O + M]``; the task is one-hot, or a mixture: no entry below 0, sum 1
        :raises ConfigurationError: for observations of another shape, without a task, or that are no numbers
        """
        check_observation(observation, self.observation_space, self.num_tasks)
        return super().predict(observation, *args, **kwargs)

    # -------------------------------------------------------------- collecting

    @property
    def remaining_timesteps(self) -> int:
        """Environment steps that are left of what the last ``learn`` was to do."""
        return max(self._total_timesteps - self.num_timesteps, 0)

    def learn(
        self: SelfMultiTaskSAC,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | str | None = "auto",
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMultiTaskSAC:
        """Train; arguments as in SB3.

        :param total_timesteps: None for a resumed model: what is left of what it was to learn
        :param log_interval: episodes between two logs; "auto" is one for each env, since synchronous envs end their
            episodes together; None for no logs
        :param tb_log_name: default is the name of the class
        """
        if total_timesteps is None:
            if self.resumed_from is None:
                raise ConfigurationError("learn() needs total_timesteps; only a resumed model knows what is left.")
            total_timesteps, reset_num_timesteps = self.remaining_timesteps, False
        check_learn(total_timesteps, callback, log_interval)
        self.is_learning = True
        try:
            super().learn(
                total_timesteps,
                callback,
                self.n_envs if log_interval == "auto" else log_interval,  # type: ignore[arg-type]
                tb_log_name or type(self).__name__,
                reset_num_timesteps,
                progress_bar,
            )
        except BaseException:  # Ctrl-C too: a step may be half done, so that the next call must begin new episodes
            self._last_obs = self._postponed = None
            raise
        finally:
            self.is_learning = False
            for each in reversed(checkpoint_callbacks(callback)):  # signal handlers in the order of a stack
                each.release()
        self._learn_postponed()
        self.check_updates()
        assert self._turns is not None
        self._turns.end(self.replay_buffer)
        return self

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Step the envs; with ``overlap``, learn meanwhile. Before that is the moment for a checkpoint."""
        go_on = [each.between_steps(callback) for each in checkpoint_callbacks(callback)]  # all of them write
        if not all(go_on):
            return RolloutReturn(0, 0, continue_training=False)
        if self.overlap:
            if self._overlapped is None or self._overlapped.venv is not env:
                self._overlapped = Overlapped(env, self._learn_postponed)  # which asks the envs for their render mode
            env = self._overlapped
        return super().collect_rollouts(env, callback, *args, **kwargs)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        return super()._sample_action(0 if self.policy_at_warmup else learning_starts, action_noise, n_envs)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        if isinstance(self.replay_buffer, MultiTaskReplayBuffer):
            self.replay_buffer.allocate()  # before anything is collected
        self.action_noise = _noise_of(self.action_noise, self.n_envs)
        noise, last_obs = deepcopy(self.action_noise), self._last_obs
        out = super()._setup_learn(*args, **kwargs)
        if self.reward_scale is not None and self._last_obs is not last_obs:  # SB3 has reset the envs
            self.reward_scale.begin()
        self._settings = {each: settings_of(each) for each in callbacks_of(out[1])}
        if self._state_to_continue is not None and self.num_timesteps > 0:
            self.action_noise = noise  # SB3 begins it anew
            go_on(self, out[1], self._state_to_continue)
            in_a_row = self._state_to_continue.get("dropped_in_a_row", 0)  # older checkpoints have none
            self._learner().finite.watch.set_in_a_row(in_a_row)
        self._state_to_continue = None
        require_shape(self._last_obs, (self.n_envs, *self.observation_space.shape), f"all {self.n_envs} envs")  # type: ignore[misc]
        assert self._turns is not None
        self._turns.begin(self.replay_buffer)
        ids = task_ids(self._last_obs, self.num_tasks)  # type: ignore[arg-type]
        check_finite("observation", self._last_obs, ids, self.task_names, self.num_timesteps)  # type: ignore[arg-type]
        self._learner()  # refuses what this device cannot do before anything is collected
        return out

    def _store_transition(self, replay_buffer: ReplayBuffer, buffer_action: np.ndarray, *step: Any) -> None:
        check_transition(self._last_obs, *step, self.task_names, self.num_timesteps)  # type: ignore[arg-type, call-arg]
        if self.reward_scale is not None:
            self._count_rewards(*step)
        super()._store_transition(replay_buffer, buffer_action, *step)

    def _count_rewards(
        self, new_obs: np.ndarray, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        assert self.reward_scale is not None
        tasks = task_ids(self._last_obs, self.num_tasks)  # type: ignore[arg-type]  # not of new_obs: envs may go on to others
        cut = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        self.reward_scale.add(tasks, rewards, dones & ~cut, dones & cut)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        self.episode_statistics.add(infos)

    # ----------------------------------------------------------------- logging

    def dump_logs(self) -> None:
        """Write the logs: means over the tasks everywhere, each task to every writer but the terminal."""
        self.check_updates()
        metrics = self._metrics.pop()
        for name, values in metrics.items():
            record(self.logger, "train", name, values, self.task_names)
        if metrics:
            self.logger.record("train/learning_rate", float(self.actor.optimizer.param_groups[0]["lr"]))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self.nonfinite_updates:
            self.logger.record("train/nonfinite_updates", self.nonfinite_updates)
        for name, values in self.episode_statistics.means().items():
            record(self.logger, "rollout", f"task_{name}", values, self.task_names)
        if restarts := getattr(self.env, "num_restarts", 0):  # only a MultiTaskVecEnv counts them
            self.logger.record("rollout/env_restarts", restarts)
        super().dump_logs()


def _noise_of(noise: ActionNoise | None, n_envs: int) -> ActionNoise | None:
    """Noise of each env by itself; a model that learned in another number of envs has that of so many."""
    if isinstance(noise, VectorizedActionNoise):
        if noise.n_envs == n_envs > 1:
            return noise
        noise = noise.base_noise
    return noise if noise is None or n_envs == 1 else VectorizedActionNoise(noise, n_envs)
