"""SB3 policies around multi-task networks: one actor and one critic class, for every network."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, Actor, SACPolicy
from torch.distributions import Normal

from sb3_softmod.common.checks import require_names
from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError, nearest
from sb3_softmod.common.files import as_path
from sb3_softmod.common.saved_files import naming
from sb3_softmod.common.task_observation import check_space, split
from sb3_softmod.networks import (
    CARENetwork,
    FiLMNetwork,
    HardRoutingNetwork,
    MixtureOfExpertsNetwork,
    MlpNetwork,
    MOORENetwork,
    MultiHeadNetwork,
    MultiTaskNetwork,
    PaCoNetwork,
    SingleTaskNetwork,
    SoftModularNetwork,
)
from sb3_softmod.networks.base import require_positive

SelfPolicy = TypeVar("SelfPolicy", bound="MultiTaskSACPolicy")


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
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        num_tasks: int,
        network_class: type[MultiTaskNetwork],
        network_kwargs: dict[str, Any],
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
        self.network_kwargs = network_kwargs
        self.network = network_class(
            self.features_dim - num_tasks, 2 * get_action_dim(action_space), num_tasks, **network_kwargs
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

    :param observation_space: ``[O + M]``
    :param action_space: a Box
    :param num_tasks: M
    :param network_class: the network
    :param network_kwargs: its options
    :param n_critics: E, the number of Q-functions
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        num_tasks: int,
        network_class: type[MultiTaskNetwork],
        network_kwargs: dict[str, Any],
        n_critics: int = 2,
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
        self.network_kwargs = network_kwargs
        self.network = network_class(
            features_dim - num_tasks + get_action_dim(action_space),
            1,
            num_tasks,
            ensemble_size=n_critics,
            **network_kwargs,
        )

    def forward(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """The Q-values of every member.

        :param obs: ``[B, O + M]``
        :param actions: ``[B, action_dim]``, scaled to [-1, 1]
        :return: E tensors ``[B, 1]``
        """
        state, task = split(self.extract_features(obs, self.features_extractor), self.num_tasks)
        return self.network(th.cat([state, actions], -1), task).to(state.dtype).unbind(0)  # under autocast too

    def q1_forward(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """The Q-values of the first member, ``[B, 1]``."""
        return self(obs, actions)[0]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**_constructor_parameters(self), "n_critics": self.n_critics}


def _constructor_parameters(module: MultiTaskActor | MultiTaskCritic) -> dict[str, Any]:
    return dict(
        observation_space=module.observation_space,
        action_space=module.action_space,
        num_tasks=module.num_tasks,
        network_class=type(module.network),
        network_kwargs=module.network_kwargs,
    )


class MultiTaskSACPolicy(SACPolicy):
    """Actor, critics and target critics of SAC around one multi-task network class.

    Works in :class:`sb3_softmod.MultiTaskSAC`, which fills in ``num_tasks``, and in plain
    :class:`stable_baselines3.SAC` with ``policy_kwargs=dict(num_tasks=...)``.

    :param observation_space: ``[O + M]``
    :param action_space: a Box
    :param lr_schedule: learning rate by remaining progress
    :param num_tasks: M
    :param use_sde: must be False (the place is SB3's)
    :param n_critics: E
    :param optimizer_class: for the actor and the critics
    :param optimizer_kwargs: its arguments but for the learning rate
    :param network_kwargs: options of the network, see :attr:`network_class`
    :raises ConfigurationError: for an unknown option, or without ``num_tasks``
    """

    network_class: ClassVar[type[MultiTaskNetwork]]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        num_tasks: int | None = None,
        use_sde: bool = False,
        n_critics: int = 2,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **network_kwargs: Any,
    ) -> None:
        if num_tasks is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs the number of tasks: policy_kwargs=dict(num_tasks=...). "
                "MultiTaskSAC and SoftModSAC take it from the env."
            )
        if use_sde:
            raise ConfigurationError(f"{type(self).__name__} has no gSDE: leave use_sde False.")
        options = _options_of(self.network_class)
        for name in network_kwargs:
            if name not in options:
                raise ConfigurationError(f"Unknown option {name!r} of {type(self).__name__}: {nearest(name, options)}")
        check_space(observation_space, num_tasks)
        require_positive("n_critics", n_critics)
        _check_optimizer(optimizer_class, optimizer_kwargs)
        self.num_tasks = num_tasks
        self.network_kwargs = network_kwargs
        self.n_critics = n_critics
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> MultiTaskActor:
        """A new actor; there is no features extractor to share."""
        return MultiTaskActor(
            self.observation_space,
            self.action_space,  # type: ignore[arg-type]
            self.num_tasks,
            self.network_class,
            self.network_kwargs,
        ).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> MultiTaskCritic:
        """New critics; there is no features extractor to share."""
        return MultiTaskCritic(
            self.observation_space,
            self.action_space,  # type: ignore[arg-type]
            self.num_tasks,
            self.network_class,
            self.network_kwargs,
            n_critics=self.n_critics,
        ).to(self.device)

    @th.inference_mode()  # SB3's no_grad still keeps the books that gradients need: a tenth of the time
    def predict(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The actions for some observations; arguments as in SB3."""
        return super().predict(*args, **kwargs)

    @classmethod
    def load(cls: type[SelfPolicy], path: str | Path, device: th.device | str = "auto") -> SelfPolicy:
        """Load what ``save`` wrote; arguments as in SB3. Loading runs code from the file: open only files you trust.

        :raises FileError: naming the file, if it is missing, broken or no policy
        """
        check_device("device", device)
        with naming(path, "policy"):
            return super().load(as_path(path), device)  # type: ignore[arg-type]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            lr_schedule=self._dummy_schedule,  # not needed to act
            num_tasks=self.num_tasks,
            n_critics=self.n_critics,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            **self.network_kwargs,
        )


