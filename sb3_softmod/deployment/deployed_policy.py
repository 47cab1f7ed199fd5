"""All that lies between a raw observation and an action, as one module."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from sb3_softmod.envs.normalization_statistics import obs_mean_and_std


class DeployedPolicy(nn.Module):
    """The deterministic policy with what surrounds it: normalisation as in its training, and the scale of the actions.

    All in float32: some runtimes have nothing else. The mean of the observations is therefore kept as the sum of two
    numbers, which are subtracted one after the other: an entry that hardly varies is divided by almost nothing, and
    what rounding its mean took would show.

    :param policy: of SAC; copied, to the CPU
    :param num_tasks: M
    :param statistics: of :meth:`.MultiTaskVecNormalize.statistics`; None where it learned from raw observations
    """

    mean: Tensor  # [groups, O], and what float32 leaves of it
    rest_of_mean: Tensor
    std: Tensor
    low: Tensor  # [A]
    high: Tensor

    def __init__(self, policy: SACPolicy, num_tasks: int, statistics: Mapping[str, Any] | None) -> None:
        super().__init__()
        policy = deepcopy(policy).to("cpu").requires_grad_(False)  # whole: the actor may read what the critics own
        policy.set_training_mode(False)
        self.actor = policy.actor
        space = policy.action_space
        assert isinstance(space, spaces.Box)
        self.width = policy.observation_space.shape[0] - num_tasks  # type: ignore[index]
        self.num_tasks = num_tasks
        self.register_buffer("low", th.as_tensor(space.low.ravel(), dtype=th.float32))
        self.register_buffer("high", th.as_tensor(space.high.ravel(), dtype=th.float32))
        self.normalizes = statistics is not None and bool(statistics["norm_obs"])
        self.per_task = self.normalizes and statistics["obs_statistics"] == "per-task"  # type: ignore[index]
        if self.normalizes:
            assert statistics is not None
            mean, std = obs_mean_and_std(statistics)  # float64
            rounded = mean.astype(np.float32)
            self.register_buffer("mean", th.as_tensor(rounded))
            self.register_buffer("rest_of_mean", th.as_tensor((mean - rounded).astype(np.float32)))
            self.register_buffer("std", th.as_tensor(std.astype(np.float32)))
            self.clip = float(statistics["clip_obs"])

    def forward(self, observation: Tensor, task: Tensor) -> Tensor:
        """The actions.

        :param observation: ``[B, O]``, raw
        :param task: ``[B, M]``, one-hot rows, or the shares of several tasks
        :return: ``[B, A]``, in the action space
        """
        if self.normalizes:
            observation = self._normalized(observation, task)
        mean = self.actor.get_action_dist_params(th.cat([observation, task], -1))[0]
        return self.low + 0.5 * (th.tanh(mean) + 1.0) * (self.high - self.low)

    def _normalized(self, observation: Tensor, task: Tensor) -> Tensor:
        mean, rest, std = self.mean, self.rest_of_mean, self.std
        if self.per_task:  # as MultiTaskVecNormalize: of the task with the largest share
            ids = task.argmax(-1)
            mean, rest, std = mean[ids], rest[ids], std[ids]
        return (((observation - mean) - rest) / std).clamp(-self.clip, self.clip)

    def example(self) -> tuple[Tensor, Tensor]:
        """Inputs of a batch of two, to trace with."""
        tasks = th.eye(self.num_tasks)[th.arange(2) % self.num_tasks]
        return th.zeros(2, self.width), tasks
