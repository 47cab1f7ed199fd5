"""SAC on many tasks: a temperature for each task, and losses weighted by task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch as th
from gymnasium.vector import VectorEnv
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.algorithm.adapting import Init, adapt
from sb3_softmod.algorithm.collecting_sac import CollectingSAC
from sb3_softmod.algorithm.options import (
    check_normalized_rewards,
    check_options,
    check_policy,
    check_reward_scaling,
    check_spaces,
)
from sb3_softmod.algorithm.task_turns import TaskTurns
from sb3_softmod.common.checks import require_integer, require_names, require_seed
from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import check_order, check_space, num_tasks_of, resolve_tasks, task_names_of
from sb3_softmod.envs.episode_statistics import EpisodeStatistics
from sb3_softmod.envs.make import as_env
from sb3_softmod.envs.normalize import MultiTaskVecNormalize, check_normalization
from sb3_softmod.envs.overlap import Overlapped
from sb3_softmod.envs.some_tasks import among
from sb3_softmod.learner.acceleration import decide_storage
from sb3_softmod.learner.aggregators import GradientSurgery
from sb3_softmod.learner.critic_objectives import CriticKind, CriticTarget
from sb3_softmod.learner.loss_weights import LossWeighting
from sb3_softmod.learner.metrics import TaskMetrics
from sb3_softmod.learner.options import OnNonFinite, Precision
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer, check_batch_size, nbytes_of
from sb3_softmod.learner.reward_scale import RewardScale, RewardScaling
from sb3_softmod.learner.temperatures import initial_temperatures, target_entropy_of
from sb3_softmod.networks.tunable import Tune
from sb3_softmod.policies import POLICIES, MultiTaskSACPolicy
from sb3_softmod.policies.value_atoms import NUM_ATOMS
from sb3_softmod.saving.loading import check_space_of

SelfMultiTaskSAC = TypeVar("SelfMultiTaskSAC", bound="MultiTaskSAC")


class MultiTaskSAC(CollectingSAC):
    r"""Soft Actor-Critic (SB3's) on M tasks at once.

    Each task has a temperature :math:`\alpha_i` of its own, trained by its own samples (Eq. 2), and a loss weight
    :math:`w_i` that multiplies its part of the actor's and the critics' loss. With one task and uniform weights it is
    SB3's SAC. Arguments that are not listed are those of :class:`stable_baselines3.SAC`, of which
    ``optimize_memory_usage`` alone there is not.

    :param policy: a policy of this package, or any ``SACPolicy`` ("MlpPolicy" too)
    :param env: a multi-task env; a vector env of gymnasium, see :class:`.GymnasiumVecEnv`; or the name of a Meta-World
        task or set ("MT10"), or a list of tasks, made with ``seed``
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
        :class:`.CrossEntropy`; it needs a policy of this package
    :param num_atoms: K, of a distribution
    :param v_min: the least return of a distribution
    :param v_max: the greatest; returns beyond these count as they do, so that rewards must fit. Also what
        ``reward_scaling`` makes the largest return of a task
    :param critic_target: of the critics' values, what targets are made of, and the actor maximises: "min" or "mean"
    :param policy_delay: the actor and the temperatures learn in one of so many gradient steps, the critics in all
    :param loss_weighting: "uniform", "alpha" (Eq. 10 of the paper), "log_alpha" (the authors' code) or "success"
        (tasks that fail count more), see :func:`.loss_weights`; "gradnorm", "famo" or "uncertainty": weights of the
        critics' losses that are learned, see :class:`.GradNorm`, :class:`.FAMO` and :class:`.Uncertainty`
    :param loss_weighting_kwargs: options of GradNorm or FAMO, by name
    :param max_grad_norm: clip the gradient norm of the actor and of each critic, each by itself; two numbers: of the
        actor, and of each critic, whose loss is half of its mean squared error (the authors' code clips to 1 without
        that half: ``[1, 0.5]``)
    :param gradient_surgery: how the tasks' gradients become one, for the actor and for each critic: "pcgrad", see
        :func:`.pcgrad`, another of :data:`.GRADIENT_SURGERIES`, or an aggregator of TorchJD, see :class:`.Surgery`;
        needs a policy and the replay buffer of this package
    :param gradient_surgery_kwargs: of a named one: arguments of its class in TorchJD; of "nash_mtl" ``max_norm``
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
    :param compile: compile the networks with torch.compile; the first gradient step then takes 40 seconds or more;
        "auto": on a CPU, where there is a C++ compiler and the method allows it
    :param cuda_graphs: record the gradient step once and replay it; "auto": on a GPU, where the method allows it
    :param buffer_device: where the replay buffer keeps its transitions; "auto": where the model learns, if they take at
        most a quarter of the memory that is free there, else on the CPU
    :raises ConfigurationError: before any training, for what cannot work
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {**SAC.policy_aliases, **POLICIES}

    def __init__(
        self,
        policy: str | type[SACPolicy],
        env: GymEnv | VectorEnv | str | Sequence[str] | None,
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
        loss_weighting_kwargs: dict[str, Any] | None = None,
        max_grad_norm: float | list[float] | tuple[float, float] | None = None,
        gradient_surgery: GradientSurgery | None = None,
        gradient_surgery_kwargs: dict[str, Any] | None = None,
        reward_scaling: RewardScaling | None = None,
        on_nonfinite: OnNonFinite = "raise",
        num_tasks: int | None = None,
        overlap: bool = False,
        precision: Precision = "auto",
        compile: bool | Literal["auto"] = False,
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
        mappings = dict(policy_kwargs=policy_kwargs, replay_buffer_kwargs=replay_buffer_kwargs)
        for name, given in dict(mappings, loss_weighting_kwargs=loss_weighting_kwargs).items():
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
        self.loss_weighting_kwargs = dict(loss_weighting_kwargs or {})
        self.learned_weights = None
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
        self.largest_returns = self.loss_weighting_progress = None
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
        self.ent_coef = given
        self.replay_buffer_kwargs = buffer_kwargs
        self._tell_buffer()
        if isinstance(given, str):
            self.log_ent_coef = initial.log().to(self.device).requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        else:
            self.ent_coef_tensor = initial.to(self.device)
        self._update_reward_scale()
        self.success_rates, self._success_is_of = th.zeros(M, device=self.device), None
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
        else:
            self._check_observations(self._vec_normalize_env)

    def _check_observations(self, normalized: VecNormalize | None) -> None:
        normalizes = isinstance(normalized, MultiTaskVecNormalize) and normalized.norm_obs
        if self.num_timesteps and normalizes and not _has_seen(normalized):
            raise ConfigurationError(
                "The model was trained on observations as they are, and this MultiTaskVecNormalize would normalise "
                "them: leave it out, or pass norm_obs=False."
            )

    def set_env(self, env: GymEnv | VectorEnv | str | Sequence[str], force_reset: bool = True) -> None:
        """Go on with another env.

        :param env: as in the constructor; the name of a Meta-World task or set is made with the seed of the model
        :param force_reset: as in SB3
        :raises ConfigurationError: if it has another number of tasks or of envs, or other spaces
        """
        wrapped = among(self._wrap_env(as_env(env, self.seed), self.verbose), self.task_names)
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
        check_order(task_names_of(wrapped), self.task_names)
        normalized = unwrap_vec_normalize(wrapped)
        check_normalized_rewards(normalized, self.replay_buffer_class)
        check_reward_scaling(self.reward_scaling, self.gamma, normalized)
        if not isinstance(self._vec_normalize_env, MultiTaskVecNormalize):
            if self.normalization is None:  # of a model that was loaded without an env
                self._check_observations(normalized)
        elif _has_seen(self._vec_normalize_env) and not _has_seen(normalized):
            self.normalization = self._vec_normalize_env.statistics()  # the policy knows no other observations
        super().set_env(wrapped, force_reset)
        self._resolve_tasks()

    # ------------------------------------------------------------------- tasks

    def adapt(
        self: SelfMultiTaskSAC,
        tasks: str | Sequence[str] | VecEnv | VectorEnv,
        *,
        tune: Tune = "routing",
        keep_tasks: bool = True,
        init: Init = "nearest",
        **kwargs: Any,
    ) -> SelfMultiTaskSAC:
        """A model of these tasks and of K new ones, which builds on what this one has learned; this one stays as it is.

        What is tuned and not of the new tasks alone is copied for them, and all else is frozen: with every ``tune`` but
        "all", the old tasks have the same actions, Q-values and temperatures as here, bit for bit, before and after
        learning. The new model learns in envs of the new tasks alone then.

        :param tasks: names of Meta-World tasks, for which envs are made with the seed of the model; or a vectorised env
            of the new tasks, or of all, the old ones first (with "all", which otherwise forgets the old tasks)
        :param tune: what learns: "routing": what chooses among the modules, experts or parameter sets, the task
            embedding included; "task": what is of each task alone at the input (embedding, or weights of the one-hot
            task); "heads": the output layers; "all": everything. Not every network has each of these
        :param keep_tasks: False leaves the old tasks behind: a model of the new tasks alone
        :param init: what the new tasks begin as: "nearest": each as the task whose policy earns the largest return in
            it, over three episodes; "mean": as the mean of the tasks; "fresh": anew, and what is tuned too. Always
            those tasks that the networks were first made for
        :param kwargs: arguments of the class in place of this model's, ``learning_rate=1e-3`` for instance
        :raises ConfigurationError: for tasks that are there already, or whose observations or actions are others, and a
            ``tune`` that means nothing for this policy
        """
        return adapt(self, tasks, tune, keep_tasks, init, kwargs)


def _has_seen(normalized: VecNormalize | None) -> bool:
    """Whether there is a normalisation that has statistics of a training."""
    if not isinstance(normalized, MultiTaskVecNormalize):
        return False
    return any(rms.count >= 1 for rms in [*normalized.obs_rms, *normalized.ret_rms])