def _check_optimizer(optimizer_class: Any, optimizer_kwargs: Any) -> None:
    """Refuse an optimizer that cannot be made, before any network is."""
    if not isinstance(optimizer_class, type) or not issubclass(optimizer_class, th.optim.Optimizer):
        raise ConfigurationError(f"optimizer_class must be a class of torch.optim, not {optimizer_class!r}.")
    if optimizer_kwargs is not None:
        require_names("optimizer_kwargs", optimizer_kwargs)
    parameter = th.zeros(1, requires_grad=True)
    parameter.grad = th.zeros(1)
    try:
        optimizer = optimizer_class([parameter], lr=1e-3, **(optimizer_kwargs or {}))  # type: ignore[call-arg]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{optimizer_class.__name__} does not take {optimizer_kwargs}: {error}") from error
    try:
        optimizer.step()
    except (TypeError, RuntimeError) as error:  # LBFGS needs the loss as a function, SparseAdam sparse gradients
        raise ConfigurationError(f"optimizer_class {optimizer_class.__name__} cannot step here: {error}") from error


def _options_of(network_class: type[MultiTaskNetwork]) -> list[str]:
    """The keyword options of a network that a user may set."""
    parameters = inspect.signature(network_class).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "ensemble_size"]


def policy_options(policy: type[MultiTaskSACPolicy]) -> list[str]:
    """What ``policy_kwargs`` may hold for a policy."""
    return [*_options_of(policy.network_class), "n_critics", "optimizer_class", "optimizer_kwargs"]


class SoftModPolicy(MultiTaskSACPolicy):
    """Soft modularization (Yang et al. 2020) in actor and critics; options: :class:`.SoftModularNetwork`."""

    network_class = SoftModularNetwork


class MTMlpPolicy(MultiTaskSACPolicy):
    """MT-SAC: the one-hot task beside the state; options: :class:`.MlpNetwork`."""

    network_class = MlpNetwork


class MultiHeadPolicy(MultiTaskSACPolicy):
    """MT-MH-SAC: a shared trunk and a head for each task; options: :class:`.MultiHeadNetwork`."""

    network_class = MultiHeadNetwork


class SingleTaskPolicy(MultiTaskSACPolicy):
    """Single-task SAC: a network for each task, nothing shared; options: :class:`.SingleTaskNetwork`."""

    network_class = SingleTaskNetwork


class MixtureOfExpertsPolicy(MultiTaskSACPolicy):
    """Mix-Expert: experts mixed by a gating network; options: :class:`.MixtureOfExpertsNetwork`."""

    network_class = MixtureOfExpertsNetwork


class HardRoutingPolicy(MultiTaskSACPolicy):
    """Hard Routing: one module a layer, chosen for each task; options: :class:`.HardRoutingNetwork`.

    Its controller needs the loss of every sample, which plain SAC does not tell: there it stays as it was drawn.
    """

    network_class = HardRoutingNetwork


class CAREPolicy(MultiTaskSACPolicy):
    """CARE: state encoders attended by a task context; options: :class:`.CARENetwork`."""

    network_class = CARENetwork


class PaCoPolicy(MultiTaskSACPolicy):
    """PaCo: parameters combined from shared sets; options: :class:`.PaCoNetwork`."""

    network_class = PaCoNetwork


class MOOREPolicy(MultiTaskSACPolicy):
    """MOORE: orthogonal experts and a head for each task; options: :class:`.MOORENetwork`."""

    network_class = MOORENetwork


class FiLMPolicy(MultiTaskSACPolicy):
    """FiLM: hidden layers scaled and shifted by the task; options: :class:`.FiLMNetwork`."""

    network_class = FiLMNetwork


#: The policies by the name that :class:`.MultiTaskSAC` knows them under.
POLICIES: dict[str, type[MultiTaskSACPolicy]] = {
    policy.__name__: policy
    for policy in (
        SoftModPolicy,
        MTMlpPolicy,
        MultiHeadPolicy,
        SingleTaskPolicy,
        MixtureOfExpertsPolicy,
        HardRoutingPolicy,
        CAREPolicy,
        PaCoPolicy,
        MOOREPolicy,
        FiLMPolicy,
    )
}
