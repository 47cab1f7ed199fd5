"""How a model gathers experience: the loop around the envs, what is stored, what is logged."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise, VectorizedActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn
from stable_baselines3.common.vec_env import VecEnv

from sb3_softmod.algorithm.acting_sac import ActingSAC
from sb3_softmod.algorithm.logs import lay_out, record, record_episodes
from sb3_softmod.algorithm.options import check_learn
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import check_finite, check_transition, require_shape, task_ids
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.envs.overlap import Overlapped
from sb3_softmod.learner.replay_buffer import MultiTaskReplayBuffer
from sb3_softmod.saving.checkpoint_callback import checkpoint_callbacks
from sb3_softmod.saving.training_state import callbacks_of, go_on, settings_of

SelfCollectingSAC = TypeVar("SelfCollectingSAC", bound="CollectingSAC")


class CollectingSAC(ActingSAC):
    """SB3's loop for many tasks: checkpoints between its steps, learning meanwhile, each transition tested."""

    policy_at_warmup: bool
    _overlapped: Overlapped | None
    #: Whether ``learn`` is under way: nobody else may step the envs then.
    is_learning: bool

    @property
    def remaining_timesteps(self) -> int:
        """Environment steps that are left of what the last ``learn`` was to do."""
        return max(self._total_timesteps - self.num_timesteps, 0)

    def learn(
        self: SelfCollectingSAC,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | str | None = "auto",
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfCollectingSAC:
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
        collected = super().collect_rollouts(env, callback, *args, **kwargs)
        if not collected.continue_training:  # a callback ended it: SB3 drops the step that the envs have taken
            self._last_obs = None  # a later training begins new episodes
        return collected

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
        self._turns.begin(self.replay_buffer, self.learning_tasks, self.num_timesteps)
        ids = task_ids(self._last_obs, self.num_tasks)  # type: ignore[arg-type]
        check_finite("observation", self._last_obs, ids, self.task_names, self.num_timesteps)  # type: ignore[arg-type]
        self._learner()  # refuses what this device cannot do before anything is collected
        lay_out(self.logger)
        return out

    def _store_transition(self, replay_buffer: ReplayBuffer, buffer_action: np.ndarray, *step: Any) -> None:
        check_transition(self._last_obs, *step, self.task_names, self.num_timesteps)  # type: ignore[arg-type, call-arg]
        if self.reward_scale is not None:
            self._count_rewards(*step)
        if isinstance(normalize := self._vec_normalize_env, MultiTaskVecNormalize):
            *others, infos = step
            step = (*others, [normalize.to_store(info) for info in infos])
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
        record_episodes(self.logger, self.episode_statistics.means(), self.task_names)
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
