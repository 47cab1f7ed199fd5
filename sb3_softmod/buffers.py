"""Replay for many tasks: every batch holds the same number of samples of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.errors import ConfigurationError
from sb3_softmod.task_observation import append_tasks, check_space, split, task_ids


class MultiTaskReplayBuffer(ReplayBuffer):
    """One ring of transitions for each task, whatever env they come from.

    The tasks share the capacity equally. A transition is stored without its one-hot task, which its ring already
    tells, in float32. A truncated episode bootstraps (``handle_timeout_termination`` of SB3's buffer, always on).

    :param buffer_size: transitions in total, ``buffer_size // num_tasks`` for each task
    :param observation_space: ``[O + M]``
    :param action_space: a Box
    :param device: where batches go
    :param n_envs: envs that add transitions in one call
    :param optimize_memory_usage: must be False (the place is SB3's)
    :param num_tasks: M
    :raises ConfigurationError: for a space without room for the tasks, or a buffer smaller than a row for each task
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        *,
        num_tasks: int,
    ) -> None:
        check_space(observation_space, num_tasks)
        if optimize_memory_usage:
            raise ConfigurationError("MultiTaskReplayBuffer has no optimize_memory_usage; leave it False.")
        if buffer_size < num_tasks:
            raise ConfigurationError(f"buffer_size={buffer_size} leaves no room for each of {num_tasks} tasks.")
        # BaseBuffer's, since ReplayBuffer's would allocate its own arrays.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.num_tasks = num_tasks
        self.optimize_memory_usage = False
        self.handle_timeout_termination = True
        self.capacity_per_task = buffer_size // num_tasks
        rows = num_tasks * self.capacity_per_task  # task t owns the rows from t * capacity_per_task on
        width = self.obs_shape[0] - num_tasks
        self.observations = np.zeros((rows, width), np.float32)
        self.next_observations = np.zeros((rows, width), np.float32)
        self.actions = np.zeros((rows, self.action_dim), np.float32)
        self.rewards = np.zeros(rows, np.float32)
        self.dones = np.zeros(rows, np.bool_)  # true terminations only: a timeout bootstraps
        self.added_per_task = np.zeros(num_tasks, np.int64)

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        self.added_per_task = np.zeros(self.num_tasks, np.int64)

    def size_per_task(self) -> np.ndarray:
        """How many transitions of each task can be sampled, ``[M]``."""
        return np.minimum(self.added_per_task, self.capacity_per_task)

    def size(self) -> int:
        """How many transitions can be sampled, over all tasks."""
        return int(self.size_per_task().sum())

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: Sequence[dict[str, Any]],
    ) -> None:
        """Store one transition of each env in the ring of its task.

        :param obs: ``[n_envs, O + M]``
        :param next_obs: ``[n_envs, O + M]``; of an episode that ended, its last observation
        :param action: ``[n_envs, action_dim]``
        :param reward: ``[n_envs]``
        :param done: ``[n_envs]``
        :param infos: of each env; ``TimeLimit.truncated`` marks an episode that was cut, not ended
        """
        ids = task_ids(obs, self.num_tasks)
        # Envs of one task in one call take consecutive rows, in the order of the envs.
        earlier = np.tril(ids[:, None] == ids, -1).sum(1)
        rows = ids * self.capacity_per_task + (self.added_per_task[ids] + earlier) % self.capacity_per_task
        self.observations[rows] = split(obs, self.num_tasks)[0]
        self.next_observations[rows] = split(next_obs, self.num_tasks)[0]
        self.actions[rows] = action.reshape(len(ids), self.action_dim)
        self.rewards[rows] = reward
        self.dones[rows] = done & ~np.array([info.get("TimeLimit.truncated", False) for info in infos], np.bool_)
        self.added_per_task += np.bincount(ids, minlength=self.num_tasks)
        self.full = bool((self.added_per_task >= self.capacity_per_task).all())

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw ``batch_size / M`` transitions of each task, with replacement.

        :param batch_size: divisible by the number of tasks
        :param env: normalises the batch where one is given
        :return: rows ordered by task, observations with their one-hot task
        :raises ConfigurationError: if the tasks do not divide the batch, or a task has no transitions yet
        """
        check_batch_size(batch_size, self.num_tasks)
        sizes = self.size_per_task()
        if not sizes.all():
            raise ConfigurationError(
                f"No transitions of task {int(np.argmin(sizes))} yet: raise learning_starts until each task was seen."
            )
        ids = np.repeat(np.arange(self.num_tasks), batch_size // self.num_tasks)
        return self._batch(ids * self.capacity_per_task + np.random.randint(0, sizes[ids]), ids, env)

    def _batch(self, rows: np.ndarray, ids: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        data: tuple[Any, ...] = (
            self._normalize_obs(append_tasks(self.observations[rows], ids, self.num_tasks), env),
            self.actions[rows],
            self._normalize_obs(append_tasks(self.next_observations[rows], ids, self.num_tasks), env),
            self.dones[rows].astype(np.float32).reshape(-1, 1),
            self._scaled(self.rewards[rows], ids, env).reshape(-1, 1),
        )
        return ReplayBufferSamples(*(self.to_torch(array, copy=False) for array in data))

    def _scaled(self, rewards: np.ndarray, ids: np.ndarray, env: VecNormalize | None) -> np.ndarray:
        if isinstance(env, MultiTaskVecNormalize):
            return env.normalize_reward(rewards, ids)
        return self._normalize_reward(rewards, env)


def check_batch_size(batch_size: int, num_tasks: int) -> None:
    """Refuse a batch that cannot hold the same number of samples of each task.

    :raises ConfigurationError: with both numbers and the nearest batch sizes that can
    """
    if batch_size < 1 or batch_size % num_tasks:
        lower = batch_size // num_tasks * num_tasks
        near = [str(size) for size in (lower, lower + num_tasks) if size > 0]
        raise ConfigurationError(
            f"batch_size={batch_size} is not divisible by the {num_tasks} tasks, and every batch holds the same number "
            f"of samples of each: take {' or '.join(near)}."
        )
