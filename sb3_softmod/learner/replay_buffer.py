"""Replay for many tasks: every batch holds the same number of samples of each task that there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from sb3_softmod.common.checks import require_integer
from sb3_softmod.common.errors import ConfigurationError
from sb3_softmod.common.task_observation import split
from sb3_softmod.envs.normalize import MultiTaskVecNormalize
from sb3_softmod.learner.task_rings import TaskRings, send


class MultiTaskReplayBuffer(TaskRings):
    """One ring of transitions for each task, whatever env they come from.

    The tasks share the capacity equally. A transition is a row of state, action and reward in float32, without the
    one-hot task, which its ring already tells. Its next state is stored only once, as the state of the row where its
    env went on; one that no row goes on from, such as the last of an episode, is kept aside. A truncated episode
    bootstraps (``handle_timeout_termination`` of SB3's buffer, always on).

    Memory is taken by the first transition or :meth:`allocate`, on the CPU as it is filled. With
    ``storage_device="cuda"`` all of it is on the GPU, and neither storing nor sampling waits for the GPU. Samples are
    drawn by torch's generator of that device.

    :param buffer_size: transitions in total, ``buffer_size // num_tasks`` for each task
    :param observation_space: ``[O + M]``
    :param action_space: a Box
    :param device: where batches go
    :param n_envs: envs that add transitions in one call
    :param optimize_memory_usage: must be False (the place is SB3's)
    :param handle_timeout_termination: must be True (the place is SB3's)
    :param num_tasks: M
    :param storage_device: where transitions are kept, sampled and normalised
    :param n_steps: the most steps of rewards in a sample, see :meth:`sample`; may be changed at any time, as may gamma
    :param gamma: the discount of a step within those
    :raises ConfigurationError: for a space without room for the tasks, or a buffer smaller than a row for each task
    """

    # ---------------------------------------------------------------- sampling

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw, with replacement, the same number of transitions of each of the P tasks that have any.

        With ``n_steps`` above 1, a sample goes on from its transition along the episode, for m steps in all:
        ``n_steps``, or fewer where the episode ends, terminated or truncated, or its newest transition is reached. Its
        reward is the sum of gamma^k r_k over k < m, each r_k normalised by itself; its next observation and ``dones``
        are those of the last step, and its discount is gamma^m: as of SB3's ``NStepReplayBuffer``, whose targets are
        reward + (1 - done) discount Q(next observation).

        :param batch_size: divisible by the number of tasks M; a batch of fewer tasks holds as many rows of it as they
            divide
        :param env: normalises the batch where one is given
        :return: ``batch_size // P * P`` rows, ordered by task, observations with their one-hot task; without discounts
            where ``n_steps`` is 1
        :raises ConfigurationError: if the M tasks do not divide the batch, or there are no transitions yet
        """
        check_batch_size(batch_size, self.num_tasks)
        sizes = self.size_per_task()
        tasks = np.flatnonzero(sizes)
        if not len(tasks):
            raise ConfigurationError("The replay buffer holds no transitions yet: collect some before sampling.")
        P, n, device = len(tasks), batch_size // len(tasks), self.storage_device
        present, first = self._to_storage(np.stack([sizes[tasks], self.capacity_per_task * tasks])[..., None])
        # In double precision, whose rounding no buffer is large enough to show.
        drawn = (th.rand(P, n, dtype=th.float64, device=device) * present).long()
        return self._batch((drawn + first).flatten(), tasks, env)

    def _batch(self, rows: Tensor, tasks: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        """The transitions of rows ``[P * n]``, ordered by their tasks ``[P]``."""
        P, M, S = len(tasks), self.num_tasks, self.state_dim
        way = self._way(rows)
        following = self._next.index_select(0, way[-1])
        both = th.cat([rows, following.clamp(min=0)])
        content = self._rows.index_select(0, both).view(2, P, -1, self._rows.shape[1])
        # Where the next state is a row's, any end is read and not used: to pick out the others would wait for a GPU.
        end = self._ends.index_select(0, (~following).clamp(min=0)).view(P, -1, S + 1)
        ended = (following < 0).view(P, -1, 1)
        states, actions, rewards = content[..., :S], content[0, ..., S:-1], content[0, ..., -1]
        if len(way) > 1:
            rewards = self._rows[:, -1].index_select(0, th.cat(way)).view(len(way), P, -1)
        th.where(ended, end[..., :S], states[1], out=states[1])
        dones = ended * end[..., -1:]
        if isinstance(env, MultiTaskVecNormalize):
            states, rewards = self._normalized(states, rewards, tasks, env)

        observations = states.new_empty(*states.shape[:-1], S + M, dtype=th.float32)
        state, task = split(observations, M)
        state.copy_(states)
        task.copy_(self._to_storage(np.eye(M, dtype=np.float32)[tasks])[:, None])
        if env is not None and not isinstance(env, MultiTaskVecNormalize):  # SB3's own, which knows arrays alone
            observations = th.from_numpy(self._normalize_obs(observations.cpu().numpy(), env))
            rewards = self._to_storage(self._normalize_reward(rewards.cpu().numpy(), env))
        batch = [observations[0], actions, observations[1], dones]
        batch += [rewards.float()] if len(way) == 1 else self._returns(rewards.flatten(1), th.stack(way))
        return ReplayBufferSamples(*(send(x.reshape(len(rows), -1).contiguous(), self.device) for x in batch))

    def _way(self, rows: Tensor) -> list[Tensor]:
        """The rows that an episode goes on to, ``n_steps`` times ``[B]``; where it does not, the same row again."""
        way = [rows]
        for _ in range(self.n_steps - 1):
            following = self._next.index_select(0, way[-1])
            way.append(th.where(following < 0, way[-1], following))
        return way

    def _returns(self, rewards: Tensor, way: Tensor) -> list[Tensor]:
        """The discounted sums of the rewards of all steps, and the discounts of what follows them; both ``[B]``.

        :param rewards: ``[n_steps, B]``
        :param way: see :meth:`_way`, ``[n_steps, B]``
        """
        gamma = float(self.gamma)
        steps = 1 + (way[1:] != way[:-1]).sum(0)  # a row is there again only where the way ends
        step = th.arange(len(way), device=way.device)[:, None]
        weights = gamma**step * (step < steps)
        return [(weights * rewards).sum(0).float(), gamma**steps]

    def _normalized(
        self, states: Tensor, rewards: Tensor, tasks: np.ndarray, env: MultiTaskVecNormalize
    ) -> tuple[Tensor, Tensor]:
        """What ``env`` makes of states ``[2, P, n, O]`` and rewards ``[P, n]``; in float64, as it does."""
        if env.norm_obs:
            groups = tasks if env.obs_statistics == "per-task" else np.zeros(1, int)
            mean, std = (self._to_storage(x[groups, None]) for x in env.obs_mean_and_std())  # [1 or P, 1, O]
            states = ((states - mean) / std).clamp_(-env.clip_obs, env.clip_obs)
        if env.norm_reward:
            scale = self._to_storage(env.reward_scale()[tasks, None])
            rewards = (rewards / scale).clamp_(-env.clip_reward, env.clip_reward)
        return states, rewards

    # ------------------------------------------------------- saving and loading

    def __getstate__(self) -> dict[str, Any]:
        """Only the rows that were stored, and as arrays: they load on a machine without the storage's device."""
        filled = {name: [part.cpu().numpy() for part in self._filled(name)] for name in ("_rows", "_next")}
        return {**vars(self), **filled, "_ends": self._ends.cpu().numpy(), "_content": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_ends" not in state:
            raise ConfigurationError(
                "This replay buffer was saved by an older version, in another layout: collect its transitions anew."
            )
        vars(self).update({"n_steps": 1, "gamma": 0.99, **state})  # which older versions did not have
        self.storage_device = get_device(self.storage_device)  # the CPU where there is no GPU
        self._make_rings(0)
        if self.size():
            self.allocate()
        for name in ("_rows", "_next"):
            for part, array in zip(self._filled(name), state[name], strict=True):
                part.copy_(th.from_numpy(array))
        self._ends = self._to_storage(state["_ends"])
        self._content = object()

    def _filled(self, name: str) -> list[Tensor]:
        """The part of each ring that holds transitions; a view."""
        begin = np.arange(self.num_tasks) * self.capacity_per_task
        return [vars(self)[name][a:b] for a, b in zip(begin, begin + self.size_per_task(), strict=True)]


def nbytes_of(buffer_size: int, observation_space: spaces.Space, action_space: spaces.Space, num_tasks: int) -> int:
    """The bytes of the rows of a full :class:`MultiTaskReplayBuffer`."""
    state_dim, action_dim = observation_space.shape[0] - num_tasks, action_space.shape[0]  # type: ignore[index]
    return 4 * buffer_size * (state_dim + action_dim + 2)  # with the reward and the index of the next state


def check_batch_size(batch_size: int, num_tasks: int) -> None:
    """Refuse a batch that cannot hold the same number of samples of each task.

    :raises ConfigurationError: with both numbers and the nearest batch sizes that can
    """
    require_integer("batch_size", batch_size, 1)
    if batch_size % num_tasks:
        lower = batch_size // num_tasks * num_tasks
        near = [str(size) for size in (lower, lower + num_tasks) if size > 0]
        raise ConfigurationError(
            f"batch_size={batch_size} is not divisible by the {num_tasks} tasks, and every batch holds the same number "
            f"of samples of each: take {' or '.join(near)}."
        )
