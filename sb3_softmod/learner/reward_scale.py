"""What the rewards of each task are divided by when they are learned from, by the largest return of the task so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch as th
from torch import Tensor

from sb3_softmod.learner.task_rings import send

RewardScaling = Literal["per-task"]
REWARD_SCALINGS: tuple[RewardScaling, ...] = get_args(RewardScaling)

#: Steps after which an episode counts as truncated: one that never ends would take ever more memory.
LONGEST_EPISODE = 10_000


class RewardScale:
    r"""The largest return of each task, from whole episodes, and the scale of its rewards.

    With the returns of an episode, :math:`G_t = r_t + \gamma G_{t+1}`, which a truncated episode of mean reward
    :math:`\bar r` goes on from its end with :math:`\bar r / (1 - \gamma)`, and a terminated one with 0, the scale of
    task i is

    .. math:: d_i = \frac1{v_\text{max}}
        \Big[\max_t |G_t| + \frac{\alpha_i |\bar{\mathcal H}|}{2 (1 - \gamma)}\Big]

    over all episodes so far. It is that of BRC, which has :math:`\max(G_\text{max}, |G_\text{min}|)`, the same, and
    :math:`-\bar{\mathcal H}`, the same for target entropies below 0; one above 0 adds to the magnitude of soft values
    too. Where all of that is 0, rewards are too, and :math:`d_i = 1`.

    Until an episode of a task has ended, its unfinished ones count provisionally, as though they were truncated now.

    :param num_tasks: M
    :param gamma: the discount, below 1
    :param device: where the learner is
    """

    def __init__(self, num_tasks: int, gamma: float, device: th.device) -> None:
        self.gamma = gamma
        self._largest = np.zeros(num_tasks)  # absolute return of each task, from the episodes that are over
        self._provisional = np.zeros(num_tasks)  # of episodes that broke off, as though they had been truncated there
        self._has_ended = np.zeros(num_tasks, bool)  # an episode of each task
        self._tasks = np.zeros(0, int)  # that the envs play
        self._rewards: list[list[float]] = []  # of the unfinished episode of each env
        self._told = np.zeros(num_tasks)
        #: ``[M]``, the largest absolute return of each task when :meth:`update` was last called; stays in place.
        self.largest = th.zeros(num_tasks, device=device)

    # ------------------------------------------------------------------ episodes

    def add(self, tasks: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> None:
        """Take up one step of n envs.

        :param tasks: ``[n]`` integers, of which task each reward is
        :param rewards: ``[n]``, as the envs gave them
        :param terminated: ``[n]`` booleans, episodes that ended in this step for good
        :param truncated: ``[n]`` booleans, those that were cut there
        """
        if not self._rewards:
            self._rewards = [[] for _ in rewards]
        self._tasks = tasks
        for own, reward in zip(self._rewards, rewards.tolist(), strict=True):
            own.append(reward)
        too_long = [len(own) >= LONGEST_EPISODE for own in self._rewards]
        for env in np.flatnonzero(terminated | truncated | too_long).tolist():
            task, episode = tasks[env], self._rewards[env]
            self._largest[task] = max(self._largest[task], self._largest_of(episode, bool(terminated[env])))
            self._has_ended[task] = True
            episode.clear()

    def begin(self, envs: np.ndarray | None = None) -> None:
        """New episodes begin, whatever became of those before, which go on to count provisionally.

        :param envs: ``[n]`` booleans, where they do; None for all envs, as many as there then are
        """
        begun = range(len(self._rewards)) if envs is None else np.flatnonzero(envs[: len(self._rewards)]).tolist()
        self._provisional = self._with_unfinished(begun)
        for env in begun:
            self._rewards[env].clear()
        if envs is None:
            self._rewards = []

    def largest_returns(self) -> np.ndarray:
        """The largest absolute return of each task so far, ``[M]``; 0 without any reward."""
        return np.where(self._has_ended, self._largest, self._with_unfinished(range(len(self._rewards))))

    def _with_unfinished(self, envs: Iterable[int]) -> np.ndarray:
        """The provisional return of each task, ``[M]``, with those of the unfinished episodes of some envs."""
        largest = self._provisional.copy()
        for env in envs:
            task, episode = self._tasks[env], self._rewards[env]
            if episode and not self._has_ended[task]:
                largest[task] = max(largest[task], self._largest_of(episode, terminated=False))
        return largest

    def _largest_of(self, rewards: list[float], terminated: bool) -> float:
        following = 0.0 if terminated else sum(rewards) / len(rewards) / (1 - self.gamma)
        largest = 0.0
        for reward in reversed(rewards):
            following = reward + self.gamma * following
            largest = max(largest, abs(following))
        return largest

    # ---------------------------------------------------------------- the learner

    def update(self) -> None:
        """Let the next gradient steps know of all episodes so far; does not wait for the device."""
        largest = self.largest_returns()
        if not np.array_equal(largest, self._told):
            self._told = largest
            self.largest.copy_(send(th.from_numpy(largest).float(), self.largest.device))

    def of(self, alpha: Tensor, target_entropy: float, v_max: float) -> Tensor:
        """What to divide rewards by.

        :param alpha: ``[M]``, the temperatures
        :param target_entropy: of all tasks
        :param v_max: what the largest return of a task becomes
        :return: ``[M]``, positive
        """
        scale = (self.largest + alpha * (abs(target_entropy) / (2 * (1 - self.gamma)))) / v_max
        return th.where(scale > 0, scale, 1.0)

    # -------------------------------------------------------------------- saving

    def set_largest_returns(self, largest: Sequence[float]) -> None:
        """Go on from the :meth:`largest_returns` of another one, which count for good.

        :param largest: ``[M]``
        """
        self._largest = np.array(largest, float)
        self._has_ended = self._largest > 0  # what is known needs no provisional returns

    def progress(self) -> dict[str, Any]:
        """What :meth:`set_progress` takes, unfinished episodes included."""
        arrays = {
            "largest": self._largest.copy(),
            "provisional": self._provisional.copy(),
            "has_ended": self._has_ended.copy(),
            "tasks": self._tasks.copy(),
        }
        return {"gamma": self.gamma, **arrays, "rewards": [np.array(rewards) for rewards in self._rewards]}

    def set_progress(self, progress: Mapping[str, Any]) -> None:
        """Go on from where another one was; of another discount only the unfinished episodes are taken."""
        if progress["gamma"] == self.gamma:
            largest, self._has_ended = progress["largest"], progress["has_ended"].copy()
            self._largest = np.where(self._has_ended, largest, 0)  # older ones have provisional returns there too
            self._provisional = progress.get("provisional", largest).copy()
        self._tasks, self._rewards = progress["tasks"].copy(), [each.tolist() for each in progress["rewards"]]
