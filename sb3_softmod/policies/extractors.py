"""Soft modularization as a features extractor, inside any algorithm of SB3."""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_softmod.common.task_observation import check_space, split
from sb3_softmod.networks import SoftModularNetwork
from sb3_softmod.networks.base import require_positive


class SoftModularExtractor(BaseFeaturesExtractor):
    """Features of an observation and its task by a soft-modular network.

    ``PPO("MlpPolicy", env, policy_kwargs=dict(features_extractor_class=SoftModularExtractor,
    features_extractor_kwargs=dict(num_tasks=10), net_arch=[]))``

    :param observation_space: ``[O + M]``
    :param num_tasks: M
    :param features_dim: width of the features, which are rectified (ReLU) as those of SB3's own extractors
    :param network_kwargs: options of :class:`.SoftModularNetwork`
    :raises ConfigurationError: for an observation space without room for the tasks, or an unknown option's value
    """

    def __init__(
        self, observation_space: spaces.Space, num_tasks: int, features_dim: int = 256, **network_kwargs: Any
    ) -> None:
        check_space(observation_space, num_tasks)
        require_positive(features_dim=features_dim)
        super().__init__(observation_space, features_dim)
        self.num_tasks = num_tasks
        width = observation_space.shape[0] - num_tasks  # type: ignore[index]
        self.network = SoftModularNetwork(width, features_dim, num_tasks, **network_kwargs)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """``[B, O + M]`` to ``[B, features_dim]``."""
        return th.relu(self.network(*split(observations, self.num_tasks)).squeeze(0))
