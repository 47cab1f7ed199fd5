"""Where the algorithm meets the learner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_softmod.algorithm.options import check_learning, check_n_steps, check_reward_scaling
from sb3_softmod.algorithm.task_turns import TaskTurns
from sb3_softmod.envs.episode_statistics import EpisodeStatistics
from sb3_softmod.learner.acceleration import Acceleration, decide
from sb3_softmod.learner.aggregators import GradientSurgery, Surgery
from sb3_softmod.learner.gradient_step import GradientStep
from sb3_softmod.learner.learned_weights import learned_weights
from sb3_softmod.learner.loss_weights import RECENT_EPISODES
from sb3_softmod.learner.metrics import TaskMetrics
from sb3_softmod.learner.options import LearnerOptions, LearnerState
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.learner.reward_scale import RewardScale, RewardScaling
from sb3_softmod.learner.task_rings import send
from sb3_softmod.learner.temperatures import Temperatures
from sb3_softmod.saving.loading import check_critic
from sb3_softmod.saving.sac import SavingSAC


class LearningSAC(SavingSAC):
    """SB3's SAC, whose gradient steps are those of the learner, which gets its options as plain values."""

    task_names: list[str]
    overlap: bool
    gradient_surgery: GradientSurgery | None
    gradient_surgery_kwargs: dict[str, Any] | None
    reward_scaling: RewardScaling | None
    _metrics: TaskMetrics
    #: What this model was adapted from, in plain data; None for one that was not.
    adapted_from: dict[str, Any] | None = None
    _turns: TaskTurns | None
    success_rates: th.Tensor  # [M], in the last episodes; up to date where the losses are weighted by them
    _success_is_of: tuple[EpisodeStatistics, int] | None  # and how many episodes they had seen
    _postponed: tuple[int, int] | None  # gradient steps that wait for the next step of the envs, and their batch size

    @property
    def learning_tasks(self) -> range:
        """The tasks that learn: all, or those that the model was adapted to while the others stay as they are."""
        groups = getattr(self.policy, "groups", None)
        if not groups or groups[-1]["tune"] == "all":
            return range(self.num_tasks)
        return range(self.num_tasks - groups[-1]["tasks"], self.num_tasks)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Take gradient steps on balanced batches, once the tasks had their turns; with ``overlap`` postpone them to
        the next step of the envs.
        """
        if self._turns is not None and self._turns.wait(self.replay_buffer):
            return
        if self.overlap:
            self._postponed = (gradient_steps, batch_size)
        else:
            self._learn_now(gradient_steps, batch_size)

    def _learn_now(self, gradient_steps: int, batch_size: int) -> None:
        """Take the gradient steps.

        Nothing in here waits for the device but :class:`.SingleTaskNetwork`, gradient surgery other than PCGrad,
        optimizers other than the fused Adam, and a look in every hundredth update whether all were finite.
        """
        step, buffer = self._learner(), self.replay_buffer
        assert buffer is not None
        self.policy.set_training_mode(True)
        step.set_learning_rate(self.lr_schedule(self._current_progress_remaining))
        if self.reward_scale is not None:
            self.reward_scale.update()
        if self.loss_weighting == "success":
            self._update_success_rates()
        try:
            for _ in range(gradient_steps):
                batch = buffer.sample(batch_size, env=self._vec_normalize_env)
                at = (self._n_updates + 1, self.num_timesteps)
                self._metrics.add(step(batch, getattr(buffer, "num_present", 0), at))
                if self._n_updates % self.target_update_interval == 0:  # SB3 counts anew in every call
                    step.update_targets()
                self._n_updates += 1
        finally:
            self.nonfinite_updates = step.finite.dropped

    def _learner(self) -> GradientStep:
        """The gradient step, told of options that changed; made once: compiled networks and recorded graphs are its.

        Tells the replay buffer too.
        """
        check_learning(vars(self))
        check_critic(vars(self), {name: getattr(self, name) for name in ("num_atoms", "v_min", "v_max")})
        self._update_reward_scale()
        state, buffer = self._learner_state(), self.replay_buffer
        assert buffer is not None
        check_n_steps(self.n_steps, type(buffer))
        self._tell_buffer()
        made = None if self._gradient_step is None else self._gradient_step.state
        if made is not None and (
            made.learned_weights is not state.learned_weights
            or made.options.on_nonfinite != state.options.on_nonfinite  # how many updates may fail in a row
        ):
            self._forget_gradient_step()
        if self._gradient_step is None:
            acceleration = self._acceleration()
            if self.verbose >= 1:
                print(acceleration)
            balanced = isinstance(buffer, MultiTaskReplayBuffer)
            self._gradient_step = GradientStep(state, acceleration, balanced, self.nonfinite_updates)
        vars(self._gradient_step.state).update(vars(state))
        return self._gradient_step

    def _tell_buffer(self) -> None:
        """Let batches have the returns that the model is to learn from now."""
        buffer = self.replay_buffer
        if isinstance(buffer, MultiTaskReplayBuffer):
            buffer.n_steps, buffer.gamma = self.n_steps, self.gamma
        elif isinstance(buffer, NStepReplayBuffer) and "gamma" not in self.replay_buffer_kwargs:
            buffer.gamma = self.gamma

    def _update_learned_weights(self) -> None:
        kind = (self.loss_weighting, self.loss_weighting_kwargs, self.num_tasks, self.device)
        self.learned_weights = learned_weights(*kind, self.learned_weights)

    def _update_reward_scale(self) -> None:
        """Let ``reward_scale`` be that of ``reward_scaling`` and of the discount; of another one it begins anew."""
        check_reward_scaling(self.reward_scaling, self.gamma, self._vec_normalize_env)
        made = self.reward_scale
        if self.reward_scaling is None:
            self.reward_scale = None
        elif made is None or made.gamma != self.gamma:
            self.reward_scale = RewardScale(self.num_tasks, self.gamma, self.device)
            if made is not None:
                self.reward_scale.set_progress(made.progress())

    def _update_success_rates(self) -> None:
        """Let the next gradient steps know of all episodes so far; a task without episodes counts as failing."""
        statistics = self.episode_statistics
        if self._success_is_of != (statistics, statistics.num_added):
            self._success_is_of = (statistics, statistics.num_added)
            rates = statistics.last(RECENT_EPISODES).means().get("success_rate", np.zeros(self.num_tasks))
            self.success_rates.copy_(send(th.from_numpy(np.nan_to_num(rates)).float(), self.device))

    def _learner_state(self) -> LearnerState:
        self._update_learned_weights()
        own = {each.name: getattr(self, each.name) for each in fields(LearnerOptions) if each.name != "task_names"}
        return LearnerState(
            self.policy,
            Temperatures(
                self.log_ent_coef,
                self.ent_coef_optimizer,
                self.ent_coef_tensor if self.log_ent_coef is None else None,
            ),
            LearnerOptions(tuple(self.task_names), **own),
            Path(getattr(getattr(self, "_logger", None), "dir", None) or ""),
            self.reward_scale,
            self._surgery_now(),
            self.learned_weights,
            self.success_rates if self.loss_weighting == "success" else None,
        )

    def _surgery_now(self) -> Surgery | None:
        """What combines the tasks' gradients; made anew, without memory, where the user has changed it."""
        given, options, made = self.gradient_surgery, self.gradient_surgery_kwargs, self._surgery
        if given is None if made is None else made.is_of(given, options, self.num_tasks):
            return made
        self._forget_gradient_step()  # not everything can be compiled or recorded
        self._surgery = None
        if given is not None:
            self._surgery = Surgery(given, options, self.num_tasks)
            self._surgery.set_state(self._surgery_to_continue)
            self._surgery_to_continue = {}
        return self._surgery

    def _acceleration(self) -> Acceleration:
        storage = getattr(self.replay_buffer, "storage_device", th.device("cpu"))
        return decide(self._learner_state().options, self.policy, self.device, storage)

    def _learning_progress(self) -> dict[str, Any]:
        return {
            "postponed": self._postponed,
            "metrics": self._metrics.progress(),
            "reward_scale": None if self.reward_scale is None else self.reward_scale.progress(),
            "dropped_in_a_row": self._learner().finite.watch.in_a_row(),
        }

    def _set_learning_progress(self, progress: Mapping[str, Any]) -> None:
        self._postponed = progress["postponed"]
        self._metrics.set_progress(progress["metrics"])
        if self.reward_scale is not None and progress.get("reward_scale") is not None:  # older checkpoints have none
            self.reward_scale.set_progress(progress["reward_scale"])

    def replay_dump(self, path: str | Path) -> None:
        """Take an update again that was not finite, and was dumped by a model that was made with the same arguments.

        The model gets the dump's parameters and temperatures, and nothing is applied to them. On the CPU the numbers
        are those of the run, to the bit; a GPU may round differently. Returns where this time everything is finite.
        Loading runs no code.

        :param path: ``nonfinite-<gradient step>.pt``
        :raises NonFiniteError: as in the run
        :raises ConfigurationError: for another file, or a model of other arguments
        """
        self._learner().finite.replay(path)

    def _learn_postponed(self) -> None:
        if self._postponed is not None:
            (gradient_steps, batch_size), self._postponed = self._postponed, None
            self._learn_now(gradient_steps, batch_size)
            self.policy.set_training_mode(False)  # as SB3 does before it collects
            if self.use_sde:  # the update has drawn noise for one env
                self.actor.reset_noise(self.n_envs)
