"""One actor and one critic class, for every network."""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor
from torch.distributions import Normal

from sb3_softmod.common.task_observation import split
from sb3_softmod.networks import MultiTaskNetwork
from sb3_softmod.networks.adapted import TaskGroup, make_network
from sb3_softmod.policies.value_atoms import ValueAtoms, expectation


class _SquashedGaussian(SquashedDiagGaussianDistribution):
    """SB3's, in a form that torch.func can map over tasks: no checks of values, no sampling in place.

    The checks would also read a tensor back from the device at each step.
    """

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> _SquashedGaussian:
        self.distribution = Normal(mean_actions, log_std.exp(), validate_args=False)
        return self

    def sample(self) -> th.Tensor:
        mean, std = self.distribution.mean, self.distribution.stddev
        self.gaussian_actions = mean + std * th.randn_like(mean)
        return th.tanh(self.gaussian_actions)


class MultiTaskActor(Actor):
    """SB3's SAC actor whose mean and log standard deviation are the output of one multi-task network.

    :param observation_space: ``[O + M]``
    :param action_space: a Box
    :param num_tasks: M
    :param network_class: the network
    :param network_kwargs: its options
    :param groups: of the tasks, where it was adapted to new ones, see :class:`.AdaptedNetwork`
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        num_tasks: int,
        network_class: type[MultiTaskNetwork],
        network_kwargs: dict[str, Any],
        groups: list[TaskGroup] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            net_arch=[],
            features_extractor=FlattenExtractor(observation_space),
            features_dim=get_flattened_obs_dim(observation_space),
        )
        del self.latent_pi, self.mu, self.log_std  # SB3's own layers, replaced by the network
        self.action_dist = _SquashedGaussian(get_action_dim(action_space))  # type: ignore[assignment]
        self.num_tasks = num_tasks
        self.network_class, self.network_kwargs, self.groups = network_class, network_kwargs, groups
        outputs = 2 * get_action_dim(action_space)
        self.network = make_network(
            network_class, self.features_dim - num_tasks, outputs, num_tasks, groups, **network_kwargs
        )

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """Mean and log standard deviation of the Gaussian under the tanh.

        :param obs: ``[B, O + M]``
        :return: two tensors ``[B, action_dim]`` and no further arguments
        """
        state, task = split(self.extract_features(obs, self.features_extractor), self.num_tasks)
        mean, log_std = self.network(state, task).squeeze(0).to(state.dtype).chunk(2, -1)  # under autocast too
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX), {}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return _constructor_parameters(self)


class MultiTaskCritic(ContinuousCritic):
    """SB3's critic whose Q-functions are the members of one multi-task network.

    :param n_critics: E, the number of Q-functions
    :param value_atoms: None, and the network's output is the Q-value; or number K, least and greatest of the atoms of a
        :class:`.ValueAtoms`: the output is the logits of a distribution on these, whose expectation is the Q-value. The
        other arguments are those of :class:`MultiTaskActor`
    """

    atoms: th.Tensor  # [K]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        num_tasks: int,
        network_class: type[MultiTaskNetwork],
        network_kwargs: dict[str, Any],
        n_critics: int = 2,
        value_atoms: tuple[int, float, float] | None = None,
        groups: list[TaskGroup] | None = None,
    ) -> None:
        features_dim = get_flattened_obs_dim(observation_space)
        super().__init__(
            observation_space,
            action_space,
            net_arch=[],
            features_extractor=FlattenExtractor(observation_space),
            features_dim=features_dim,
            n_critics=0,  # SB3's own networks, replaced by the members of one
            share_features_extractor=False,
        )
        self.n_critics = n_critics
        self.num_tasks = num_tasks
        self.network_class, self.network_kwargs, self.groups = network_class, network_kwargs, groups
        self.value_atoms = value_atoms
        if value_atoms is not None:
            self.register_buffer("atoms", ValueAtoms(*value_atoms).values(), persistent=False)
        self.network = make_network(
            network_class,
            features_dim - num_tasks + get_action_dim(action_space),
            1 if value_atoms is None else value_atoms[0],
            num_tasks,
            groups,
            ensemble_size=n_critics,
            **network_kwargs,
        )

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """The Q-values of every member.

        :param obs: ``[B, O + M]``
        :param actions: ``[B, action_dim]``, scaled to [-1, 1]
        :return: E tensors ``[B, 1]``
        """
        predictions = self.predictions(obs, actions)
        if self.value_atoms is not None:
            predictions = expectation(predictions, self.atoms).unsqueeze(-1)
        return predictions.unbind(0)

    def predictions(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """What the network gives for every member: Q-values ``[E, B, 1]`` or, with atoms, logits ``[E, B, K]``."""
        state, task = split(self.extract_features(obs, self.features_extractor), self.num_tasks)
        return self.network(th.cat([state, actions], -1), task).to(state.dtype)  # under autocast too

    def q1_forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """The Q-values of the first member, ``[B, 1]``."""
        return self(obs, actions)[0]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"n_critics": self.n_critics, "value_atoms": self.value_atoms}
        return {**_constructor_parameters(self), **own}


def _constructor_parameters(module: MultiTaskActor | MultiTaskCritic) -> dict[str, Any]:
    names = ("observation_space", "action_space", "num_tasks", "network_class", "network_kwargs", "groups")
    return {name: getattr(module, name) for name in names}
