"""The policy that all methods share: actor, critics and target critics around one network class."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.sac.policies import SACPolicy

from sb3_softmod.common.checks import require_names
from sb3_softmod.common.devices import check_device
from sb3_softmod.common.errors import ConfigurationError, nearest
from sb3_softmod.common.files import as_path
from sb3_softmod.common.saved_files import naming
from sb3_softmod.common.task_observation import check_space
from sb3_softmod.networks import MultiTaskNetwork
from sb3_softmod.networks.adapted import check_groups
from sb3_softmod.networks.base import require_positive
from sb3_softmod.policies.actor_critic import MultiTaskActor, MultiTaskCritic
from sb3_softmod.policies.value_atoms import require_atoms

SelfPolicy = TypeVar("SelfPolicy", bound="MultiTaskSACPolicy")


class MultiTaskSACPolicy(SACPolicy):
    """Actor, critics and target critics of SAC around one multi-task network class.

    Works in :class:`sb3_softmod.MultiTaskSAC`, which fills in ``num_tasks``, and in plain
    :class:`stable_baselines3.SAC` with ``policy_kwargs=dict(num_tasks=...)``.

    :param observation_space: ``[O + M]``
    :param action_space: a Box
    :param lr_schedule: learning rate by remaining progress
    :param num_tasks: M
    :param use_sde: must be False
    :param n_critics: E
    :param optimizer_class: for the actor and the critics
    :param optimizer_kwargs: its arguments but for the learning rate; ``dict(weight_decay=1e-4,
        decoupled_weight_decay=True)`` makes AdamW of Adam
    :param critic_options: options of the critics' network, where they are others than the actor's
    :param value_atoms: of the critics, see :class:`.MultiTaskCritic`; an algorithm of this package says it
    :param groups: of the tasks, where the policy was adapted to new ones; :meth:`.MultiTaskSAC.adapt` says it
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
        critic_options: dict[str, Any] | None = None,
        value_atoms: tuple[int, float, float] | None = None,
        groups: list[dict[str, Any]] | None = None,
        **network_kwargs: Any,
    ) -> None:
        if num_tasks is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs the number of tasks: policy_kwargs=dict(num_tasks=...). "
                "MultiTaskSAC and SoftModSAC take it from the env."
            )
        if use_sde:
            raise ConfigurationError(f"{type(self).__name__} has no gSDE: leave use_sde False.")
        options = network_options(self.network_class)
        if critic_options is not None:
            require_names("critic_options", critic_options)
        for name in (*network_kwargs, *(critic_options or {})):
            if name not in options:
                raise ConfigurationError(f"Unknown option {name!r} of {type(self).__name__}: {nearest(name, options)}")
        check_space(observation_space, num_tasks)
        require_positive(n_critics=n_critics)
        _check_optimizer(optimizer_class, optimizer_kwargs)
        self.num_tasks = num_tasks
        self.network_kwargs = network_kwargs
        self.critic_options = critic_options
        self.value_atoms: tuple[int, float, float] | None = value_atoms and (*require_atoms(*value_atoms),)
        self.n_critics = n_critics
        self.groups = check_groups(groups, num_tasks, self.network_class, type(self).__name__)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.groups is not None:  # what does not learn is not the optimizers'
            for module in (self.actor, self.critic):
                module.optimizer = self._make_optimizer(module, lr_schedule)

    def _make_optimizer(self, module: th.nn.Module, lr_schedule: Schedule) -> th.optim.Optimizer:
        """An optimizer of what learns in a module."""
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return self.optimizer_class(learning, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> MultiTaskActor:
        """A new actor; there is no features extractor to share."""
        return MultiTaskActor(**self._parts(), network_kwargs=self.network_kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> MultiTaskCritic:
        """New critics; there is no features extractor to share."""
        return MultiTaskCritic(
            **self._parts(),
            network_kwargs={**self.network_kwargs, **(self.critic_options or {})},
            n_critics=self.n_critics,
            value_atoms=self.value_atoms,
        ).to(self.device)

    def _parts(self) -> dict[str, Any]:
        """What actor and critics are both made of."""
        names = ("observation_space", "action_space", "num_tasks", "network_class", "groups")
        return {name: getattr(self, name) for name in names}

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
        names = ("observation_space", "action_space", "num_tasks", "n_critics", "optimizer_class", "optimizer_kwargs")
        own = {name: getattr(self, name) for name in (*names, "critic_options", "value_atoms", "groups")}
        return {**own, "lr_schedule": self._dummy_schedule, **self.network_kwargs}  # which is not needed to act


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


def network_options(network_class: type[MultiTaskNetwork]) -> list[str]:
    """The options of a network that a user may set, by name."""
    parameters = inspect.signature(network_class).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "ensemble_size"]


def policy_options(policy: type[MultiTaskSACPolicy]) -> list[str]:
    """What ``policy_kwargs`` may hold for a policy."""
    return [
        *network_options(policy.network_class),
        "n_critics",
        "optimizer_class",
        "optimizer_kwargs",
        "critic_options",
    ]
